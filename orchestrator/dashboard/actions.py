"""What the page may ask of a study: what the command line asks, by the same calls.

Invariant: an action that is refused has changed nothing, and one that is sent twice is done once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.handle import StudyHandle
from orchestrator.submission.overrides import space_fields
from workers.protocol.errors import InvalidInputError, nearest
from workers.protocol.plain import plain_text


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
    handle.pause(now=asked.now)
    return "paused: trials save a checkpoint and go back to the queue"


def _resume(handle: StudyHandle, _asked: _Nothing) -> str:
    handle.resume()
    return "goes on"


def _stop(handle: StudyHandle, _asked: _Nothing) -> str:
    handle.stop()
    return "no further trial is begun; those that run go to their end"


def _cancel(handle: StudyHandle, _asked: _Nothing) -> str:
    handle.cancel()
    return "cancelled: trials that run end now, and what they made is kept"


def _enqueue(handle: StudyHandle, asked: _Enqueue) -> str:
    count = handle.enqueue(asked.params)
    return "enqueued one trial" if count else "these parameters were enqueued before"


def _extend(handle: StudyHandle, asked: _Extend) -> str:
    space = space_fields(handle.spec(), None, asked.settings) if asked.settings else None
    spec = handle.extend(trials=asked.trials, timeout=asked.timeout, space=space)
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
