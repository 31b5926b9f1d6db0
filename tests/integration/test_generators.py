"""The global generators of Python, NumPy and torch, as the trials of a study find them."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pytest
import torch
from one_process_fleet import OneProcessFleet

from workers.protocol.spec import StudySpec

DRAWS = """
import random
import numpy as np
import torch

AT_THE_TOP = [random.random(), np.random.rand(), torch.rand(1).item()]

def objective(trial):
    drawn = [random.random(), np.random.rand(), torch.rand(1).item()]
    trial.set_user_attr("drawn", drawn)
    trial.set_user_attr("top", AT_THE_TOP)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    if trial.attempt == 1 and trial.number == 1:
        raise OSError("the machine was taken away")
    return 1.0
"""


@pytest.fixture
def fleet(client, server, settings, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with ExitStack() as stack:
        allowed = settings.model_copy(update={"objectives": ("*",)})
        yield stack.enter_context(OneProcessFleet(client, server, allowed, tmp_path))


def test_each_trial_draws_its_own_numbers_and_a_seeded_study_the_same_ones_again(fleet, tmp_path):
    specs = []
    for name, seed in [("one", 7), ("two", 7), ("other", 8), ("free", None), ("free_too", None)]:
        # a folder each: the module is imported for each study, as by a process of its own
        (tmp_path / name).mkdir()
        (tmp_path / name / "draws.py").write_text(DRAWS)
        objective = f"{tmp_path / name}/draws.py:objective"
        sampler = {"type": "random", "seed": seed}
        specs.append(StudySpec(name=name, objective=objective, trials=3, sampler=sampler))
    drawn, top = {}, {}
    for name, study in fleet.run_studies(specs).items():
        drawn[name] = [tuple(trial.user_attrs["drawn"]) for trial in study.trials]
        top[name] = {tuple(trial.user_attrs["top"]) for trial in study.trials}
    assert drawn["one"] == drawn["two"], "the same seed, and a second attempt in each"
    assert top["one"] == top["two"], "whichever process imports the module"
    assert len(top["one"]) == 1
    each = [numbers for name in ("one", "other", "free", "free_too") for numbers in drawn[name]]
    for generator in zip(*each, strict=True):
        assert len(set(generator)) == 12, "no two trials draw the same"


SETS = """
torch.set_default_dtype(torch.float64)
torch.set_float32_matmul_precision("medium")
torch.set_num_threads(1)
torch.backends.cudnn.benchmark = True
np.seterr(all="raise")
os.environ["SET_AT_THE_TOP"] = "1"
"""

FINDS = """
import os
import numpy as np
import torch
{sets}
def objective(trial):
    trial.set_user_attr("found", [
        str(torch.ones(1).dtype), torch.get_float32_matmul_precision(), torch.get_num_threads(),
        torch.backends.cudnn.benchmark, np.geterr()["over"], os.environ.get("SET_AT_THE_TOP"),
    ])
    torch.set_default_dtype(torch.float16)
    torch.set_float32_matmul_precision("high")
    return 1.0
"""


def test_what_a_module_sets_at_its_top_holds_for_each_of_its_trials_and_no_others(fleet, tmp_path):
    specs = []
    for name, sets in [("sets", SETS), ("plain", "")]:
        file = tmp_path / f"{name}_at_its_top.py"
        file.write_text(FINDS.format(sets=sets))
        specs.append(StudySpec(name=name, objective=f"{file}:objective", trials=3))
    ambient = [
        "torch.float32", torch.get_float32_matmul_precision(), torch.get_num_threads(),
        torch.backends.cudnn.benchmark, np.geterr()["over"], None,
    ]  # fmt: skip
    studies = fleet.run_studies(specs)
    found = {
        name: [trial.user_attrs["found"] for trial in study.trials]
        for name, study in studies.items()
    }
    assert found["sets"] == [["torch.float64", "medium", 1, True, "raise", "1"]] * 3
    assert found["plain"] == [ambient] * 3
