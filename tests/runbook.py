"""Follows the runbook of `ops/deploy`: runs what it says, block by block, with values of a test."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

_PAGE = Path(__file__).parents[1] / "ops" / "deploy" / "RUNBOOK.md"


class Runbook:
    """Runs what the page says under a heading, block by block.

    Args:
        folder: For what the commands need.
        environment: That of a member of the fleet, as it is by now.
        variables: What the page's variables stand for here.
    """

    def __init__(
        self, folder: Path, environment: Callable[[], Mapping[str, str]], **variables: object
    ) -> None:
        parts = re.split(r"^## (.+)$", _PAGE.read_text(), flags=re.MULTILINE)[1:]
        #: by heading, the blocks that nobody has followed yet
        self.left = {
            heading: re.findall(r"^```bash\n(.*?)^```", body, flags=re.MULTILINE | re.DOTALL)
            for heading, body in zip(parts[::2], parts[1::2], strict=True)
        }
        self._environment, self._variables = environment, variables
        self._programs = folder / "programs"
        self._programs.mkdir()
        found = shutil.which("valkey-cli") or shutil.which("redis-cli")
        if found is None:
            pytest.skip("no valkey-cli on the PATH")
        (self._programs / "valkey-cli").symlink_to(found)

    def follow(self, heading: str, **variables: object) -> str:
        """Run the next block under a heading; what it prints."""
        places = [str(self._programs), str(Path(sys.executable).parent), os.environ["PATH"]]
        given = {**self._variables, **variables}
        finished = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self.left[heading].pop(0)],
            env={
                **self._environment(),
                "PATH": os.pathsep.join(places),
                **{name: str(value) for name, value in given.items()},
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert finished.returncode == 0, finished.stdout + finished.stderr
        return finished.stdout
