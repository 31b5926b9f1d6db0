"""One study with all that works on it: its right, storage, sampler, collector, and clock.

The service has its turns run off its own loop, one at a time: what is slow or fails in one study
delays and ends no other.

Invariant: nothing is written to the study's storage by one that has lost the right to drive it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future

import redis

from orchestrator.driving.driven import DrivenStudy
from orchestrator.driving.observer import Observer
from orchestrator.driving.publication import Publication
from orchestrator.driving.reaper import Reaper
from orchestrator.driving.shares import LOSS_SECONDS, MIN_TRIAL_SECONDS, Demand
from orchestrator.driving.study_parts import StudyParts
from orchestrator.driving.surroundings import Surroundings
from orchestrator.driving.turns import TurnPool
from workers.coordination.clock import lease_clock, server_time_ms
from workers.coordination.hints import Hints
from workers.coordination.inbox import Entry, Inbox
from workers.coordination.study_lead import StudyLead
from workers.logs import get_logger
from workers.protocol.parameters import Dimension
from workers.protocol.states import Wish
from workers.protocol.wider_space import is_same_space
from workers.settings import Settings

log = get_logger(__name__)


class StudyDriver:
    """Drives one study, turn by turn.

    Args:
        client: The fleet's Redis.
        hints: Sends the Celery messages.
        settings: This orchestrator's.
        inbox: Reads what trials tell, and drops it.
        right: Held since `held_at`, by `lease_clock`.
        held_at: Likewise.
        observer: Is shown what became of the study.
    """

    def __init__(
        self,
        client: redis.Redis,
        hints: Hints,
        settings: Settings,
        inbox: Inbox,
        right: StudyLead,
        held_at: float,
        observer: Observer | None = None,
    ) -> None:
        self.name = right.study
        self._client = client
        self._hints = hints
        self._settings = settings
        self._inbox = inbox
        self.right = right
        self.held_at = held_at
        """When the right was renewed, by `lease_clock`."""
        self._observer = observer
        self._opened: StudyParts | None = None
        self.queue = ""
        """What its trials wait in; known once it was opened."""
        self._entries: deque[Entry] = deque()
        self._surroundings = Surroundings()
        self._sweep: Reaper | None = None
        self.looked_after_at = 0.0
        """When that was last done that need not be done in each turn, by `time.monotonic`."""
        self.shown = Publication(settings.home)
        """What is shown of it."""
        self._is_to_be_looked_after = True
        #: of the study as people handed it in: the one by which all is done
        self._revision = ""
        self.doing = "opening it"
        """What is done for it now, for the reason of a stall."""
        self.is_disturbed = True
        """Whether what was read or begun is to be done again."""
        self.is_doubtful = False
        """Whether its storage may hold what it did not answer for."""
        self.turning: Future[None] | None = None
        """A turn that a thread of the service is at."""
        #: the space that people wanted it to go on in, the last time that it was opened for that
        self._asked_space: Mapping[str, Dimension] | None = None
        #: whether it was seen to rest, and can do nothing else until it is told something
        self._rests_still = False

    @property
    def is_open(self) -> bool:
        """Whether its storage was opened."""
        return self._opened is not None

    @property
    def open_study(self) -> DrivenStudy | None:
        """The study, if it is open at this moment: a turn may be opening it anew."""
        opened = self._opened
        return None if opened is None else opened.study

    @property
    def study(self) -> DrivenStudy:
        """The study, once it is open."""
        return self._parts.study

    @property
    def _parts(self) -> StudyParts:
        if self._opened is None:
            raise RuntimeError(f"study {self.name!r} was not opened")
        return self._opened

    def begin(self, pool: TurnPool, turn: Callable[[], None]) -> Future[None]:
        """Have one of its turns run by a pool; none is running."""
        self._rests_still = False
        self.turning = pool.submit(self.name, turn)
        return self.turning

    @property
    def is_at_a_turn(self) -> bool:
        """Whether a thread works on it at this moment."""
        return self.turning is not None and not self.turning.done()

    # What the service's loop tells it, between turns or beside one.

    def hand(self, entries: Sequence[Entry]) -> None:
        """Give it what its trials told."""
        self._entries.extend(entries)

    def look_at(self, surroundings: Surroundings, sweep: Reaper | None) -> bool:
        """Have it see to what need not be done in each turn; whether there may be any of that.

        Args:
            surroundings: How things stand around it.
            sweep: Ends leases that ran out, if it is time for that.
        """
        has_orders = surroundings.submitted is not None and surroundings.submitted.has_orders
        is_same = surroundings == self._surroundings and not has_orders
        self._surroundings = surroundings
        self._rests_still = self._rests_still and is_same
        if is_same and self.rests:
            return False
        self.look_after(sweep)
        return True

    def look_after(self, sweep: Reaper | None) -> None:
        """Have it see to what need not be done in each turn, at its next one."""
        self._sweep = sweep or self._sweep
        self._is_to_be_looked_after = True

    @property
    def rests(self) -> bool:
        """Whether it has no open trial, and is to do nothing before something changes."""
        if self._rests_still:
            return True
        study = self.open_study
        if self.turning is not None or study is None or study.tally.open:
            return False
        rests = not self.shown.has_turned(study, self._surroundings.wish)
        self._rests_still = rests and study.spec.timeout is None  # else it ends by itself
        return rests

    def is_long_unseen(self, lease_seconds: float) -> bool:
        """Whether it is time to look after it though it rests: no status of it is to be old.

        One whose time runs out while nothing happens is looked after more often.
        """
        unseen = time.monotonic() - self.looked_after_at
        if unseen < lease_seconds / 3:
            return False
        study = self.open_study
        return unseen >= lease_seconds or (study is not None and study.spec.timeout is not None)

    def is_right_older(self, seconds: float) -> bool:
        """Whether the right to drive it was renewed longer ago than that."""
        return lease_clock() - self.held_at >= seconds

    def keep_right(self, older_than: float, *, only_stay: bool = False) -> bool:
        """Stay the study's orchestrator; False if another one has taken over.

        Args:
            older_than: Leave a right that was renewed in so many seconds.
            only_stay: Do not take one again that ran out.
        """
        now = lease_clock()
        if now - self.held_at < older_than:
            return True
        # in the midst of a turn, what it goes on to write was decided under the right that it had
        if not self.right.hold(only_stay=only_stay or self.turning is not None):
            return False
        self.held_at = now
        return True

    def release(self) -> None:
        """Let another orchestrator drive the study at once."""
        self.right.release()

    # Its turns.

    @property
    def has_news(self) -> bool:
        """Whether there is something to take in."""
        return bool(self._entries) or self._is_to_be_looked_after or self.is_disturbed

    def take_in(self) -> None:
        """Take in what its trials told, and see to what has changed around it.

        Raises:
            InvalidInputError: Its storage is written by another, or cannot be read.
        """
        if self._opened is None:
            self._open()
        if self.is_disturbed:
            self.doing = "going on after a failure"
            self._catch_up()
        self.doing = "taking in what its trials told"
        self._collect()
        if self._is_to_be_looked_after:
            self.doing = "looking after it"
            self._look_after()
        if self.study.tally.paused and self._begins_no_more():
            self.doing = "ending trials that are paused"
            self._parts.collector.prune_paused()
            self.shown.is_stale = True

    def _open(self) -> None:
        self._opened = StudyParts.open(
            self._client, self._hints, self._settings, self.right, self._observer
        )
        study = self._opened.study
        self.queue = study.spec.resources.queue
        self.shown.look(study, self._opened.collector, self._surroundings)
        num_trials = study.tally.num_trials
        log.info("study_driven", study=self.name, trials=num_trials, wanted=study.spec.trials)

    def _catch_up(self) -> None:
        """Take in what was read and never acknowledged, by whomever, and announce what waits."""
        self.is_disturbed = False  # what disturbs from here on is another time
        self._entries.clear()  # they are among those
        if self.is_doubtful:
            self.study.trials.recount()
            self.is_doubtful = False
        self.study.check_lead()  # a deleted one gets no inbox again
        self._take(self._inbox.join(self.name))
        now_ms = server_time_ms(self._client)
        self.study.limits.look(self.study.leases, now_ms)  # before anything is asked for
        self._parts.dispatcher.reconcile(now_ms, at_start=True)
        self.shown.is_stale = True

    def is_due(self, granted: int) -> bool:
        """Whether there is something to ask for or to publish."""
        if self._opened is None:
            return False
        return granted > 0 or self.shown.is_due(self.study, self._surroundings.wish)

    def go_on(self, granted: int) -> None:
        """Ask for so many trials, and show how the study stands."""
        self.doing = "asking for trials"
        if granted and self._parts.dispatcher.ask(granted, self._surroundings.slots):
            self.shown.is_stale = True
        if self.shown.is_due(self.study, self._surroundings.wish):
            parts = self._parts
            self.shown.publish(
                parts.study, parts.collector, parts.events, self._surroundings, self._revision
            )

    def demand(self, *, is_draining: bool) -> Demand:
        """What it has in flight, and wants."""
        if self._opened is None:
            return Demand.nothing()
        tally, share = self.study.tally, self.study.spec.share
        left = self.study.num_left + len(self.study.promotable())
        num_open = len(tally.open) - len(tally.waiting) - len(tally.paused)
        status = self.shown.status
        running, losses = (0, 0) if status is None else (status.trials["running"], status.losses)
        used_seconds = max(tally.used_seconds, MIN_TRIAL_SECONDS * tally.num_ended)
        in_flight = max(0, num_open - self._parts.dispatcher.num_resting)
        return Demand(
            wanted=left if self._may_start(is_draining=is_draining) else 0,
            # what waits in a paused study keeps no slot from the others
            in_flight=min(running, in_flight) if self._surroundings.wish.is_pause else in_flight,
            trial_seconds=tally.trial_seconds,
            used_seconds=used_seconds + LOSS_SECONDS * losses,
            weight=share.weight,
            priority=share.priority,
            max_slots=self._most_in_flight(),
            running=running,
            stuck=self._parts.dispatcher.num_stuck,
        )

    def _most_in_flight(self) -> int | None:
        """How many of its trials may be in flight; None for no bound.

        Of a seeded study none waits ready before one has told what its objective asks for: what
        that one asked would be drawn before or after the next suggestion, as time has it, and the
        same seed would not give the same study.
        """
        spec = self.study.spec
        bound = spec.share.max_slots
        if spec.sampler.seed is None or spec.space or self.study.tally.num_ended:
            return bound
        slots = max(1, self._surroundings.slots)
        return slots if bound is None else min(slots, bound)

    def close(self) -> None:
        """Write down what is to be known of it, and let another orchestrator drive it."""
        if self._opened is not None:
            self._opened.close()

    def abandon(self) -> None:
        """Write nothing more."""
        if self._opened is not None:
            self._opened.study.abandon()

    def _collect(self) -> None:
        entries = list(self._entries)
        self._take(entries)
        for _ in entries:
            self._entries.popleft()

    def _take_back(self) -> None:
        """Take in what Redis gave out long ago, and what never came here."""
        handed = {entry.id for entry in list(self._entries)}  # the loop may hand in more meanwhile
        found = self._inbox.take_back(self.name, int(self._settings.times.lease * 1000))
        self._take([entry for entry in found if entry.id not in handed])

    def _take(self, entries: Sequence[Entry]) -> None:
        if entries:
            self._parts.collector.collect(entries)
            self.shown.is_stale = True
            self._inbox.acknowledge(self.name, [entry.id for entry in entries])

    def _look_after(self) -> None:
        self._take_space()
        times, study, submitted = self._settings.times, self.study, self._surroundings.submitted
        sweep, self._sweep = self._sweep, None
        self._is_to_be_looked_after = False
        self.looked_after_at = time.monotonic()
        if self._surroundings.slots or self._parts.seconds_open > times.lease:
            study.clock.start()  # of a study without workers, too
        study.note_clock(at_most_every=times.beat)
        now_ms = server_time_ms(self._client)
        if submitted is not None:
            if is_same_space(submitted.spec.space, study.spec.space):
                study.take_spec(submitted.spec)
            self._take_queue(now_ms)
            study.take_owner(is_by_run=submitted.is_by_run)
            self._parts.control.obey(submitted, now_ms)
            self._revision = submitted.revision
        if sweep is not None:
            self._take_back()
            sweep.sweep(study, now_ms)
            if not self._surroundings.wish.is_pause:  # nobody could claim what is announced
                self._parts.dispatcher.reconcile(now_ms)
        self.shown.is_stale = True

    def _take_queue(self, now_ms: int) -> None:
        """Go on in the queue that people moved the study to; what waits is announced there."""
        before, self.queue = self.queue, self.study.spec.resources.queue
        if self.queue != before:
            log.info("study_moved", study=self.name, queue=self.queue, before=before)
            self._parts.dispatcher.reconcile(now_ms, at_start=True)

    def _take_space(self) -> None:
        """Open the study anew in the space that people want it to go on in."""
        submitted = self._surroundings.submitted
        if submitted is None or submitted.spec.space == self._asked_space:
            return
        if is_same_space(submitted.spec.space, self.study.spec.space):
            self._asked_space = submitted.spec.space
            return
        self.doing = "making its space wider"
        self.study.close()
        self._opened, self._asked_space = None, submitted.spec.space
        self.is_disturbed = True
        self._open()
        self._catch_up()

    def _may_start(self, *, is_draining: bool) -> bool:
        if is_draining or self._surroundings.wish is not Wish.RUN:
            return False
        return self.study.limits.reason is None or self.study.limits.spares_given

    def _begins_no_more(self) -> bool:
        """Whether all its trials have ended or are paused, and none of these will go on."""
        study = self.study
        if not study.trials.is_at_rest or self._surroundings.wish.is_pause:
            return False
        if self._surroundings.wish.is_end or study.limits.reason is not None:
            return True
        return not study.num_left and not study.promotable()
