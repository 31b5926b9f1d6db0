"""A study as people handed it in, what they want of it, and how that is read from Redis."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final, Literal, NamedTuple

import redis

from workers.coordination import keys
from workers.protocol.errors import InvalidInputError
from workers.protocol.spec import StudySpec
from workers.protocol.states import Wish

#: What was wished of a study, for a sentence about it.
WISHED: Final = {
    Wish.RUN: "it runs",
    Wish.PAUSE: "it is paused",
    Wish.PAUSE_NOW: "it is paused",
    Wish.STOP: "it was stopped",
    Wish.CANCEL: "it was cancelled",
}

#: The wishes that each may follow upon. Of a study whose end was asked for, only going on can be
#: asked; a cancelled one cannot be stopped more gently.
FOLLOWS: Final = {
    Wish.RUN: frozenset(Wish),
    Wish.PAUSE: frozenset({Wish.RUN, Wish.PAUSE, Wish.PAUSE_NOW}),
    Wish.PAUSE_NOW: frozenset({Wish.RUN, Wish.PAUSE, Wish.PAUSE_NOW}),
    Wish.STOP: frozenset({Wish.RUN, Wish.PAUSE, Wish.PAUSE_NOW, Wish.STOP}),
    Wish.CANCEL: frozenset(Wish),
}

#: The fields that `Origin` holds, in its order.
ORIGIN: Final = ("generation", "place", "storage")

#: The fields of a study that say how it was handed in and begun.
HANDED: Final = ("spec", "seal", "wish", "by_run", "ordered", "taken", "revision", *ORIGIN)


class Origin(NamedTuple):
    """Where and when a study's results were begun, as its orchestrator noted it."""

    generation: str | None = None
    """Tells the study from an earlier one of its name; None before it was opened."""
    place: str | None = None
    """The storage of its results, for people: no URL that somebody could open."""
    earlier_url: str | None = None
    """The storage's URL, as a submitter of an earlier release wrote it."""


class Submitted(NamedTuple):
    """A study as people handed it in, and as it was begun."""

    spec: StudySpec
    wish: Wish = Wish.RUN
    """What they want of it now."""
    is_by_run: bool = False
    """Whether `trialfleet run` began it, and nobody handed it to an orchestrator that serves."""
    origin: Origin = Origin()
    has_orders: bool = False
    """Whether trials were ordered that the orchestrator has not taken in."""
    revision: str = ""
    """Another one each time that something is asked of the study."""


class Answer(NamedTuple):
    """What became of a wish."""

    status: Literal["OK", "REFUSED", "OVER"]
    """Refused by what was wanted before; or too late: the study is over."""
    before: Wish
    """What was wanted before."""


class Handed(NamedTuple):
    """The fields of a study in Redis, not read yet."""

    fields: tuple[str | None, ...] = (None,) * len(HANDED)
    over: str | None = None
    """Of what specification the orchestrator last said that it is over, in JSON."""
    error: redis.ResponseError | None = None
    """Why they cannot be had."""

    @property
    def digest(self) -> str:
        """What identifies its specification, as earlier releases wrote it."""
        return hashlib.sha256((self.fields[0] or "").encode()).hexdigest()

    def is_over(self, *digests: str) -> bool:
        """Whether an orchestrator said so of one of these specifications."""
        # what nobody can read says nothing: the study is looked at, and it is said again
        return self.over is not None and self.over in map(json.dumps, digests)


def read_handed(answer: Any) -> Handed:
    """The fields of a study, as a pipeline answered; other errors than the study's are raised."""
    if isinstance(answer, redis.ResponseError):
        return Handed(error=answer)
    if isinstance(answer, Exception):
        raise answer
    *fields, over = answer
    return Handed(tuple(fields), over)


def speaking_of(name: str) -> dict[str, str]:
    """The keys of the scripts by which people, and its orchestrator, speak of a study."""
    return {"study": keys.study(name), "over": keys.OVER, "events": keys.events(name)}


def ending(name: str, wish: Wish) -> InvalidInputError:
    """Of a study whose end was asked for, that nothing else can be."""
    return InvalidInputError(
        f"study {name!r}: {WISHED[wish]}; `trialfleet resume {name}` lets it go on first"
    )
