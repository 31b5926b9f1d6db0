"""The page's scripts by Node.js, as far as they go without a browser."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any

import playwright

#: What the scripts ask of a browser when they are loaded.
_BROWSER = """
globalThis.document = {
  documentElement: { dataset: {} }, createElement: () => ({ getContext: () => ({}) }),
};
globalThis.getComputedStyle = () => ({ getPropertyValue: () => "red" });
globalThis.sessionStorage = { getItem: () => null };
globalThis.innerWidth = 1000;
"""


def told_by_node(folder: Path, script: str, zone: str = "UTC") -> Any:
    """What a script writes as JSON to its output, with the page's scripts beside it.

    Args:
        folder: Where they are put; what else lies there, the script can read.
        script: A module.
        zone: The time zone that it runs in.
    """
    for asset in files("orchestrator.dashboard.assets").iterdir():
        if asset.name.endswith(".js"):
            (folder / asset.name).write_text(asset.read_text())
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "run.js").write_text(_BROWSER + script)
    bundled = Path(playwright.__file__).parent / "driver" / "node"
    finished = subprocess.run(
        [shutil.which("node") or bundled, "run.js"],
        cwd=folder, capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, "TZ": zone},
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)
