"""The JSON schema of study files, as an editor's validator reads it."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest

from orchestrator.submission.schema import study_schema
from orchestrator.submission.study import build_spec
from orchestrator.submission.study_file import read_study_file, read_value
from workers.protocol.errors import InvalidInputError

STUDIES = sorted((Path(__file__).parents[4] / "ops" / "studies").glob("*.yaml"))


@pytest.fixture(scope="module")
def validator():
    schema = study_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def is_readable(fields):
    try:
        build_spec(fields, "s.yaml", base=Path("/"))
    except InvalidInputError:
        return False
    return True


def test_our_own_studies_are_valid(validator):
    assert STUDIES
    for path in STUDIES:
        validator.validate(read_study_file(path))


@pytest.mark.parametrize(
    "text",
    [
        "{}", "timeout: 2h", "timeout: 90", "timeout: 1h30m", "sampler: tpe", "pruner: median",
        "sampler: {type: tpe, seed: 7, n_startup_trials: 6}", "space:", "direction: maximize",
        "directions: [maximize, minimize]", "metric: [a, b]\ndirections: [maximize, minimize]",
        "space: {x: {type: float, low: 0, high: 1}, y: {type: int, low: 1, high: 2, when: {x: 3}}}",
        "space: {x: {type: categorical, choices: [a, 1, null, true]}}",
        "objective: a.b:c\nconfig: {anything: [1]}", "resources: {queue: big, gpus: 0}",
        "config: {epochs: 3, model: {architecture: bert, hidden_size: 128}}",
    ],
)  # fmt: skip
def test_what_can_be_read_is_valid(validator, text):
    fields = read_value(text, "s")
    assert is_readable(fields)
    validator.validate(fields)


@pytest.mark.parametrize(
    "text",
    [
        "trails: 3", "trials: 0", "trials: many", "timeout: soon", "direction: up",
        "space: {x: {type: flaot}}", "space: {x: {type: float, low: 1}}",
        "space: {x: {type: float, low: 1, high: 2, stpe: 3}}", "resources: {gpu: 1}",
        "name: a b", "resources: {gpus: 2}",
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_not_valid(validator, text):
    fields = read_value(text, "s")
    assert not is_readable(fields)
    assert not validator.is_valid(fields)


@pytest.mark.parametrize("text", ["config: {epoch: 3}", "config: {data: {sorce: a.csv}}"])
def test_settings_of_the_built_in_objective_are_known_by_name(validator, text):
    assert not validator.is_valid(read_value(text, "s"))
    assert validator.is_valid(read_value(f"objective: a:b\n{text}", "s"))
