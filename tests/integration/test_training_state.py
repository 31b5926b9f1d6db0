"""What a resumed `trial.training` finds where it had left it: state, reports, attributes."""

from __future__ import annotations

import random
from collections import Counter, defaultdict, deque

import datasets
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from torchmetrics import CatMetric, MeanMetric, MetricCollection
from torchmetrics.classification import BinaryAccuracy, BinaryF1Score, BinaryPrecision

from workers.protocol.errors import DrainRequested, ObjectiveError
from workers.trials.training_loop import NOT_TO_THE_BIT

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


class Measured(nn.Module):
    """A model that keeps its own metrics, two of which count the same."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.scores = MetricCollection([BinaryAccuracy(), BinaryF1Score(), BinaryPrecision()])


@pytest.mark.parametrize("step", [3, 8])
def test_metrics_go_on_from_what_they_had_counted(desk, step):
    def script(trial, act):
        torch.manual_seed(0)
        model, mean, seen = Measured(), MeanMetric(), CatMetric()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        with trial.training({"mean": mean, "seen": [seen], "model": model, "o": optimizer}) as run:
            for _ in run.epochs(2):
                for number, batch in enumerate(run.steps(BATCHES), run.batch):
                    act(run.step)
                    output = model.layer(batch).mean(1)
                    descend(optimizer, (output - 1).square().mean())
                    mean(run.step)
                    seen.update(batch[0])
                    model.scores.update(output.detach(), torch.tensor([number % 2, run.epoch]))
        scores = {name: float(score) for name, score in model.scores.compute().items()}
        return float(mean.compute()), seen.compute().tolist(), scores

    whole, resumed, _ = both(desk(objective="m:o"), script, step)
    assert len(whole[1]) == 36
    assert resumed == whole


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


def test_collections_of_data_are_put_back_in_place_whatever_their_kind(desk):
    def script(trial, act):
        recent, counts, groups = deque(maxlen=3), Counter(), defaultdict(list)
        pair = (torch.zeros(2), [0])
        held = {"recent": recent, "counts": counts, "groups": groups, "pair": pair}
        with trial.training({"held": held, "draws": [deque([random.Random(1)])]}) as run:
            for _ in run.epochs(2):
                for _ in run.steps(BATCHES):
                    act(run.step)
                    recent.append(run.step)
                    counts[run.batch % 2] += 1
                    groups[run.batch].append(run.step)
                    pair[0].add_(run.step)
                    pair[1].append(run.state["draws"][0][0].random())
        assert held["recent"] is recent
        return [*recent], counts, groups, pair[0].tolist(), pair[1]

    whole, resumed, _ = both(desk(), script, 1, 7)
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


def rows():
    for number in range(7):
        yield {"x": float(number)}


class OwnStream(IterableDataset):
    """A stream that goes on where it is, and counts its passes."""

    def __init__(self):
        self.at = self.passes = 0

    def state_dict(self):
        return {"at": self.at, "passes": self.passes}

    def load_state_dict(self, state):
        self.at, self.passes = state["at"], state["passes"]

    def __iter__(self):
        while self.at < 7:
            self.at += 1
            yield {"x": float(self.at + 10 * self.passes)}
        self.at, self.passes = 0, self.passes + 1


def of_the_hub():
    return datasets.IterableDataset.from_generator(rows)


STREAMS = {
    "in a loader": lambda: DataLoader(of_the_hub(), batch_size=2),
    "itself": of_the_hub,
    "shuffled": lambda: DataLoader(of_the_hub().shuffle(seed=3, buffer_size=4), batch_size=2),
    "mapped": lambda: of_the_hub().map(lambda row: {"x": row["x"] * 2}).filter(lambda row: True),
    "in loader processes": lambda: DataLoader(
        of_the_hub(), batch_size=2, num_workers=1, multiprocessing_context="fork"
    ),
    "of one's own": lambda: DataLoader(OwnStream(), batch_size=2),
    "of one's own, itself": OwnStream,
}


@pytest.mark.parametrize("has_set_epoch", [False, True])
@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_with_a_state_is_read_again_and_later_epochs_are_whole(desk, name, has_set_epoch):
    def script(trial, act):
        stream = STREAMS[name]()
        seen = []
        with trial.training({"seen": seen}) as run:
            for epoch in run.epochs(3):
                source = getattr(stream, "dataset", stream)
                if has_set_epoch and hasattr(source, "set_epoch"):
                    source.set_epoch(epoch)
                for batch in run.steps(stream):
                    act((epoch, run.batch))
                    seen.append(torch.as_tensor(batch["x"]).tolist())
        return seen

    place = desk()
    whole, _ = interrupted(place, 0, script)
    last = len(whole) // 3 - 1
    resumed, _ = interrupted(place, 1, script, (0, 1), (0, last), (1, 0), (1, 1), (2, 0))
    assert resumed == whole
    assert len(whole) == 3 * (last + 1)


def test_an_epoch_that_is_empty_where_it_was_begun_is_refused(desk):
    data = [*BATCHES]

    def script(trial, act):
        with trial.training({}) as run:
            for epoch in run.epochs(3):
                for _ in run.steps(data):
                    act((epoch, run.batch))

    place = desk()
    trial = place.claim(0)

    def drain(where):
        if where == (0, 5):
            place.drain.set()

    with pytest.raises(DrainRequested):
        script(trial, drain)
    place.drain.clear()
    place.leases.release(0, place.held.token)
    data.clear()
    with pytest.raises(ObjectiveError, match=r"batch 0 of epoch 1, and there are no more"):
        script(place.hold(0), drain)


def test_attributes_and_constraints_of_earlier_attempts_are_the_trials(desk):
    def script(trial, act):
        model, optimizer = build()
        trial.set_user_attr("best", -1)
        with trial.training([model, optimizer]) as run:
            trial.set_constraint("before", 1.0)
            for epoch in run.epochs(3):
                trial.set_user_attr("began", [epoch, run.state is not None])
                for batch in run.steps(BATCHES):
                    act(run.step)
                    descend(optimizer, model(batch).square().mean())
                    if run.step == 1:
                        trial.set_user_attr("early", {"at": run.step})
                        trial.set_constraint("size", 0.5)
                    if run.step == 8:
                        trial.set_user_attr("best", float(model.bias.detach()))
        return trial.user_attrs, trial.constraints

    whole, resumed, _ = both(desk(), script, 3, 8, 14)
    assert resumed == whole
    assert whole[1] == {"before": 1.0, "size": 0.5}


@pytest.mark.parametrize("are_all_kept", [False, True])
def test_an_iterator_over_the_steps_may_outlive_its_epoch(desk, are_all_kept):
    def script(trial, act):
        seen, kept = [], []
        model, optimizer = build()
        with trial.training([model, optimizer, seen]) as run:
            for epoch in run.epochs(3):
                batches = iter(run.steps(BATCHES))
                kept += [batches] if are_all_kept else []
                for batch in batches:
                    act((epoch, run.batch))
                    descend(optimizer, model(batch).square().mean())
                    seen.append([epoch, run.batch, run.step, float(batch[0, 0])])
                    if run.batch == 2:
                        break
        return seen, run.step, model.bias.tolist()

    whole, resumed, _ = both(desk(), script, (0, 2), (1, 0), (2, 1))
    assert resumed == whole
    assert [each[:3] for each in whole[0]] == [[n // 3, n % 3, n] for n in range(9)]


def test_what_was_unfrozen_and_put_into_training_mode_stays_so(desk):
    def script(trial, act):
        model, _ = build()
        net = nn.Sequential(model, nn.Dropout(0.5), nn.BatchNorm1d(1)).eval()
        heat = nn.Parameter(torch.zeros(()), requires_grad=False)
        model.bias.requires_grad_(False)
        optimizer = torch.optim.SGD([*net.parameters(), heat], lr=0.01)
        with trial.training({"net": net, "optimizer": optimizer, "heat": heat}) as run:
            for epoch in run.epochs(3):
                if epoch == 1:
                    model.bias.requires_grad_(True)
                    heat.requires_grad_(True)
                    net[1].train()
                for batch in run.steps(BATCHES):
                    act(run.step)
                    descend(optimizer, (net(batch).mean() + heat - 1) ** 2)
        return [each.tolist() for each in [*net.state_dict().values(), heat]], net[1].training

    whole, resumed, _ = both(desk(), script, 2, 14)
    assert resumed == whole


@pytest.mark.parametrize("is_set_to_none", [True, False])
def test_gradients_that_wait_for_the_next_step_are_kept_wherever_the_loop_steps(
    desk, is_set_to_none
):
    def script(trial, act):
        model, optimizer = build()
        heat = nn.Parameter(torch.zeros(()))
        slow = torch.optim.SGD([heat], lr=0.1)
        with trial.training([model, optimizer, heat, slow]) as run:
            for _ in run.epochs(2):
                for batch in run.steps(BATCHES):
                    act(run.step)
                    optimizer.step()
                    optimizer.zero_grad(is_set_to_none)
                    ((model(batch).mean() - 1) ** 2 + (heat - 1) ** 2).backward()
                    if run.step % 4 == 3:
                        slow.step()
                        slow.zero_grad()
        return model.bias.tolist(), heat.tolist()

    whole, resumed, _ = both(desk(), script, 1, 8)
    assert resumed == whole


def test_gradients_that_a_step_has_used_up_are_not_saved(desk):
    def script(trial, act):
        model, optimizer = build()
        with trial.training([model, optimizer]) as run:
            for batch in run.steps(BATCHES):
                act(run.step)
                descend(optimizer, model(batch).square().mean())

    place = desk()
    trial = place.claim(0)
    with pytest.raises(DrainRequested):
        script(trial, lambda step: step == 2 and place.drain.set())
    assert trial.load_checkpoint()["weights"]["gradients"] == {}


class Wrapped:
    """Not a module, and has one."""

    def __init__(self, module):
        self.module = module

    def state_dict(self):
        return {"inner": self.module.state_dict()}

    def load_state_dict(self, state):
        self.module.load_state_dict(state["inner"])


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (
            lambda head: {},
            "SGD trains weights that nothing in the state holds: 2, of shape [1, 1], [1]",
        ),
        (
            lambda head: {"bias": head.bias},
            "SGD trains weights that nothing in the state holds: 1, of shape [1, 1]",
        ),
        (lambda head: {"head": head}, None),
        (lambda head: {"head": Wrapped(head)}, None),
        (lambda head: {"weights": tuple(head.parameters())}, None),
    ],
    ids=["none", "some", "module", "wrapped", "weights"],
)
def test_trained_weights_that_the_state_does_not_hold_are_said(desk, more, reason):
    def script(trial, act):
        model, optimizer = build()
        head = nn.Linear(1, 1)
        with trial.training({"model": model, "optimizer": optimizer, **more(head)}) as run:
            for epoch in run.epochs(2):
                if epoch == 1:
                    optimizer.add_param_group({"params": [*head.parameters()]})
                for batch in run.steps(BATCHES):
                    act(run.step)
                    descend(optimizer, head(model(batch)).square().mean())

    _, trial = interrupted(desk(), 0, script, 4)
    said = trial.user_attrs.get(NOT_TO_THE_BIT)
    assert said is None if reason is None else said.endswith(reason)
