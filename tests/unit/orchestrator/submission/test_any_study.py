"""Whatever is written as a study is taken whole, or refused in a line that names the field."""

from __future__ import annotations

import json

import optuna
import pytest
from any_study import FIELDS, FURTHER, STUDIES
from hypothesis import HealthCheck, given, settings

from orchestrator.storage.opening import check_same_spec, create_or_load_study
from orchestrator.submission.algorithms import make_pruner, make_sampler
from orchestrator.submission.space import check_space
from orchestrator.submission.study import build_spec
from orchestrator.submission.study_file import read_study_file, write_study_file
from workers.protocol.errors import InvalidInputError
from workers.protocol.spec import StudySpec


def text_of(value):
    """Equal of what is equal, NaN included."""
    return json.dumps(value, sort_keys=True)


def whole(spec, folder):
    """Hold what comes back by each way against what went."""
    fields = json.loads(spec.model_dump_json())
    expected = text_of(fields)
    assert text_of(json.loads(StudySpec.read(spec.model_dump_json()).model_dump_json())) == expected
    path = folder / "study.yaml"
    path.write_text(write_study_file(spec.model_dump(mode="python")))
    again = build_spec(read_study_file(path), "study.yaml", base=folder)
    assert text_of(json.loads(again.model_dump_json())) == expected
    assert again.digest() == spec.digest()
    check_same_spec(spec, json.loads(json.dumps(again.identity())))


def handle(fields, folder, taken):
    try:
        spec = build_spec(fields, "study.yaml", base=folder)
        check_space(spec)
        sampler, pruner = make_sampler(spec), make_pruner(spec)
    except InvalidInputError as error:
        text = str(error)
        assert "\n" not in text
        assert any(name in text for name in (*FIELDS, *FURTHER, "study.yaml")), text
        return
    whole(spec, folder)
    storage = optuna.storages.InMemoryStorage()
    create_or_load_study(spec, storage, sampler, pruner)
    again = create_or_load_study(spec, storage, sampler, pruner)
    assert len(again.get_trials()) == 0
    taken.append(spec)


@pytest.mark.parametrize(
    "count",
    [
        300,
        pytest.param(10_000, marks=[pytest.mark.long, pytest.mark.slow, pytest.mark.timeout(3000)]),
    ],
)
def test_whatever_is_written_is_taken_whole_or_refused_by_its_field(count, tmp_path):
    taken: list[StudySpec] = []
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]

    @settings(max_examples=count, suppress_health_check=checks, print_blob=True)
    @given(STUDIES)
    def every(fields):
        handle(fields, tmp_path, taken)

    every()
    assert len(taken) > count / 20, "some are good"
