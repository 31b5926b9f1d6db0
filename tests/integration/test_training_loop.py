"""A user's own loop with `trial.training`: ended anywhere, it resumes to the bit."""

from __future__ import annotations

import os
import random

import accelerate
import numpy as np
import optuna
import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler
from waiting import wait_until

from workers.managers import DataManager
from workers.processes.registry import ProcessRecord, ProcessRegistry
from workers.protocol.errors import DrainRequested, LeaseLost, ObjectiveError
from workers.protocol.states import ProcessKind
from workers.trials import resumable_loader
from workers.trials.training_loop import NOT_TO_THE_BIT

#: Rows of the data, a batch, and epochs: eleven steps an epoch, the last one smaller.
ROWS, BATCH, EPOCHS = 42, 4, 3
STEPS = 11


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # such small products wait for each other else
    yield
    torch.set_num_threads(before)


class Rows(Dataset):
    """Rows that are disturbed anew each time they are read, by all three generators."""

    def __len__(self):
        return ROWS

    def __getitem__(self, index):
        noise = torch.randn(3) + random.random() + np.random.rand()
        return torch.full((3,), float(index)) / ROWS + 0.1 * noise


class Stream(IterableDataset):
    """The same as a stream, in an order that is drawn."""

    def __iter__(self):
        rows = Rows()
        for index in torch.randperm(ROWS).tolist():
            yield rows[index]


class OwnNoise(Rows):
    """Rows with a generator of their own."""

    def __init__(self):
        self.noise = np.random.default_rng(7)

    def __getitem__(self, index):
        return torch.full((3,), float(index + self.noise.random()) / ROWS)


class Counting:
    """A sampler that shuffles by an epoch which it counts itself."""

    def __init__(self):
        self.epoch = 0

    def __len__(self):
        return ROWS

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.epoch)
        self.epoch += 1
        yield from torch.randperm(ROWS, generator=generator).tolist()


class Stateful(Counting):
    """The same, with a state."""

    def __init__(self):
        super().__init__()
        self._epochs = [0]

    def state_dict(self):
        return {"epochs": list(self._epochs)}

    def load_state_dict(self, state):
        self._epochs = list(state["epochs"])

    def __iter__(self):
        self.epoch = len(self._epochs)
        self._epochs.append(0)
        return super().__iter__()


class StatefulLoader:
    """A loader that can say where it is, and go on from there."""

    def __init__(self):
        self.rows, self.at, self.passes = Rows(), 0, 0

    def state_dict(self):
        return {"at": self.at, "passes": self.passes}

    def load_state_dict(self, state):
        self.at, self.passes = state["at"], state["passes"]

    def __iter__(self):
        while self.at < STEPS:
            self.at += 1
            yield torch.stack([self.rows[(self.at + self.passes) % ROWS] for _ in range(BATCH)])
        self.at, self.passes = 0, self.passes + 1


class Pipeline:
    """Batches from a generator function, with a generator of its own."""

    def __init__(self):
        self.draws = random.Random(3)

    def __iter__(self):
        rows = Rows()
        for _ in range(STEPS):
            yield torch.stack([rows[self.draws.randrange(ROWS)] for _ in range(BATCH)])


def shuffled(**options):
    return DataLoader(Rows(), batch_size=BATCH, shuffle=True, **options)


LOADERS = {
    "shuffled": shuffled,
    "in order": lambda: DataLoader(Rows(), batch_size=BATCH),
    "shuffled by a generator": lambda: shuffled(generator=torch.Generator().manual_seed(1)),
    "a sampler with a generator": lambda: DataLoader(
        Rows(),
        batch_size=BATCH,
        sampler=RandomSampler(Rows(), generator=torch.Generator().manual_seed(2)),
    ),
    "a sampler that counts": lambda: DataLoader(Rows(), batch_size=BATCH, sampler=Counting()),
    "a sampler with a state": lambda: DataLoader(Rows(), batch_size=BATCH, sampler=Stateful()),
    "batches of a sampler": lambda: DataLoader(
        Rows(), batch_sampler=BatchSampler(RandomSampler(Rows()), BATCH, drop_last=False)
    ),
    "batches as indices": lambda: DataLoader(
        Rows(), batch_size=None, sampler=RandomSampler(Rows(), num_samples=STEPS)
    ),
    "rows with a generator": lambda: DataLoader(OwnNoise(), batch_size=BATCH, shuffle=True),
    "a stream": lambda: DataLoader(Stream(), batch_size=BATCH),
    "a loader with a state": StatefulLoader,
    "a pipeline": Pipeline,
    "a list": lambda: list(torch.linspace(0, 1, STEPS * BATCH * 3).reshape(STEPS, BATCH, 3)),
}


class Interruption:
    """Drains or loses the lease when a training comes to a place."""

    def __init__(self, place, step, where="step", kind="drain"):
        self.place, self.at, self.kind = place, (where, step), kind

    def __call__(self, where, step):
        if (where, step) == self.at:
            if self.kind == "drain":
                self.place.drain.set()
            else:
                self.place.held.lose()


def no_interruption(where, step):
    pass


def build():
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.7)
    return model, optimizer, scheduler


def train(trial, loader, act=no_interruption, accumulation=1, seconds=1e9):
    """An existing script, with three lines of the fleet's."""
    model, optimizer, scheduler = build()
    history = []
    state = {
        "model": model,
        "optimizer": optimizer,
        "scheduler": scheduler,
        "history": history,
        "best": -1.0,
    }
    with trial.training(state, checkpoint_seconds=seconds) as run:
        for epoch in run.epochs(EPOCHS):
            model.train()
            optimizer.param_groups[0]["weight_decay"] = 0.01 * (epoch + random.random())
            for batch in run.steps(loader):
                act("step", run.step)
                inputs = batch.reshape(-1, 3).repeat(2, 1)
                mixed = inputs * np.random.beta(2.0, 2.0) + random.random() * inputs.flip(0)
                loss = (model(mixed) - mixed.sum(1, keepdim=True)).square().mean() / accumulation
                loss.backward()
                if (run.batch + 1) % accumulation == 0:
                    optimizer.step()
                    optimizer.zero_grad()
                history.append(float(loss.detach()))
            act("between", epoch)
            scheduler.step()
            model.eval()
            with torch.no_grad():
                score = float(model(torch.ones(1, 3)) + torch.rand(()))
            act("evaluated", epoch)
            run.report(score)
            run.state["best"] = max(run.state["best"], score)
    weights = torch.cat([weight.detach().flatten() for weight in model.state_dict().values()])
    return [*history, run.state["best"], scheduler.get_last_lr()[0], *weights.tolist()]


def interrupted(place, number, make_loader, *interruptions, script=train, **options):
    """Train a trial in as many attempts as there are interruptions, and one."""
    trial = place.claim(number)
    for where, step, kind in interruptions:
        torch.manual_seed(0)
        act = Interruption(place, step, where, kind)
        with pytest.raises(DrainRequested if kind == "drain" else LeaseLost):
            script(trial, make_loader(), act, **options)
        place.drain.clear()
        place.leases.release(number, place.held.token)
        random.seed(9)
        np.random.seed(9)
        trial = place.hold(number)
    torch.manual_seed(0)
    values = script(trial, make_loader(), **options)
    trial.await_checkpoint()
    return values, trial


@pytest.mark.parametrize("name", LOADERS)
def test_whatever_the_loader_a_drained_training_ends_bit_equal(desk, name):
    place = desk()
    whole, _ = interrupted(place, 0, LOADERS[name])
    for number, at in enumerate([0, 3, 10, 25], 1):
        resumed, trial = interrupted(place, number, LOADERS[name], ("step", at, "drain"))
        assert resumed == whole, at
        assert NOT_TO_THE_BIT not in trial.user_attrs
    assert len(set(whole[: EPOCHS * STEPS])) > EPOCHS * (STEPS - 1), "each epoch is another one"


def test_a_training_whose_process_dies_goes_on_from_its_last_checkpoint(desk):
    place = desk()
    whole, _ = interrupted(place, 0, shuffled)
    kills = [("step", at, "kill") for at in (2, 11, 12, 30)]
    resumed, trial = interrupted(place, 1, shuffled, *kills, seconds=0.0)
    assert resumed == whole
    assert trial.attempt == 5
    assert place.leases.record(1).checkpoint.step == EPOCHS * STEPS - 1


def reports_of(place, count):
    found = {number: [] for number in range(count)}
    for entry in place.inbox():
        found[entry.number].append((entry.subject, entry.payload))
    return found


@pytest.mark.parametrize("where", ["between", "evaluated"])
def test_a_drain_after_the_last_step_of_an_epoch_loses_no_evaluation_and_makes_none_twice(
    desk, where
):
    place = desk()
    whole, _ = interrupted(place, 0, shuffled)
    resumed, _ = interrupted(place, 1, shuffled, (where, 0, "drain"), (where, 1, "drain"))
    assert resumed == whole
    reports = reports_of(place, 2)
    assert len(reports[0]) == EPOCHS
    assert reports[0] == reports[1]


@pytest.mark.parametrize("seconds", [1e9, 0.0])
def test_what_follows_the_last_step_of_an_epoch_may_use_what_that_step_has_left(desk, seconds):
    def script(trial, loader, act=no_interruption):
        model, optimizer, _ = build()
        with trial.training([model, optimizer], checkpoint_seconds=seconds) as run:
            for epoch in run.epochs(2):
                for batch in run.steps(loader):
                    act("step", run.step)
                    loss = model(batch.reshape(-1, 3).repeat(2, 1)).square().mean()
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                act("between", epoch)
                run.report(float(loss.detach()))
        return float(loss.detach())

    place = desk()
    whole, _ = interrupted(place, 0, shuffled, script=script)
    places = [("step", STEPS - 1), ("between", 0), ("step", STEPS), ("step", 2 * STEPS - 2)]
    for number, (where, at) in enumerate(places, 1):
        drained = (where, at, "drain")
        assert interrupted(place, number, shuffled, drained, script=script)[0] == whole, drained
    reports = reports_of(place, len(places) + 1)
    assert len(reports[0]) == 2
    assert all(each == reports[0] for each in reports.values())


def test_gradients_that_were_added_up_are_kept(desk):
    place = desk()
    whole, _ = interrupted(place, 0, shuffled, accumulation=3)
    for number, at in enumerate([3, 4, 5], 1):
        assert interrupted(place, number, shuffled, ("step", at, "drain"), accumulation=3)[0] == (
            whole
        )


@pytest.mark.parametrize(
    "options",
    [
        {"num_workers": 2},
        {"num_workers": 2, "persistent_workers": True, "prefetch_factor": 1},
    ],
    ids=["forked", "persistent"],
)
def test_what_loader_processes_draw_is_resumed_too(desk, options):
    place = desk()
    options = {"multiprocessing_context": "fork", **options}
    whole, _ = interrupted(place, 0, lambda: shuffled(**options))
    resumed, trial = interrupted(place, 1, lambda: shuffled(**options), ("step", 15, "drain"))
    assert resumed == whole
    assert NOT_TO_THE_BIT not in trial.user_attrs


def test_what_spawned_loader_processes_draw_is_what_forked_ones_do(desk, container, monkeypatch):
    place, data = desk(), container.get(DataManager)
    forked, _ = interrupted(
        place, 0, lambda: shuffled(num_workers=2, multiprocessing_context="fork")
    )
    monkeypatch.setattr(resumable_loader, "get_data_manager", lambda: data)

    def make_loader():
        return shuffled(num_workers=1, multiprocessing_context="spawn")

    resumed, trial = interrupted(place, 1, make_loader, ("step", 15, "drain"))
    assert resumed == forked
    assert NOT_TO_THE_BIT not in trial.user_attrs
    assert len(data.end_trial()) == 1, "one server for all epochs of both attempts"


def test_a_stream_in_loader_processes_is_resumed_too(desk):
    place = desk()

    def make_loader():
        return DataLoader(Stream(), batch_size=BATCH, num_workers=1, multiprocessing_context="fork")

    whole, _ = interrupted(place, 0, make_loader)
    assert interrupted(place, 1, make_loader, ("step", 15, "drain"))[0] == whole


def test_a_generator_that_each_epoch_makes_anew_is_resumed_too(desk):
    def script(trial, loader, act=no_interruption):
        seen = []
        with trial.training({"seen": seen}) as run:
            for epoch in run.epochs(3):
                loader.dataset.noise = np.random.default_rng(epoch)
                for batch in run.steps(loader):
                    act("step", run.step)
                    seen.append(float(batch.sum()))
        return seen

    def make_loader():
        return DataLoader(OwnNoise(), batch_size=BATCH, shuffle=True)

    place = desk()
    whole, _ = interrupted(place, 0, make_loader, script=script)
    assert interrupted(place, 1, make_loader, ("step", 14, "drain"), script=script)[0] == whole


def test_batches_that_were_passed_over_are_not_read(desk):
    place = desk()
    read = []

    class Noted(Rows):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    loader = DataLoader(Noted(), batch_size=BATCH, shuffle=True)
    interrupted(place, 0, lambda: loader, ("step", 8, "drain"))
    assert len(read) == ROWS * EPOCHS + BATCH, "one batch was read ahead of the drain"


class Entropy(Counting):
    """A sampler that nobody can resume."""

    def __iter__(self):
        return iter(random.SystemRandom().sample(range(ROWS), ROWS))


@pytest.mark.parametrize(
    ("make_loader", "reason"),
    [
        (lambda: DataLoader(Rows(), batch_size=BATCH, sampler=Entropy()), "order is another one"),
        (
            lambda: DataLoader(
                OwnNoise(), batch_size=BATCH, num_workers=1, multiprocessing_context="fork"
            ),
            "dataset.noise draws in loader processes",
        ),
    ],
    ids=["order", "noise"],
)
def test_what_cannot_be_resumed_to_the_bit_is_said(desk, make_loader, reason):
    place = desk()
    _, whole = interrupted(place, 0, make_loader)
    assert NOT_TO_THE_BIT not in whole.user_attrs, "nothing was resumed"
    _, trial = interrupted(place, 1, make_loader, ("step", 5, "drain"))
    assert reason in trial.user_attrs[NOT_TO_THE_BIT]


def test_an_optimizer_that_is_not_in_the_state_is_said(desk):
    def forgetful(trial, loader, act=no_interruption):
        model, optimizer, _ = build()
        with trial.training(model) as run:
            for batch in run.steps(loader):
                act("step", run.step)
                model(batch.reshape(-1, 3).repeat(2, 1)).sum().backward()
                optimizer.step()

    _, trial = interrupted(desk(), 0, shuffled, ("step", 5, "drain"), script=forgetful)
    assert "AdamW steps, and is not in the state" in trial.user_attrs[NOT_TO_THE_BIT]


def test_one_pass_needs_no_epochs_and_tells_how_long_it_is(desk):
    def one_pass(trial, loader, act=no_interruption):
        seen = []
        with trial.training({"seen": seen}) as run:
            steps = run.steps(loader)
            lengths = [len(steps)]
            for batch in steps:
                act("step", run.step)
                seen.append(float(batch.sum()))
        return seen, lengths

    place = desk()
    (whole, lengths), _ = interrupted(place, 0, shuffled, script=one_pass)
    assert lengths == [STEPS]
    (resumed, left), _ = interrupted(place, 1, shuffled, ("step", 4, "drain"), script=one_pass)
    assert resumed == whole
    assert left == [STEPS - 5]


def test_a_loop_that_is_left_early_has_made_its_step(desk):
    def short(trial, loader, act=no_interruption):
        seen = []
        with trial.training({"seen": seen}) as run:
            for epoch in run.epochs(4):
                for batch in run.steps(loader):
                    act("step", run.step)
                    seen.append((epoch, run.batch, run.step, float(batch.sum())))
                    if run.batch == 2:
                        break
        return seen

    place = desk()
    whole, _ = interrupted(place, 0, shuffled, script=short)
    assert [step for _, _, step, _ in whole] == list(range(12))
    for number, at in enumerate([2, 3, 7], 1):
        assert interrupted(place, number, shuffled, ("step", at, "drain"), script=short)[0] == whole


@pytest.mark.parametrize(("seconds", "passes"), [(1e9, 1), (0.0, 2)])
def test_a_drain_in_an_evaluation_waits_for_its_end_or_has_it_made_again(desk, seconds, passes):
    begun = []

    def script(trial, loader, act=no_interruption):
        with trial.training({"total": [0.0]}, checkpoint_seconds=seconds) as run:
            for epoch in run.epochs(2):
                for batch in run.steps(loader):
                    run.state["total"][0] += float(batch.sum())
                begun.append(epoch)
                values = []
                for number, batch in enumerate(run.evaluation(loader)):
                    act("evaluation", (epoch, number))
                    values.append(float(batch.sum()))
                run.report(sum(values))
        return run.state["total"]

    place = desk()
    whole, _ = interrupted(place, 0, shuffled, script=script)
    begun.clear()
    drained = ("evaluation", (0, 5), "drain")
    assert interrupted(place, 1, shuffled, drained, script=script)[0] == whole
    assert begun.count(0) == passes, "once, where a checkpoint of before it is not there"
    reports = reports_of(place, 2)
    assert len(reports[0]) == 2
    assert reports[0] == reports[1]


@pytest.mark.parametrize(
    "loader", [DataLoader(Stream()), [1, 2], iter([1, 2])], ids=["stream", "list", "once"]
)
def test_whatever_can_be_iterated_over_can_be_evaluated(desk, loader):
    with desk().claim().training({}) as run:
        assert len(list(run.evaluation(loader))) in {2, ROWS}


def refused(place, script, match, number=0):
    with pytest.raises(ObjectiveError, match=match):
        script(place.claim(number))


@pytest.mark.parametrize(
    ("state", "match"),
    [
        (nn.Linear, "give what has a `state_dict`"),
        (3, "give what has a `state_dict`"),
        (None, "give what has a `state_dict`"),
        ({"f": open}, r"^state\['f'\]: .* is no data"),
        (
            {"model": nn.Linear(1, 1), "deep": [object()]},
            r"^state\['deep'\]\[0\]: object is no data",
        ),
    ],
)
def test_a_state_that_could_not_be_saved_is_refused_before_training(desk, state, match):
    refused(desk(), lambda trial: trial.training(state), match)


@pytest.mark.parametrize(
    ("loader", "match"),
    [
        (lambda: iter([1, 2]), "can be read but once"),
        (lambda: enumerate([1, 2]), "can be read but once"),
        (lambda: (n for n in range(3)), "can be read but once"),
        (lambda: 7, "something to iterate over"),
        (lambda: None, "something to iterate over"),
    ],
)
def test_what_cannot_be_read_again_is_refused(desk, loader, match):
    def script(trial):
        with trial.training({}) as run:
            list(run.steps(loader()))

    refused(desk(), script, match)


#: What goes wrong in a training, seconds between checkpoints, what is said of it, and reports.
DIVERGING = {
    "a weight at a report": (1e9, "weight state.0..0.weight is no .* at step 11, in epoch 0 ", 0),
    "a weight at a checkpoint": (0.0, "weight state.0..0.weight is no .* at step 6, in epoch 0", 0),
    "a statistic": (1e9, "weight state.0..1.running_mean is no .* at step 11, in epoch 0", 0),
    "a value": (1e9, "the reported value is nan at step 22, .*finite one: 0.5 at step 11", 1),
    "the last weight": (1e9, "weight .* is no .* at step 22, .*value was 0.5 at step 22", 2),
}


def diverge(trial, what, seconds):
    model, optimizer, _ = build()
    with trial.training([model, optimizer], checkpoint_seconds=seconds) as run:
        for epoch in run.epochs(2):
            for _batch in run.steps(shuffled()):
                if run.step == 5 and what in {"a weight at a report", "a weight at a checkpoint"}:
                    model[0].weight.data.view(-1)[3] = torch.inf
                elif run.step == 5 and what == "a statistic":
                    model[1].running_mean[0] = torch.nan
            run.report(torch.nan if epoch == 1 and what == "a value" else 0.5)
        if what == "the last weight":
            model[3].weight.data.view(-1)[0] = torch.nan


@pytest.mark.parametrize("what", DIVERGING)
def test_a_training_that_diverges_has_no_value(desk, what):
    seconds, said, count = DIVERGING[what]
    place = desk()
    with pytest.raises(ObjectiveError, match=f"^{said}.* diverged; lower"):
        diverge(place.claim(0), what, seconds)
    place.trial.await_checkpoint()
    assert len(place.inbox()) == count
    checkpoint = place.leases.record(0).checkpoint
    assert (checkpoint is not None and checkpoint.step) == (seconds == 0.0 and 5)


def test_one_who_sees_a_divergence_may_give_the_trial_up(desk):
    def script(trial):
        model, optimizer, _ = build()
        with trial.training([model, optimizer]) as run:
            for _batch in run.steps(shuffled()):
                model[0].weight.data.fill_(torch.nan)
                raise optuna.TrialPruned

    with pytest.raises(optuna.TrialPruned):
        script(desk().claim(0))


def test_loops_that_nobody_could_resume_are_refused(desk):
    def no_epochs(trial):
        with trial.training({}) as run:
            for _ in range(2):
                list(run.steps([1]))

    def two_loaders(trial):
        with trial.training({}) as run:
            for _ in run.epochs(2):
                list(run.steps([1]))
                list(run.steps([2]))

    def two_rounds(trial):
        with trial.training({}) as run:
            for _ in range(2):
                for _ in run.epochs(1):
                    list(run.steps([1]))

    def two_trainings(trial):
        for _ in range(2):
            with trial.training({}) as run:
                list(run.steps([1]))

    place = desk()
    refused(place, no_epochs, r"run.steps\(\) once an epoch", 0)
    refused(place, two_loaders, r"run.steps\(\) once an epoch", 1)
    refused(place, two_rounds, r"run.epochs\(\) once", 2)
    refused(place, two_trainings, r"trial.training\(\) once a trial", 3)


def test_a_checkpoint_of_another_training_is_refused(desk):
    place = desk()

    def loop(trial, state, epochs=3, loader=(1, 2, 3), drained_in=None):
        with trial.training(state) as run:
            for epoch in run.epochs(epochs):
                for _ in run.steps(loader):
                    if epoch == drained_in:
                        place.drain.set()

    def again(number, state, match, **options):
        trial = place.claim(number)
        with pytest.raises(DrainRequested):
            loop(trial, {"model": nn.Linear(2, 2), "n": 1}, drained_in=1)
        place.drain.clear()
        place.leases.release(number, place.held.token)
        trial = place.hold(number)
        with pytest.raises(ObjectiveError, match=match):
            loop(trial, state, **options)

    again(0, {"model": nn.Linear(3, 2)}, r"(?s)state\['model'\]: .*size mismatch")
    again(1, {"other": nn.Linear(2, 2)}, r"state\['model'\] is in the trial's checkpoint alone")
    again(2, {"model": 3}, r"state\['model'\] is .*int")
    again(3, nn.Linear(2, 2), "state is .*Linear")
    again(4, {"model": nn.Linear(2, 2)}, r"run.epochs\(1\).*epoch 1", epochs=1)
    again(5, {"model": nn.Linear(2, 2)}, "there are no more than that", loader=[1])
    more = {"model": nn.Linear(2, 2), "more": nn.Linear(1, 1)}
    again(6, more, r"state\['more'\] is not in the trial's checkpoint")

    trial = place.claim(9)
    trial.save_checkpoint(1, {"mine": 1})
    with pytest.raises(ObjectiveError, match="none of trial.training"):
        trial.training({}).__enter__()


class Held:
    """What scripts hold besides modules: all of it is where it was in the next attempt."""

    def __init__(self):
        self.model = nn.Linear(3, 1)
        parameters = list(self.model.parameters())
        self.optimizers = [
            torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True),
            torch.optim.Adam(parameters, lr=0.01, amsgrad=True),
            torch.optim.Adafactor(parameters, lr=0.01),
            torch.optim.Muon([parameters[0]], lr=0.01),
        ]
        self.schedulers = [
            torch.optim.lr_scheduler.OneCycleLR(self.optimizers[0], 0.2, total_steps=99),
            torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(self.optimizers[1], 5),
            torch.optim.lr_scheduler.LambdaLR(self.optimizers[2], lambda step: 1 / (1 + step)),
            torch.optim.lr_scheduler.ReduceLROnPlateau(self.optimizers[3], patience=1),
        ]
        self.averaged = torch.optim.swa_utils.AveragedModel(self.model)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
        self.draws = [np.random.default_rng(1), random.Random(1), torch.Generator().manual_seed(1)]
        self.state = {
            "model": self.model,
            "optimizers": self.optimizers,
            "schedulers": {"by": self.schedulers, "named": {}},
            "averaged": self.averaged,
            "scaler": self.scaler,
            "draws": self.draws,
            "facts": {"best": None, "history": []},
            "count": 0,
        }

    def step(self, batch):
        loss = self.model(batch.reshape(-1, 3)).square().mean()
        for optimizer, scheduler in zip(self.optimizers, self.schedulers, strict=True):
            self.model.zero_grad()
            self.scaler.scale(self.model(batch.reshape(-1, 3)).square().mean()).backward()
            self.scaler.step(optimizer)
            late = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
            scheduler.step(*([float(loss.detach())] if late else []))
        self.scaler.update()
        self.averaged.update_parameters(self.model)
        drawn = [self.draws[0].random(), self.draws[1].random()]
        drawn.append(float(torch.rand((), generator=self.draws[2])))
        self.state["count"] += 1
        facts = self.state["facts"]
        facts["best"] = min(facts["best"] or 9.0, float(loss.detach()))
        facts["history"].append([float(loss.detach()), *drawn])


def test_optimizers_schedulers_scalers_generators_and_data_are_put_back_where_they_were(desk):
    def script(trial, loader, act=no_interruption):
        torch.manual_seed(4)
        held = Held()
        facts = held.state["facts"]
        history = facts["history"]
        with trial.training(held.state) as run:
            for _ in run.epochs(2):
                for batch in run.steps(loader):
                    act("step", run.step)
                    held.step(batch)
        assert held.state["facts"] is facts
        assert facts["history"] is history
        rates = [group["lr"] for each in held.optimizers for group in each.param_groups]
        weights = [*held.model.parameters(), *held.averaged.parameters()]
        return facts, rates, held.state["count"], [w.tolist() for w in weights]

    place = desk()
    whole, _ = interrupted(place, 0, shuffled, script=script)
    resumed, _ = interrupted(
        place, 1, shuffled, ("step", 3, "drain"), ("step", 14, "drain"), script=script
    )
    assert resumed == whole


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_loop_of_accelerate_resumes_with_the_accelerator_as_its_state(desk, accumulation):
    def script(trial, loader, act=no_interruption):
        accelerator = accelerate.Accelerator(
            cpu=True, gradient_accumulation_steps=accumulation, mixed_precision="no"
        )
        model, optimizer, scheduler = build()
        model, optimizer, loader, scheduler = accelerator.prepare(
            model, optimizer, loader, scheduler
        )
        history = []
        with trial.training({"all": accelerator, "history": history}) as run:
            for _ in run.epochs(EPOCHS):
                model.train()
                for batch in run.steps(loader):
                    act("step", run.step)
                    with accelerator.accumulate(model):
                        loss = model(batch.repeat(2, 1)).square().mean()
                        accelerator.backward(loss)
                        optimizer.step()
                        scheduler.step()
                        optimizer.zero_grad()
                    history.append(float(loss.detach()))
        weights = torch.cat([weight.detach().flatten() for weight in model.parameters()])
        return history, scheduler.get_last_lr(), weights.tolist()

    place = desk()
    whole, _ = interrupted(place, 0, shuffled, script=script)
    for number, at in enumerate([4, 10, 21], 1):
        resumed, _ = interrupted(place, number, shuffled, ("step", at, "drain"), script=script)
        assert resumed == whole, at


def test_rows_that_accelerate_reads_ahead_with_a_generator_of_their_own_are_said(desk):
    def script(trial, loader, act=no_interruption):
        with trial.training({}) as run:
            for _ in run.steps(accelerate.Accelerator(cpu=True).prepare(loader)):
                act("step", run.step)

    def make_loader():
        return DataLoader(OwnNoise(), batch_size=BATCH)

    _, trial = interrupted(desk(), 0, make_loader, ("step", 3, "drain"), script=script)
    assert "dataset.noise draws ahead" in trial.user_attrs[NOT_TO_THE_BIT]


def test_an_accumulating_optimizer_needs_its_accelerator(desk):
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, optimizer, _ = build()
    model, optimizer = accelerator.prepare(model, optimizer)
    refused(desk(), lambda trial: trial.training([model, optimizer]), "give that")


class Marked(Rows):
    """Rows that tell what their process was told first."""

    told = 0.0

    def __getitem__(self, index):
        return torch.tensor([self.told, float(os.getppid())])


def mark(number):
    Marked.told = 3.0 + number


def test_a_loader_of_ones_own_is_registered_by_one_call_and_keeps_its_own_first_call(
    container, client, settings
):
    registry = ProcessRegistry(client, settings.times)
    data = container.get(DataManager)
    data._record = ProcessRecord(registry, ProcessKind.TRIAL)
    loader = DataLoader(
        Marked(),
        num_workers=1,
        persistent_workers=True,
        multiprocessing_context="fork",
        worker_init_fn=mark,
    )
    registered = data.registered(loader)
    batches = iter(registered)
    assert next(batches).tolist() == [[3.0, float(os.getpid())]]
    (entry,) = registry.entries()
    assert (entry.kind, entry.parent) == (ProcessKind.LOADER, os.getpid())
    assert loader._iterator is None
    assert loader.worker_init_fn is mark
    registered._iterator._shutdown_workers()
    wait_until(lambda: not list(registry.entries()), "it is gone")
