"""The orchestrator's end of the process that a sampler draws in (`sampler_process.py`).

Invariant: nothing is waited for without an end: a process that ended, or does not answer, is an
error.
"""

from __future__ import annotations

import base64
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import IO, Any, Final, cast

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from orchestrator.driving.sampler_messages import (
    decode_error,
    encode_space,
    encode_trial,
    from_line,
    to_line,
)
from workers.settings import environment_without_secrets

#: By how many times what the longest answer so far has taken one is waited for.
PATIENCE: Final = 20

#: What runs in the process.
_PROGRAM: Final = "orchestrator.driving.sampler_process"

#: What is read of an answer at once.
_CHUNK_BYTES: Final = 2**16


class SamplerLink:
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
        self._patience_seconds = max(self._patience_seconds, PATIENCE * took)
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
