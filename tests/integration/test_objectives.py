"""Objectives as people write them, each loaded and called as a pool process does it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.submission.preflight import check
from orchestrator.submission.submit import submit
from workers.importing import IMPORTING
from workers.protocol.errors import InvalidInputError, ObjectiveError
from workers.protocol.spec import StudySpec
from workers.settings import Settings
from workers.trials.objective_modules import ObjectiveModules, StaleExtensionError
from workers.trials.objectives import call_objective, load_objective

SHAPES = """
from __future__ import annotations
import functools
from typing import TYPE_CHECKING, Any
import optuna
if TYPE_CHECKING:
    from somewhere import Stranger
    from workers.managers import CUDAManager

def plain(trial): return 1
def keywords(trial, **options): return len(options)
def positions(*args): return len(args)
def defaults(trial, width=3, *, depth: int = 4): return width + depth
def annotated(trial: optuna.Trial, other: Stranger = None) -> Stranger: return 5
def managed(trial: Stranger, cuda: CUDAManager): return type(cuda).__name__
def strange(trial, thing: Stranger): return 0

def noisy(function):
    def call(*args, **kwargs):
        return function(*args, **kwargs)
    return call

@noisy
def decorated(trial): return 6

class Model:
    def __init__(self, size): self.size = size
    def __call__(self, trial): return self.size
    def method(self, trial, cuda: CUDAManager): return type(cuda).__name__
    @staticmethod
    def static(trial): return 8

instance = Model(7)
partial = functools.partial(defaults, width=10)
bound = instance.method
number = 9
fast = max
"""


@pytest.fixture
def modules():
    """What a fresh process has imported; after the test, all that it imported is dropped."""
    made = ObjectiveModules()
    path = list(sys.path)
    yield made
    made._drop()
    sys.path[:] = path


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("plain", 1), ("keywords", 0), ("positions", 1), ("defaults", 7), ("annotated", 5),
        ("managed", "CUDAManager"), ("decorated", 6), ("instance", 7), ("Model.static", 8),
        ("partial", 14), ("bound", "CUDAManager"), ("instance.method", "CUDAManager"),
    ],
)  # fmt: skip
def test_whatever_can_be_called_with_a_trial_alone_is_an_objective(
    tmp_path, container, modules, name, value
):
    (tmp_path / "shapes.py").write_text(SHAPES)
    reference = f"{tmp_path}/shapes.py:{name}"
    objective = load_objective(reference, [f"{tmp_path}/shapes.py"], modules)
    assert call_objective(objective, "the trial", container) == value


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("strange", "objective parameter 'thing' is annotated 'Stranger'"),
        ("number", "is a int, not a function"),
        ("nothing", "does not import: AttributeError"),
    ],
)
def test_what_is_none_is_refused_by_name(tmp_path, container, modules, name, message):
    (tmp_path / "shapes.py").write_text(SHAPES)
    allowed = [f"{tmp_path}/shapes.py"]
    with pytest.raises(ObjectiveError, match=message):
        call_objective(load_objective(f"{allowed[0]}:{name}", allowed, modules), None, container)


def write(path: Path, value: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("from sibling import VALUE\ndef objective(trial): return VALUE\n")
    path.with_name("sibling.py").write_text(f"VALUE = {value}  # {'x' * value}\n")
    return f"{path}:objective"


def test_two_files_of_one_name_run_each_their_own_and_so_do_their_siblings(tmp_path, modules):
    one, two = write(tmp_path / "a" / "train.py", 1), write(tmp_path / "b" / "train.py", 2)
    for reference, value in [(one, 1), (two, 2), (one, 1), (two, 2)]:
        assert load_objective(reference, ["*"], modules)(None) == value


def test_a_file_that_was_edited_is_imported_anew_and_so_is_a_sibling(tmp_path, modules):
    reference = write(tmp_path / "train.py", 1)
    assert load_objective(reference, ["*"], modules)(None) == 1
    write(tmp_path / "train.py", 2)
    assert load_objective(reference, ["*"], modules)(None) == 2
    (tmp_path / "train.py").write_text("def objective(trial): return 'edited'\n")
    assert load_objective(reference, ["*"], modules)(None) == "edited"


def test_a_module_by_name_that_was_edited_is_imported_anew(tmp_path, modules, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, reference in (("flat", "flat:objective"), ("pack/deep", "pack.deep:objective")):
        file = tmp_path / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        for value in ("1", "'edited'"):
            file.write_text(f"def objective(trial): return {value}\n")
            assert repr(load_objective(reference, ["*"], modules)(None)) == value
    assert str(tmp_path) in sys.path


def test_an_edit_of_the_same_length_in_the_same_second_is_imported_anew(
    tmp_path, modules, monkeypatch
):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    reference = write(tmp_path / "train.py", 1)
    for value in range(1, 6):
        (tmp_path / "sibling.py").write_text(f"VALUE = {value}\n")
        assert load_objective(reference, ["*"], modules)(None) == value
        started = "import train; print(train.VALUE)"  # as a loader process imports it
        seen = subprocess.check_output([sys.executable, "-c", started], cwd=tmp_path, text=True)
        assert int(seen) == value


def test_a_module_finds_the_arguments_of_its_file_when_it_is_imported(
    tmp_path, modules, monkeypatch
):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["celery", "worker"])
    source = """
import argparse, sys
parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.5)
ARGUMENTS = parser.parse_args()
def objective(trial): return sys.argv, ARGUMENTS.lr, parser.parse_args().lr, parser.prog
"""
    (tmp_path / "pack").mkdir()
    for reference, file in [
        (f"{tmp_path}/plain.py", "plain.py"),
        ("flat", "flat.py"),
        ("pack.deep", "pack/deep.py"),
        ("pack", "pack/__init__.py"),
    ]:
        (tmp_path / file).write_text(source)
        objective = load_objective(f"{reference}:objective", ["*"], modules)
        for _ in range(2):
            expected = ([f"{tmp_path}/{file}"], 0.5, 0.5, Path(file).name)
            assert objective(None) == expected
            objective = load_objective(f"{reference}:objective", ["*"], modules)
        check(StudySpec(name="s", objective=f"{reference}:objective"), import_directory=tmp_path)


def test_a_file_may_be_named_as_one_of_ours(tmp_path):
    for name in ("study", "status", "run"):
        (tmp_path / f"{name}.py").write_text("def objective(trial): return 1\n")
        check(StudySpec(name="s", objective=f"{name}:objective"), import_directory=tmp_path)


def test_what_did_not_change_is_not_imported_again(tmp_path, modules):
    reference = write(tmp_path / "train.py", 1)
    first = load_objective(reference, ["*"], modules)
    assert load_objective(reference, ["*"], modules) is first


def test_a_c_extension_of_another_study_ends_the_process(tmp_path, modules):
    reference = write(tmp_path / "a" / "train.py", 1)
    load_objective(reference, ["*"], modules)
    sys.modules["train"].__file__ = str(tmp_path / "a" / "train.cpython-311-x86_64-linux-gnu.so")
    try:
        with pytest.raises(StaleExtensionError, match="C extension"):
            load_objective(write(tmp_path / "b" / "train.py", 2), ["*"], modules)
    finally:
        sys.modules["train"].__file__ = str(tmp_path / "a" / "train.py")


@pytest.mark.parametrize(
    "folder", ["lr=0.1,bs=32", "10:21:15", "two words", "é à", "実験", "[1]", "a'b\"c", "%20"]
)
def test_a_folder_of_any_name_holds_an_objective(tmp_path, modules, folder):
    reference = write(tmp_path / folder / "train.py", 3)
    settings = Settings(objectives=(f"{tmp_path}/{folder}/train.py", "other"))
    read = Settings.from_environment(settings.to_environment())
    assert read.objectives == settings.objectives
    assert load_objective(reference, read.objectives, modules)(None) == 3
    check(StudySpec(name="s", objective=reference))


@pytest.mark.parametrize(
    "neighbour", ["workers.py", "datasets.py", "json.py", "click.py", "torch/__init__.py"]
)
def test_a_neighbour_that_hides_what_workers_need_is_refused_with_both_names(tmp_path, neighbour):
    reference = write(tmp_path / "train.py", 1)
    (tmp_path / neighbour).parent.mkdir(exist_ok=True)
    (tmp_path / neighbour).write_text("raise SystemExit(3)\n")
    with pytest.raises(InvalidInputError, match=neighbour) as refused:
        check(StudySpec(name="s", objective=reference))
    assert "in place of /" in str(refused.value)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("print('hello', end='')", None),
        ("import sys; sys.stdout.buffer.write(b'\\xff\\xfe {')", None),
        ("import atexit; atexit.register(print, 'bye', end='')", None),
        ("raise ValueError('\\ud800')", r"ValueError: \\ud800"),
        ("class E(Exception):\n    def __str__(self): raise E\nraise E", "its text cannot be had"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("import os; os._exit(7)", "ended the process with code 7"),
        ("import sys; sys.stderr.buffer.write(b'\\xff'); import os; os._exit(1)", r"\\xff"),
        ("def objective(): pass", "takes no argument"),
    ],
)
def test_a_module_is_checked_whatever_it_prints_or_raises(tmp_path, source, problem):
    (tmp_path / "talks.py").write_text(f"def objective(trial): return 1\n{source}\n")
    spec = StudySpec(name="s", objective=f"{tmp_path}/talks.py:objective")
    if problem is None:
        check(spec)
    else:
        with pytest.raises(InvalidInputError, match=problem):
            check(spec)


OPTIMIZES = """
import optuna
def objective(trial):
    inner = optuna.create_study()
    inner.optimize(lambda trial: 2.0, n_trials=1)
    return inner.best_value
def main():
    study = optuna.create_study()
    optimize = study.optimize
    optimize(objective, n_trials=1)
"""
SUBMITS = """
from pathlib import Path
from orchestrator import Study
from orchestrator.local.run import run
from workers.settings import Settings
def objective(trial): return 2.0
def main(): Study(objective, trials=1).submit()
def run_it(): run(Study(objective).spec, Path.cwd(), Settings(home=Path("home")), None)
def command():
    import subprocess
    words = [sys.executable, "-m", "orchestrator.cli", "run", f"{__file__}:objective"]
    finished = subprocess.run(words, stderr=subprocess.PIPE, text=True)
    raise SystemExit(finished.stderr)
import sys
"""


@pytest.mark.parametrize(
    ("source", "call", "what"),
    [
        (OPTIMIZES, "main", "runs a study with `study.optimize`"),
        (SUBMITS, "main", "hands in a study"),
        (SUBMITS, "run_it", "runs a study"),
        (SUBMITS, "command", "runs a study"),
    ],
)
def test_a_module_that_runs_a_study_at_its_top_is_told_so_by_name(
    tmp_path, modules, monkeypatch, source, call, what
):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "runs_itself.py"
    told = f"{file} {what} while it is imported for its objective; put that below `if __name__"
    spec = StudySpec(name="s", objective=f"{file}:objective")
    file.write_text(f"{source}\n{call}()\n")
    with pytest.raises(InvalidInputError) as refused:
        check(spec)
    assert told in str(refused.value)
    with pytest.raises(ObjectiveError) as not_imported:
        load_objective(spec.objective, ["*"], modules)
    assert told in str(not_imported.value)
    file.write_text(f"{source}\nif __name__ == '__main__':\n    {call}()\n")
    check(spec)
    assert load_objective(spec.objective, ["*"], modules)(None) == 2.0
    assert not (tmp_path / "home").exists()


def test_an_objective_that_only_the_script_sets_is_told_so(tmp_path):
    guarded = "if __name__ == '__main__':\n    objective = print\n"
    (tmp_path / "script.py").write_text(guarded)
    with pytest.raises(InvalidInputError, match="no 'objective': it is set below"):
        check(StudySpec(name="s", objective=f"{tmp_path}/script.py:objective"))


def test_a_script_that_submits_itself_without_a_guard_starts_nothing_twice(
    tmp_path, settings, monkeypatch
):
    source = """
from orchestrator import Study
def objective(trial): return 1
Study(objective, name="itself", trials=1).submit()
"""
    script = tmp_path / "itself.py"
    script.write_text(source)
    finished = subprocess.run(
        [sys.executable, script],
        env={**os.environ, **settings.to_environment()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode != 0
    assert "itself.py hands in a study while it is imported" in finished.stderr
    assert '__name__ == "__main__"' in finished.stderr
    monkeypatch.setenv(IMPORTING, "train.py")
    with pytest.raises(InvalidInputError, match="train.py"):
        submit(StudySpec(name="s"), settings)


def test_settings_hold_names_with_commas():
    with pytest.raises(InvalidInputError, match="no JSON list"):
        Settings.from_environment({"FLEET_OBJECTIVES": "[train"})
    read = Settings.from_environment({"FLEET_OBJECTIVES": json.dumps(["a,b", "c"])})
    assert read.objectives == ("a,b", "c")
