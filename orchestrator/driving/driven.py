"""A study that this orchestrator drives: its storage, its sampler, its trials in Redis.

Invariant: whoever holds a `DrivenStudy` is the only writer of the study's storage.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import optuna
import redis

from orchestrator.driving.generation import prepare, stored_generation
from orchestrator.driving.limits import Limits
from orchestrator.driving.on_end import EndHook
from orchestrator.driving.study_clock import StudyClock
from orchestrator.driving.study_end import StudyEnd
from orchestrator.driving.study_inbox import StudyInbox
from orchestrator.driving.study_sampler import StudySampler
from orchestrator.driving.study_trials import StudyTrials
from orchestrator.status import StudyStatus
from orchestrator.storage.attributes import (
    BY_RUN_ATTR,
    EXHAUSTED_ATTR,
    GENERATION_ATTR,
    NUM_POINTS_ATTR,
    SPEC_ATTR,
    WISH_ATTR,
)
from orchestrator.storage.kept_package import keep_package
from orchestrator.storage.opening import StudyStorage, create_or_load_study
from orchestrator.storage.place import is_found_by_place, locate, place_of
from orchestrator.storage.succession import former_of
from orchestrator.storage.tally import Tally
from orchestrator.submission.algorithms import make_pruner, num_points
from orchestrator.submission.further_grid import num_beside
from orchestrator.submission.widening import is_to_be_widened, stored_spec, widen_stored
from workers.coordination.hints import Hints
from workers.coordination.leases import TrialLeases
from workers.coordination.packages import Packages
from workers.coordination.studies import Studies
from workers.coordination.submitted import Origin
from workers.protocol.spec import StudySpec
from workers.protocol.states import Wish
from workers.protocol.wider_space import is_same_in_wider_space
from workers.settings import Settings


class DrivenStudy:
    """One study, open for writing.

    Args:
        client: The fleet's Redis.
        hints: Sends the Celery messages.
        name: The study, as submitted.
        settings: Say where this orchestrator keeps results, and which modules samplers may be of.
        leader: This orchestrator, by which its right to the study is held.

    Raises:
        InvalidInputError: Another orchestrator drives the study, or keeps its results.
    """

    leases: TrialLeases
    """Its trials in Redis."""
    trials: StudyTrials
    """Its trials in the storage."""
    clock: StudyClock
    """How long it has been driven."""
    inbox: StudyInbox
    """What waits there, and what was set aside."""

    def __init__(
        self, client: redis.Redis, hints: Hints, name: str, settings: Settings, leader: str
    ) -> None:
        self.name = name
        self._settings = settings
        self._end_hook = EndHook(name, settings.on_end)
        self._sampler: StudySampler | None = None
        self._hints = hints
        self._studies = Studies(client, leader, settings.seal)
        self._packages = Packages(client, settings.seal)
        self.inbox = StudyInbox(client, name)
        self.spec: StudySpec = self._studies.spec(name)
        origin = self._studies.origin(name)
        url = locate(settings, name, origin)
        self._place = place_of(url)
        self._storage = StudyStorage.open(url)
        try:
            if is_to_be_widened(self._storage.storage, self.spec):
                self._storage.close()
                widen_stored(url, self.spec)
                self._storage = StudyStorage.open(url)
            self._begin()
            self._read(origin, url)
        except BaseException:
            self._storage.close()
            raise

    def _read(self, origin: Origin, url: str) -> None:
        """Take up what the storage holds of the study."""
        self.trials = StudyTrials(self.study, self._storage.storage, self.spec)
        self.clock = StudyClock(self.study)
        self._end = StudyEnd(self.study, self.tally, self._end_hook, self.sync)
        if origin.earlier_url is not None and is_found_by_place(self._settings, self.name, url):
            self._studies.drop_earlier_url(self.name)
        #: How many trials its sampler has at most.
        self.num_points = num_points(self.spec)
        if self._sampler is not None and self._sampler.has_larger_grid:
            self.num_points += num_beside(self.study.get_trials(deepcopy=False))
        attrs = self.study.user_attrs
        if math.isfinite(self.num_points) and attrs.get(NUM_POINTS_ATTR) != self.num_points:
            self.study.set_user_attr(NUM_POINTS_ATTR, self.num_points)
        self._wish = Wish(attrs.get(WISH_ATTR, Wish.RUN))
        self._is_by_run = bool(attrs.get(BY_RUN_ATTR))
        self._is_exhausted = bool(attrs.get(EXHAUSTED_ATTR))
        #: Holds it to its budgets and stops.
        self.limits = Limits(self.study, self.spec, self.tally, lambda: self.clock.seconds)
        if not self._studies.wish(self.name).is_end:
            self.limits.resume()

    @property
    def tally(self) -> Tally:
        """All its trials, summed up."""
        return self.trials.tally

    def check_lead(self) -> None:
        """Make sure of the lead before something is made that no script of Redis guards.

        Raises:
            StudyTakenOverError: This orchestrator drives the study no more.
        """
        self._studies.check_lead(self.name)

    def take_spec(self, spec: StudySpec) -> None:
        """Go on by a specification that somebody may have extended."""
        if spec != self.spec:
            self.spec = spec
            self.limits.take_spec(spec)
            self._store_spec()
            self.leases = self._open_leases(self.leases.epoch)

    def take_wish(self, wish: Wish) -> Wish:
        """Keep with the results what people want of the study; what they wanted before."""
        before = self._wish
        if wish is not before:
            self.study.set_user_attr(WISH_ATTR, wish.value)
            self._wish = wish
            if before.is_end and not wish.is_end:
                self.limits.forgive()
        return before

    def keep_limits(self) -> None:
        """Keep with the results what ends the study, if something does.

        One that fails again and again is stopped until somebody hands it in again.
        """
        if self.limits.is_failing_alike and not self._wish.is_end:
            self._studies.stop(self.name)
        self.limits.keep()

    def take_owner(self, *, is_by_run: bool) -> None:
        """Keep with the results whether `trialfleet run` alone is to go on with the study."""
        if is_by_run != self._is_by_run:
            self.study.set_user_attr(BY_RUN_ATTR, is_by_run)
            self._is_by_run = is_by_run

    def start_epoch(self, epoch: str) -> None:
        """Go on in a Redis that lost its data, and has the study again."""
        keep_package(self._packages, self.spec, self._settings)
        self.leases = self._open_leases(epoch)

    @property
    def is_exhausted(self) -> bool:
        """Whether the sampler has nothing more to suggest."""
        return self._is_exhausted or self.tally.num_sampled >= self.num_points

    @property
    def num_wanted(self) -> int:
        """How many trials to run in all: those that people gave, and what the sampler has."""
        if self.is_exhausted:
            return self.tally.num_trials
        return self.tally.num_wanted(min(self.spec.trials, self.num_points))

    @property
    def num_left(self) -> int:
        """How many trials have yet to be asked for, those with given parameters among them."""
        if self.limits.reason is not None:
            return len(self.tally.waiting) if self.limits.spares_given else 0
        return self.num_wanted - self.tally.num_trials + len(self.tally.waiting)

    @property
    def end_problem(self) -> str | None:
        """Why `on_end` failed, if it did."""
        return self._end.problem(self.spec.on_end)

    def tell_end(self, status: StudyStatus) -> bool:
        """See to the study's `on_end`, without waiting; whether that is done.

        Args:
            status: The study, which is over.
        """
        return self._end.tell(self.spec.on_end, status)

    def note_clock(self, *, at_most_every: float = 0.0) -> None:
        """Write down how long the study has been driven, for an orchestrator after this one.

        Args:
            at_most_every: Seconds of that time for which nothing is written, but that it is up.
        """
        self.clock.note(self.spec.timeout, at_most_every=at_most_every)

    def ask(self) -> optuna.Trial:
        """A new trial."""
        self.note_clock()  # a time-out holds however often this process is killed
        return self.trials.ask()

    def orders(self) -> dict[str, str]:
        """What people ordered and is not carried out, by id."""
        return self._studies.orders.waiting(self.name)

    def num_ordered(self) -> str | None:
        """How often people left orders."""
        return self._studies.orders.num_left(self.name)

    def drop_orders(self, ids: Iterable[str], num_ordered: str | None) -> None:
        """Forget orders that are in the storage, of those that were left so often."""
        self._studies.orders.drop(self.name, ids, num_ordered)

    def promotable(self) -> list[int]:
        """The paused trials that are to go on, in the order in which they are."""
        if self.limits.reason is not None:
            return []
        return self.trials.promotable(has_more=bool(self.num_left))

    def tell(
        self, number: int, state: optuna.trial.TrialState, values: Sequence[float] | None
    ) -> None:
        """End a trial in the storage."""
        self.limits.note(self.trials.tell(number, state, values))

    def send_hint(self, number: int, delay_seconds: float = 0.0, more: Sequence[int] = ()) -> None:
        """Announce that a trial may be claimed, and `more` by the same slot after it."""
        queue = self.spec.resources.queue
        self._hints.send(self.name, number, self.leases.epoch, queue, delay_seconds, more)

    def hints_waiting(self) -> int:
        """How many hints lie in the study's queue that no worker has fetched."""
        return self._hints.waiting(self._studies.client, self.spec.resources.queue)

    def kept_models(self) -> dict[str, Any] | None:
        """Whose models are to stay, for those who have them on their disks; None if all are."""
        num_kept = self.spec.keep.num_models
        if num_kept is None:
            return None
        best = self.tally.best if len(self.spec.all_directions) > 1 else self.tally.best[:num_kept]
        kept = best or self.tally.least_violating[:num_kept]
        return {
            "best": [trial.number for trial in kept],
            "num_known": self.tally.num_trials,
            "open": sorted(self.tally.open),
        }

    def publish(self, facts: dict[str, Any], *, is_over: bool, revision: str) -> bool:
        """Show facts to workers and to people; False if it is not over by what was asked since.

        Args:
            facts: What is to be seen.
            is_over: Whether nothing is left to be done.
            revision: That of the study, as people handed it in, by which it is.
        """
        over = self.spec.digest() if is_over else None
        return self._studies.facts.publish_end(self.name, facts, over, revision)

    def published_state(self) -> str | None:
        """The study's state, as an orchestrator showed it last."""
        status = self._studies.facts.get(self.name, "status")
        return status.get("state") if isinstance(status, dict) else None

    def gathering(self) -> AbstractContextManager[None]:
        """Have what is written meanwhile be written at once: of a trial that is a lot."""
        return self._storage.gathering()

    def sync(self) -> None:
        """Bring all that was written to disk."""
        self._storage.sync()

    def close(self) -> None:
        """Let another orchestrator drive the study."""
        self._end_helpers()
        try:
            self.note_clock()
            self._storage.sync()
        finally:
            self._storage.close()

    def abandon(self) -> None:
        """Write nothing more: another orchestrator drives the study."""
        self._end_helpers()
        self._storage.close()

    def _begin(self) -> None:
        """Open the study, as the same one in the storage and in Redis."""
        self._take_wider_space()
        stored = stored_generation(self._storage.storage, self.name)
        self.generation = prepare(self._studies, self.name, stored)
        if stored is not None:  # else, were this process killed here, nothing of it would be left
            self._note_beginning()
        else:
            self.check_lead()
        self.study = self._open_study()
        self._storage.raise_fence(self.name)
        if stored != self.generation:
            self.study.set_user_attr(GENERATION_ATTR, self.generation)
            self.sync()
            self._note_beginning()
        self._store_spec()
        self._studies.renew_seal(self.name)
        keep_package(self._packages, self.spec, self._settings)
        self.leases = self._open_leases()

    def _open_leases(self, epoch: str | None = None) -> TrialLeases:
        return self._studies.leases(self.name, epoch, self.generation, self.spec.work())

    def _note_beginning(self) -> None:
        #: The study of the storage that holds its trials as they were in a narrower space.
        self.former = former_of(self._storage.storage, self.name)
        self._studies.begin(self.name, self.generation, self._place, self.former or "")

    def _take_wider_space(self) -> None:
        """Go on in the space of the storage, if Redis lost that it has become wider."""
        stored = stored_spec(self._storage.storage, self.name)
        if stored is None or not is_same_in_wider_space(self.spec, stored):
            return

        def in_wider_space(spec: StudySpec) -> StudySpec:
            is_narrower = is_same_in_wider_space(spec, stored)
            return spec.model_copy(update={"space": stored.space}) if is_narrower else spec

        known = self._studies.rewrite(self.name, in_wider_space)
        # a space that is wider still is taken up when the study is open
        self.spec = known.model_copy(update={"space": stored.space})

    def _open_study(self) -> optuna.Study:
        num_existing = self._storage.count_trials(self.name)
        self._sampler = StudySampler(
            self.spec, self._storage.storage, self._settings, lambda: self.tally
        )
        study = create_or_load_study(
            self.spec,
            self._storage.storage,
            self._sampler.make(num_existing),
            make_pruner(self.spec, allowed=self._settings.samplers),
        )
        # what samplers call at their end, and what raises outside of `optimize`
        study.stop = self._note_exhausted  # type: ignore[method-assign]
        if self._storage.is_ours_alone:
            # each `ask` would look at all trials for one that waits: it is known if there is any
            look = study._pop_waiting_trial_id
            study._pop_waiting_trial_id = (  # type: ignore[method-assign]
                lambda: look() if self.tally.waiting else None
            )
        return study

    def _end_helpers(self) -> None:
        """End what runs beside this process for the study."""
        self._end_hook.close()
        if self._sampler is not None:
            self._sampler.close()

    def _note_exhausted(self) -> None:
        self.study.set_user_attr(EXHAUSTED_ATTR, value=True)
        self._is_exhausted = True

    def _store_spec(self) -> None:
        """Keep the whole specification with the results, for those who read them without Redis."""
        text = self.spec.model_dump_json()
        if self.study.user_attrs.get(SPEC_ATTR) != text:
            self.study.set_user_attr(SPEC_ATTR, text)
