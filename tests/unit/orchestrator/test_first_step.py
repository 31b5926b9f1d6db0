"""The first step of the command line: an interrupt is one line also while all is imported."""

from __future__ import annotations

import os
import subprocess
import sys

import orchestrator

#: Has Ctrl-C come while Optuna is imported, the first of what takes long.
INTERRUPTED = """
import os, signal, sys

signal.signal(signal.SIGINT, signal.default_int_handler)  # a run in the background ignores it

class AtOptuna:
    def find_spec(self, name, *_):
        if name == "optuna":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, AtOptuna())
"""


def test_an_interrupt_while_all_is_imported_is_one_line(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTED)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    program = "from orchestrator.__main__ import main; main()"  # as the console script has it
    finished = subprocess.run(
        [sys.executable, "-c", program, "--version"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert finished.stderr == "trialfleet: interrupted\n"
    assert finished.returncode == 130


def test_the_public_names_are_there_and_no_others():
    for name in orchestrator.__all__:
        assert getattr(orchestrator, name).__name__ == name
    assert not hasattr(orchestrator, "Nothing")
