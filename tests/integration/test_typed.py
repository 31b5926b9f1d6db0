"""A user's script against the public names, by the type checkers that people have."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import playwright
import pytest

SCRIPT = Path(__file__).parents[1] / "typed_script.py"

#: Libraries whose types take mypy minutes to read; pyright reads them.
MYPY_INI = """[mypy]
strict = true
[mypy-torch.*,optuna.*,transformers.*,lightning.*,datasets.*,wandb.*,torchmetrics.*]
follow_imports = skip
"""


@pytest.fixture
def script(tmp_path) -> Path:
    """The script where no source of the package is beside it: both read what is installed."""
    return Path(shutil.copy(SCRIPT, tmp_path / "script.py"))


def checked(*command: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """What a type checker says of the script."""
    return subprocess.run(
        [*command, "script.py"], cwd=folder, capture_output=True, text=True, check=False
    )


def mypy(folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "mypy.ini").write_text(MYPY_INI)
    return checked(sys.executable, "-m", "mypy", "--config-file=mypy.ini", folder=folder)


def pyright(folder: Path) -> subprocess.CompletedProcess[str]:
    """Its wheel has the program, and would download a Node.js; playwright's is here."""
    found = importlib.util.find_spec("pyright")
    if found is None or found.origin is None:
        tell = pytest.fail if os.environ.get("CI") else pytest.skip
        tell("no pyright here: pip install pyright")
    node = Path(playwright.__file__).parent / "driver" / "node"
    program = Path(found.origin).parent / "dist" / "index.js"
    return checked(node, program, "--pythonpath", sys.executable, folder=folder)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("check", [mypy, pyright])
def test_a_script_that_uses_the_public_names_is_typed_and_a_mistake_in_it_is_found(script, check):
    finished = check(script.parent)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    text = script.read_text()
    script.write_text(text + "\n\nget_tensor_manager().clear_memory(1)\nStudy(plain, trials=[])\n")
    finished = check(script.parent)
    assert finished.returncode == 1, "what is installed is read, and no mistake passes as Any"
    assert finished.stdout.count("error:") == 2 or finished.stdout.count(" - error") == 2
