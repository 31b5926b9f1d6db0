"""`lightning.Trainer` in a trial: ended anywhere, it resumes to the bit."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings

import optuna
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    ModelCheckpoint,
)
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from workers.integrations.lightning import FleetCallback
from workers.protocol.errors import DrainRequested, LeaseLost, ObjectiveError
from workers.trials.training_loop import NOT_TO_THE_BIT

#: Batches of an epoch, and epochs.
STEPS, EPOCHS = 7, 3


@pytest.fixture(autouse=True)
def one_thread(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # such small products wait for each other else
    with warnings.catch_warnings():
        # of workers, logging intervals and devices: advice of Lightning's
        warnings.filterwarnings("ignore", module="lightning")
        yield
    torch.set_num_threads(before)


class Module(LightningModule):
    def __init__(self, act):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1)
        )
        self.act = act
        self.losses = []

    def training_step(self, batch, batch_idx):
        self.act("step", (self.current_epoch, batch_idx))
        rows = batch["a"][0] + batch["b"][0] if isinstance(batch, dict) else batch[0]
        loss = (self.layers(rows + torch.rand(())) - 1).square().mean()
        self.losses.append(float(loss.detach()))
        return loss

    def validation_step(self, batch, batch_idx):
        self.act("validation", (self.current_epoch, batch_idx))
        self.log("score", self.layers(batch[0]).mean() + torch.rand(()))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.02)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)]


class TwoByHand(Module):
    """Adds up for a step of one optimizer, and clears after the next backward for another."""

    def __init__(self, act):
        super().__init__(act)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        first, second = self.optimizers()
        self.manual_backward(loss)
        second.step()
        if self.current_epoch % 2 == batch_idx % 2:
            second.zero_grad()
        if (self.current_epoch * STEPS + batch_idx) % 3 == 2:
            first.step()
            first.zero_grad()

    def configure_optimizers(self):
        return [torch.optim.SGD(self.layers[at].parameters(), 0.02) for at in (0, 3)]


class ZeroEachSecondBatch(Module):
    def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
        if batch_idx % 2 == 0:
            optimizer.zero_grad()


class ByEpochs(Module):
    """What it trains with is set where an epoch begins."""

    def on_train_epoch_start(self):
        self.scale = 1.0 + self.current_epoch + torch.rand(())

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * self.scale


class Plateaus(Module):
    """Its rate falls wherever a metric is no new best."""

    every, interval, metric = 1, "step", "loss"

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.02)
        rates = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.7, patience=0)
        config = {"scheduler": rates, "interval": self.interval, "monitor": self.metric}
        # not strict: before the first validation, a metric of it is not there yet
        return [optimizer], [config | {"frequency": self.every, "strict": False}]


class SparsePlateaus(Plateaus):
    every = 2


class PlateausOfEpochs(Plateaus):
    interval, metric = "epoch", "score"


class PlateausOfValidations(Plateaus):
    metric = "score"


class Act:
    """Drains or loses the lease when a training comes to a place."""

    def __init__(self, place, at=None, kind="drain"):
        self.place, self.at, self.kind = place, at, kind

    def __call__(self, what, where):
        if (what, where) != self.at:
            return
        if self.kind == "drain":
            self.place.drain.set()
        else:
            self.place.held.lose()


ROWS = TensorDataset(torch.linspace(0, 1, STEPS * 4 * 3).reshape(-1, 3))


class Stream(IterableDataset):
    def __iter__(self):
        return (ROWS[index] for index in torch.randperm(len(ROWS)).tolist())


LOADERS = {
    "a generator": lambda: DataLoader(
        ROWS, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(3)
    ),
    "processes": lambda: DataLoader(
        ROWS, batch_size=4, shuffle=True, num_workers=2, multiprocessing_context="fork"
    ),
    "a stream": lambda: DataLoader(Stream(), batch_size=4),
    "two loaders": lambda: {
        "a": DataLoader(ROWS, batch_size=4, shuffle=True),
        "b": DataLoader(ROWS, batch_size=4, shuffle=True),
    },
}


def train(
    trial, act, metric="score", seconds=1e9, callbacks=(), make_loader=None, kind=Module, **options
):
    torch.manual_seed(5)
    module = kind(act)
    fleet = FleetCallback(trial, metric=metric, checkpoint_seconds=seconds)
    trainer = Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        callbacks=[fleet, *callbacks],
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    loader = make_loader() if make_loader else DataLoader(ROWS, batch_size=4, shuffle=True)
    trainer.fit(module, loader, DataLoader(ROWS, batch_size=8), ckpt_path=fleet.checkpoint)
    weights = torch.cat([weight.flatten() for weight in module.state_dict().values()])
    return fleet.values, weights.tolist(), module.losses[-1]


def interrupted(place, number, *interruptions, **options):
    """Train a trial in as many attempts as there are interruptions, and one."""
    trial = place.claim(number)
    for what, where, kind in interruptions:
        torch.manual_seed(0)
        with pytest.raises(DrainRequested if kind == "drain" else LeaseLost):
            train(trial, Act(place, (what, where), kind), **options)
        place.drain.clear()
        place.leases.release(number, place.held.token)
        trial = place.hold(number)
    torch.manual_seed(0)
    return train(trial, Act(place), **options)


def reports_of(place, count):
    found = {number: [] for number in range(count)}
    for entry in place.inbox():
        found[entry.number].append((entry.subject, entry.payload))
    return found


def test_a_second_fit_of_a_trial_does_not_go_on_from_the_first(desk):
    place = desk(objective="user.py:objective", direction="maximize")
    trial = place.claim()
    train(trial, Act(place), seconds=0.0)
    with pytest.raises(ObjectiveError, match=r"one fit\(\) of a trial.*a trial of its own"):
        train(trial, Act(place))


def test_a_drained_training_ends_bit_equal_and_reports_each_validation_once(desk):
    place = desk()
    whole = interrupted(place, 0)
    places = [
        ("step", (0, 2)), ("step", (0, STEPS - 1)), ("step", (1, 0)), ("step", (2, 3)),
        ("validation", (1, 0)),
    ]  # fmt: skip
    for number, (what, where) in enumerate(places, 1):
        assert interrupted(place, number, (what, where, "drain")) == whole, (what, where)
    reports = reports_of(place, len(places) + 1)
    assert len(reports[0]) == EPOCHS
    assert all(each == reports[0] for each in reports.values())


@pytest.mark.parametrize("name", LOADERS)
def test_whatever_the_loader_a_drain_loses_nothing(desk, name):
    place = desk()
    make_loader = LOADERS[name]
    whole = interrupted(place, 0, make_loader=make_loader)
    for number, where in enumerate([(0, 3), (1, 2)], 1):
        drained = ("step", where, "drain")
        assert interrupted(place, number, drained, make_loader=make_loader) == whole, where


def test_a_training_whose_process_dies_goes_on_from_its_last_checkpoint(desk):
    place = desk()
    whole = interrupted(place, 0)
    kills = [("step", (0, 1), "kill"), ("step", (0, 6), "kill"), ("step", (1, 4), "kill")]
    assert interrupted(place, 1, *kills, seconds=0.0) == whole


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate_grad_batches": 3},
        {"val_check_interval": 3},
        {"limit_train_batches": 5},
        {"check_val_every_n_epoch": 2, "max_steps": 17},
        {"enable_checkpointing": False, "logger": False},
    ],
    ids=lambda options: next(iter(options)),
)
def test_whatever_the_trainers_settings_a_drain_loses_nothing(desk, options):
    place = desk()
    whole = interrupted(place, 0, **options)
    for number, where in enumerate([(0, 2), (1, 3)], 1):
        assert interrupted(place, number, ("step", where, "drain"), **options) == whole, where


@pytest.mark.parametrize(
    ("kind", "every"),
    [
        (TwoByHand, 1), (TwoByHand, 3), (ZeroEachSecondBatch, 1),
        (Plateaus, 1), (SparsePlateaus, 1), (PlateausOfEpochs, 1),
        (PlateausOfEpochs, 2), (PlateausOfValidations, 2),
    ],
)  # fmt: skip
def test_however_the_module_steps_an_interruption_loses_nothing(desk, kind, every):
    place, made = desk(), {"kind": kind, "check_val_every_n_epoch": every}
    whole = interrupted(place, 0, **made)
    for number, where in enumerate([(0, 0), (0, 3), (0, 6), (1, 4)], 1):
        assert interrupted(place, number, ("step", where, "drain"), **made) == whole, where
    kills = [("step", where, "kill") for where in [(0, 2), (1, 0), (1, 3)]]
    assert interrupted(place, 5, *kills, seconds=0.0, **made) == whole


class Scribbler(Callback):
    """Writes to files of its own in place, by many ways that loggers and callbacks have."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        (self.folder / "deep").mkdir(parents=True, exist_ok=True)
        for name in ("appended.txt", "deep/appended.txt"):
            with (self.folder / name).open("a") as file:
                file.write(f"{trainer.global_step}\n")
        (self.folder / "anew.txt").write_text(str(trainer.global_step))
        for link, target in [("last.txt", "anew.txt"), ("gone.txt", "never"), ("deep/gone", "no")]:
            (self.folder / link).unlink(missing_ok=True)
            (self.folder / link).symlink_to(target)


def test_as_many_batches_are_added_up_as_the_epoch_that_is_resumed_had(desk):
    def options():
        return {"callbacks": [GradientAccumulationScheduler({0: 2, 1: 3})]}

    place = desk(objective="user.py:objective")
    whole = train(place.claim(0), Act(place), **options())
    assert interrupted(place, 1, ("step", (1, 1), "drain"), **options()) == whole


def test_however_often_a_training_is_drained_no_epoch_is_left_out(desk):
    place = desk(objective="user.py:objective")
    whole = train(place.claim(0), Act(place))
    drains = [
        ("step", (0, 4), "drain"),
        ("validation", (0, 0), "drain"),  # waits for the beginning of the next epoch
        ("validation", (1, 0), "drain"),
        ("step", (2, 5), "drain"),
    ]
    assert interrupted(place, 1, *drains) == whole


@pytest.mark.parametrize("kind", [Module, ByEpochs])
def test_what_is_set_where_an_epoch_begins_is_set_where_it_is_resumed_and_that_is_said(desk, kind):
    place = desk(objective="user.py:objective")
    whole = train(place.claim(0), Act(place), kind=kind)
    assert interrupted(place, 1, ("step", (1, 2), "drain"), kind=kind) == whole
    assert (NOT_TO_THE_BIT in place.trial.user_attrs) is (kind is ByEpochs)


def test_files_that_are_written_to_in_place_leave_each_checkpoint_whole(desk):
    place = desk()

    def attempt(trial, act, seconds=0.0):
        folder = FleetCallback(trial, metric="score").output_dir
        options = {"callbacks": [Scribbler(folder)], "logger": CSVLogger(folder)}
        torch.manual_seed(0)
        return train(
            trial, act, seconds=seconds, kind=Plateaus, log_every_n_steps=1, **options
        ), folder

    whole, _ = attempt(place.claim(0), Act(place))
    trial = place.claim(1)
    for where, step, seconds in [((1, 3), 7, 0.0), ((1, 5), 7, 1e9), ((2, 5), 14, 0.0)]:
        with pytest.raises(LeaseLost):
            attempt(trial, Act(place, ("step", where), "kill"), seconds)
        place.leases.release(1, place.held.token)
        trial = place.hold(1)
        kept = trial.load_checkpoint_files()
        assert kept is not None
        assert kept.parent.name == f"step-{step:09d}", "the last one, and not one before it"
        assert (kept / "anew.txt").read_text() == (kept / "last.txt").read_text() == str(step)
    resumed, folder = attempt(trial, Act(place))
    assert resumed == whole
    rows = (folder / "appended.txt").read_text().split()
    assert rows == (folder / "deep/appended.txt").read_text().split()
    assert rows == [str(step + 1) for step in range(STEPS * EPOCHS)]


def test_what_other_callbacks_know_is_resumed_with_the_files_that_they_name(desk):
    place = desk()

    def callbacks():
        best = ModelCheckpoint(monitor="score", mode="min", save_top_k=1)
        return [best, EarlyStopping("score", mode="min", patience=2, min_delta=9.0)]

    def run(number, *interruptions):
        made = callbacks()
        trial = place.claim(number)
        for where in interruptions:
            torch.manual_seed(0)
            with pytest.raises(DrainRequested):
                train(trial, Act(place, ("step", where)), callbacks=made)
            place.drain.clear()
            place.leases.release(number, place.held.token)
            trial, made = place.hold(number), callbacks()
        torch.manual_seed(0)
        return train(trial, Act(place), callbacks=made), made, trial

    whole, (best, stopping), _ = run(0)
    resumed, (best_again, stopping_again), trial = run(1, (2, 3))
    assert resumed == whole
    assert stopping_again.wait_count == stopping.wait_count > 0
    assert best_again.best_model_score == best.best_model_score
    assert best_again.best_model_path.startswith(str(trial.result_directory))
    state = torch.load(best_again.best_model_path, weights_only=True)["state_dict"]
    assert len(state) > 0


def test_outputs_lie_with_the_trials_own_and_nowhere_else(desk, tmp_path):
    trial = desk().claim(0)
    train(trial, Act(None))
    assert not (tmp_path / "lightning_logs").exists()
    assert not (tmp_path / "checkpoints").exists()
    found = [path.name for path in (trial.result_directory / "lightning").rglob("*.ckpt")]
    assert found, "Lightning's own checkpoint is a result"
    assert "fleet.ckpt" not in found


def test_the_trial_is_pruned_after_a_validation(desk):
    place = desk(pruner={"type": "median"})
    trial = place.claim(0)
    trial.should_prune = lambda: True
    with pytest.raises(optuna.TrialPruned, match="after step 7"):
        train(trial, Act(place))
    assert len(reports_of(place, 1)[0]) == 1
    json.dumps(trial.last_value)


def test_a_metric_that_is_not_logged_is_refused_with_those_that_are(desk):
    trial = desk().claim(0)
    with pytest.raises(ObjectiveError, match="'accuracy': the module logs score"):
        train(trial, Act(None), metric="accuracy")


class Diverges(Module):
    """One of its losses is no number, or one of its weights after that step."""

    what, at = "a loss", (1, 2)

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        is_bad = (self.current_epoch, batch_idx) == self.at and self.what == "a loss"
        return loss * torch.nan if is_bad else loss

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        optimizer.step(optimizer_closure)
        if (epoch, batch_idx) == self.at and self.what == "a weight":
            with torch.no_grad():
                self.layers[0].weight.fill_(torch.inf)

    def validation_step(self, batch, batch_idx):
        self.layers(batch[0])
        self.log("score", torch.tensor(0.5))  # as of a class that is always the first
        is_bad = self.current_epoch == 1 and self.what == "a loss of the validation"
        self.log("val_loss", torch.tensor(torch.nan if is_bad else 0.5))


class DivergesInAWeight(Diverges):
    what = "a weight"


class DivergesInTheLastStep(DivergesInAWeight):
    at = (1, STEPS - 1)


class DivergesInValidation(Diverges):
    what = "a loss of the validation"


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Diverges, "^the loss is nan at step 10 .*loss before: .* diverged; lower the learning"),
        (DivergesInValidation, "^val_loss is nan at step 14, in epoch 1 .the last finite one: 0.5"),
    ],
)
def test_a_training_that_diverges_has_no_value(desk, kind, said):
    place = desk(direction="maximize")
    with pytest.raises(ObjectiveError, match=said):
        train(place.claim(0), Act(place), kind=kind)
    assert len(reports_of(place, 1)[0]) == 1, "that of the epoch before"


@pytest.mark.parametrize(
    ("kind", "last_saved"), [(DivergesInAWeight, STEPS + 2), (DivergesInTheLastStep, 2 * STEPS - 1)]
)
def test_weights_that_are_no_numbers_come_to_no_value_and_no_checkpoint(desk, kind, last_saved):
    place = desk(direction="maximize")
    with pytest.raises(ObjectiveError, match="^weight layers.0.weight is no finite number at step"):
        train(place.claim(0), Act(place), kind=kind, seconds=0.0)
    assert len(reports_of(place, 1)[0]) == 1
    assert place.leases.record(0).checkpoint.step == last_saved


def test_the_library_may_go_by_its_other_name():
    program = (
        "import pytorch_lightning\n"
        "from workers.integrations.lightning import FleetCallback\n"
        "assert issubclass(FleetCallback, pytorch_lightning.Callback)\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True)
