"""Dispatch: asks the sampler for trials, enqueues them, and announces them again when need be.

Invariant: a trial is in the storage, on disk, before a worker can hear of it.
"""

from __future__ import annotations

import time
from collections.abc import Container, Mapping, Sequence
from typing import Any, Final

import optuna

from orchestrator.driving.collector import Collector
from orchestrator.driving.driven import DrivenStudy
from orchestrator.driving.reconcile import Instruction, reconcile
from orchestrator.driving.shares import num_per_hint
from orchestrator.storage.attributes import WHOLE_ATTR
from orchestrator.storage.tally import state_of
from orchestrator.submission.space import suggest_all, values_of
from workers.coordination.trial_history import TrialHistory, UnreadableRecord
from workers.coordination.trial_record import TrialRecord
from workers.disk.manifests import last_checkpoint, remove_checkpoints
from workers.logs import get_logger
from workers.protocol.messages import Drawn
from workers.protocol.plain import describe_error
from workers.protocol.states import TrialState
from workers.settings import Settings

log = get_logger(__name__)

#: After which no further trial is asked for in the same turn.
_ASK_SECONDS: Final = 0.25

#: How often the wait for another announcement is doubled, while other hints wait in the queue: to
#: half an hour. Announcements in an empty queue, which none of its workers kept, do not count.
_MAX_DOUBLED: Final = 5


class Dispatcher:
    """Keeps just enough trials of one study in flight."""

    def __init__(self, study: DrivenStudy, collector: Collector, settings: Settings) -> None:
        self._study = study
        self._collector = collector
        self._times = settings.times
        self._home = settings.home
        #: trial -> when it was last announced again, on the server's clock, ms, and how often
        self._announced: dict[int, tuple[int, int]] = {}
        #: trial -> until when it may not be claimed, by the monotonic clock
        self._resting: dict[int, float] = {}
        self._stuck: set[int] = set()

    @property
    def num_resting(self) -> int:
        """Trials that wait for a later time, and so for no slot."""
        now, open_ones = time.monotonic(), self._study.tally.open
        return sum(at > now and number in open_ones for number, at in self._resting.items())

    @property
    def num_stuck(self) -> int:
        """Trials that have waited for long, and that no worker takes."""
        return len(self._stuck & self._study.tally.open)

    def ask(self, count: int, slots: int = 1) -> int:
        """Have so many slots be used: by paused trials that are to go on, else by new ones.

        Args:
            count: How many trials are to be begun.
            slots: That take trials from the study's queue.

        Returns:
            How many there were.
        """
        promoted = self._promote(count)
        return promoted + self._ask_new(min(count - promoted, self._study.num_left), slots)

    def _promote(self, count: int) -> int:
        """Send paused trials on to their next rung; how many."""
        numbers = self._study.promotable()[:count]
        for number in numbers:
            place = self._study.trials.place(number).promoted()
            # one that reported far beyond its rung is at the next one, too
            has_reached = self._study.trials.has_reached(number, place.rung)
            self._study.trials.put(number, place.paused() if has_reached else place)
        if numbers:
            self._study.sync()  # before a worker hears of it
        for number in numbers:
            if number not in self._study.tally.paused:
                self._send_on(number)
        return len(numbers)

    def _send_on(self, number: int) -> None:
        """Have a promoted trial go on where it stopped, on any worker."""
        rung = self._study.trials.place(number).rung
        if self._study.leases.unpark(number, rung) == "UNKNOWN":
            self._write_record(number)
        self._study.send_hint(number)
        log.info("promoted", study=self._study.name, trial=number, rung=rung)

    def _ask_new(self, count: int, slots: int) -> int:
        """Ask for trials and enqueue them; how many they were.

        Of a slow sampler they are fewer than `count`, and at least one: what its trials tell is
        taken in between, and the rest is asked for in the next turn.
        """
        with self._study.gathering():
            drawn = self._draw(count)
        self._study.sync()
        params = {number: self._params(number) for number in drawn}
        for number in drawn:
            # what lies there is of a study of this name that somebody has removed
            remove_checkpoints(self._home, self._study.name, number)
        self._study.leases.enqueue_all(params, drawn)
        size = self._num_per_hint(len(drawn), slots)
        numbers = list(drawn)
        for begin in range(0, len(numbers), size):
            first, *more = numbers[begin : begin + size]
            self._study.send_hint(first, more=more)
        for number in drawn:
            log.info("enqueued", study=self._study.name, trial=number, params=params[number])
        return len(drawn)

    def _num_per_hint(self, count: int, slots: int) -> int:
        """How many trials one message hints at.

        With a seed and one slot, one: what is left of a message whose first trial takes long is
        announced behind the others, and trials in another order are another study.
        """
        spec = self._study.spec
        usable = min(slots, spec.share.max_slots or slots)
        if usable <= 1 and spec.sampler.seed is not None:
            return 1
        return num_per_hint(self._study.tally.trial_seconds, count, usable)

    def _draw(self, count: int) -> dict[int, Mapping[str, Drawn]]:
        """Ask the sampler for trials; what was drawn of each beyond its parameters."""
        drawn: dict[int, Mapping[str, Drawn]] = {}
        until = time.monotonic() + _ASK_SECONDS
        for asked in range(count):
            if asked and time.monotonic() > until:
                break
            trial = self._study.ask()
            if self._suggest_all(trial):
                drawn[trial.number] = self._study.trials.draw(trial.number)
            if self._study.is_exhausted and not self._study.tally.waiting:
                break
        return drawn

    def withdraw(self, reason: str, *, has_begun: bool = False, spares_given: bool = False) -> None:
        """Cancel the trials that no worker has begun: nothing of the study is to be started.

        One that lost its worker goes on: it has begun, and its checkpoint is there.

        Args:
            reason: Why, for the trial's error.
            has_begun: Cancel such a one, too.
            spares_given: Leave those whose parameters people gave.
        """
        leases, num_open = self._study.leases, len(self._study.tally.open)
        with self._study.gathering():
            for number in leases.queued():
                record = leases.record(number)
                is_kept = record is not None and record.attempt > 0 and not has_begun
                is_kept |= spares_given and self._study.trials.is_given(number)
                if not is_kept and leases.settle(
                    number, TrialState.CANCELLED, only_queued=True, reason=reason
                ):
                    self._collector.tell_cancelled(number, reason, record)
            for number in [] if spares_given else sorted(self._study.tally.waiting):
                self._collector.tell_cancelled(number, reason, None)
        if len(self._study.tally.open) < num_open:
            self._study.sync()

    def _suggest_all(self, trial: optuna.Trial) -> bool:
        """Suggest a trial's parameters; False if those that somebody gave it cannot be."""
        is_given = self._study.trials.is_given(trial.number)
        try:
            suggest_all(trial, self._study.spec)
        except (ValueError, TypeError) as error:
            if not is_given:
                raise
            problem = describe_error(error, 300)
            self._collector.tell_failed(trial.number, f"its given parameters: {problem}")
            return False
        return True

    def reconcile(self, now_ms: int, *, at_start: bool = False) -> None:
        """Bring Redis and the storage together for every trial that has not ended.

        Args:
            now_ms: The server's clock.
            at_start: Announce every queued trial: hints may have been lost meanwhile.
        """
        queued, running = self._study.leases.queued(), self._study.leases.running()
        paused, tally = self._study.leases.paused(), self._study.tally
        patience = 0.0 if at_start else self._times.reconcile
        # in a queue in which hints wait, a trial's own is likely among them: it is sent again
        # all the same, later and later, since they may all be of other studies
        is_idle = at_start or not self._study.hints_waiting()
        open_ones = sorted(tally.open - tally.waiting - (tally.paused.keys() & paused.keys()))
        self._announced = {
            number: told for number, told in self._announced.items() if number in queued
        }
        for number in (queued.keys() | running.keys() | paused.keys()) - tally.open:
            self._settle(number)
        self._seal_anew(sorted(tally.open - tally.waiting) if at_start else open_ones)
        records = self._study.leases.records(open_ones)
        self._note_waiting(records, queued, now_ms)
        for number in open_ones:
            record = records.get(number)
            announced_ms, count = self._announced.get(number, (0, 0))
            since_ms = max(queued.get(number, now_ms), announced_ms)
            instruction = reconcile(
                None if record is None else record.state,
                waited_seconds=(now_ms - since_ms) / 1000,
                patience_seconds=patience if is_idle else patience * 2 ** min(count, _MAX_DOUBLED),
                is_inbox_empty=self._has_nothing_to_come(record),
                is_paused=number in tally.paused,
                is_promoted=record is not None and self._is_beyond(number, record),
            )
            if instruction is Instruction.SEND_HINT:
                self._announced[number] = now_ms, count if is_idle else count + 1
            self._follow(instruction, number, record, running)

    def _follow(
        self,
        instruction: Instruction,
        number: int,
        record: TrialRecord | None,
        leases: Container[int],
    ) -> None:
        """Do what brings Redis and the storage together for one trial.

        Args:
            instruction: What that is.
            number: The trial.
            record: In Redis, if it is there and can be read.
            leases: The trials that somebody may be running.
        """
        if instruction is Instruction.ENQUEUE:
            broken = self._study.leases.unreadable(number)
            if broken is None or self._may_replace(number, broken, leases):
                self._enqueue_again(number, None if broken is None else broken.history)
        elif instruction is Instruction.SEND_ON:
            self._send_on(number)
        elif instruction is Instruction.NOTE_PAUSE and record is not None:
            self._collector.tell_paused(number, record)
        elif instruction is Instruction.SEND_HINT:
            log.info("announced_again", study=self._study.name, trial=number)
            self._study.send_hint(number)
        elif instruction is Instruction.TELL_LOST and record is not None:
            self._collector.tell_lost(number, record)

    def _may_replace(self, number: int, broken: UnreadableRecord, leases: Container[int]) -> bool:
        """Whether a record that cannot be read is to be written anew now; if so, it is said.

        Not under a holder, whose attempt would be lost: first the reaper sees to its lease. Nor
        while its end waits to be taken in.
        """
        if number in leases or (broken.has_ended and not self._study.inbox.is_empty()):
            return False
        self._collector.tell_unreadable(number, broken.reason)
        return True

    def _seal_anew(self, numbers: Sequence[int]) -> None:
        """Sign records that are signed by another secret, or that others have altered."""
        for number, fields in self._study.leases.unsealed(numbers).items():
            log.warning("sealed_anew", study=self._study.name, trial=number)
            params, drawn = self._params(number), self._study.trials.drawn(number)
            self._study.leases.reseal(number, fields, params, drawn)

    def _note_waiting(
        self, records: Mapping[int, TrialRecord], queued: Mapping[int, int], now_ms: int
    ) -> None:
        now, long_ago_ms = time.monotonic(), now_ms - 1000 * self._times.beat
        waits = {
            number: record.not_before_ms
            for number, record in records.items()
            if record.state is TrialState.QUEUED
        }
        self._resting = {
            number: now + (until_ms - now_ms) / 1000
            for number, until_ms in waits.items()
            if until_ms > now_ms
        }
        self._stuck = {
            number
            for number, until_ms in waits.items()
            if max(until_ms, queued.get(number, now_ms)) < long_ago_ms
        }

    def _settle(self, number: int) -> None:
        """End a trial in Redis that the storage has as ended: Redis forgot the end it had told."""
        try:
            stored = self._study.trials.stored(number)
        except KeyError:  # the storage has lost it
            self._study.leases.settle(number, TrialState.CANCELLED)
            return
        self._study.leases.settle(number, state_of(stored))

    def _has_nothing_to_come(self, record: TrialRecord | None) -> bool:
        """Whether a trial rests or has ended in Redis, and nothing is left to be told of it."""
        if record is None or record.state in {TrialState.QUEUED, TrialState.RUNNING}:
            return False
        return self._study.inbox.is_empty()

    def _is_beyond(self, number: int, record: TrialRecord) -> bool:
        """Whether the storage has promoted a trial that Redis has paused."""
        if record.state is not TrialState.PAUSED:
            return False
        place = self._study.trials.place(number)
        return not place.is_paused and place.rung > record.rung

    def _enqueue_again(self, number: int, history: TrialHistory | None = None) -> None:
        """Write a trial's record that Redis has not, or lost while the trial ran or was paused.

        Args:
            number: The trial.
            history: What the record that it replaces tells of the attempts before.
        """
        if WHOLE_ATTR not in self._study.trials.stored(number).system_attrs:
            suggest_all(self._study.trials.asked(number), self._study.spec)
        place = self._study.trials.place(number)
        if not place.is_paused and self._study.trials.has_reached(number, place.rung):
            # Redis lost the entry that told of its pause
            self._study.trials.put(number, place.paused())
        self._study.sync()
        self._write_record(number, history)
        if number not in self._study.tally.paused:
            self._study.send_hint(number)

    def _write_record(self, number: int, history: TrialHistory | None = None) -> None:
        params, place = self._params(number), self._study.trials.place(number)
        known = None if history is None else history.checkpoint
        # the one that was accepted may lie in a store, or in another home
        checkpoint = known or last_checkpoint(self._home, self._study.name, number)
        self._study.leases.enqueue(
            number,
            params,
            checkpoint,
            self._study.trials.drawn(number),
            rung=place.rung,
            is_paused=place.is_paused,
            history=None if history is None else history.fields,
        )
        log.info("enqueued", study=self._study.name, trial=number, params=params)

    def _params(self, number: int) -> dict[str, Any]:
        return values_of(self._study.spec, self._study.trials.stored(number).params)
