"""What is said of an objective's error beyond its own text."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from workers.protocol.errors import ObjectiveError
from workers.trials.advice import advice_on
from workers.trials.objectives import load_objective

SCRIPT = """
import os, subprocess, sqlite3
from pathlib import Path

def reads(trial): open("data/train.csv")
def reads_bytes(trial): os.stat(b"data/train.csv")
def lists(trial): list(Path("data").iterdir())
def says_so_itself(trial): raise FileNotFoundError("no training data")
def wraps(trial):
    try:
        reads(trial)
    except OSError as error:
        raise RuntimeError("cannot prepare") from error
def wraps_while_handling(trial):
    try:
        reads(trial)
    except OSError:
        raise RuntimeError("cannot prepare")
def uses_arguments(trial): return arguments.lr
def uses_study(trial): return study.best_value
def uses_loaded(trial): return first
def imports(trial): import nowhere_to_be_found.at_all

def reads_absolute(trial): open("/nowhere/train.csv")
def hides(trial):
    try:
        reads(trial)
    except OSError:
        raise RuntimeError("cannot prepare") from None
def misspells(trial): return nothing
def uses_a_local(trial):
    if trial: local = 1
    return local
def fails(trial): raise ValueError("no")

if __name__ == "__main__":
    arguments = None
    with open(__file__) as source:
        for first in source:
            study = None
"""


@pytest.fixture
def error_of(tmp_path, monkeypatch):
    (tmp_path / "script_with_guard.py").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "script_with_guard"}
    exec(compile(SCRIPT, str(tmp_path / "script_with_guard.py"), "exec"), names)

    def call(name: str) -> Exception:
        with pytest.raises(Exception) as raised:  # noqa: PT011 - each its own
            names[name](None)
        return raised.value

    return call


@pytest.mark.parametrize(
    "name",
    ["reads", "reads_bytes", "lists", "says_so_itself", "wraps", "wraps_while_handling"],
)
def test_a_file_that_is_missing_is_looked_for_in_the_working_directory(error_of, tmp_path, name):
    advice = advice_on(error_of(name))
    assert f"the working directory of this worker is {tmp_path}" in advice
    assert "`Path(__file__).parent`" in advice


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("uses_arguments", 'arguments is set below `if __name__ == "__main__":`'),
        ("uses_study", "or use `trial.study`"),
        ("uses_loaded", "set it at the top of the module"),
        ("imports", "does not find nowhere_to_be_found: install it there, or put its folder on"),
    ],
)
def test_what_only_a_script_has_is_named_with_the_way_out(error_of, name, advice):
    assert advice in advice_on(error_of(name))


@pytest.mark.parametrize("name", ["reads_absolute", "hides", "misspells", "uses_a_local", "fails"])
def test_an_error_in_which_the_place_has_no_part_has_no_advice(error_of, name):
    assert advice_on(error_of(name)) == ""


def test_errors_that_lead_to_one_another_in_a_circle_and_odd_file_names_are_no_trouble():
    first, second = ValueError("a"), ValueError("b")
    first.__context__, second.__context__ = second, first
    assert advice_on(first) == ""
    odd = FileNotFoundError(2, "no such thing", object())
    assert "working directory" in advice_on(odd)


def test_a_directory_that_was_removed_and_an_import_are_told_too(tmp_path, monkeypatch):
    (tmp_path / "reads_at_its_top.py").write_text("open('train.csv')\n")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    Path.cwd().rmdir()
    try:
        with pytest.raises(ObjectiveError, match="working directory of this worker is removed"):
            load_objective(f"{tmp_path}/reads_at_its_top.py:objective", ["*"])
    finally:
        os.chdir(tmp_path)
