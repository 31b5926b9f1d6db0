"""The global generators of Python, NumPy and torch, as the trials of a study find them."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
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
