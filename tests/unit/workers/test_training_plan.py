from __future__ import annotations

import pytest

from workers.protocol.finetune import FinetuneConfig
from workers.protocol.training_options import EarlyStopping
from workers.trials.finetune.plan import evaluation_steps, steps_every
from workers.trials.finetune.stopping import best_of, is_exhausted


@pytest.mark.parametrize(
    ("settings", "num_steps", "evaluations"),
    [
        ({}, 30, [10, 20, 30]),
        ({"epochs": 1, "evaluations_per_epoch": 3}, 10, [3, 6, 10]),
        ({"epochs": 1, "evaluations_per_epoch": 99}, 10, list(range(1, 11))),
        ({"max_steps": 25}, 25, [10, 20, 25]),
        ({"max_steps": 25, "epochs": 2}, 20, [10, 20]),
        ({"max_steps": 5, "epochs": 2}, 5, [5]),
        ({"epochs": 2, "evaluate_every": {"steps": 8}}, 20, [8, 16, 20]),
        ({"epochs": 2, "evaluate_every": {"steps": 99}}, 20, [20]),
        ({"epochs": 4, "evaluate_every": {"epochs": 2}}, 40, [20, 40]),
        ({"epochs": 1, "evaluate_every": {"epochs": 0.25}}, 10, [2, 5, 8, 10]),
        ({"max_steps": 3, "evaluate_every": {"epochs": 0.001}}, 3, [1, 2, 3]),
    ],
)
def test_the_last_step_is_evaluated_and_others_as_the_study_says(settings, num_steps, evaluations):
    config = FinetuneConfig.model_validate(settings)
    assert config.num_steps(10) == num_steps
    assert evaluation_steps(config, 10) == evaluations


def test_checkpoints_by_steps_or_passes():
    config = FinetuneConfig(checkpoint_every={"steps": 7})
    assert steps_every(config.checkpoint_every, 10, 30) == [7, 14, 21, 28]
    assert steps_every(FinetuneConfig().checkpoint_every, 10, 30) == []


@pytest.mark.parametrize(
    ("values", "direction", "min_delta", "exhausted"),
    [
        ([], "maximize", 0.0, False),
        ([0.5, 0.5], "maximize", 0.0, False),
        ([0.5, 0.5, 0.4], "maximize", 0.0, True),
        ([0.5, 0.4, 0.3], "minimize", 0.0, False),
        ([0.5, 0.6, 0.7], "minimize", 0.0, True),
        ([0.5, 0.55, 0.59], "maximize", 0.1, True),
        ([0.5, 0.55, 0.65], "maximize", 0.1, False),  # slowly, but from the best that counted
        ([-0.5, -0.5, -0.5], "maximize", 0.0, True),
    ],
)
def test_a_training_is_exhausted_after_so_many_evaluations_without_gain(
    values, direction, min_delta, exhausted
):
    rule = EarlyStopping(patience=2, min_delta=min_delta)
    assert is_exhausted(values, direction, rule) is exhausted
    assert not is_exhausted(values, direction, None)


def test_of_equally_good_evaluations_the_first_is_the_best():
    history = [{"step": step, "f1": value} for step, value in enumerate([0.1, 0.3, 0.3, 0.2])]
    assert best_of(history, "f1", "maximize")["step"] == 1
    assert best_of(history, "f1", "minimize")["step"] == 0
