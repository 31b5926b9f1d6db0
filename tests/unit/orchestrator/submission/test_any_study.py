"""Whatever is written as a study is taken whole, or refused in a line that names the field."""

from __future__ import annotations

import json
import string

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.storage.opening import check_same_spec, create_or_load_study
from orchestrator.submission.algorithms import make_pruner, make_sampler
from orchestrator.submission.space import check_space
from orchestrator.submission.study import build_spec
from orchestrator.submission.study_file import read_study_file, write_study_file
from workers.protocol.errors import InvalidInputError
from workers.protocol.spec import StudySpec

NAMES = st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=8)
NUMBERS = st.one_of(
    st.integers(-3, 9), st.integers(), st.floats(), st.sampled_from([0.0, 1.0, 1e308, 5e-324])
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=6))
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


def mostly(good):
    """Something that fits, and now and then anything."""
    return st.integers(0, 9).flatmap(lambda number: good if number else ANYTHING)


DIMENSIONS = st.one_of(
    st.fixed_dictionaries(
        {
            "type": st.just("float"), "low": mostly(st.floats(-5, 5)),
            "high": mostly(st.floats(5, 9)),
        },
        optional={"log": mostly(st.booleans()), "step": mostly(st.floats(0.1, 2))},
    ),
    st.fixed_dictionaries(
        {
            "type": st.just("int"), "low": mostly(st.integers(0, 5)),
            "high": mostly(st.integers(5, 9)),
        },
        optional={"log": mostly(st.booleans()), "step": mostly(st.integers(1, 3))},
    ),
    st.fixed_dictionaries(
        {"type": st.just("categorical"), "choices": mostly(st.lists(SCALARS, max_size=4))},
        optional={"when": mostly(st.dictionaries(NAMES, SCALARS, max_size=2))},
    ),
    ANYTHING,
)  # fmt: skip
SAMPLERS = ["tpe", "random", "grid", "nsgaii", "bruteforce", "partial_fixed", "mysterious"]
OPTIONS = st.sampled_from(["seed", "n_startup_trials", "multivariate", "population_size", "upper"])
ALGORITHMS = st.one_of(
    st.sampled_from([*SAMPLERS, "none", "median", "hyperband", "threshold", "patient"]),
    st.builds(
        lambda kind, options: {"type": kind, **options},
        st.sampled_from([*SAMPLERS, "median", "threshold"]),
        st.dictionaries(OPTIONS, mostly(st.integers(0, 9)), max_size=2),
    ),
)
FIELDS = {
    "name": NAMES,
    "objective": st.sampled_from(["finetune", "m:f", "./a.py:f", "a b", ":"]),
    "direction": st.sampled_from(["maximize", "minimize", "up"]),
    "directions": st.lists(st.sampled_from(["maximize", "minimize"]), max_size=2),
    "metric": st.one_of(NAMES, st.lists(NAMES, max_size=2)),
    "trials": st.integers(-1, 50),
    "timeout": st.one_of(st.floats(-1, 9), st.sampled_from(["2h", "1x", "1h30m"])),
    "max_failures": st.integers(-1, 5),
    "max_losses": st.integers(-1, 5),
    "progress_timeout": st.floats(-1, 9),
    "sampler": ALGORITHMS,
    "pruner": ALGORITHMS,
    "space": st.dictionaries(NAMES, DIMENSIONS, max_size=3),
    "config": st.dictionaries(NAMES, ANYTHING, max_size=3),
    "resources": st.fixed_dictionaries({}, optional={"queue": mostly(NAMES), "gpus": NUMBERS}),
    "share": st.fixed_dictionaries({}, optional={"weight": NUMBERS, "max_slots": NUMBERS}),
    "no_such_field": SCALARS,
}
STUDIES = st.fixed_dictionaries({}, optional={name: mostly(each) for name, each in FIELDS.items()})


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
        assert any(name in text for name in (*FIELDS, "study.yaml")), text
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
