"""What an attempt saves and goes on from: copied at the call, written by a thread beside training.

Invariant: one checkpoint at a time is being written, and the ones before it are on disk and known
to Redis, or their error was raised. Whoever ends the attempt waits for the last one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from workers.coordination.trial_record import CheckpointRef
from workers.disk.checkpoint_content import Kept, why_not_loaded
from workers.disk.checkpoints import CheckpointStore
from workers.disk.snapshots import HostMemory
from workers.disk.state_packing import pack
from workers.logs import get_logger
from workers.trials.held_lease import HeldLease

log = get_logger(__name__)

#: What has checkpoints be found wherever a trial goes on.
ANEW_HINT: Final = "have all workers share one FLEET_HOME, or give them a FLEET_STORE"

T = TypeVar("T")


class Checkpointing:
    """The checkpoints of one attempt.

    Args:
        study: The study's name.
        lease: The attempt's.
        store: Where they lie.
        num_slots: How many attempts share this host's memory.
    """

    def __init__(
        self, study: str, lease: HeldLease, store: CheckpointStore, num_slots: int = 1
    ) -> None:
        self._study = study
        self._generation = lease.grant.record.generation
        self._lease = lease
        self._store = store
        self._last = lease.grant.record.checkpoint
        #: the uri of the last one, if what was loaded is not that, but lies before it
        self._passed_over = ""
        self._memory = HostMemory(num_slots)
        self._writer: threading.Thread | None = None
        self._error: BaseException | None = None
        self._has_said_why = False

    @property
    def is_there(self) -> bool:
        """Whether another attempt could go on from what this or any before has saved."""
        return self._last is not None

    def save(self, step: int, state: Any, attributes: Mapping[str, Any], *, at_once: bool) -> bool:
        """Have a state written as it is now.

        Args:
            step: Of which it is the state.
            state: What `pack` takes.
            attributes: The trial's, now; as plain JSON.
            at_once: Whether it is on disk when this returns, and nothing is copied before.

        Returns:
            Whether it is on disk, and the newest that Redis knows.

        Raises:
            UnsuitableValueError: Something in it is no data.
            Exception: What went wrong with the checkpoint before.
        """
        self.wait()
        self._lease.note_sign_of_life()
        packed = pack(state)
        snapshot = None if at_once else self._snapshot(packed)
        place = (self._study, self._lease.number, self._lease.token, step)
        write = partial(self._store.save, *place, attributes=attributes)
        if snapshot is None or not self._begin(partial(write, snapshot)):
            return self._publish(partial(write, packed))
        return False

    def save_files(
        self,
        step: int,
        paths: Sequence[Path],
        changing: Sequence[Path],
        attributes: Mapping[str, Any],
    ) -> bool:
        """Have files on disk as a checkpoint when this returns; as `CheckpointStore.save_files`."""
        self.wait()
        self._lease.note_sign_of_life()
        place = (self._study, self._lease.number, self._lease.token, step)
        return self._publish(partial(self._store.save_files, *place, paths, changing, attributes))

    def load(self) -> Kept[dict[str, Any]] | None:
        """The state that the last accepted checkpoint of this or any attempt holds, or None."""
        self.wait()
        if self._last is None:
            return None
        number = self._lease.number
        kept = self._store.load_last(self._study, self._generation, number, self._last)
        return self._noted(kept, is_files=False)

    def load_files(self) -> Kept[Path] | None:
        """The folder with the files of the last accepted checkpoint of any attempt, or None."""
        self.wait()
        if self._last is None:
            return None
        number = self._lease.number
        kept = self._store.load_last_files(self._study, self._generation, number, self._last)
        return self._noted(kept, is_files=True)

    def _noted(self, kept: Kept[T] | None, *, is_files: bool) -> Kept[T] | None:
        """What was loaded; if that lies before the last, what is saved next replaces the last."""
        last = self._last
        is_last = last is None or (kept is not None and kept.step >= last.step)
        self._passed_over = "" if is_last or last is None else last.uri
        if kept is None and last is not None:
            self._tell_anew(why_not_loaded(last, is_files=is_files))
        return kept

    def _tell_anew(self, reason: str | None) -> None:
        """Have people know that what the attempts before this one made is made again."""
        if reason is None:
            return
        log.warning("began_anew", reason=reason, hint=ANEW_HINT)
        lease = self._lease
        lease.patiently(lambda: lease.leases.begin_anew(lease.number, lease.token, reason))

    def check(self) -> None:
        """Return if nothing went wrong with what was written; cheap enough for every step.

        Raises:
            Exception: What went wrong, once.
        """
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Wait until what was saved is on disk and known to Redis.

        Raises:
            LeaseLost: Somebody else may run the trial now.
            Exception: What else went wrong.
        """
        self.settle()
        self.check()

    def settle(self, timeout_seconds: float | None = None) -> None:
        """Wait for what is being written, at most so long; what goes wrong is for others to see."""
        writer = self._writer
        if writer is not None:
            writer.join(timeout_seconds)
            if not writer.is_alive():
                self._writer = None

    def await_upload(self, seconds: float) -> None:
        """Wait, at most so long, until the store has the last checkpoint, if there is a store."""
        self._store.await_upload(self._study, self._lease.number, seconds)

    def _snapshot(self, packed: Any) -> Any | None:
        snapshot = self._memory.snapshot(packed)
        if snapshot is None and not self._has_said_why:
            self._has_said_why = True
            log.warning(
                "checkpoint_holds_training_up",
                hint="there is no memory for a copy of the state; it is written as it is, and"
                " training waits",
            )
        return snapshot

    def _begin(self, write: Callable[[], CheckpointRef]) -> bool:
        """Have a thread write; False where the system has no thread left."""
        writer = threading.Thread(
            target=copy_context().run,  # with the trial's fields in its log
            args=(self._write, write),
            name="checkpoint",
            daemon=True,
        )
        try:
            writer.start()
        except RuntimeError:
            return False
        self._writer = writer
        return True

    def _write(self, write: Callable[[], CheckpointRef]) -> None:
        try:
            self._publish(write)
        except BaseException as error:  # noqa: BLE001 - raised in the training's thread
            self._error = error

    def _publish(self, write: Callable[[], CheckpointRef]) -> bool:
        """Write a checkpoint, and have Redis know of it."""
        try:
            ref = write()
        except OSError as error:
            log.warning("checkpoint_not_saved", error=str(error), hint="make room on the disk")
            return False
        lease, passed_over = self._lease, self._passed_over
        lease.note_sign_of_life()
        status = lease.patiently(
            lambda: lease.leases.checkpoint(lease.number, lease.token, ref, passed_over)
        )
        if status == "LOST":
            lease.give_up()
        if status == "OK":
            self._last, self._passed_over = ref, ""
            # first: a process that dies in between has had it brought to the store
            self._store.offer(self._study, self._generation, lease.number, ref)
            self._store.prune(self._study, lease.number, lease.token, ref)
        return status == "OK"
