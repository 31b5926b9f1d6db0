from __future__ import annotations

import json
import math

import pytest
from pydantic import ValidationError

from orchestrator.storage.opening import check_same_spec
from workers.protocol.durations import parse_duration
from workers.protocol.errors import StudyExistsError, UnknownMessageError
from workers.protocol.messages import RunTrial
from workers.protocol.parameters import merge_params
from workers.protocol.spec import StudySpec


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("1.5m", 90),
        ("2h", 7200),
        (" 1d ", 86400),
        ("1h30m", 5400),
        ("1d 2h", 93600),
    ],
)
def test_durations_are_read_as_seconds(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["2 weeks", "", "h", "-1s", "1e3", "1:30", "1h1h", "1h 30", "90 s x"]
)
def test_other_durations_are_refused_with_examples(text):
    with pytest.raises(ValueError, match="write 90s, 15m, 2h, 1h30m or 1d"):
        parse_duration(text)


def test_params_are_laid_over_the_config_by_dotted_name_without_changing_it():
    config = {"model": {"hidden_size": 64}, "epochs": 1}
    merged = merge_params(config, {"model.num_hidden_layers": 2, "epochs": 3, "data.source": "x"})
    assert merged == {
        "model": {"hidden_size": 64, "num_hidden_layers": 2},
        "epochs": 3,
        "data": {"source": "x"},
    }
    assert config == {"model": {"hidden_size": 64}, "epochs": 1}


def test_the_task_that_is_meant_by_default_is_no_part_of_a_studys_identity():
    def identity(**config):
        return StudySpec(name="s", config=config).identity()

    assert identity(task="text_classification") == identity()
    assert identity(task="text_classification", epochs=1) == identity(epochs=1)
    assert identity(task="regression") != identity()


def test_what_is_the_same_study_runs_the_same_work():
    specs = [
        StudySpec(name="s", **{"config": {"epochs": 1}, **fields})
        for fields in [
            {}, {"config": {"epochs": 1, "task": "text_classification"}}, {"trials": 50},
            {"config": {"epochs": 2}}, {"config": {"epochs": 1, "task": "regression"}},
            {"objective": "a:b"}, {"objective": "a:b", "config": {"task": "text_classification"}},
        ]
    ]  # fmt: skip
    for one in specs:
        for other in specs:
            assert (one.work() == other.work()) == (one.identity() == other.identity())


def test_what_may_be_extended_is_no_part_of_a_studys_identity():
    short = StudySpec(name="s", trials=5, max_failures=1)
    long = StudySpec(name="s", trials=50, timeout="2h")
    assert short.identity() == long.identity()
    assert short.digest() != long.digest()
    assert StudySpec(name="s", metric="loss").identity() != short.identity()


def test_direction_and_directions_of_one_are_the_same_study():
    one = StudySpec(name="s", direction="maximize")
    assert one.identity() == StudySpec(name="s", directions=["maximize"]).identity()


def test_a_trials_seed_depends_on_the_study_and_the_number_alone():
    spec = StudySpec(name="s", sampler={"type": "tpe", "seed": 7})
    assert spec.trial_seed(3) == StudySpec(name="t", sampler={"seed": 7}).trial_seed(3)
    assert len({spec.trial_seed(number) for number in range(100)}) == 100
    assert all(0 <= spec.trial_seed(number) < 2**31 for number in range(100))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"direction": "minimize", "directions": ["minimize"]}, "not both"),
        ({"directions": []}, "is empty"),
        ({"metric": ["a", "b"]}, "names 2 values and `directions` 1"),
    ],
)
def test_directions_and_metrics_must_agree(fields, message):
    with pytest.raises(ValidationError, match=message):
        StudySpec(name="s", **fields)


def test_samplers_and_pruners_may_be_named_in_one_word():
    spec = StudySpec(name="s", sampler="random", pruner="median")
    assert (spec.sampler.type, spec.pruner.type) == ("random", "median")


def test_a_hint_survives_the_wire():
    hint = RunTrial(study="s", number=3, epoch="e", more=(4, 7))
    assert RunTrial.decode(json.loads(json.dumps(hint.model_dump()))) == hint
    before = {"version": 1, "study": "s", "number": 3, "epoch": "e", "seal": ""}
    assert RunTrial.decode(before).more == ()


@pytest.mark.parametrize(
    "body",
    [
        {"version": 2, "study": "s", "number": 0, "epoch": "e"},
        {"version": 1, "study": "s", "number": 0},
    ],
)
def test_a_hint_of_another_release_is_refused(body):
    with pytest.raises(UnknownMessageError, match="same release"):
        RunTrial.decode(body)


STORED = {
    "name": "s",
    "objective": "finetune",
    "space": {"x": {"type": "float", "low": 0.0, "high": 1.0, "when": {}, "log": False}},
    "directions": ["minimize"],
}


def test_what_was_stored_is_read_whatever_release_stored_it():
    later = {**STORED, "priority": 3, "resources": {"queue": "q", "memory": "4 GB"}}
    later["space"] = {"x": {**STORED["space"]["x"], "prior": "normal"}}
    spec = StudySpec.read(json.dumps(later))
    assert (spec.resources.queue, spec.space["x"].high) == ("q", 1.0)
    with pytest.raises(ValidationError, match="priority"):
        StudySpec.model_validate(later)
    with pytest.raises(ValidationError, match="version"):
        StudySpec.read({**STORED, "version": 2})


def test_a_field_that_a_release_adds_makes_no_study_another_one():
    now = StudySpec(name="s", space={"x": {"type": "float", "low": 0.0, "high": 1.0}})
    check_same_spec(now, STORED)
    check_same_spec(now, {**STORED, "priority": None, "pruner": {"type": "none"}})
    check_same_spec(now, now.identity())
    with pytest.raises(StudyExistsError, match="sampler"):
        check_same_spec(now, {**STORED, "sampler": {"type": "random"}})


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, None])
def test_a_config_travels_whole_and_is_the_same_study_again(value):
    spec = StudySpec(name="s", config={"bound": value, "nested": [{"bound": value}]})
    read = StudySpec.read(spec.model_dump_json())
    assert repr(read.config) == repr(spec.config)
    check_same_spec(spec, json.loads(json.dumps(read.identity())))


def test_a_hint_with_a_field_of_a_later_release_is_understood():
    hint = RunTrial(study="s", number=1, epoch="e")
    assert RunTrial.decode({**hint.model_dump(), "priority": 1}) == hint
