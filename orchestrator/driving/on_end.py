"""What a study has done when it has ended: a command that is run, or a web hook that is told.

It runs in a thread of its own, bounded in time; until it is done, the study counts as not over.

Invariant: each end of a study is told at least once, and again only where this process was killed
before it had written down that it was; a failure is written down as well, and never tried again.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from orchestrator.status import StudyStatus
from workers.logs import get_logger
from workers.passwords import hide
from workers.protocol.plain import plain_text, strict_json
from workers.settings import environment_without_secrets

log = get_logger(__name__)

#: How long a command or a web hook may take.
MOST_SECONDS: Final = 60.0

#: How much longer it is waited for, before whatever it does is given up.
_GRACE_SECONDS: Final = 5.0

#: How much of what a command says is kept of a failure.
_MAX_REASON: Final = 300

_WEB: Final = ("http://", "https://")


@dataclass
class EndHook:
    """Tells of the end of one study, once it has come.

    Args:
        study: Its name.
        allowed: `FLEET_ON_END` of this orchestrator.
    """

    study: str
    allowed: Collection[str]
    most_seconds: float = MOST_SECONDS
    _thread: threading.Thread | None = None
    _telling: tuple[str, int] | None = None
    """The end that the thread tells of."""
    _problem: str | None = None
    _process: subprocess.Popen[bytes] | None = None
    _started_at: float = 0.0
    _is_closed: bool = False

    def tell(self, hook: str, status: StudyStatus) -> Told | None:
        """Begin to tell of an end, or see how that went; None while it is under way.

        An earlier end, after which the study went on while it was told of, is told of first.

        Args:
            hook: The command, or the URL.
            status: The study, as it ended.
        """
        if self._thread is not None and self._telling != _end_of(status):
            if self._thread.is_alive() and not self._is_late():
                return None
            self._done(self._problem)  # of the earlier one
        if self._thread is None:
            self._telling = _end_of(status)
            if not _is_allowed(hook, self.allowed):
                return self._done(
                    "this orchestrator may not run it: start it with FLEET_ON_END naming it, or *"
                )
            document = json.dumps(strict_json(status.model_dump(mode="json"))).encode()
            self._thread = threading.Thread(
                target=self._run, args=(hook, document), name=f"on-end-{self.study}", daemon=True
            )
            self._started_at = time.monotonic()
            self._thread.start()
        if self._thread.is_alive():
            # a server that answers a byte at a time is slower than each of its answers
            return self._done(self._too_slow()) if self._is_late() else None
        return self._done(self._problem)

    def close(self) -> None:
        """End what is under way: it is told anew by the next orchestrator."""
        self._is_closed = True
        _kill(self._process)
        if self._thread is not None:
            self._thread.join(1.0)

    def _is_late(self) -> bool:
        return time.monotonic() > self._started_at + self.most_seconds + _GRACE_SECONDS

    def _done(self, problem: str | None) -> Told:
        self._thread = None
        if problem is None:
            log.info("on_end_told", study=self.study)
        else:
            log.error("on_end_failed", study=self.study, reason=problem)
        return Told(problem)

    def _run(self, hook: str, document: bytes) -> None:
        try:
            if hook.startswith(_WEB):
                _post(hook, document, self.most_seconds)
            else:
                self._run_command(hook, document)
            self._problem = None
        except Exception as error:  # noqa: BLE001 - whatever it is, the study has ended
            self._problem = hide(plain_text(error, _MAX_REASON))

    def _run_command(self, command: str, document: bytes) -> None:
        with tempfile.TemporaryFile() as output:  # no pipe: what it leaves running may hold it
            self._process = process = subprocess.Popen(  # noqa: S602 - the orchestrator allows it
                command,
                shell=True,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**environment_without_secrets(), "FLEET_STUDY": self.study},
                start_new_session=True,
            )
            if self._is_closed:
                _kill(process)
            try:
                process.communicate(document, timeout=self.most_seconds)
            except subprocess.TimeoutExpired:
                _kill(process)
                process.wait()
                raise TimeoutError(self._too_slow()) from None
            if process.returncode != 0:
                output.seek(max(0, output.tell() - _MAX_REASON))
                tail = output.read().decode(errors="replace").strip() or "no output"
                raise RuntimeError(f"it ended with code {process.returncode}: {tail}")

    def _too_slow(self) -> str:
        return f"it took over {self.most_seconds:.0f} s, and was given up"


def _end_of(status: StudyStatus) -> tuple[str, int]:
    """What tells one end of a study from another."""
    return status.state.value, sum(status.trials.values())


@dataclass(frozen=True)
class Told:
    """That an end was told of, or why not."""

    problem: str | None


def _is_allowed(hook: str, allowed: Collection[str]) -> bool:
    return any(
        entry in {"*", hook} or (entry.startswith(_WEB) and hook.startswith(entry))
        for entry in allowed
    )


def _post(url: str, document: bytes, most_seconds: float) -> None:
    headers = {"Content-Type": "application/json", "User-Agent": "trialfleet"}
    request = urllib.request.Request(url, document, headers, method="POST")  # noqa: S310 - http(s)
    # what comes after the host may be a secret
    host = urlsplit(url).hostname
    try:
        with urllib.request.urlopen(request, timeout=most_seconds):  # noqa: S310 - likewise
            pass
    except urllib.error.HTTPError as error:
        error.close()
        raise RuntimeError(f"{host} answered {error.code} {error.reason}") from None
    except (OSError, ValueError) as error:
        raise RuntimeError(f"{host}: {error}") from None


def _kill(process: subprocess.Popen[Any] | None) -> None:
    """End a command with all that it started."""
    if process is not None and process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
