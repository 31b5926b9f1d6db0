"""What people ask of a live study: to pause, to go on, to stop, to end, to run for longer.

Each is one write on the server, which sees what was asked before; asking twice is asking once.
Workers learn of it with their next beat, `status` at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import optuna
from optuna.trial import FrozenTrial

from orchestrator.extension import CHANGEABLE, extended
from orchestrator.status import StudyStatus
from orchestrator.storage.attributes import RETRIES_ATTR, SPEC_ATTR
from orchestrator.storage.opening import storage_url
from orchestrator.storage.ordered_trials import carried_out, order_at_rest
from orchestrator.storage.retriable import retriable, state_name
from orchestrator.views.ways_on import raised_budgets, say_still_ends, used_up, ways_on
from workers.coordination.connection import is_at_rest
from workers.coordination.kept_connection import KeptConnection
from workers.coordination.rights import Role
from workers.coordination.studies import Studies
from workers.coordination.submitted import WISHED
from workers.protocol.errors import (
    InvalidInputError,
    RedisUnavailableError,
    StudyAtRestError,
    StudyNotKnownError,
)
from workers.protocol.given import stored_params
from workers.protocol.orders import Given, Order, Retry
from workers.protocol.plain import as_setting
from workers.protocol.spec import StudySpec, is_study_name
from workers.protocol.states import Wish
from workers.settings import Settings


class ControlledStudy:
    """A study by its name, and what can be asked of it while a fleet has it.

    Every method raises `InvalidInputError` for a study that the fleet does not know, and
    `RedisUnavailableError` where its Redis does not answer.

    Raises:
        StudyNotKnownError: No study can have this name.
    """

    def __init__(self, name: str, settings: Settings | None = None) -> None:
        if not is_study_name(name):
            raise StudyNotKnownError(
                f"study {name!r}: no study has such a name: names are letters, digits, dots, dashes"
                " and underscores; see `trialfleet studies`"
            )
        self.name = name
        self._settings = settings or Settings.from_environment()
        self._connections: dict[Role, KeptConnection] = {}

    def status(self) -> StudyStatus:
        """The study now."""
        raise NotImplementedError

    @property
    def study(self) -> optuna.Study:
        """The study in Optuna's own terms; it cannot be written to."""
        raise NotImplementedError

    def pause(self, *, now: bool = False) -> StudyStatus:
        """Begin nothing more; running trials save a checkpoint and go back to the queue, uncounted.

        A study that is over is left so.

        Args:
            now: End also trials whose objectives never report, after a grace of 30 s; they begin
                again later. By default, these run to their end.

        Raises:
            InvalidInputError: The study was stopped or cancelled.
        """
        return self._want(Wish.PAUSE_NOW if now else Wish.PAUSE)

    def resume(self) -> StudyStatus:
        """Go on with a study that was paused; also with one that was stopped or cancelled.

        Trials that have ended stay so: `retry` runs their parameters again. Those that were
        cancelled before they began are run after all, as new ones.

        Raises:
            InvalidInputError: All its trials have ended.
        """
        return self._want(Wish.RUN)

    def stop(self) -> StudyStatus:
        """Begin no further trial; those that have begun go to their end.

        Raises:
            InvalidInputError: The study was cancelled.
        """
        return self._want(Wish.STOP)

    def cancel(self) -> StudyStatus:
        """End the study: running trials end as CANCELLED, and what they made is kept.

        An objective that does not end within 30 s is ended.
        """
        return self._want(Wish.CANCEL)

    def extend(
        self,
        *,
        trials: int | None = None,
        timeout: float | str | None = None,
        space: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> StudySpec:
        """Have the study run for longer, or in a wider space; one that is over goes on.

        Trials keep their numbers and values in a wider space, those that run too; as they were,
        they are kept as the study `NAME@1` of its storage.

        Args:
            trials: Trials in all.
            timeout: Of all its time: seconds, or a text such as `2h`.
            space: The whole space as in a study file, with further choices, wider bounds, or
                parameters that are new; of these, `default` is what the trials before had.
            settings: Others that may change while it runs, as in a study file: `budget`, `stop`,
                `share`, `trial_timeout`, `max_failures`, `max_losses`, `progress_timeout`,
                `resources`, `keep`, `wandb`, `on_end`. Of a group, what is not given stays, and
                None is none: `extend(stop={"target": None})`.

        Returns:
            The specification as it is now, with what others changed at the same time.

        Raises:
            InvalidInputError: It is no more than there was, nothing would begin by it since
                something else has ended the study, or the study was stopped or cancelled.
        """
        asked = {"trials": trials, "timeout": timeout}
        given = {name: each for name, each in asked.items() if each is not None} | settings
        changes = {name: as_setting(each, name) for name, each in given.items()}
        if not changes and space is None:
            raise InvalidInputError(
                f"study {self.name!r}: extend it by what? Give trials, timeout, a wider space, or"
                f" another of {', '.join(sorted(CHANGEABLE))}"
            )

        def change(spec: StudySpec) -> StudySpec:
            longer = extended(spec, changes)
            if trials is not None or space is not None or self._is_raised_too_little(spec, longer):
                self._refuse_to_end_at_once(spec, longer, is_wider=space is not None)
            return longer if space is None else self._widened(longer, space)

        try:
            with self._studies() as studies:
                return studies.change_spec(self.name, change)
        except StudyAtRestError:
            if space is None or changes:
                raise
            return self._widen_at_rest(space)

    def _is_raised_too_little(self, before: StudySpec, after: StudySpec) -> bool:
        """Whether a budget is more than it was, and used up all the same."""
        raised = raised_budgets(before, after)
        return bool(raised) and used_up(self.status(), after) in raised

    def _refuse_to_end_at_once(
        self, before: StudySpec, after: StudySpec, *, is_wider: bool
    ) -> None:
        """Refuse what would have nothing begin: what ended the study would end it again."""
        status = self.status()
        if status.is_exhausted and not is_wider:
            raise InvalidInputError(
                f"study {self.name!r}: {ways_on(status, f'trialfleet extend {self.name}')}"
            )
        why = say_still_ends(status, before, after, f"trialfleet extend {self.name}")
        if why is not None:
            raise InvalidInputError(f"study {self.name!r}: no further trial would begin, {why}")

    def _widened(self, spec: StudySpec, space: Mapping[str, Any]) -> StudySpec:
        # what checks a space checks what is handed in, and hands it in by a handle
        from orchestrator.submission.widening import widened

        return widened(spec, as_setting(space, "space"), self._settings)

    def _widen_at_rest(self, space: Mapping[str, Any]) -> StudySpec:
        """Have a study that no fleet has go on in a wider space."""
        from orchestrator.submission.widening import widen_stored

        spec = self._widened(StudySpec.read(self.study.user_attrs[SPEC_ATTR]), space)
        widen_stored(storage_url(self._settings, self.name), spec)
        return spec

    def enqueue(self, *given: Mapping[str, Any]) -> int:
        """Have trials run with these parameters, on top of the study's `trials`.

        What a mapping leaves open, the sampler draws. The same parameters are run once, however
        often they are enqueued. They are run before what the sampler would draw next.

        Args:
            given: For each trial, values by the names of the study's space.

        Returns:
            How many of them are new, as far as that can be told: a machine that has not the
            results knows only what waits for the orchestrator.

        Raises:
            InvalidInputError: One is not of the space (none is enqueued then), a budget is used up,
                or the study was stopped or cancelled.
        """
        return self._order(lambda spec: [Given(params=stored_params(spec, each)) for each in given])

    def retry(self, *numbers: int) -> int | None:
        """Have the parameters of failed and dead trials run again, as new trials on top.

        Each is retried once; if that fails, too, its retry can be retried. A retry has the number
        of the trial in its attribute `trialfleet:retries`.

        Args:
            numbers: Of trials that failed, died or were cancelled; by default all that failed or
                died.

        Returns:
            How many are to run, where the results are on this machine; else None.

        Raises:
            InvalidInputError: A trial of these cannot be retried, a budget is used up, or the
                study was stopped or cancelled.
        """
        found = self._retried(numbers)
        wanted = found if found is not None else sorted(set(numbers)) or None
        if wanted != []:  # these, and none that fails before the order is read
            self._order(lambda _spec: [Retry(numbers=wanted)])
        return None if found is None else len(found)

    def _retried(self, numbers: Sequence[int]) -> list[int] | None:
        """The trials that will be retried, as far as that can be told from here."""
        trials = self._trials()
        if trials is None:
            return None
        again = {trial.user_attrs.get(RETRIES_ATTR) for trial in trials}
        found = {trial.number for trial in retriable(trials, numbers or None)}
        for number in numbers:
            if number not in found:
                state = "not there"
                if 0 <= number < len(trials):
                    state = state_name(trials[number])
                raise InvalidInputError(
                    f"trial {number} of study {self.name!r} is {state}: only trials that failed,"
                    f" died or were cancelled can be retried"
                )
        return sorted(found - again)

    def _order(self, orders_for: Callable[[StudySpec], Sequence[Order]]) -> int:
        """Leave orders for the orchestrator; where no fleet runs, for the next one."""
        try:
            with self._studies() as studies:
                spec = studies.spec(self.name)
                orders = orders_for(spec)
                self._refuse_without_budget(spec, f"extend {self.name}")
                known = carried_out(self.study) if self._trials() is not None else set()
                return studies.orders.leave(
                    self.name, [each for each in orders if each.id not in known]
                )
        except StudyAtRestError:
            spec = StudySpec.read(self.study.user_attrs[SPEC_ATTR])
            self._refuse_without_budget(spec, "run STUDY")
            url = storage_url(self._settings, self.name)
            return order_at_rest(url, self.name, orders_for(spec))

    def delete(self, *, cancels: bool = False) -> None:
        """Delete the study for good: results, models, checkpoints, and its name; nobody is asked.

        Args:
            cancels: Whether trials that run are ended first.

        Raises:
            StudyNotKnownError: There is no such study.
            InvalidInputError: Trials of it run, or its results are kept elsewhere.
            FleetError: It is not done yet; it will be.
        """
        from orchestrator.local.delete_study import delete_study

        delete_study(self.name, self._settings, cancels=cancels)

    def _refuse_without_budget(self, spec: StudySpec, verb: str) -> None:
        """Refuse trials that would be cancelled before they begin."""
        status = self.status()
        setting = used_up(status, spec)
        if setting is not None and not status.wish.is_end:
            status = status.model_copy(update={"limit": setting})
            raise InvalidInputError(
                f"study {self.name!r}: its {setting} is used up, and no trial begins any more:"
                f" {ways_on(status, f'trialfleet {verb}')}"
            )

    def _trials(self) -> list[FrozenTrial] | None:
        """The study's trials, where its results are on this machine and it has begun."""
        try:
            return self.study.get_trials(deepcopy=False)
        except InvalidInputError:
            return None

    def spec(self) -> StudySpec:
        """The study as it was handed in, with what it was extended by."""
        try:
            with self._studies(Role.VIEWER) as studies:
                return studies.spec(self.name)
        except StudyAtRestError:
            return StudySpec.read(self.study.user_attrs[SPEC_ATTR])

    def _want(self, wish: Wish) -> StudyStatus:
        with self._studies() as studies:
            answer = studies.want(self.name, wish)
        if answer.status == "REFUSED":
            raise InvalidInputError(
                f"study {self.name!r}: {WISHED[answer.before]}, and cannot be asked to"
                f" {wish.value.replace('_', ' ')}; `trialfleet resume {self.name}` lets it go on"
            )
        if answer.status == "OVER" and wish is Wish.RUN:
            self._refuse_to_resume()
        return self.status()

    def _refuse_to_resume(self) -> NoReturn:
        status = self.status()
        why = f"; {status.ended_by}" if status.ended_by else ""
        raise InvalidInputError(
            f"study {self.name!r} is over ({status.state}, {status.num_ended} of {status.wanted}"
            f" trials ended{why}): there is nothing to resume;"
            f" {ways_on(status, f'trialfleet extend {self.name}')}"
        )

    @contextmanager
    def _studies(self, role: Role = Role.USER) -> Iterator[Studies]:
        try:
            with self._connection(role).use() as client:
                yield Studies(client, seal=self._settings.seal)
        except RedisUnavailableError as error:
            if not is_at_rest(error, self._settings) or SPEC_ATTR not in self.study.user_attrs:
                raise
            raise StudyAtRestError(
                f"study {self.name!r}: no fleet runs here; `trialfleet run` goes on with it, and"
                " with --trials N or --set timeout=2h for longer"
            ) from error

    def _connection(self, role: Role) -> KeptConnection:
        if role not in self._connections:
            self._connections[role] = KeptConnection.of(self._settings, role)
        return self._connections[role]
