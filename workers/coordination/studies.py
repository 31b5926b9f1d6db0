"""Studies in Redis: what was submitted, and what the orchestrator last published of each.

Invariant: a study's specification changes only in what may be extended; its name is for ever.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import redis

from workers.coordination import keys
from workers.coordination.clock import server_time_ms
from workers.coordination.event_stream import EventStream
from workers.coordination.leases import TrialLeases
from workers.coordination.scripts import Value, Verb, call
from workers.coordination.study_lead import LEFT, left
from workers.protocol.errors import (
    InvalidInputError,
    StudyNotKnownError,
    UnsealedError,
    nearest,
)
from workers.protocol.events import EventKind, brief
from workers.protocol.orders import Order
from workers.protocol.plain import describe_error
from workers.protocol.seals import UNSEALED, Seal, TrialSeals
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

#: The fields that `Origin` holds, in its order.
_ORIGIN: Final = ("generation", "place", "storage")

#: How many keys one call looks at for those of a study.
_SCANNED: Final = 1000
#: How many orders of one study may wait for its orchestrator.
MAX_ORDERS: Final = 10_000


def ensure_epoch(client: redis.Redis) -> str:
    """The epoch of this Redis; the first orchestrator or submitter draws it."""
    client.set(keys.EPOCH, uuid.uuid4().hex, nx=True)
    return str(client.get(keys.EPOCH))


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


#: The wishes that each may follow upon. Of a study whose end was asked for, only going on can be
#: asked; a cancelled one cannot be stopped more gently.
_FOLLOWS: Final = {
    Wish.RUN: frozenset(Wish),
    Wish.PAUSE: frozenset({Wish.RUN, Wish.PAUSE, Wish.PAUSE_NOW}),
    Wish.PAUSE_NOW: frozenset({Wish.RUN, Wish.PAUSE, Wish.PAUSE_NOW}),
    Wish.STOP: frozenset({Wish.RUN, Wish.PAUSE, Wish.PAUSE_NOW, Wish.STOP}),
    Wish.CANCEL: frozenset(Wish),
}


#: The fields of a study that say how it was handed in and begun.
_HANDED: Final = ("spec", "seal", "wish", "by_run", "ordered", "taken", "revision", *_ORIGIN)


class Handed(NamedTuple):
    """The fields of a study in Redis, not read yet."""

    fields: tuple[str | None, ...] = (None,) * len(_HANDED)
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


@dataclass(frozen=True)
class Studies:
    """The studies that this Redis knows.

    Args:
        client: The Redis.
        seal: Signs specifications, and refuses those that are not signed; by default whoever only
            looks takes all.
    """

    client: redis.Redis
    #: Who drives the studies of which it writes, of an orchestrator: one that does not writes none.
    leader: str = ""
    seal: Seal = UNSEALED

    def submit(self, spec: StudySpec, *, by_run: bool = False) -> None:
        """Write or extend a study; the caller has checked that it is the same one.

        Args:
            spec: The study.
            by_run: For `trialfleet run` alone; one that was handed in before stays everybody's.

        Raises:
            UnsealedError: It was signed before, and there is no secret here.
        """
        self.refuse_to_unseal(spec.name)
        is_everybodys = self.exists(spec.name) and not self.is_by_run(spec.name)
        submitted = Submitted(spec, is_by_run=by_run and not is_everybodys)
        self._write(submitted, EventKind.SUBMITTED)

    def restore(self, submitted: Submitted) -> None:
        """Write a study as it was in a Redis that lost its data."""
        self._write(submitted)

    def _write(self, submitted: Submitted, *told: EventKind) -> None:
        """Write a study, and tell of it, in one transaction."""
        spec, wish, is_by_run, origin, *_ = submitted
        noted = zip(_ORIGIN, origin, strict=True)
        fields = {name: value for name, value in noted if value is not None}
        fields |= {"by_run": "1"} if is_by_run else {}
        text = spec.model_dump_json()
        fields |= {"spec": text, "wish": wish.value}
        unset = [] if is_by_run else ["by_run"]
        if self.seal:
            fields["seal"] = self._sealed(spec.name, text)
        else:
            unset.append("seal")
        pipeline = self.client.pipeline()
        pipeline.hset(keys.study(spec.name), mapping=fields)
        pipeline.hsetnx(keys.study(spec.name), "state", "running")
        pipeline.hincrby(keys.study(spec.name), "revision", 1)
        if not wish.is_end:
            unset.append("fact:over")
            pipeline.srem(keys.OVER, spec.name)
        if unset:
            pipeline.hdel(keys.study(spec.name), *unset)
        pipeline.sadd(keys.STUDIES, spec.name)
        num_writes = len(pipeline)
        for kind in told:
            EventStream(pipeline, spec.name).tell(kind)
        answers = pipeline.execute(raise_on_error=False)
        for answer in answers[:num_writes]:  # a stream that takes none holds nothing up
            if isinstance(answer, Exception):
                raise answer

    def submitted(self, name: str) -> Submitted:
        """A study as it was handed in.

        Raises:
            InvalidInputError: There is no such study, or what lies there is no specification.
            UnsealedError: It is not signed.
        """
        return Submitted(
            self.spec(name),
            self.wish(name),
            self.is_by_run(name),
            self.origin(name),
            self.num_ordered(name) != self.client.hget(keys.study(name), "taken"),
            self.client.hget(keys.study(name), "revision") or "",
        )

    def origin(self, name: str) -> Origin:
        """Where and when a study's results were begun."""
        return Origin(*(self.client.hget(keys.study(name), field) for field in _ORIGIN))

    def begin(self, name: str, generation: str, place: str, former: str = "") -> None:
        """Note where and when a study's results were begun; orchestrator only.

        Args:
            name: The study.
            generation: Tells it from an earlier one of its name.
            place: The storage of its results, for people.
            former: The name of the study as it was in a narrower space, if it was.

        Raises:
            StudyTakenOverError: This orchestrator drives the study no more.
        """
        status = self._led(
            "begin",
            name,
            {"study": keys.study(name), "events": keys.events(name)},
            {"generation": generation, "place": place, "former": former},
        )
        if status == "UNKNOWN":  # it was deleted meanwhile
            raise left(name)

    def check_lead(self, name: str) -> None:
        """Make sure of the lead before something is made that no script of Redis guards.

        Raises:
            StudyTakenOverError: This orchestrator drives the study no more.
        """
        if self.client.get(keys.lead(name)) != self.leader:
            raise left(name)

    def drop_earlier_url(self, name: str) -> None:
        """Forget what an earlier release wrote, passwords included."""
        self.client.hdel(keys.study(name), "storage")

    def forget(self, name: str) -> None:
        """Drop all that Redis holds of a study's trials and results: those are gone, or others.

        Its specification stays, and whether it is to be stopped.
        """
        # records first: without its own, no trial is claimed, reaped or ended any more
        for found in self.client.scan_iter(match=keys.trial(name, "*"), count=_SCANNED):
            self.client.delete(found)
        self.client.delete(
            keys.leases(name), keys.queued(name), keys.paused(name), keys.inbox(name),
            keys.set_aside(name), keys.events(name),
        )  # fmt: skip
        self.client.hdel(keys.study(name), *_ORIGIN, "former")
        self.forget_facts(name)

    def forget_facts(self, name: str) -> None:
        """Drop what an orchestrator published of a study whose results were removed."""
        found = [each for each in self.client.hgetall(keys.study(name)) if each.startswith("fact:")]
        self.client.srem(keys.OVER, name)
        if found:
            self.client.hdel(keys.study(name), *found)

    def has_trials(self, name: str) -> bool:
        """Whether Redis holds anything of a study's trials, as far as it was ever driven."""
        known = keys.leases(name), keys.queued(name), keys.paused(name), keys.inbox(name)
        return bool(self.client.exists(*known)) or self.fact(name, "status") is not None

    def is_by_run(self, name: str) -> bool:
        """Whether `trialfleet run` alone is to go on with a study."""
        return bool(self.client.hexists(keys.study(name), "by_run"))

    def handed(self, names: Sequence[str]) -> dict[str, Handed]:
        """The fields of some studies, in one round trip."""
        pipeline = self.client.pipeline(transaction=False)
        for name in names:
            pipeline.hmget(keys.study(name), *_HANDED, "fact:over")
        found = zip(names, pipeline.execute(raise_on_error=False), strict=True)
        return {name: _handed(answer) for name, answer in found}

    def read(self, name: str, handed: Handed) -> Submitted:
        """What the fields of a study say.

        Raises:
            InvalidInputError: There is no such study, or what lies there is no specification.
            UnsealedError: It is not signed.
        """
        spec, seal, wish, by_run, ordered, taken, revision, *origin = handed.fields
        read = self._read_spec(name, spec, seal)
        return Submitted(
            read,
            Wish(wish or Wish.RUN),
            by_run is not None,
            Origin(*origin),
            has_orders=ordered != taken,
            revision=revision or "",
        )

    def ask_to_stop(self, name: str) -> None:
        """Have no further trial of a study started; handing it in again revokes it."""
        with suppress(StudyNotKnownError):  # somebody has deleted it
            self.want(name, Wish.STOP)

    def want(self, name: str, wish: Wish) -> Answer:
        """Note what is wanted of a study; workers learn of it with their next beat.

        Raises:
            InvalidInputError: There is no such study.
        """
        arguments = {"name": name, "wish": wish.value, "follows": " ".join(_FOLLOWS[wish])}
        answer = call(self.client, "wish", _speaking_of(name), arguments)
        if answer[0] == "UNKNOWN":
            raise self._unknown(name)
        return Answer(answer[0], Wish(answer[1]))  # type: ignore[arg-type]

    def wish(self, name: str) -> Wish:
        """What is wanted of a study now."""
        return Wish(self.client.hget(keys.study(name), "wish") or Wish.RUN)

    def names(self) -> list[str]:
        """All studies, in alphabetical order."""
        return sorted(self.client.smembers(keys.STUDIES))

    def unfinished(self) -> list[str]:
        """The studies that are not known to be over, in alphabetical order."""
        return sorted(self.client.sdiff(keys.STUDIES, keys.OVER))

    def look_through_ended(self, cursor: int, count: int) -> int:
        """See if some of those that are known to be over go on; where to begin the next time.

        Earlier releases have a study go on without that others know.
        """
        cursor, names = self.client.sscan(keys.OVER, cursor, count=count)
        pipeline = self.client.pipeline(transaction=False)
        for name in names:
            pipeline.hget(keys.study(name), "fact:over")
        for name, over in zip(names, pipeline.execute(raise_on_error=False), strict=True):
            if over is None or over == "null":
                self.client.srem(keys.OVER, name)
        return int(cursor)

    def existing(self, names: Collection[str]) -> set[str]:
        """Those of some studies that were submitted."""
        return self._members(keys.STUDIES, names)

    def ended(self, names: Collection[str]) -> set[str]:
        """Those of some studies that are known to be over."""
        return self._members(keys.OVER, names)

    def _members(self, key: str, names: Collection[str]) -> set[str]:
        found = self.client.smismember(key, list(names)) if names else []
        return {name for name, is_there in zip(names, found, strict=True) if is_there}

    def exists(self, name: str) -> bool:
        """Whether a study was submitted under this name."""
        return bool(self.client.sismember(keys.STUDIES, name))

    def spec(self, name: str) -> StudySpec:
        """A study's specification.

        Raises:
            InvalidInputError: There is no such study, or what lies there is no specification.
            UnsealedError: It is not signed.
        """
        return self.spec_and_sha1(name)[0]

    def spec_and_sha1(self, name: str) -> tuple[StudySpec, str]:
        """A study's specification, and the sum of its text by which a claim knows it again.

        Raises:
            InvalidInputError: There is no such study, or what lies there is no specification.
            UnsealedError: It is not signed.
        """
        text, seal = self.client.hmget(keys.study(name), "spec", "seal")
        spec = self._read_spec(name, text, seal)
        return spec, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    def is_sealed(self, name: str) -> bool:
        """Whether a study was signed, by whatever secret."""
        return bool(self.client.hexists(keys.study(name), "seal"))

    def renew_seal(self, name: str) -> None:
        """Have a specification be signed by the secret that signs now; orchestrator only.

        Raises:
            InvalidInputError: There is no such study.
            UnsealedError: It is not signed by one that is accepted.
        """
        text, seal = self.client.hmget(keys.study(name), "spec", "seal")
        if text is not None and not self.seal.is_latest(seal, "study", name, text):
            self.rewrite(name, lambda spec: spec)

    def _sealed(self, name: str, text: str) -> str:
        return self.seal.put("study", name, text)

    def refuse_to_unseal(self, name: str) -> None:
        """Refuse to hand in a study without a secret that was handed in with one.

        Raises:
            UnsealedError: So it is.
        """
        if not self.seal and self.is_sealed(name):
            raise UnsealedError(
                f"study {name!r} is signed, and there is no FLEET_SECRET here: set the one that it"
                " was handed in with"
            )

    def _read_spec(self, name: str, text: str | None, seal: str | None) -> StudySpec:
        if text is None:
            raise self._unknown(name)
        what = f"the specification of study {name!r}"
        way = "hand it in again (`trialfleet submit`) with this FLEET_SECRET"
        self.seal.check(seal, "study", name, text, what=what, way=way)
        return self._read(name, text)

    def _read(self, name: str, text: str) -> StudySpec:
        try:
            return StudySpec.read(text)
        except ValueError as error:
            raise InvalidInputError(
                f"study {name!r}: its specification in Redis cannot be read"
                f" ({describe_error(error, 200)}); submit it again, with this release"
            ) from error

    def change_spec(self, name: str, change: Callable[[StudySpec], StudySpec]) -> StudySpec:
        """Change a study's specification, whoever else changes it at the same time.

        Args:
            name: The study.
            change: Gives the new specification for the one that there is; may be called again.

        Raises:
            InvalidInputError: There is no such study, or its end was asked for.
            UnsealedError: It is not signed by a secret that there is here.
        """
        self.refuse_to_unseal(name)
        return self._change_spec(name, change, by_people=True)

    def rewrite(self, name: str, change: Callable[[StudySpec], StudySpec]) -> StudySpec:
        """Bring a specification to what the storage has, whatever is wanted; orchestrator only.

        Args:
            name: The study.
            change: As in `change_spec`.

        Raises:
            InvalidInputError: There is no such study.
        """
        return self._change_spec(name, change, by_people=False)

    def _change_spec(
        self, name: str, change: Callable[[StudySpec], StudySpec], *, by_people: bool
    ) -> StudySpec:
        while True:
            read, seal = self.client.hmget(keys.study(name), "spec", "seal")
            spec = change(self._read_spec(name, read, seal))
            written = spec.model_dump_json()
            arguments: dict[str, Value] = {
                "name": name,
                "read": read,
                "written": written,
                "seal": self._sealed(name, written),
                "is_asked": int(by_people),
            }
            status, *rest = call(self.client, "respec", _speaking_of(name), arguments)
            if status == "OK":
                return spec
            if status == "UNKNOWN":
                raise self._unknown(name)
            if status == "ENDING":
                raise _ending(name, Wish(rest[0]))

    def order(self, name: str, orders: Sequence[Order]) -> int:
        """Leave orders for the orchestrator; how many of them were not waiting already.

        Raises:
            InvalidInputError: There is no such study, its end was asked for, or too many wait.
        """
        now = server_time_ms(self.client)
        placed = [
            order.model_copy(update={"asked_ms": now, "place": place})
            for place, order in enumerate(orders)
        ]
        pairs = [text for order in placed for text in (order.id, order.model_dump_json())]
        names = {**_speaking_of(name), "orders": keys.orders(name)}
        arguments: dict[str, Value] = {"name": name, "most": MAX_ORDERS}
        status, *rest = call(self.client, "order", names, arguments, pairs)
        if status == "UNKNOWN":
            raise self._unknown(name)
        if status == "ENDING":
            raise _ending(name, Wish(rest[0]))
        if status == "FULL":
            raise InvalidInputError(
                f"study {name!r}: {len(orders)} orders are too many at once: with those that wait,"
                f" {MAX_ORDERS} are the most; start its orchestrator, or give fewer"
            )
        return int(rest[0])

    def orders(self, name: str) -> dict[str, str]:
        """The orders that wait for the orchestrator, by their ids."""
        found: dict[str, str] = self.client.hgetall(keys.orders(name))
        return found

    def num_ordered(self, name: str) -> str | None:
        """How often orders were left; None if never."""
        count: str | None = self.client.hget(keys.study(name), "ordered")
        return count

    def drop_orders(self, name: str, ids: Iterable[str], num_ordered: str | None) -> None:
        """Forget orders that the storage has; orchestrator only.

        Args:
            name: The study.
            ids: The orders'.
            num_ordered: How often some had been left before they were read.
        """
        self._led(
            "drop_orders",
            name,
            {"study": keys.study(name), "orders": keys.orders(name)},
            {"ordered": num_ordered or ""},
            list(ids),
        )

    def _unknown(self, name: str) -> StudyNotKnownError:
        names = self.names()
        known = nearest(name, names) or f"; it knows: {', '.join(names) or 'none yet'}"
        return StudyNotKnownError(f"study {name!r}: not known to this fleet{known}")

    def publish(self, name: str, facts: Mapping[str, Any]) -> None:
        """Write what the orchestrator wants seen, each fact as JSON; orchestrator only.

        Of a study that somebody has deleted, nothing is written.
        """
        self._publish(name, facts)

    def publish_stall(self, name: str, reason: str, *, is_news: bool) -> None:
        """Show why a study does not get on; orchestrator only. Nor is anything written here then.

        Args:
            name: The study.
            reason: Why, without passwords.
            is_news: Whether it is an event, too.
        """
        told = brief(reason) if is_news else ""
        self._publish(name, {"stalled": reason}, stalled=told)

    def publish_end(
        self, name: str, facts: Mapping[str, Any], over: str | None, revision: str
    ) -> bool:
        """The same, with whether the study is over; False if it goes on by what was asked since.

        Args:
            name: The study.
            facts: What is to be seen of it.
            over: What identifies the specification that is done; None if it is not.
            revision: That of the study as it was found to be over.
        """
        return self._publish(name, facts, json.dumps(over), revision) != "CHANGED"

    def _publish(
        self,
        name: str,
        facts: Mapping[str, Any],
        over: str = "",
        revision: str = "",
        stalled: str = "",
    ) -> str:
        pairs = [text for key in facts for text in (f"fact:{key}", json.dumps(facts[key]))]
        arguments: dict[str, Value] = {
            "name": name, "over": over, "revision": revision, "stalled": stalled,
        }  # fmt: skip
        return self._led("publish", name, _speaking_of(name), arguments, pairs)

    def _led(
        self,
        verb: Verb,
        name: str,
        names: Mapping[str, str],
        arguments: Mapping[str, Value],
        rest: Sequence[Value] = (),
    ) -> str:
        """Write of a study as its orchestrator; the status word.

        Raises:
            StudyTakenOverError: This orchestrator drives the study no more.
        """
        led = {**names, "lead": keys.lead(name)}
        status = call(self.client, verb, led, {**arguments, "leader": self.leader}, rest)[0]
        if status == LEFT:
            raise left(name)
        return status

    def facts(self, name: str) -> dict[str, Any]:
        """What the orchestrator last published."""
        fields = self.client.hgetall(keys.study(name))
        return {
            key.removeprefix("fact:"): json.loads(value)
            for key, value in fields.items()
            if key.startswith("fact:")
        }

    def fact(self, name: str, key: str) -> Any:
        """One published fact, or None."""
        value = self.client.hget(keys.study(name), f"fact:{key}")
        return None if value is None else json.loads(value)

    def leases(
        self, name: str, epoch: str | None = None, generation: str = "", work: str = ""
    ) -> TrialLeases:
        """The study's trials.

        Args:
            name: The study.
            epoch: Of this Redis; by default what it has now.
            generation: The study's, for those who enqueue trials or check them.
            work: What identifies what its trials run, likewise.
        """
        known = epoch or ensure_epoch(self.client)
        seals = TrialSeals(self.seal, name, generation, work)
        return TrialLeases(self.client, name, known, generation, self.leader, seals=seals)


def _speaking_of(name: str) -> dict[str, str]:
    """The keys of the scripts by which people, and its orchestrator, speak of a study."""
    return {"study": keys.study(name), "over": keys.OVER, "events": keys.events(name)}


def _handed(answer: Any) -> Handed:
    if isinstance(answer, redis.ResponseError):
        return Handed(error=answer)
    if isinstance(answer, Exception):
        raise answer
    *fields, over = answer
    return Handed(tuple(fields), over)


def _ending(name: str, wish: Wish) -> InvalidInputError:
    return InvalidInputError(
        f"study {name!r}: {WISHED[wish]}; `trialfleet resume {name}` lets it go on first"
    )
