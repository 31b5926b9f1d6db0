"""A submitted study, as a script holds it: its status, its best trial, its `optuna.Study`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
import redis
from optuna.trial import FrozenTrial

from orchestrator.controlled_study import ControlledStudy
from orchestrator.published_status import published_status
from orchestrator.status import StudyStatus
from orchestrator.status_building import stored_status
from orchestrator.storage.attributes import GENERATION_ATTR, SPEC_ATTR
from orchestrator.storage.best_trials import best_first, why_no_best
from orchestrator.storage.event_history import EventHistory
from orchestrator.storage.known_studies import known_studies
from orchestrator.storage.opening import load_readonly, storage_url
from orchestrator.storage.place import locate
from orchestrator.storage.printed import PrintedAttempt, printed_by
from orchestrator.views.following import follow
from orchestrator.views.trial_table import FORMATS, TrialTable, value_columns
from workers.coordination.connection import connect, is_at_rest
from workers.coordination.deletions import Deletions
from workers.coordination.rights import Role
from workers.coordination.studies import Studies
from workers.coordination.trial_queue import read_record
from workers.coordination.trial_record import TrialRecord
from workers.disk import durable
from workers.disk.object_store import ObjectStore
from workers.disk.results import result_directory
from workers.disk.store_layout import results_of, token_of_result
from workers.protocol.errors import (
    FleetError,
    InvalidInputError,
    RedisUnavailableError,
    StudyDeletedError,
    StudyNotKnownError,
    nearest,
)
from workers.protocol.given import given_params
from workers.protocol.plain import describe_error
from workers.protocol.spec import Direction, StudySpec


class StudyHandle(ControlledStudy):
    """A study by its name; everything is read anew at each call.

    Args:
        name: The study.
        settings: Where the fleet is; by default the environment's.
    """

    def __repr__(self) -> str:
        return f"StudyHandle({self.name!r})"

    def status(self) -> StudyStatus:
        """The study now: what the orchestrator last published, else what the storage holds.

        Raises:
            InvalidInputError: Neither knows the study.
            RedisUnavailableError: `FLEET_REDIS_URL` is set and does not answer.
        """
        published = self._published()
        if published is not None:
            return published
        with self._named():
            return stored_status(self.name, self._settings)

    def kept_status(self) -> StudyStatus:
        """The same for whoever reads results: they are there while Redis does not answer, too.

        Raises:
            InvalidInputError: Nobody knows the study.
            RedisUnavailableError: Redis does not answer, and the study is not on this machine.
        """
        try:
            return self.status()
        except RedisUnavailableError as error:
            try:
                kept = stored_status(self.name, self._settings)
            except InvalidInputError:
                raise error from None
            waits_for = [] if kept.is_over else [f"{error}; what is shown is what its results tell"]
            return kept.model_copy(update={"waits_for": waits_for})

    def wait(self, timeout_seconds: float | None = None) -> StudyStatus:
        """Wait until the study is over; a Redis that is away meanwhile is waited for, too.

        Raises:
            TimeoutError: It is not, after `timeout_seconds`.
            InvalidInputError: The study is not known.
            RedisUnavailableError: `FLEET_REDIS_URL` is set and does not answer at first.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        for status in self._follow():
            if not status.is_over and deadline is not None and time.monotonic() > deadline:
                reason = "" if status.stalled is None else f" ({status.stalled})"
                raise TimeoutError(
                    f"study {self.name!r} still runs after {timeout_seconds} s{reason}"
                )
        return status

    def watch(self) -> StudyStatus:
        """Show the study live until it is over; Ctrl-C stops the watching only."""
        from orchestrator.views.watch import WATCH_HINT, open_view

        with ExitStack() as stack:
            view = stack.enter_context(open_view(hint=WATCH_HINT))
            view.measure(stack.enter_context(self._history()))
            for status in self._follow():
                view.update(status)
        return status

    @contextmanager
    def _history(self) -> Iterator[EventHistory]:
        home = self._settings.home
        try:
            client = connect(self._settings, Role.VIEWER)
        except RedisUnavailableError:  # it is told by whatever is asked next
            yield EventHistory.of_study(None, home, self.name)
            return
        with client:
            yield EventHistory.of_study(client, home, self.name)

    def _follow(self) -> Iterator[StudyStatus]:
        return follow(self.status, patience_seconds=self._settings.times.lease)

    @property
    def study(self) -> optuna.Study:
        """The study in Optuna's own terms, as it is now; it cannot be written to.

        Raises:
            InvalidInputError: The storage is not on this machine, or does not know the study.
        """
        with self._named():
            return load_readonly(self._storage_url(), self.name)

    @property
    def best_trial(self) -> FrozenTrial:
        """The best complete trial that violates no constraint.

        Raises:
            FleetError: There is none, or the study has several directions.
        """
        study = self.study
        try:
            return study.best_trial
        except ValueError as error:
            lacks = why_no_best(study.get_trials(deepcopy=False))
            raise FleetError(f"study {self.name!r} has {lacks} yet") from error
        except RuntimeError as error:
            raise FleetError(
                f"study {self.name!r} has several directions, and no one trial is the best; see"
                " `best_trials`"
            ) from error

    def best_params(self, count: int) -> list[dict[str, Any]]:
        """The parameters of the best trials, as `enqueue` of this or another study takes them.

        Raises:
            InvalidInputError: No trial is complete, the storage is not on this machine, or `count`
                is below 1.
        """
        if count < 1:
            raise InvalidInputError(f"best_params({count}): give a number of trials, from 1")
        study = self.study
        text = study.user_attrs.get(SPEC_ATTR)
        trials = study.get_trials(deepcopy=False)
        directions: list[Direction] = [
            "maximize" if each is optuna.study.StudyDirection.MAXIMIZE else "minimize"
            for each in study.directions
        ]
        best = best_first(trials, directions)[:count]
        if not best:
            raise InvalidInputError(f"study {self.name!r} has no complete trial to take from")
        if text is None:
            return [dict(trial.params) for trial in best]
        return [given_params(StudySpec.read(text), trial.params) for trial in best]

    def table(self) -> TrialTable:
        """All trials, as `trialfleet export` writes them.

        Raises:
            InvalidInputError: The storage is not on this machine, or the study is not the fleet's.
        """
        study = self.study
        text = study.user_attrs.get(SPEC_ATTR)
        if text is None:
            raise InvalidInputError(
                f"study {self.name!r} was not made by trialfleet; read it by Optuna"
            )
        spec, trials = StudySpec.read(text), study.get_trials(deepcopy=False)
        has_open = any(not trial.state.is_finished() for trial in trials)
        running = {each.number for each in self.kept_status().running} if has_open else set()
        columns = value_columns(spec.metrics, len(spec.all_directions))
        return TrialTable.of(trials, columns, running, study.user_attrs)

    def export(self, file: str | Path) -> Path:
        """Write all trials as a table, whole or not at all; where it lies then.

        Args:
            file: Its suffix says how: `.csv`, `.json`, or `.parquet` where pyarrow is installed.

        Raises:
            InvalidInputError: The suffix is none of these, it cannot be written there, or the
                storage is not on this machine.
        """
        target = Path(file).expanduser().absolute()
        form = next((each for each in FORMATS if target.suffix.lower() == f".{each}"), None)
        if form is None:
            raise InvalidInputError(f"export {file}: name a file with .{', .'.join(FORMATS)}")
        content = self.table().write(form)
        try:
            durable.write_named(target, content)
        except OSError as error:
            raise InvalidInputError(f"export {file}: {error}; nothing was written") from error
        return target

    @property
    def best_trials(self) -> list[FrozenTrial]:
        """The Pareto front: those than which none is better in one value and worse in no other."""
        return self.study.best_trials

    def result_folder(self, number: int) -> Path | None:
        """What a trial left for people, if that is on this machine."""
        roots = [self._settings.home / "studies" / self.name / "trials"]
        with suppress(RedisUnavailableError):  # it is looked for here all the same
            published = self._published()
            if published is not None and published.results is not None:
                roots.append(Path(published.results))
        folders = (root / str(number) / "result" for root in roots)
        return next(filter(Path.is_dir, folders), None)

    def fetched_result(self, number: int) -> Path | None:
        """The same, brought to this home from `FLEET_STORE` where it is not on this machine.

        Raises:
            FleetError: The store does not answer.
        """
        found = self.result_folder(number)
        store = None if found is not None else ObjectStore.of(self._settings)
        if store is None:
            return found
        generation, accepted = self._accepted(number)
        keys = {
            token_of_result(key): key
            for key in store.keys(results_of(self.name, generation, number))
        }
        folder = result_directory(self._settings.home, self.name, number)
        key = keys.get(max(keys, default=0) if accepted is None else accepted)
        return folder if key is not None and store.get(key, folder) else None

    def printed(
        self, number: int, *, asks_store: bool = True, most_bytes: int | None = None
    ) -> list[PrintedAttempt]:
        """What a trial's attempts printed, in their order; none of those that printed nothing.

        Args:
            number: The trial.
            asks_store: Whether what is neither on this machine nor in Redis is looked for there.
            most_bytes: As much of each attempt's file is read, from its end; by default, all.

        Raises:
            FleetError: Redis, or the store, does not answer.
        """
        settings = self._settings
        if not asks_store:
            settings = settings.model_copy(update={"store": None})
        try:
            with self._connection(Role.VIEWER).use() as client:
                studies = Studies(client)
                known = studies.exists(self.name)
                generation = (
                    studies.origin(self.name).generation if known else self._stored_generation()
                )
                return printed_by(settings, client, self.name, number, generation, most_bytes)
        except RedisUnavailableError as error:
            try:
                generation = self._stored_generation()
            except InvalidInputError:  # it is not on this machine
                raise error from None
            return printed_by(settings, None, self.name, number, generation, most_bytes)

    def has_ended(self, number: int) -> bool | None:
        """Whether a trial has ended; None where it has not, and no fleet that answers knows it.

        Raises:
            RedisUnavailableError: `FLEET_REDIS_URL` is set and does not answer.
        """
        record = self._record(number)
        if record is not None:
            return record.state.is_terminal
        with suppress(InvalidInputError):  # on this machine, there is no storage of it
            trials = self.study.get_trials(deepcopy=False)
            if number < len(trials) and trials[number].state.is_finished():
                return True
        return None

    def _accepted(self, number: int) -> tuple[str | None, int | None]:
        """The study's generation, and the attempt at a trial whose result counts.

        Where Redis knows the trial no more, or is away, the last attempt that left something is
        meant.
        """
        with suppress(RedisUnavailableError):
            record = self._record(number)
            if record is not None:
                return record.generation, record.result_token
        return self._stored_generation(), None

    def _stored_generation(self) -> str | None:
        return self.study.user_attrs.get(GENERATION_ATTR) or None

    def _record(self, number: int) -> TrialRecord | None:
        try:
            with self._connection(Role.VIEWER).use() as client:
                known = Studies(client).exists(self.name)
                return read_record(client, self.name, number) if known else None
        except RedisUnavailableError as error:
            if not is_at_rest(error, self._settings):
                raise
            return None

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Where no study has this name, say which one was meant, or that it was deleted."""
        try:
            yield
        except StudyNotKnownError as error:
            if self._is_deleted():
                raise StudyDeletedError(f"study {self.name!r} was deleted") from None
            meant = nearest(self.name, known_studies(self._settings))
            raise StudyNotKnownError(f"{error}{meant}") from None

    def _is_deleted(self) -> bool:
        with suppress(FleetError, redis.RedisError), self._connection(Role.VIEWER).use() as client:
            return self.name in Deletions(client).done()
        return False

    def _published(self) -> StudyStatus | None:
        try:
            with self._connection(Role.VIEWER).use() as client:
                return published_status(client, self.name, self._settings.times)
        except RedisUnavailableError as error:
            if not is_at_rest(error, self._settings):
                raise
            return None  # an embedded server that ran only as long as the study
        except redis.exceptions.NoPermissionError:
            raise
        except (ValueError, TypeError, RecursionError, redis.ResponseError) as error:
            raise InvalidInputError(
                f"study {self.name!r}: what Redis holds of it cannot be read"
                f" ({describe_error(error, 200)}); submit it again, with this release"
            ) from error

    def _storage_url(self) -> str:
        try:
            with self._connection(Role.VIEWER).use() as client:
                origin = Studies(client).origin(self.name)
        except RedisUnavailableError:
            return storage_url(self._settings, self.name)
        return locate(self._settings, self.name, origin)
