"""A sampler that draws in a process of its own, once drawing takes long.

One interpreter runs one thread at a time: what a slow sampler calculates delays the answers to
trials of every other study. So its calls are timed; where they are slow, a process is begun, and
takes the sampler over as it is when it is ready: what is drawn with a seed is the same.

Invariants: the process only proposes. What is written is written here, and a process that ends in
the midst of a draw, or does not answer, costs that draw: it is made here, by a sampler as after a
restart. One that calculates with torch is never called here for that, however often its process
ended: its libraries end a process that they cannot work in, and that would be the orchestrator of
all studies. It is made by another process, or not at all.
"""

from __future__ import annotations

import pickle
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from typing import Any, Final

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    PartialFixedSampler,
    RandomSampler,
    TPESampler,
)
from optuna.trial import FrozenTrial

from orchestrator.driving.sampler_link import PATIENCE, SamplerLink
from orchestrator.driving.sampler_messages import decode_space
from orchestrator.driving.seeing_sampler import SeeingSampler
from workers.logs import get_logger
from workers.protocol.errors import FleetError

log = get_logger(__name__)

#: What a trial may cost its sampler before that is slow, in the median of some.
SLOW_SECONDS: Final = 0.05

#: Of how many trials.
_TIMED: Final = 5

#: After so many processes that ended by themselves, all is drawn here, or nothing.
_MOST_ENDED: Final = 3

#: For how long an answer is waited for at least.
PATIENCE_SECONDS: Final = 60.0

#: Samplers that may take long, and are known to keep what they know in themselves and in their
#: trials; and those that draw for them.
_SLOW: Final = (TPESampler, GPSampler, CmaEsSampler, PartialFixedSampler)
_KNOWN: Final = (*_SLOW, RandomSampler)

#: Where these have others that draw for them.
_INNER: Final = ("_base_sampler", "_independent_sampler", "_random_sampler")


def may_draw_aside(sampler: BaseSampler) -> bool:
    """Whether a sampler may be in a process of its own; those that are quick have no use for it."""
    return type(sampler) in _SLOW and _is_known(sampler)


def _calculates_with_torch(sampler: BaseSampler) -> bool:
    return isinstance(sampler, GPSampler) or any(map(_calculates_with_torch, _inner_of(sampler)))


def _is_known(sampler: BaseSampler) -> bool:
    return type(sampler) in _KNOWN and all(map(_is_known, _inner_of(sampler)))


def _inner_of(sampler: BaseSampler) -> list[BaseSampler]:
    return [getattr(sampler, name) for name in _INNER if hasattr(sampler, name)]


class AsideSampler(SeeingSampler):
    """A sampler that draws here, or in a process of its own.

    Args:
        sampler: What draws.
        make: Makes one as after a restart, in the place of one that is gone with its process.
        study: Its study, for the log.
        slow_seconds: From where on it is slow.
        patience_seconds: After which a process that does not answer is replaced, at least.
    """

    def __init__(
        self,
        sampler: BaseSampler,
        make: Callable[[], BaseSampler],
        study: str,
        slow_seconds: float = SLOW_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        super().__init__(sampler)
        self._make = make
        self._study = study
        self._slow_seconds = slow_seconds
        self._patience_seconds = patience_seconds
        #: the last trials that were drawn for here, and the seconds that it took
        self._spent: deque[tuple[int, float]] = deque(maxlen=_TIMED)
        self._process: SamplerLink | None = None
        self._num_ended, self._why_ended = 0, ""
        self._is_apart = _calculates_with_torch(sampler)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """What is to be drawn together."""
        answered, found = self._ask("space", study, trial, {})
        if answered:
            return decode_space(found)
        with self._timed(trial):
            return self.inner.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """What the sampler draws together."""
        answered, drawn = self._ask("joint", study, trial, search_space)
        if answered:
            return dict(drawn)
        with self._timed(trial):
            return self.inner.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """What the sampler draws for one parameter."""
        answered, drawn = self._ask("one", study, trial, {param_name: param_distribution})
        if answered:
            return drawn
        with self._timed(trial):
            return self.inner.sample_independent(study, trial, param_name, param_distribution)

    @property
    def is_aside(self) -> bool:
        """Whether a process draws."""
        return self._process is not None and self._process.has_begun

    def close(self) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            process.end()

    @contextmanager
    def _timed(self, trial: FrozenTrial) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._note(trial.number, time.perf_counter() - start)

    def _note(self, number: int, seconds: float) -> None:
        if self._spent and self._spent[-1][0] == number:
            seconds += self._spent.pop()[1]
        self._spent.append((number, seconds))
        if self._process is None and self._num_ended < _MOST_ENDED and self._is_slow():
            self._begin()

    def _is_slow(self) -> bool:
        spent = [seconds for _, seconds in self._spent]
        return len(spent) == _TIMED and median(spent) > self._slow_seconds

    def _begin(self) -> None:
        longest = max((seconds for _, seconds in self._spent), default=0.0)
        try:
            pickle.dumps(self.inner)  # as it will be handed over
            self._process = SamplerLink(max(self._patience_seconds, PATIENCE * longest))
        except Exception as error:  # noqa: BLE001 - whatever keeps it here: it is slow here
            self._stay(error)

    def _stay(self, error: Exception) -> None:
        """Draw here from now on."""
        self.close()
        self._num_ended, self._why_ended = _MOST_ENDED, str(error)
        log.warning("sampler_process_not_begun", study=self._study, error=str(error))

    def _ask(
        self,
        wanted: str,
        study: optuna.Study,
        trial: FrozenTrial,
        space: Mapping[str, BaseDistribution],
    ) -> tuple[bool, Any]:
        """Have the process draw; whether it did, and what.

        Raises:
            FleetError: It must not be drawn here, and no process does.
        """
        if not (self._is_apart and wanted == "joint" and space):
            return self._try_to_ask(wanted, study, trial, space, must_be_apart=False)
        while self._num_ended < _MOST_ENDED:
            answered, found = self._try_to_ask(wanted, study, trial, space, must_be_apart=True)
            if answered:
                return True, found
        raise FleetError(
            f"{type(self.inner).__name__} draws in a process of its own alone, and none could"
            f" ({self._why_ended}); is there memory enough for torch?"
        )

    def _try_to_ask(
        self,
        wanted: str,
        study: optuna.Study,
        trial: FrozenTrial,
        space: Mapping[str, BaseDistribution],
        *,
        must_be_apart: bool,
    ) -> tuple[bool, Any]:
        if self._process is None and self._is_apart and self._num_ended < _MOST_ENDED:
            self._begin()
        if self._process is None:
            return False, None
        try:
            if not self._process.has_begun and not self._process.is_ready(waits=must_be_apart):
                return False, None
            if not self._process.has_begun and not self._hand_over(self._process, study):
                return False, None
            return True, self._process.ask(wanted, study, trial, space)
        except (OSError, EOFError) as error:
            self._replace(error)
            return False, None

    def _hand_over(self, process: SamplerLink, study: optuna.Study) -> bool:
        try:
            handed = pickle.dumps(self.inner)
        except Exception as error:  # noqa: BLE001 - of a sampler that has become such a one
            self._stay(error)
            return False
        process.hand_over(handed, study)
        log.info("sampler_draws_aside", study=self._study, pid=process.pid)
        return True

    def _replace(self, error: Exception) -> None:
        """Go on without the process; the next one is begun when that is slow."""
        if self.is_aside:
            # before all else: what cannot be made now is asked for again by the next draw
            self.inner = self._make()
        self.close()
        self._num_ended, self._why_ended = self._num_ended + 1, str(error)
        self._spent.clear()
        log.warning("sampler_process_ended", study=self._study, error=str(error))
