"""What the page may ask of a study: what the command line asks, by the same calls.

Invariant: an action that is refused has changed nothing, and one that is sent twice is done once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.handle import StudyHandle
from orchestrator.status import StudyStatus
from orchestrator.submission.overrides import extension_fields
from workers.coordination.submitted import FOLLOWS
from workers.protocol.errors import InvalidInputError, nearest
from workers.protocol.plain import plain_text
from workers.protocol.states import Wish


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Nothing(_Asked):
    pass


class _Pause(_Asked):
    now: bool = False


class _Enqueue(_Asked):
    params: dict[str, Any] = Field(min_length=1, max_length=1000)


class _Extend(_Asked):
    trials: int | None = Field(default=None, ge=1, lt=2**53)
    timeout: str | None = Field(default=None, max_length=100)
    settings: list[str] = Field(default=[], max_length=100)


class _Retry(_Asked):
    numbers: list[int] = Field(default=[], max_length=10_000)


def _pause(handle: StudyHandle, asked: _Pause) -> str:
    told = "paused: trials save a checkpoint and go back to the queue"
    return _of_one_that_goes_on(handle, lambda: handle.pause(now=asked.now), told)


def _resume(handle: StudyHandle, _asked: _Nothing) -> str:
    handle.resume()
    return "goes on"


def _stop(handle: StudyHandle, _asked: _Nothing) -> str:
    told = "no further trial is begun; those that run go to their end"
    return _of_one_that_goes_on(handle, handle.stop, told)


def _cancel(handle: StudyHandle, _asked: _Nothing) -> str:
    told = "cancelled: trials that run end now, and what they made is kept"
    return _of_one_that_goes_on(handle, handle.cancel, told)


def _of_one_that_goes_on(handle: StudyHandle, ask: Callable[[], StudyStatus], told: str) -> str:
    """Ask it of a study; what is told of that, if it was not over before."""
    before = handle.status()
    ask()
    return f"it is over ({before.state}), and stays as it is" if before.is_over else told


def _enqueue(handle: StudyHandle, asked: _Enqueue) -> str:
    count = handle.enqueue(asked.params)
    return "enqueued one trial" if count else "these parameters were enqueued before"


def _extend(handle: StudyHandle, asked: _Extend) -> str:
    changes, space = extension_fields(handle.spec(), None, asked.settings)
    asked_for = {"trials": asked.trials, "timeout": asked.timeout} | changes
    spec = handle.extend(space=space, **asked_for)
    return f"extended to {spec.trials} trials"


def _retry(handle: StudyHandle, asked: _Retry) -> str:
    count = handle.retry(*asked.numbers)
    return "asked for" if count is None else f"{count} to be tried again"


#: Each verb, what is read of a request for it, and what it does.
_VERBS: Final[Mapping[str, tuple[type[_Asked], Callable[..., str]]]] = {
    "pause": (_Pause, _pause),
    "resume": (_Nothing, _resume),
    "stop": (_Nothing, _stop),
    "cancel": (_Nothing, _cancel),
    "enqueue": (_Enqueue, _enqueue),
    "extend": (_Extend, _extend),
    "retry": (_Retry, _retry),
}


#: What is wished by a verb; of a study that is over, going on alone.
_WISHES: Final[Mapping[str, Wish]] = {
    "resume": Wish.RUN,
    "pause": Wish.PAUSE,
    "stop": Wish.STOP,
    "cancel": Wish.CANCEL,
}


def offers(status: StudyStatus, num_failed: int, *, is_at_rest: bool = False) -> list[str]:
    """The verbs that a study takes as it is, and that would change something.

    Args:
        status: The study's.
        num_failed: Its trials that could be tried again.
        is_at_rest: Whether no fleet has it: what is ordered waits for the next one.
    """
    found = [] if is_at_rest else [verb for verb in _WISHES if _is_open(status, _WISHES[verb])]
    if is_at_rest or not status.wish.is_end:
        found += ["enqueue", "extend"]
        found += ["retry"] if num_failed else []
    return found


def _is_open(status: StudyStatus, wish: Wish) -> bool:
    is_wanted = wish is status.wish or (wish.is_pause and status.wish.is_pause)
    is_too_late = status.is_over and wish is not Wish.RUN
    return status.wish in FOLLOWS[wish] and not is_wanted and not is_too_late


def act(handle: StudyHandle, verb: str, body: bytes) -> str:
    """Do what a request asks for; what was done, in words.

    Args:
        handle: The study.
        verb: One of those above.
        body: JSON, with what the verb takes.

    Raises:
        InvalidInputError: There is no such verb, or it does not take what it was given.
    """
    if verb not in _VERBS:
        raise InvalidInputError(
            f"{verb!r}: no such action{nearest(verb, _VERBS)}; there are {', '.join(_VERBS)}"
        )
    kind, do = _VERBS[verb]
    try:
        asked = kind.model_validate_json(body or b"{}")
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "the body"
        told = plain_text(f"{verb}: {name}: {first['msg']}", 300)
        raise InvalidInputError(f"{told}; it takes {_fields(kind)}") from error
    return do(handle, asked)


def _fields(kind: type[_Asked]) -> str:
    return ", ".join(kind.model_fields) or "an empty object"
