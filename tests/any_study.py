"""Whatever people may write as a study: mostly what fits, and now and then anything."""

from __future__ import annotations

import string

from hypothesis import strategies as st

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
        optional={
            "log": mostly(st.booleans()), "step": mostly(st.floats(0.1, 2)),
            "default": mostly(st.floats(-5, 9)),
        },
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

#: Of these, a study has a few at most: were there more in each, hardly one would be taken.
FURTHER = {
    "budget": st.fixed_dictionaries({}, optional={"slot_hours": NUMBERS, "gpu_hours": NUMBERS}),
    "stop": st.fixed_dictionaries(
        {},
        optional={
            "target": NUMBERS,
            "patience": mostly(st.integers(-1, 9)),
            "min_delta": NUMBERS,
            "equal_failures": mostly(st.integers(-1, 9)),
        },
    ),
    "trial_timeout": st.one_of(st.floats(-1, 9), st.sampled_from(["2h", "1x", "10m"])),
    "keep": st.fixed_dictionaries(
        {}, optional={"models": mostly(st.sampled_from(["all", "best 3", "best 0", "worst"]))}
    ),
    "wandb": st.one_of(
        st.sampled_from(["offline", "disabled", "up"]),
        st.fixed_dictionaries(
            {}, optional={"project": mostly(NAMES), "tags": mostly(st.lists(NAMES, max_size=2))}
        ),
    ),
    "code": st.fixed_dictionaries({}, optional={"must_match": mostly(st.booleans())}),
    "on_end": st.sampled_from(["true", "https://example.org/hook", "", "ftp://x"]),
    "from": st.one_of(
        NAMES, st.fixed_dictionaries({"study": mostly(NAMES)}, optional={"home": mostly(NAMES)})
    ),
    "pruner": st.fixed_dictionaries(
        {"type": st.sampled_from(["asha", "hyperband", "median"])},
        optional={"promote": mostly(st.booleans()), "min_resource": mostly(st.integers(0, 4))},
    ),
}


def with_further(fields, names):
    """Some fields, and others beside them."""
    further = st.fixed_dictionaries({name: mostly(FURTHER[name]) for name in names})
    return further.map(lambda found: {**fields, **found})


STUDIES = st.tuples(
    st.fixed_dictionaries({}, optional={name: mostly(each) for name, each in FIELDS.items()}),
    st.lists(st.sampled_from(sorted(FURTHER)), max_size=2, unique=True),
).flatmap(lambda both: with_further(*both))
