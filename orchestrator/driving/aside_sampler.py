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

import base64
import os
import pickle
import select
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from statistics import median
from typing import IO, Any, Final, cast

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

from orchestrator.driving.sampler_messages import (
    decode_error,
    decode_space,
    encode_space,
    encode_trial,
    from_line,
    to_line,
)
from orchestrator.driving.seeing_sampler import SeeingSampler
from workers.logs import get_logger
from workers.protocol.errors import FleetError
from workers.settings import environment_without_secrets

log = get_logger(__name__)

#: What a trial may cost its sampler before that is slow, in the median of some.
SLOW_SECONDS: Final = 0.05

#: Of how many trials.
_TIMED: Final = 5

#: After so many processes that ended by themselves, all is drawn here, or nothing.
_MOST_ENDED: Final = 3

#: For how long an answer is waited for at least, and by how many times what one has taken so far.
PATIENCE_SECONDS: Final = 60.0
_PATIENCE: Final = 20

#: What runs in the process.
_PROGRAM: Final = "orchestrator.driving.sampler_process"

#: What is read of an answer at once.
_CHUNK_BYTES: Final = 2**16

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
        self._process: SamplerProcess | None = None
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
            self._process = SamplerProcess(max(self._patience_seconds, _PATIENCE * longest))
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

    def _hand_over(self, process: SamplerProcess, study: optuna.Study) -> bool:
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


class SamplerProcess:
    """A process that draws.

    Args:
        patience_seconds: For how long an answer is waited for, at least.

    Raises:
        OSError: It cannot be begun.
    """

    def __init__(self, patience_seconds: float) -> None:
        command = [sys.executable, "-P", "-m", _PROGRAM]
        # a session of its own: Ctrl-C is for the orchestrator, which ends it
        self._process = subprocess.Popen(
            [*command, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
            env={
                **environment_without_secrets(),
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            },
        )
        os.set_blocking(self._questions.fileno(), False)
        os.set_blocking(self._answers.fileno(), False)
        self._patience_seconds = patience_seconds
        self._unread = bytearray()
        self.has_begun = False
        """Whether it has the sampler."""
        #: the trials that it has, and whether they had ended when they were sent
        self._sent: dict[int, tuple[FrozenTrial, bool]] = {}

    @property
    def pid(self) -> int:
        """Its own."""
        return self._process.pid

    def is_ready(self, *, waits: bool = False) -> bool:
        """Whether it can be given the sampler.

        Args:
            waits: Whether to wait until it can.

        Raises:
            EOFError: It has ended.
            TimeoutError: It was waited for, and is not ready.
        """
        if not waits and not _is_due(self._answers, select.POLLIN, 0.0):
            return False
        self._read()
        return True

    def hand_over(self, sampler: bytes, study: optuna.Study) -> None:
        """Give it the sampler, pickled, which draws there from now on."""
        self._write(
            {
                "sampler": base64.b64encode(sampler).decode(),
                "study_id": study._study_id,
                "directions": [direction.name for direction in study.directions],
            }
        )
        self.has_begun = True

    def ask(
        self,
        wanted: str,
        study: optuna.Study,
        trial: FrozenTrial,
        space: Mapping[str, BaseDistribution],
    ) -> Any:
        """Have it draw for a trial, and write what it wants to have written.

        Raises:
            OSError, EOFError: It has ended, or does not answer.
            Exception: What the sampler raised.
        """
        seen = study._get_trials(deepcopy=False, use_cache=False)
        news = [each for each in seen if self._is_news(each)]
        self._sent |= {each.number: (each, each.state.is_finished()) for each in news}
        start = time.monotonic()
        self._write(
            {
                "for": wanted,
                "news": list(map(encode_trial, news)),
                "shown": None if len(seen) == len(self._sent) else [each.number for each in seen],
                "trial": encode_trial(trial),
                "space": encode_space(space),
            }
        )
        answer = self._read()
        took = time.monotonic() - start
        self._patience_seconds = max(self._patience_seconds, _PATIENCE * took)
        for trial_id, key, value in answer["written"]:
            study._storage.set_trial_system_attr(trial_id, key, value)
        if "error" in answer:
            raise decode_error(answer["error"])
        return answer["drawn"]

    def _is_news(self, trial: FrozenTrial) -> bool:
        sent, had_ended = self._sent.get(trial.number, (None, False))
        # one that had not ended may have been changed since, in its place
        return not had_ended or (sent is not trial and sent != trial)

    def end(self) -> None:
        """End it, whatever it is at."""
        self._process.kill()
        for stream in (self._questions, self._answers):
            with suppress(OSError):
                stream.close()
        self._process.wait()

    @property
    def _questions(self) -> IO[bytes]:
        return cast("IO[bytes]", self._process.stdin)

    @property
    def _answers(self) -> IO[bytes]:
        return cast("IO[bytes]", self._process.stdout)

    def _write(self, message: Mapping[str, Any]) -> None:
        left = memoryview(to_line(message))
        deadline = time.monotonic() + self._patience_seconds
        while left:
            self._await(self._questions, select.POLLOUT, deadline)
            # none where less is free than is written at once
            left = left[self._questions.write(left) or 0 :]

    def _read(self) -> dict[str, Any]:
        deadline = time.monotonic() + self._patience_seconds
        while b"\n" not in self._unread:
            self._await(self._answers, select.POLLIN, deadline)
            chunk = self._answers.read(_CHUNK_BYTES)
            if chunk == b"":
                raise EOFError(f"process {self.pid} ended{self._how_it_ended()}")
            self._unread += chunk or b""
        line, _, rest = bytes(self._unread).partition(b"\n")
        self._unread[:] = rest
        return from_line(line)

    def _how_it_ended(self) -> str:
        with suppress(subprocess.TimeoutExpired):  # its pipes are closed before it is gone
            code = self._process.wait(1.0)
            return f" with code {code}" if code >= 0 else f" by signal {-code}"
        return ""

    def _await(self, stream: IO[bytes], event: int, deadline: float) -> None:
        """Wait until a stream can be read or written, or has an end."""
        if not _is_due(stream, event, max(0.0, deadline - time.monotonic())):
            raise TimeoutError(
                f"process {self.pid} did not answer within {self._patience_seconds:.0f} seconds"
            )


def _is_due(stream: IO[bytes], event: int, timeout_seconds: float) -> bool:
    # not `select`, which takes no descriptor from 1024 on
    poll = select.poll()
    poll.register(stream, event)
    return bool(poll.poll(timeout_seconds * 1000))
