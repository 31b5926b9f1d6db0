from __future__ import annotations

import inspect
import textwrap
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from orchestrator.submission.study import Study, import_directory, load_study
from workers.protocol.errors import InvalidInputError
from workers.protocol.spec import StudySpec

GOOD = """
name: s
objective: finetune
metric: accuracy
trials: 4
timeout: 2h
sampler: {type: tpe, seed: 7}
space:
  learning_rate: {type: float, low: 1e-5, high: 1.0e-2, log: true}
  batch_size: {type: categorical, choices: [16, 32]}
config:
  data: {source: texts.csv}
  epochs: 3
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="study.yaml"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        return str(path)

    return write


def test_a_study_file_is_read_with_paths_relative_to_it(write, tmp_path):
    spec = load_study(write(GOOD))
    assert (spec.name, spec.trials, spec.timeout) == ("s", 4, 7200.0)
    assert spec.space["learning_rate"].low == 1e-5
    assert spec.config["data"]["source"] == str(tmp_path / "texts.csv")


def test_trials_can_be_overridden(write):
    assert load_study(write(GOOD), trials=9).trials == 9


def test_an_objective_in_a_file_beside_the_study_is_found_from_anywhere(write, tmp_path):
    spec = load_study(write("{objective: 'train.py:objective'}", "my-study.yaml"))
    assert spec.objective == f"{tmp_path}/train.py:objective"
    assert spec.name == "my-study"


def test_a_bare_objective_is_a_study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_study("train.py:objective").objective == f"{tmp_path}/train.py:objective"
    assert load_study("train.py:objective").name == "train-objective"
    assert load_study("package.train:run", trials=3).name == "package.train-run"
    assert import_directory("train.py:objective") == tmp_path
    assert import_directory("package.train:run") == tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("trials: 4", "trails: 4"), "trails = 4: no such setting; did you mean 'trials'?"),
        (("low: 1e-5", "lwo: 1e-5"), "space.learning_rate.lwo = 1e-05: no such setting"),
        (("type: float", "type: flaot"), "space.learning_rate.type = 'flaot'; did you mean"),
        (("{type: float, ", "{"), "space.learning_rate.type = None"),
        (("name: s", "name: a b"), "name = 'a b': use letters, digits"),
        (("trials: 4", "trials: 0"), "trials = 0: it should be greater than or equal to 1"),
        (("trials: 4", f"trials: {10**400}"), "it should be less than or equal to 1000000000"),
        (("trials: 4", "share: {weight: 1.0e-320}"), "share.weight = 1e-320: it should be greater"),
        (("timeout: 2h", "timeout: soon"), "timeout = 'soon': 'soon' is no duration"),
        (("timeout: 2h", "keep: {models: best three}"), "'best three': write `all`, or `best 3`"),
        (("choices: [16", "choices: [[16]"), "choices.0 = [16]: a choice is text, a number, true"),
        (("trials: 4", "trials: 4\ntrials: 5"), "line 6, column 1: not YAML: the key 'trials'"),
        (("type: float", "type: float: :"), "line 9, column 30: not YAML"),
        (("objective: finetune", "objective: 3"), "objective = 3: it should be a valid string"),
    ],
)
def test_bad_input_is_one_line_with_the_field_the_value_and_the_way_out(write, change, message):
    with pytest.raises(InvalidInputError) as error:
        load_study(write(GOOD.replace(*change)))
    assert str(error.value).startswith("study.yaml")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just text"])
def test_what_is_no_mapping_is_refused(write, text):
    with pytest.raises(InvalidInputError, match="a study is a mapping"):
        load_study(write(text))


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(InvalidInputError, match=r"nowhere\.yaml: there is no such study file"):
        load_study("nowhere.yaml")
    with pytest.raises(InvalidInputError, match="or write package.train:objective"):
        load_study("package.train")


def test_a_script_can_give_whatever_a_file_can():
    keys = {"warm_start" if key == "from" else key for key in StudySpec.model_fields}
    assert keys - inspect.signature(Study).parameters.keys() == {"version"}
    share, keep = {"weight": 2.0, "priority": -1, "max_slots": 3}, {"models": "best 3"}
    spec = Study("a:b", share=share, keep=keep, progress_timeout="2m").spec
    assert (spec.share.model_dump(), spec.keep.model_dump()) == (share, keep)
    assert spec.progress_timeout == 120.0
    with pytest.raises(InvalidInputError, match=r"share\.wieght = 2: .* did you mean 'weight'"):
        Study("a:b", share={"wieght": 2})


def test_a_script_meets_the_same_messages():
    with pytest.raises(InvalidInputError, match="Study: trials = 0"):
        Study("finetune", trials=0)


def test_a_script_s_numbers_are_those_of_a_file_whatever_library_they_are_of():
    """A choice that was an integer of NumPy's became a float, and True the number 1."""
    study = Study(
        objective="train:objective",
        name="s",
        sampler={"type": "tpe", "n_startup_trials": np.int64(3)},
        space={
            "batch": {"type": "categorical", "choices": np.array([16, 32])},
            "flag": {"type": "categorical", "choices": [np.bool_(True), np.float32(0.5), "a"]},
        },
        config={"rate": np.float32(0.5), "path": Path("x"), "text": "x" * 2**21, "sizes": (1, 2)},
        timeout=timedelta(hours=1),
    )
    spec = StudySpec.read(study.spec.model_dump_json())
    choices = [*spec.space["batch"].choices, *spec.space["flag"].choices]
    assert [(each, type(each)) for each in choices] == [
        (16, int), (32, int), (True, bool), (0.5, float), ("a", str)
    ]  # fmt: skip
    assert spec.config == {"rate": 0.5, "path": "x", "text": "x" * 2**21, "sizes": [1, 2]}
    assert spec.sampler.model_extra == {"n_startup_trials": 3}
    assert spec.timeout == 3600


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"config": {"a": {"b": object()}}}, r"config\['a'\]\['b'\]: object: it has no plain JSON"),
        (
            {"sampler": {"type": "tpe", "gamma": lambda n: n}},
            r"sampler\['gamma'\]: function: .* name",
        ),
    ],
)
def test_what_no_file_can_hold_is_refused_by_its_place(fields, named):
    with pytest.raises(InvalidInputError, match=named):
        Study(objective="train:objective", name="s", **fields)
