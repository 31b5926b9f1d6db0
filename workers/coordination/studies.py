"""Studies in Redis: handing them in, what is wanted of them, and beginning and forgetting them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import redis

from workers.coordination import keys
from workers.coordination.leases import TrialLeases
from workers.coordination.scripts import Value, call
from workers.coordination.study_facts import StudyFacts
from workers.coordination.study_lead import call_led, left
from workers.coordination.study_orders import StudyOrders
from workers.coordination.study_specs import StudySpecs
from workers.coordination.submitted import (
    FOLLOWS,
    HANDED,
    ORIGIN,
    Answer,
    Handed,
    Origin,
    Submitted,
    read_handed,
    speaking_of,
)
from workers.protocol.errors import StudyNotKnownError
from workers.protocol.seals import TrialSeals
from workers.protocol.spec import StudySpec
from workers.protocol.states import Wish

#: How many keys one call looks at for those of a study.
_SCANNED: Final = 1000

#: How many studies one call reads: the server does nothing else meanwhile.
_AT_A_TIME: Final = 1000


def ensure_epoch(client: redis.Redis) -> str:
    """The epoch of this Redis; the first orchestrator or submitter draws it."""
    client.set(keys.EPOCH, uuid.uuid4().hex, nx=True)
    return str(client.get(keys.EPOCH))


@dataclass(frozen=True)
class Studies(StudySpecs):
    """The studies that this Redis knows."""

    @property
    def facts(self) -> StudyFacts:
        """What is published of them."""
        return StudyFacts(self.client, self.leader)

    @property
    def orders(self) -> StudyOrders:
        """The trials that people order of them."""
        return StudyOrders(self.client, self.leader)

    def submit(self, spec: StudySpec, *, by_run: bool = False) -> None:
        """Write a study in the place of whatever there is of its name, and have it run.

        Args:
            spec: The study.
            by_run: For `trialfleet run` alone; one that was handed in before stays everybody's.

        Raises:
            UnsealedError: It was signed before, and there is no secret here.
        """
        self.hand_in(spec.name, lambda _: spec, by_run=by_run, keeps_pause=False)

    def hand_in(
        self,
        name: str,
        prepare: Callable[[str | None], StudySpec],
        *,
        by_run: bool,
        keeps_pause: bool,
    ) -> Wish:
        """Write or extend a study, whoever else changes it at the same time.

        Args:
            name: The study.
            prepare: Gives its specification for the text of the one that there is, if there is
                one, and checks that it is the same study; may be called again.
            by_run: For `trialfleet run` alone; one that was handed in before stays everybody's.
            keeps_pause: Whether a study that is paused stays so.

        Returns:
            What is wanted of it now.

        Raises:
            UnsealedError: It was signed before, and there is no secret here.
        """
        self.refuse_to_unseal(name)
        place = {**speaking_of(name), "studies": keys.STUDIES}
        while True:
            read = self.client.hget(keys.study(name), "spec")
            written = prepare(read).model_dump_json()
            arguments: dict[str, Value] = {
                "name": name,
                "read": read or "",
                "written": written,
                "seal": self._sealed(name, written),
                "by_run": int(by_run),
                "keeps_pause": int(keeps_pause),
            }
            status, *rest = call(self.client, "hand_in", place, arguments)
            if status == "OK":
                return Wish(rest[0])

    def restore(self, submitted: Submitted) -> None:
        """Write a study as it was in a Redis that lost its data, in one transaction."""
        spec, wish, is_by_run, origin, *_ = submitted
        noted = zip(ORIGIN, origin, strict=True)
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
        pipeline.execute()

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
            self.orders.are_left(name),
            self.client.hget(keys.study(name), "revision") or "",
        )

    def origin(self, name: str) -> Origin:
        """Where and when a study's results were begun."""
        return Origin(*(self.client.hget(keys.study(name), field) for field in ORIGIN))

    def generations(self, names: Sequence[str]) -> dict[str, str]:
        """What tells each study from an earlier one of its name; empty where it has not begun."""
        pipeline = self.client.pipeline(transaction=False)
        for name in names:
            pipeline.hget(keys.study(name), "generation")
        found = pipeline.execute() if names else []
        return {name: generation or "" for name, generation in zip(names, found, strict=True)}

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
        status = call_led(
            self.client,
            self.leader,
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
        for pattern in (keys.trial(name, "*"), keys.output(name, "*")):
            for found in self.client.scan_iter(match=pattern, count=_SCANNED):
                self.client.delete(found)
        self.client.delete(
            keys.leases(name), keys.queued(name), keys.paused(name), keys.inbox(name),
            keys.set_aside(name), keys.events(name),
        )  # fmt: skip
        self.client.hdel(keys.study(name), *ORIGIN, "former")
        self.facts.forget(name)

    def has_trials(self, name: str) -> bool:
        """Whether Redis holds anything of a study's trials, as far as it was ever driven."""
        known = keys.leases(name), keys.queued(name), keys.paused(name), keys.inbox(name)
        return bool(self.client.exists(*known)) or self.facts.get(name, "status") is not None

    def is_by_run(self, name: str) -> bool:
        """Whether `trialfleet run` alone is to go on with a study."""
        return bool(self.client.hexists(keys.study(name), "by_run"))

    def handed(self, names: Sequence[str]) -> dict[str, Handed]:
        """The fields of some studies, in few round trips."""
        found: dict[str, Handed] = {}
        for start in range(0, len(names), _AT_A_TIME):
            some = names[start : start + _AT_A_TIME]
            first, *others = [keys.study(name) for name in some]
            arguments: dict[str, Value] = {"fields": " ".join((*HANDED, "fact:over"))}
            _, *answers = call(self.client, "handed", {"study": first}, arguments, others)
            found |= dict(zip(some, map(read_handed, answers), strict=True))
        return found

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

    def stop(self, name: str) -> None:
        """Have no further trial of a study started; orchestrator only.

        Raises:
            StudyTakenOverError: This orchestrator drives the study no more: people may have resumed
                it meanwhile, and that holds.
        """
        names = {**speaking_of(name), "lead": keys.lead(name)}
        call_led(self.client, self.leader, "stop", name, names, {"name": name})

    def want(self, name: str, wish: Wish) -> Answer:
        """Note what is wanted of a study; workers learn of it with their next beat.

        Raises:
            InvalidInputError: There is no such study.
        """
        arguments = {"name": name, "wish": wish.value, "follows": " ".join(FOLLOWS[wish])}
        answer = call(self.client, "wish", speaking_of(name), arguments)
        if answer[0] == "UNKNOWN":
            raise self.unknown(name)
        return Answer(answer[0], Wish(answer[1]))  # type: ignore[arg-type]

    def wish(self, name: str) -> Wish:
        """What is wanted of a study now."""
        return Wish(self.client.hget(keys.study(name), "wish") or Wish.RUN)

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
