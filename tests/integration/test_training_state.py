"""What a resumed `trial.training` finds where it had left it: state, reports, attributes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from workers.protocol.errors import DrainRequested

#: An epoch of six batches, of two rows each.
BATCHES = [torch.full((2, 3), float(number)) / 6 for number in range(6)]


def interrupted(place, number, script, *steps):
    """Run a script in as many attempts as there are steps to be drained in, and one."""
    trial = place.claim(number)
    for at in steps:
        with pytest.raises(DrainRequested):
            script(trial, lambda step, at=at: step == at and place.drain.set())
        place.drain.clear()
        place.leases.release(number, place.held.token)
        trial = place.hold(number)
    return script(trial, lambda step: None), trial


def both(place, script, *steps):
    """What a script returns, undisturbed and drained; and the trial that was."""
    whole, _ = interrupted(place, 0, script)
    resumed, trial = interrupted(place, 1, script, *steps)
    return whole, resumed, trial


def reports_of(place):
    entries = [(entry.number, (entry.subject, entry.payload)) for entry in place.inbox()]
    return [[report for number, report in entries if number == trial] for trial in (0, 1)]


def build():
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    return model, torch.optim.SGD(model.parameters(), lr=0.01)


def descend(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def test_tensors_arrays_and_parameters_of_a_mapping_are_put_back_in_place(desk):
    def script(trial, act):
        model, _ = build()
        heat, offset = nn.Parameter(torch.zeros(())), torch.zeros(3, requires_grad=True)
        average, counts, nested = torch.zeros(3), np.zeros(6), [torch.zeros(2)]
        optimizer = torch.optim.Adam([*model.parameters(), heat, offset], lr=0.01)
        state = {
            "heat": heat,
            "of the model": {"weight": model.weight},
            "best": model.state_dict(),
            "model": model,
            "optimizer": optimizer,
            "more": {"average": average, "counts": counts, "nested": nested, "offset": offset},
            "seen": torch.zeros(0),
            "wide": torch.zeros(1).expand(3),
        }
        with trial.training(state) as run:
            for epoch in run.epochs(2):
                if run.epoch == 0 and not run.step:
                    run.state["best"] = {k: v.clone() for k, v in model.state_dict().items()}
                for batch in run.steps(BATCHES):
                    act(run.step)
                    losses = (model(batch).mean() - 1) ** 2, (heat - 1) ** 2, (offset - 1) ** 2
                    descend(optimizer, sum(loss.sum() for loss in losses))
                    average.mul_(0.9).add_(batch[0] * 0.1)
                    counts[run.batch] += epoch + 1
                    nested[0] += run.step
                    seen = run.state["seen"]
                    run.state["seen"] = torch.cat([seen, heat.detach()[None]])
        assert state["heat"] is heat
        assert state["of the model"]["weight"] is model.weight
        assert not torch.equal(state["best"]["weight"], model.weight)
        data = [
            heat,
            offset,
            average,
            nested[0],
            model.weight,
            state["seen"],
            *state["best"].values(),
        ]
        return [each.tolist() for each in data], counts.tolist()

    whole, resumed, _ = both(desk(), script, 2, 8)
    assert resumed == whole


def test_what_is_reported_before_the_steps_of_an_epoch_is_reported_once(desk):
    def script(trial, act):
        model, optimizer = build()
        with trial.training([model, optimizer]) as run:
            run.report(float(model.bias.detach()), 0)
            for _ in run.epochs(3):
                run.report(float(model.bias.detach()))
                for batch in run.steps(BATCHES):
                    act(run.step)
                    descend(optimizer, model(batch).square().mean())
                run.report(float(model.bias.detach()))

    place = desk()
    both(place, script, 0, 8, 11)
    undisturbed, resumed = reports_of(place)
    assert len(undisturbed) == 7
    assert resumed == undisturbed
