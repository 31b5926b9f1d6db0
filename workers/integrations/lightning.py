"""`lightning.Trainer` in a trial: it reports, is pruned, drains, and goes on where it stopped.

    def objective(trial):
        fleet = FleetCallback(trial, metric="val_accuracy")
        trainer = Trainer(max_epochs=10, callbacks=[fleet])
        trainer.fit(model, loader, held_out, ckpt_path=fleet.checkpoint)
        return fleet.best_value

Invariant: a checkpoint is taken only where Lightning can go on from it and nothing is left out:
where an epoch begins, or after a batch that no validation, no optimizer step, no scheduler and no
hook waits for.
"""

from __future__ import annotations

import math
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import optuna
import torch

if "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules:
    # the same library by its other name; a script uses one of them
    from pytorch_lightning import Callback
    from pytorch_lightning.utilities.model_helpers import is_overridden
else:
    from lightning.pytorch import Callback
    from lightning.pytorch.utilities.model_helpers import is_overridden

from workers.disk import durable
from workers.disk.state_packing import pack
from workers.disk.state_reading import unpack
from workers.integrations.lightning_loader import ResumingLoader
from workers.integrations.lightning_logger import in_place_of
from workers.integrations.lightning_progress import (
    batches_so_far,
    begin_as_ever,
    begin_epoch_again,
    count_anew,
    count_epoch,
    gradients_of,
    put_gradients,
    steps_on_plateaus,
)
from workers.logs import get_logger
from workers.protocol.errors import DrainRequested, ObjectiveError
from workers.trials.divergence import Diverged, LossWatch
from workers.trials.finite import WAY_OUT, FiniteWatch, best_value, trained
from workers.trials.handle import FleetTrial
from workers.trials.step_seeds import StepSeeds
from workers.trials.training_loop import NOT_TO_THE_BIT

log = get_logger(__name__)

#: The file that Lightning goes on from.
_CHECKPOINT: Final = "fleet.ckpt"

_ONE_TRAINING: Final = (
    "FleetCallback is for one fit() of a trial: a second one would go on from the checkpoint of the"
    " first, or resume as that; fit the others without it, or make each a trial of its own"
)


class FleetCallback(Callback):
    """Has one `Trainer.fit` be a trial.

    The Trainer's outputs go to `lightning/` in the trial's result directory, whatever
    `default_root_dir` says. Where it would write logs of its own, what is logged becomes curves in
    the trial's W&B run; a `WandbLogger` logs to that run.

    Args:
        trial: What the objective was given.
        metric: What is reported after each validation, by the name it was logged under.
        checkpoint_seconds: After which a checkpoint is taken at the next step where one can be.
    """

    def __init__(self, trial: FleetTrial, *, metric: str, checkpoint_seconds: float = 30.0) -> None:
        self._trial = trial
        self._metric = metric
        self._checkpoint_seconds = checkpoint_seconds
        self._seeds = StepSeeds.drawn()
        self._loaders: list[ResumingLoader] = []
        self._resumed: dict[str, Any] | None = None
        #: what the checkpoint that is being written holds of the Trainer
        self._kept: dict[str, Any] = {}
        self._is_resumed = False
        self._is_in_epoch = False
        self._finite = FiniteWatch()
        self._losses: LossWatch | None = None
        self._saved_at, self._saved_count = time.monotonic(), 0
        #: The metric after each validation, those of earlier attempts included.
        self.values: list[float] = []
        if trial.wandb_run() is None:  # begun, so that a WandbLogger finds it
            os.environ["WANDB_MODE"] = "disabled"  # put back after the trial

    @property
    def output_dir(self) -> Path:
        """Where Lightning leaves its files; what is there when the trial ends is its result."""
        return self._trial.result_directory / "lightning"

    @property
    def checkpoint(self) -> str | None:
        """Where `Trainer.fit` is to go on, or None to begin: to be given as its `ckpt_path`."""
        self._is_resumed = True
        kept = self._trial.load_checkpoint_files()
        if kept is None:
            return None
        self.output_dir.mkdir(parents=True, exist_ok=True)
        for each in kept.iterdir():
            durable.remove(self.output_dir / each.name)
            # to be written to as the attempt before did; only the fleet's own is never changed
            take = durable.link_tree if each.name == _CHECKPOINT else durable.copy_tree
            take(each, self.output_dir / each.name)
        found = self.output_dir / _CHECKPOINT
        if not found.exists():
            raise ObjectiveError(f"the trial's checkpoint holds no {_CHECKPOINT}: it is another's")
        return str(found)

    @property
    def best_value(self) -> float:
        """The best of `values`, as the study sees it.

        Raises:
            ObjectiveError: Nothing was validated, or one is NaN.
        """
        if not self.values:
            raise ObjectiveError(
                "nothing was validated: give fit() val_dataloaders, and the module a"
                " validation_step"
            )
        return best_value(self.values, self._trial.spec.all_directions[0])

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Have Lightning's files lie where the trial's do, and its logs reach the trial's run."""
        if stage != "fit":
            return
        if not self._is_resumed and self._trial.attempt > 1:
            log.warning("begins_anew", hint="trainer.fit(..., ckpt_path=callback.checkpoint)")
        trainer._default_root_dir = str(self.output_dir)
        trainer.loggers = [in_place_of(logger, self._trial) for logger in trainer.loggers]
        # last: what the other callbacks make of a batch is in what is saved after it
        trainer.callbacks = [each for each in trainer.callbacks if each is not self] + [self]

    def state_dict(self) -> dict[str, Any]:
        """What this callback needs to go on."""
        state = {
            "seed": self._seeds.seed,
            "values": self.values,
            "output_dir": str(self.output_dir),
            "loaders": [loader.place() for loader in self._loaders],
            "trainer": self._kept,
        }
        found: dict[str, Any] = pack(state)
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what the attempt before has measured, and where it was."""
        state = unpack(state_dict)
        self._seeds = StepSeeds(state["seed"])
        self.values = list(state["values"])
        self._resumed = state

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Have the states of other callbacks name their files where those lie now."""
        known = checkpoint.get("callbacks", {})
        own = known.get(self.state_key)
        if own is not None:
            before = unpack(own)["output_dir"]
            checkpoint["callbacks"] = _moved(known, before, str(self.output_dir))

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Be where the attempt before was.

        Raises:
            ObjectiveError: The trial has been trained before.
        """
        self._trial.begin_training(_ONE_TRAINING)
        warnings.filterwarnings("ignore", ".*ended before the epoch ended and your dataloader.*")
        self._saved_count, self._saved_at = batches_so_far(trainer), time.monotonic()
        self._trial.defer_drain(is_deferred=True)
        self._losses = LossWatch(pl_module.device)
        kept = {} if self._resumed is None else self._resumed["trainer"]
        if kept:
            put_gradients(pl_module, kept["gradients"])
            trainer._logger_connector._callback_metrics.update(kept["metrics"])
            # not in a checkpoint of a release before
            accumulated = kept.get("accumulated_batches", trainer.accumulate_grad_batches)
            trainer.accumulate_grad_batches = accumulated
        self._take_loaders(trainer)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Have a checkpoint taken if one is due.

        Raises:
            DrainRequested: The trial is to stop, and can go on from here.
        """
        self._is_in_epoch = True
        trainer._signal_connector.received_sigterm = False  # a drain, which is seen to here
        begin_as_ever(trainer.fit_loop)
        count_epoch(trainer.fit_loop)
        self._take_loaders(trainer)
        for loader in self._loaders:
            loader.note_trained(0)
        if batches_so_far(trainer) != self._saved_count:
            count_anew(trainer.fit_loop.epoch_loop)
        self._seeds.sow("epoch", trainer.current_epoch)
        self._pause(trainer)

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Say that a step is about to be made."""
        begin_as_ever(trainer.fit_loop)
        if not self._is_in_epoch:
            self._begin_epoch_again(trainer, pl_module)
        self._progress(trainer)
        self._seeds.sow("step", trainer.current_epoch, batch_idx)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the loss, and have a checkpoint taken if one is due and can be.

        Raises:
            DrainRequested: The trial is to stop, and can go on from here.
            ObjectiveError: The training has diverged.
        """
        self._note_loss(trainer, outputs)
        trainer._signal_connector.received_sigterm = False  # a drain, which is seen to below
        epoch = trainer.fit_loop.epoch_loop
        is_followed = (
            epoch._num_ready_batches_reached()
            or epoch._should_check_val_fx(trainer.fit_loop._data_fetcher)
            or epoch._should_accumulate()
            or steps_on_plateaus(trainer)
            or is_overridden("on_train_batch_end", pl_module)
        )
        if len(self._loaders) == 1 and not is_followed:
            self._loaders[0].note_trained(batch_idx + 1)
            self._pause(trainer)

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Say that a validation goes on."""
        self._progress(trainer)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Report the metric.

        Raises:
            optuna.TrialPruned: The pruner gave the trial up.
            ObjectiveError: It was not logged, or is no finite number: the training has diverged.
        """
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        found = trainer.callback_metrics
        if self._metric not in found:
            raise ObjectiveError(
                f"metric {self._metric!r}: the module logs"
                f" {', '.join(sorted(found)) or 'nothing'} in training and validation; name one of"
                " them, as FleetCallback(trial, metric=...), or self.log it in validation_step"
            )
        self._look(trainer)
        place = _place(trainer)
        for name in found:
            if "loss" in name.lower():
                self._finite.note(name, float(found[name]), place)
        value = float(found[self._metric])
        self._finite.note(self._metric, value, place)
        self.values.append(value)
        if len(self._trial.spec.all_directions) == 1:
            self._trial.report(value, trainer.global_step)
            if self._trial.should_prune():
                raise optuna.TrialPruned(f"pruned after step {trainer.global_step}")

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """See that there is something to be measured.

        Raises:
            ObjectiveError: The training has diverged.
        """
        self._trial.end_training()
        self._look(trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Give back what is held."""
        self._end()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Give back what is held."""
        if stage == "fit":
            self._end()

    def _end(self) -> None:
        """Leave no processes, and no checkpoint of the fleet's among the results."""
        self._trial.defer_drain(is_deferred=False)
        (self.output_dir / _CHECKPOINT).unlink(missing_ok=True)
        for loader in self._loaders:
            loader.close()

    def _take_loaders(self, trainer: Any) -> None:
        """Have the Trainer read from where this attempt is to go on."""
        combined = trainer.fit_loop._combined_loader
        if all(isinstance(loader, ResumingLoader) for loader in combined.flattened):
            return
        resumed, self._resumed = self._resumed, None
        self._loaders = [
            ResumingLoader(loader, StepSeeds(self._seeds.of("loader", number)), trainer)
            for number, loader in enumerate(combined.flattened)
        ]
        if resumed is not None:
            for loader, place in zip(self._loaders, resumed["loaders"], strict=False):
                loader.go_on_from(place)
        combined.flattened = list(self._loaders)
        iter(trainer.fit_loop._data_fetcher)

    def _begin_epoch_again(self, trainer: Any, pl_module: Any) -> None:
        """Have hooks of the user's be called that made the epoch what it was."""
        self._is_in_epoch = True
        self._seeds.sow("epoch", trainer.current_epoch)
        if told := begin_epoch_again(trainer, pl_module):
            reason = f"on_train_epoch_start of {', '.join(told)} was called again in an epoch"
            self._trial.set_user_attr(NOT_TO_THE_BIT, reason)

    def _note_loss(self, trainer: Any, outputs: Any) -> None:
        """Take note of a batch's loss; on a GPU it is looked at later, with others."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if self._losses is None or not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            return
        loss = loss.detach().reshape(())
        rate = trainer.optimizers[0].param_groups[0]["lr"] if trainer.optimizers else math.nan
        with _refusing():
            self._losses.note(trainer.global_step, rate, loss, torch.zeros_like(loss))

    def _look(self, trainer: Any) -> None:
        """See that losses and weights are numbers, before what comes of them counts."""
        if self._losses is not None:
            with _refusing():
                self._losses.look()
        self._finite.look_at(trained(trainer.lightning_module), _place(trainer))

    def _progress(self, trainer: Any) -> None:
        self._trial.progress(trainer.global_step)

    def _pause(self, trainer: Any) -> None:
        """Be where the training may end, and go on in another attempt."""
        self._trial.defer_drain(is_deferred=False)
        try:
            self._progress(trainer)
        except DrainRequested:
            self._save(trainer)
            raise
        if time.monotonic() - self._saved_at >= self._checkpoint_seconds:
            self._save(trainer)
        self._trial.defer_drain(is_deferred=True)

    def _save(self, trainer: Any) -> None:
        count = batches_so_far(trainer)
        if count == self._saved_count:
            return
        self._look(trainer)
        path = self.output_dir / _CHECKPOINT
        path.unlink(missing_ok=True)  # the file of the checkpoint before is the fleet's, too
        module = trainer.lightning_module
        may_last = not module.automatic_optimization or is_overridden("optimizer_zero_grad", module)
        self._kept = {
            "gradients": gradients_of(module) if may_last else {},
            "metrics": dict(trainer.callback_metrics),
            # which a callback may change with the epochs
            "accumulated_batches": trainer.accumulate_grad_batches,
        }
        try:
            trainer.save_checkpoint(path)
        finally:
            self._kept = {}
        # loggers append to their files, and ModelCheckpoint may write one of its own anew
        others = [each for each in self.output_dir.iterdir() if each != path and each.exists()]
        self._trial.save_checkpoint_files(count, path, changing=others)
        self._saved_at, self._saved_count = time.monotonic(), count
        log.debug("checkpoint_saved", step=trainer.global_step, epoch=trainer.current_epoch)


def _place(trainer: Any) -> str:
    return f"at step {trainer.global_step}, in epoch {trainer.current_epoch}"


@contextmanager
def _refusing() -> Iterator[None]:
    """Have a loss that is no number end the trial for good."""
    try:
        yield
    except Diverged as error:
        raise ObjectiveError(f"{error}: the training has diverged; {WAY_OUT}") from error


def _moved(tree: Any, before: str, after: str) -> Any:
    """A state whose paths below one folder lie below another."""
    if isinstance(tree, Mapping):
        return {_moved(key, before, after): _moved(it, before, after) for key, it in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(_moved(item, before, after) for item in tree)
    if isinstance(tree, str) and tree.startswith(before):
        return after + tree[len(before) :]
    return tree
