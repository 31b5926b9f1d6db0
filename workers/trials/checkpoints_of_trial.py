"""A trial's checkpoints as an objective sees them: what it saves, and what it goes on from.

Invariant: what is saved carries the trial's attributes of that step, and a trial that has reached
its rung goes no further than the checkpoint that it is paused with.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution

from workers.protocol.errors import TrialInterrupt
from workers.protocol.plain import as_step
from workers.trials.attributes import Attributes
from workers.trials.checkpointing import Checkpointing
from workers.trials.held_lease import HeldLease
from workers.trials.next_rung import NextRung
from workers.trials.parameters import ParametersOfTrial


class CheckpointsOfTrial(ParametersOfTrial):
    """The part of a trial that has to do with stopping and going on.

    Args:
        lease: The attempt's.
        ask: Asks the orchestrator for a parameter, from a distribution.
        checkpointing: Writes what is saved, and reads it again.
        next_rung: Where the trial is paused, in a study that promotes.
    """

    def __init__(
        self,
        lease: HeldLease,
        ask: Callable[[str, BaseDistribution], Any],
        checkpointing: Checkpointing,
        next_rung: NextRung,
    ) -> None:
        super().__init__(lease, ask)
        self._checkpointing = checkpointing
        #: Where it is paused, in a study that promotes.
        self.next_rung = next_rung
        self._attributes = Attributes()
        #: whether the objective has shown that it can go on where it stopped
        self._resumes = False
        #: whether it was told to end
        self._is_interrupted = False

    def save_checkpoint(self, step: int, state: dict[str, Any]) -> None:
        """Save what the next attempt needs to go on from `step`.

        The state is copied, and written while training goes on; what becomes of the objective's
        own afterwards does not matter. The next call, and the trial's end however it comes, wait
        for it, and what went wrong is raised there. A disk that takes no more is logged, and
        training goes on: the checkpoint before stands.

        Args:
            step: More than that of the checkpoint before; of one that this attempt saves again,
                what it saved first stays.
            state: Nested containers of tensors, arrays, numbers, text and generators; all that
                `workers.disk.state_packing` has a rule for. `load_checkpoint` gives it back equal.

        Raises:
            UnsuitableValueError: Something in it is no data; the message names its place.
            LeaseLost: Somebody else may run the trial now.
            DrainRequested: It is saved, and the trial has reached its rung; let this pass.
        """
        if self._lease.is_lost:
            self._lease.give_up()
        # nothing is trained any more while what an objective saves on its way out is written
        at_once = self._is_interrupted or self.next_rung.is_reached
        attributes = self._attributes.to_be_kept()
        is_saved = self._checkpointing.save(as_step(step), state, attributes, at_once=at_once)
        self._note_saved(is_saved)

    def save_checkpoint_files(
        self, step: int, *paths: str | Path, changing: Iterable[str | Path] = ()
    ) -> None:
        """Keep files and folders that a trainer wrote as what the next attempt goes on from.

        They are on disk when this returns. Those in `paths` are linked where that is possible: the
        trainer may replace and remove them, and is not to change them in place. A disk that takes
        no more is logged, and training goes on: the checkpoint before stands.

        Args:
            step: Never less than that of the checkpoint before.
            paths: Each is kept under its own name; `load_checkpoint_files` gives them back.
            changing: More of them, which the trainer appends to or writes anew in place: copied.

        Raises:
            FileNotFoundError: There is no such file.
            LeaseLost: Somebody else may run the trial now.
        """
        linked, copied = _present(paths), _present(changing)
        if self._lease.is_lost:
            self._lease.give_up()
        attributes = self._attributes.to_be_kept()
        is_saved = self._checkpointing.save_files(as_step(step), linked, copied, attributes)
        self._note_saved(is_saved)

    def _note_saved(self, is_saved: bool) -> None:  # noqa: FBT001 - of one meaning
        # one that was interrupted saves this on its way out
        if is_saved and not self._is_interrupted:
            self.next_rung.check()

    def await_checkpoint(self) -> None:
        """Wait until what `save_checkpoint` was given is on disk, and the next attempt's.

        Raises:
            LeaseLost: Somebody else may run the trial now.
            Exception: What else went wrong with it.
        """
        self._checkpointing.wait()

    def await_upload(self, seconds: float) -> None:
        """Wait, at most so long, until another host would find the last checkpoint, too."""
        self._checkpointing.await_upload(seconds)

    def settle_checkpoint(self, timeout_seconds: float) -> None:
        """Wait for the same at most so long, from whatever thread; raises nothing."""
        self._checkpointing.settle(timeout_seconds)

    @property
    def has_checkpoint(self) -> bool:
        """Whether another attempt could go on from what this or any before has saved."""
        return self._checkpointing.is_there

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The state that the last accepted checkpoint of this or any attempt holds, or None.

        The trial's attributes and constraints are those that it had at that step, too, but for
        those that this attempt has set by itself.
        """
        self._resumes = True
        return self._attributes.take_back(self._checkpointing.load())

    def load_checkpoint_files(self) -> Path | None:
        """The folder with the files of the last accepted checkpoint of any attempt, or None.

        They are to be read, or copied, and not to be changed. The trial's attributes and
        constraints are those that it had at that step, too, but for those that this attempt has
        set by itself.
        """
        self._resumes = True
        return self._attributes.take_back(self._checkpointing.load_files())

    def _check(self) -> None:
        """Return if training may go on.

        Raises:
            TrialInterrupt: What is asked of it, or that it has reached its rung.
        """
        try:
            self._lease.check()
            self._checkpointing.check()
            if not self._lease.defers_drain:
                self.next_rung.check()
        except TrialInterrupt:
            self._is_interrupted = True
            raise


def _present(paths: Iterable[str | Path]) -> list[Path]:
    """Where files and folders are, each under the name that it was given by.

    Raises:
        FileNotFoundError: There is no such file.
    """
    found = [Path(os.path.abspath(path)) for path in paths]  # noqa: PTH100 - absolute() keeps '..'
    for path in found:
        path.resolve(strict=True)
    return found
