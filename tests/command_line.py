"""The command line in this process: what it prints, and what it ends with."""

from __future__ import annotations

import sys
import threading
from typing import NamedTuple

import pytest

from orchestrator import cli
from orchestrator.views import json_output


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


class CommandLine:
    """Runs commands as the console script does, without a terminal.

    Args:
        monkeypatch: What is set for them lasts as long as its test.
        capsys: Hears what they print.
        environment: Variables of all of them.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        **environment: str,
    ) -> None:
        self._patch, self._capsys = monkeypatch, capsys
        self._environment = environment

    def __call__(self, *words: object, **environment: str) -> Ended:
        """Run one; what it prints is one's own, whatever was printed before."""
        self._patch.setattr(json_output, "_printed", False)
        self._patch.setattr(sys, "argv", ["trialfleet", *map(str, words)])
        for name, value in {**self._environment, **environment}.items():
            self._patch.setenv(name, value)
        hook, of_threads = sys.excepthook, threading.excepthook
        self._capsys.readouterr()
        try:
            with pytest.raises(SystemExit) as end:
                cli.main()
        finally:
            sys.excepthook, threading.excepthook = hook, of_threads
        code = end.value.code
        assert isinstance(code, int)
        return Ended(code, *self._capsys.readouterr())
