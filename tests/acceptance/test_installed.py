"""The wheel, installed under other Pythons that this machine has, beside workers of this one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.local.servers import start_process
from workers.installed import TRAINING

ROOT = Path(__file__).parents[2]

#: The minor versions of Python 3 that a host may have.
MINORS = (11, 12, 13)

#: How long a registry may take to give what an orchestrator needs.
INSTALL_SECONDS = 600

OBJECTIVE = """
def objective(trial):
    x = trial.suggest_float("x", 0, 1)
    trial.report(x, 1)
    return x
"""


def _interpreters(minor: int) -> Iterator[Path]:
    """Pythons of a version: on the PATH, and those of pyenv, which puts one version alone there."""
    if found := shutil.which(f"python3.{minor}"):
        yield Path(found)
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    yield from sorted(versions.glob(f"3.{minor}.*/bin/python3.{minor}"))


def _interpreter(minor: int) -> Path:
    for found in _interpreters(minor):
        if subprocess.run([found, "--version"], capture_output=True, check=False).returncode == 0:
            return found
    pytest.skip(f"there is no Python 3.{minor}")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT],
        check=True,
        capture_output=True,
    )
    (found,) = folder.glob("*.whl")
    return found


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("minor", [minor for minor in MINORS if minor != sys.version_info.minor])
def test_a_host_of_another_python_submits_and_drives_for_workers_of_this_one(fleet, wheel, minor):
    environment = fleet.folder / "environment"
    subprocess.run([_interpreter(minor), "-m", "venv", environment], check=True)
    words = ["install", "-qq", "--constraint", ROOT / "ops" / "constraints.txt", wheel]
    subprocess.run([environment / "bin" / "pip", *words], check=True, timeout=INSTALL_SECONDS)
    packages = next(environment.glob("lib/python3.*/site-packages"))
    assert not [name for name in TRAINING if (packages / name).exists()]
    program = environment / "bin" / "trialfleet"
    (fleet.folder / "square.py").write_text(OBJECTIVE)
    fleet.use_studies(fleet.folder)

    def call(*words: str) -> str:
        return subprocess.run(
            [program, *words],
            env=fleet.environment(),
            cwd=fleet.folder,
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout

    assert call("--version").startswith("trialfleet ")
    with (fleet.folder / "orchestrator.log").open("wb") as sink:
        served = start_process(
            [program, "serve"],
            env=fleet.environment(),
            stdin=subprocess.DEVNULL,
            output=sink,
        )
    fleet.orchestrators.append(served)
    fleet.worker()
    call("submit", "square.py:objective", "--trials", "3")
    fleet.study = "square-objective"
    fleet.await_over()
    assert [trial.state.name for trial in fleet.trials()] == ["COMPLETE"] * 3
    assert '"state":"finished"' in call("status", "square-objective", "--json").replace(" ", "")
