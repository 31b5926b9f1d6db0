"""A user's own training loop that resumes where it was: position, state, checkpoints, reports.

    with trial.training({"model": model, "optimizer": optimizer}) as run:
        for epoch in run.epochs(10):
            for batch in run.steps(loader):
                ...                      # one step, as it was
            run.report(evaluate(model))  # reports, and prunes

An attempt that resumes enters the epoch that was left: what stands before its first step runs
again, then the state is put back as it was saved, and the loader goes on with the batch that comes
next.

Invariant: a checkpoint is taken before a step, never between the last step of an epoch and what
follows it: that may use what the step has left in variables, and counts once and whole. A drain
that comes there waits for the next step, unless there is a checkpoint of the last one.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Generator, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self
from weakref import WeakKeyDictionary

import optuna
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader

from workers.logs import get_logger
from workers.protocol.errors import DrainRequested, ObjectiveError
from workers.protocol.plain import as_number, type_name
from workers.trials.finite import FiniteWatch
from workers.trials.held_lease import HeldLease
from workers.trials.resumable_loader import (
    END,
    ResumableLoader,
    length_of,
    with_registered_processes,
)
from workers.trials.step_seeds import StepSeeds
from workers.trials.training_state import TrainingState
from workers.trials.weights import SteppedOptimizer, Weights

if TYPE_CHECKING:
    from workers.trials.handle import FleetTrial

log = get_logger(__name__)

#: Of what a checkpoint holds.
_VERSION: Final = 1

#: The user attribute that says why a trial's value may not be that of an undisturbed one.
NOT_TO_THE_BIT: Final = "not_resumed_to_the_bit"


class TrainingLoop:
    """One training of one trial; `FleetTrial.training` makes it.

    Args:
        trial: Whose training it is.
        lease: The same trial's.
        state: What `TrainingState` takes.
        checkpoint_seconds: Between two checkpoints.

    Raises:
        ObjectiveError, UnsuitableValueError: The state cannot be saved, or not be put back.
    """

    def __init__(
        self, trial: FleetTrial, lease: HeldLease, state: Any, checkpoint_seconds: float
    ) -> None:
        self._trial = trial
        self._lease = lease
        self._state = TrainingState(state)
        self._weights = Weights(self._state)
        self._checkpoint_seconds = checkpoint_seconds
        #: the epoch, from 0
        self.epoch = 0
        #: the batch of the epoch, from 0: where `enumerate` would begin anew in each attempt
        self.batch = 0
        #: steps of all epochs that are done
        self.step = 0
        self._num_reports = 0
        self._finite = FiniteWatch()
        self._seeds = StepSeeds.drawn()
        self._loader: ResumableLoader | None = None
        #: what the checkpoint held, until the loop is where it was
        self._resumed: dict[str, Any] | None = None
        self._has_epochs, self._has_stepped = False, False
        self._num_epochs: int | None = None
        #: the epoch's steps, so that the last one is over when the epoch is
        self._steps: Generator[Any] | None = None
        #: the optimizers that stepped in the last step
        self._stepped: list[SteppedOptimizer] = []
        #: how many groups of weights those had that were looked at
        self._num_groups: WeakKeyDictionary[torch.optim.Optimizer, int] = WeakKeyDictionary()
        self._doubts: list[str] = []
        self._saved_at, self._saved_step = time.monotonic(), 0
        #: when the last step of the epoch was over, and how long it took to the next one's first
        self._over_at: float | None = None
        self._between_seconds = 0.0

    @property
    def state(self) -> Any:
        """The state as it was given; where that is a mapping, what is set in it is saved, too."""
        return self._state.given

    def __enter__(self) -> Self:
        saved = self._trial.load_checkpoint()
        if saved is not None:
            self._take_up(saved)
        self._seeds.sow("training")
        self._stepping = register_optimizer_step_post_hook(self._note_optimizer)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stepping.remove()
        self._lease.defers_drain = False
        if self._loader is not None:
            self._loader.close()
        if kind is None:
            self._look()  # at what the trial's value comes from

    def epochs(self, count: int) -> Iterator[int]:
        """The numbers of the epochs, from 0, those left out that were over in attempts before.

        Raises:
            ObjectiveError: It is asked for a second time, or an attempt before was further.
        """
        if self._has_epochs or self._has_stepped:
            raise ObjectiveError(
                "run.epochs() once, around run.steps(): a second training of a trial would not know"
                " where to resume; count its epochs on in the same loop"
            )
        if self._resumed is not None and self.epoch >= count:
            raise ObjectiveError(
                f"run.epochs({count}): the trial's checkpoint is in epoch {self.epoch}, counted"
                " from 0; let each attempt train for as long as the first one"
            )
        self._has_epochs, self._num_epochs = True, count
        for epoch in range(self.epoch, count):
            self._begin_epoch(epoch)
            yield epoch

    def steps(self, loader: Any) -> Steps:
        """The batches of one epoch, each from where it is yielded to the next one a step.

        Args:
            loader: A `DataLoader`, or whatever can be iterated over in each epoch anew.

        Raises:
            DrainRequested, LeaseLost, TrialCancelled: Let this pass; of a drain, a checkpoint was
                saved.
            ObjectiveError: The loader can be read but once, is another one than the checkpoint's,
                or is the epoch's second one.
        """
        return Steps(self, loader)

    def evaluation(self, loader: Any) -> Iterator[Any]:
        """The batches of a loader that nothing is trained on; each one is a sign of life.

        A drain waits until the evaluation was made, unless the checkpoint is that of the last step.
        """
        if isinstance(loader, DataLoader):
            loader = with_registered_processes(loader)
        total = length_of(loader) or 0
        for number, batch in enumerate(loader):
            self._trial.preparing("batches of an evaluation", number, total)
            yield batch

    def report(self, value: float, step: int | None = None) -> None:
        """Report a value, and end the trial if the pruner gives it up.

        Before `run.steps` in an epoch that is resumed, nothing is: that report was made.

        Args:
            value: As `trial.report` takes it, but finite.
            step: By default the number of this report, from 1.

        Raises:
            optuna.TrialPruned: The pruner gave the trial up.
            ObjectiveError: The value or a weight is no finite number: the training has diverged.
        """
        if self._resumed is not None:
            return  # the checkpoint was taken after it
        self._num_reports += 1
        number = self._num_reports if step is None else step
        self._look()
        self._finite.note("the reported value", as_number(value, "run.report"), self._place())
        self._trial.report(value, number)
        if self._trial.should_prune():
            raise optuna.TrialPruned(f"pruned after report {number}")

    def iterate(self, loader: Any) -> Iterator[Any]:
        """What `Steps` yields."""
        if self._has_stepped:
            raise ObjectiveError(
                "run.steps() once an epoch, so that a resumed trial knows where it was: put `for"
                " epoch in run.epochs(n):` around it; of two loaders, make one of both"
            )
        self._has_stepped = True
        source = self._source(loader)
        resumed, self._resumed = self._resumed, None
        if resumed is not None:
            self._go_on(source, resumed)
        else:
            source.begin(self.epoch)
        self._steps = self._make_steps(source)
        yield from self._steps
        self._seeds.sow("after", self.epoch)
        self._over_at = time.monotonic()

    def remaining(self, loader: Any) -> int:
        """How many batches of a loader are left in this epoch."""
        return max(0, len(loader) - (self.batch if self._resumed is not None else 0))

    def _make_steps(self, source: ResumableLoader) -> Generator[Any]:
        while (batch := source.read()) is not END:
            self._say(source.doubts)
            self._seeds.sow("step", self.epoch, self.batch)
            self._pause(source)
            self._stepped.clear()
            try:
                yield batch
            finally:  # a loop that is left by `break` has made this step
                self.step, self.batch = self.step + 1, self.batch + 1
                del batch

    def _pause(self, source: ResumableLoader) -> None:
        """Be between two steps: here the training may end, and go on in another attempt."""
        self._lease.defers_drain = False
        try:
            self._trial.progress(self.step, total=self._num_steps(source))
        except DrainRequested:
            self._save(source)
            raise
        # before the last step, also for what follows it: no checkpoint is taken there
        ahead = self._between_seconds if source.length == self.batch + 1 else 0.0
        if time.monotonic() - self._saved_at + ahead >= self._checkpoint_seconds:
            self._save(source)
        self._lease.defers_drain = self.step != self._saved_step

    def _num_steps(self, source: ResumableLoader) -> int | None:
        """How many steps the training has, if all its epochs are as long as this one."""
        if source.length is None or not self._num_epochs:
            return None
        return self.step - self.batch + source.length * (self._num_epochs - self.epoch)

    def _save(self, source: ResumableLoader) -> None:
        if self.step == self._saved_step:
            return
        self._look()
        state = {
            "training": _VERSION,
            "epoch": self.epoch,
            "batch": self.batch,
            "step": self.step,
            "reports": self._num_reports,
            "seed": self._seeds.seed,
            "doubts": self._doubts,
            "user_attrs": self._trial.user_attrs,
            "constraints": self._trial.constraints,
            "loader": source.state_dict(is_over=False),
            "state": self._state.take(),
            "weights": self._weights.take(self._stepped),
        }
        self._trial.save_checkpoint(self.step, state)
        self._saved_at, self._saved_step = time.monotonic(), self.step
        log.debug("checkpoint_saved", step=self.step, epoch=self.epoch)

    def _look(self) -> None:
        """See that the weights are numbers, before what comes of them counts."""
        self._finite.look_at(self._weights.trained(), self._place())

    def _place(self) -> str:
        return f"at step {self.step}, in epoch {self.epoch}"

    def _take_up(self, saved: dict[str, Any]) -> None:
        """Be where the attempt before was."""
        if saved.get("training") != _VERSION:
            raise ObjectiveError(
                "the trial's checkpoint is none of trial.training: save either with"
                " trial.save_checkpoint or with trial.training, not with both"
            )
        self._resumed = saved
        self._seeds = StepSeeds(saved["seed"])
        self._note_position(saved)
        self._saved_step = self.step
        self._put_attributes(saved)
        self._say(saved["doubts"])
        # a copy: what the state takes as its own must not change before it is put back for good
        self._state.put(copy.deepcopy(saved["state"]))
        log.debug("resumed", step=self.step, epoch=self.epoch, batch=self.batch)

    def _note_position(self, saved: dict[str, Any]) -> None:
        self.epoch, self.batch, self.step = saved["epoch"], saved["batch"], saved["step"]
        self._num_reports = saved["reports"]

    def _put_attributes(self, saved: dict[str, Any]) -> None:
        """Have the trial's result tell what the attempts before have found out, too."""
        for name, value in saved["user_attrs"].items():
            self._trial.set_user_attr(name, value)

    def _go_on(self, source: ResumableLoader, saved: dict[str, Any]) -> None:
        self._state.put(saved["state"])
        self._weights.put(saved["weights"])
        self._note_position(saved)
        self._put_attributes(saved)
        for name in set(saved["constraints"]) - set(self._trial.constraints):
            self._trial.set_constraint(name, saved["constraints"][name])
        source.resume(self.epoch, self.batch, saved["loader"])

    def _begin_epoch(self, epoch: int) -> None:
        if self._steps is not None:
            self._steps.close()  # the user may hold what iterates over them
        if epoch != self.epoch:
            self._resumed, self.epoch, self.batch = None, epoch, 0
        if self._over_at is not None:
            self._between_seconds, self._over_at = time.monotonic() - self._over_at, None
        self._has_stepped = False
        self._seeds.sow("epoch", epoch)

    def _source(self, loader: Any) -> ResumableLoader:
        """The loader as it can be resumed; the same for as long as the user gives the same."""
        if self._loader is not None and self._loader.given is not loader:
            self._loader.close()
            self._loader = None
        if self._loader is None:
            self._loader = ResumableLoader(loader, self._seeds)
        return self._loader

    def _note_optimizer(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        self._stepped.append(SteppedOptimizer(optimizer))
        num_groups = len(optimizer.param_groups)
        if self._num_groups.get(optimizer) != num_groups:
            self._num_groups[optimizer] = num_groups
            self._say(self._doubts_of(optimizer))

    def _doubts_of(self, optimizer: torch.optim.Optimizer) -> list[str]:
        if not self._state.holds(optimizer):
            return [f"{type_name(optimizer)} steps, and is not in the state"]
        left_out = self._weights.left_out(optimizer)
        if not left_out:
            return []
        shapes = ", ".join(str(list(weight.shape)) for weight in left_out[:3])
        what = f"{len(left_out)}, of shape {shapes}"
        return [f"{type_name(optimizer)} trains weights that nothing in the state holds: {what}"]

    def _say(self, doubts: list[str]) -> None:
        """Say why a resumed training may not end as an undisturbed one; once for each reason."""
        for doubt in doubts:
            if doubt not in self._doubts:
                self._doubts.append(doubt)
                log.warning("resumes_not_to_the_bit", reason=doubt)
        if self._doubts and self._trial.attempt > 1:
            self._trial.set_user_attr(NOT_TO_THE_BIT, "; ".join(self._doubts))


class Steps:
    """The batches of an epoch that are left, as `tqdm` and `enumerate` take them."""

    def __init__(self, run: TrainingLoop, loader: Any) -> None:
        self._run = run
        self._loader = loader

    def __iter__(self) -> Iterator[Any]:
        return self._run.iterate(self._loader)

    def __len__(self) -> int:
        return self._run.remaining(self._loader)
