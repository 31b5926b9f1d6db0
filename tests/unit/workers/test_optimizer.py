from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from torch.nn.functional import mse_loss
from transformers import get_scheduler

from workers.managers.amp import PrecisionPolicy
from workers.protocol.errors import ObjectiveError
from workers.protocol.finetune import FinetuneConfig
from workers.protocol.optimizer_options import OPTIMIZERS, SCHEDULES
from workers.trials.finetune.objective import read_config
from workers.trials.finetune.optimizer import build_optimizer
from workers.trials.finetune.schedule import Schedule, slowed

#: A value for each option that one of them has.
VALUES = {
    "betas": [0.8, 0.95],
    "num_cycles": 2,
    "warmup_type": "cosine",
    "decay_type": "linear",
    "min_lr": 1e-5,
    "power": 2.0,
    "timescale": 7,
    "num_decay_steps": 4,
    "patience": 1,
    "cooldown": 1,
    "amsgrad": True,
    "centered": True,
    "nesterov": True,
    "clip_threshold": 2.0,
    "eps": 1e-7,
    "lr_end": 1e-6,
}


def of(table, name):
    options = {option: VALUES.get(option, 0.5) for option in table[name]}
    if options.get("nesterov"):
        del options["dampening"]  # torch takes one of the two
    if "min_lr_rate" in options:
        del options["min_lr"]
    return options


def model_of(config, direction="minimize"):
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    optimizer = build_optimizer(model, config)
    return model, optimizer, Schedule(optimizer, config, 20, direction)


def train(model, optimizer, schedule, steps):
    policy = PrecisionPolicy("fp32", torch.device("cpu"))
    rates = []
    for step in steps:
        inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        policy.backward(mse_loss(model(inputs), inputs.sum(1, keepdim=True)))
        rates.append(schedule.rate)
        policy.step(optimizer, model.parameters(), None)
        schedule.stepped()
        schedule.measured(1.0)
    return rates


@pytest.mark.parametrize(
    ("optimizer", "schedule"),
    [
        *((name, "linear") for name in OPTIMIZERS),
        *(("sgd", name) for name in SCHEDULES),
    ],
)
def test_every_optimizer_and_schedule_trains_and_goes_on_to_the_bit(optimizer, schedule):
    config = FinetuneConfig(
        optimizer=optimizer,
        optimizer_options=of(OPTIMIZERS, optimizer),
        schedule=schedule,
        schedule_options=of(SCHEDULES, schedule),
        learning_rate=0.01,
    )
    whole = model_of(config)
    before = [weight.clone() for weight in whole[0].parameters()]
    train(*whole, range(9))
    saved = io.BytesIO()
    torch.save([part.state_dict() for part in whole], saved)
    rates = train(*whole, range(9, 20))
    resumed = model_of(config)
    saved.seek(0)
    for part, state in zip(resumed, torch.load(saved, weights_only=True), strict=True):
        part.load_state_dict(state)
    assert train(*resumed, range(9, 20)) == rates
    for weight, other, at_first in zip(
        whole[0].parameters(), resumed[0].parameters(), before, strict=True
    ):
        assert torch.equal(weight, other)
        assert not torch.equal(weight, at_first)


@pytest.mark.parametrize("name", sorted(SCHEDULES.keys() - {"linear", "cosine", "constant"}))
def test_the_rates_are_those_of_transformers(name):
    options = of(SCHEDULES, name)
    is_plateau = name == "reduce_lr_on_plateau"
    config = FinetuneConfig(
        optimizer="sgd",
        schedule=name,
        schedule_options=options,
        **({} if is_plateau else {"warmup_steps": 3}),
    )
    rates = train(*model_of(config), range(20))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
    theirs = get_scheduler(name, optimizer, 3, 20, options)
    expected = []
    for _ in range(20):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step(1.0) if is_plateau else theirs.step()
    assert rates == expected
    assert len(set(rates)) > 1


def test_a_plateau_of_what_is_maximized_is_one_of_what_does_not_rise():
    config = FinetuneConfig(schedule="reduce_lr_on_plateau", schedule_options={"patience": 0})
    model, optimizer, schedule = model_of(config, "maximize")
    for value in (0.1, 0.2, 0.3):
        schedule.measured(value)
    assert schedule.rate == config.learning_rate
    schedule.measured(0.2)
    assert schedule.rate == pytest.approx(config.learning_rate * 0.1)
    state = {"optimizer": optimizer.state_dict(), "scheduler": schedule.state_dict()}
    slower = slowed(state, 0.5)
    schedule.load_state_dict(slower["scheduler"])
    assert schedule.rate == pytest.approx(config.learning_rate * 0.05)
    assert model


def test_gradients_are_clipped_or_not():
    policy = PrecisionPolicy("fp32", torch.device("cpu"))
    moved = []
    for limit in (1.0, None):
        weight = torch.nn.Parameter(torch.zeros(2))
        policy.backward((weight * torch.tensor([3.0, 4.0])).sum())
        norm = policy.step(torch.optim.SGD([weight], lr=1.0), [weight], limit)
        assert norm == pytest.approx(5.0)
        moved.append(weight.norm().item())
    assert moved == pytest.approx([1.0, 5.0], rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "adafacter"}, r"adafactor; did you mean 'adafactor'\?"),
        ({"schedule": "polynomal"}, "did you mean 'polynomial'"),
        ({"optimizer": "sgd", "optimizer_options": {"betas": [0, 0]}}, "sgd has momentum,"),
        ({"optimizer_options": {"betas": [0.9, 1.5]}}, r"betas` = \[0.9, 1.5\]: it should be less"),
        ({"optimizer_options": {"betas": 0.9}}, r"betas` = 0.9: it should be a valid tuple"),
        ({"optimizer": "sgd", "optimizer_options": {"nesterov": True}}, "nesterov needs a mom"),
        ({"schedule_options": {"power": 2}}, "schedule_options.power`: linear has no options"),
        ({"schedule": "cosine_with_min_lr"}, "cosine_with_min_lr needs min_lr or min_lr_rate"),
        ({"schedule": "warmup_stable_decay"}, "warmup_stable_decay needs num_decay_steps"),
        ({"schedule": "reduce_lr_on_plateau", "warmup_steps": 3}, "has no warm-up; leave out w"),
        ({"warmup_steps": 3, "warmup_fraction": 0.2}, "give one of them"),
        ({"batch_size": 30, "gradient_accumulation_steps": 4}, "4 passes do not divide batch_"),
        (
            {"batch_size": 32, "gradient_accumulation_steps": 4, "micro_batch_size": 16},
            "4 passes of micro_batch_size = 16 are not batch_size = 32; give one",
        ),
        ({"optimizer": "sgd", "on_divergence": "skip"}, "with sgd, take rollback or fail"),
        ({"max_grad_norm": 0}, "greater than 0"),
        ({"optimizer_options": {"eps": "tiny"}}, "eps` = 'tiny': it should be a valid number"),
        ({"optimizer_options": {"eps": True}}, "eps` = True: it should be a number"),
        ({"optimizer_options": {"eps": float("inf")}}, "eps` = inf: it should be a finite"),
        (
            {
                "optimizer": "sgd",
                "optimizer_options": {"nesterov": "yes", "momentum": 0.9, "dampening": 0.1},
            },
            "dampening` = 0.1: nesterov takes none",
        ),
    ],
)
def test_what_contradicts_or_does_not_exist_is_refused_with_the_way_out(settings, message):
    with pytest.raises(ValidationError, match=message):
        FinetuneConfig.model_validate(settings)


def test_options_are_kept_as_they_were_checked():
    given = {"nesterov": "no", "momentum": "0.9", "dampening": 0}
    config = FinetuneConfig(
        optimizer="sgd",
        optimizer_options=given,
        schedule="cosine_with_restarts",
        schedule_options={"num_cycles": "2"},
    )
    assert config.optimizer_options == {"nesterov": False, "momentum": 0.9, "dampening": 0.0}
    assert config.schedule_options == {"num_cycles": 2}
    _, optimizer, _ = model_of(config)
    assert optimizer.param_groups[0]["nesterov"] is False
    adam = FinetuneConfig(optimizer_options={"eps": "1e-6", "betas": ["0.9", 0.98]})
    train(*model_of(adam), range(1))


LOW = {"learning_rate": 1e-4}
FALLING = {"warmup_steps": 12, "schedule_options": {"num_decay_steps": 9}}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {**LOW, "schedule": "polynomial", "schedule_options": {"lr_end": 1e-4}},
            "lr_end` = 0.0001",
        ),
        ({"learning_rate": 1e-8, "schedule": "polynomial"}, "lr_end` = 1e-07"),
        (
            {**LOW, "schedule": "cosine_with_min_lr", "schedule_options": {"min_lr": 0.1}},
            "falls to",
        ),
        (
            {**LOW, "schedule": "reduce_lr_on_plateau", "schedule_options": {"min_lr": 1}},
            "falls to",
        ),
        ({"schedule": "warmup_stable_decay", **FALLING}, "with 12 steps of warm-up it is more"),
        ({"warmup_steps": 20}, "`warmup_steps` = 20: the training has 20 steps"),
    ],
)
def test_a_rate_that_rises_or_never_peaks_ends_the_trial_with_the_reason(settings, message):
    with pytest.raises(ObjectiveError, match=message):
        model_of(FinetuneConfig(**settings))
    trial = SimpleNamespace(config={**settings, "max_steps": 20})
    with pytest.raises(ObjectiveError, match=message):
        read_config(trial)
    model_of(FinetuneConfig(**{**settings, "learning_rate": 2.0, "warmup_steps": 0}))


def test_passes_of_a_step_are_micro_batches():
    assert FinetuneConfig(batch_size=32, gradient_accumulation_steps=4).rows_a_pass == 8
    assert FinetuneConfig(micro_batch_size=5).rows_a_pass == 5
    assert FinetuneConfig().rows_a_pass is None
