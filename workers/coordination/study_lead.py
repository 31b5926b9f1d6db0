"""The lead of a study: of several orchestrators, one drives it, and another takes over in time."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import redis

from workers.coordination import keys
from workers.coordination.identity import ProcessIdentity
from workers.coordination.scripts import Call, Value, Verb, call, call_all
from workers.protocol.errors import InvalidInputError, StudyTakenOverError

#: What scripts answer to an orchestrator that leads the study no more.
LEFT: Final = "LEFT"


def holders(client: redis.Redis, studies: Collection[str]) -> dict[str, str | None]:
    """Who drives each of some studies, in one round trip; None where nobody does."""
    if not studies:
        return {}
    pipeline = client.pipeline(transaction=False)
    for name in studies:
        pipeline.get(keys.lead(name))
    found = pipeline.execute(raise_on_error=False)  # another kind of key is nobody's name
    return {
        name: who if isinstance(who, str) else None
        for name, who in zip(studies, found, strict=True)
    }


def renew_all(rights: Sequence[StudyLead]) -> list[bool]:
    """Keep rights of one owner for a further lease, in one round trip.

    Returns:
        Of each, whether it was held until now; one that was not stays as it is.
    """
    if not rights:
        return []
    calls = [Call({"lead": keys.lead(each.study)}, each.renewal) for each in rights]
    try:
        answers = call_all(rights[0].client, "lead", calls)
    except redis.ResponseError:  # what is wrong with one is found where it is asked for alone
        return [False] * len(rights)
    return [answer[0] == "OK" for answer in answers]


def left(study: str) -> StudyTakenOverError:
    """What that is, as an error."""
    return StudyTakenOverError(
        f"study {study!r}: the right to drive it ran out here, and another orchestrator may have"
        " it by now; nothing was written"
    )


@dataclass(frozen=True)
class StudyLead:
    """The right of one orchestrator to drive a study."""

    client: redis.Redis
    study: str
    owner: ProcessIdentity
    lease_seconds: float

    def hold(self, *, only_stay: bool = False) -> bool:
        """Become or stay the study's orchestrator; False if another one is.

        Args:
            only_stay: Do not become it again where the right ran out: another one may have had it
                meanwhile, and deleted the study.

        Raises:
            InvalidInputError: Who it is cannot be read.
        """
        if self._try(only_stay=only_stay):
            return True
        if only_stay:
            return False
        holder = self.holder()
        # one that died on this host is not waited for
        if holder is not None and holder.is_dead():
            replace(self, owner=holder).release()
            return self._try()
        return False

    def check(self) -> None:
        """Make sure that it is held, and for a whole lease from now, before what cannot be undone.

        Raises:
            StudyTakenOverError: It ran out: another one may have it, or have had it, since.
        """
        if not self.hold(only_stay=True):
            raise left(self.study)

    def holder(self) -> ProcessIdentity | None:
        """The orchestrator that drives the study now.

        Raises:
            InvalidInputError: What lies there names none.
        """
        key = keys.lead(self.study)
        owner = self.client.get(key)
        try:
            return None if owner is None else ProcessIdentity.parse(owner)
        except ValueError as error:
            raise InvalidInputError(
                f"study {self.study!r}: {key} in Redis holds {owner[:40]!r}, which names no"
                f" orchestrator; if none drives the study, delete that key: DEL {key}"
            ) from error

    def _try(self, *, only_stay: bool = False) -> bool:
        arguments = self.renewal if only_stay else {**self.renewal, "only_stay": ""}
        return call(self.client, "lead", {"lead": keys.lead(self.study)}, arguments)[0] == "OK"

    @property
    def renewal(self) -> dict[str, Value]:
        """What the script is told to keep it where it is held."""
        ttl_ms = int(self.lease_seconds * 1000)
        return {"owner": str(self.owner), "ttl_ms": ttl_ms, "only_stay": "1"}

    def release(self) -> None:
        """Let another one drive the study at once."""
        call(self.client, "unlead", {"lead": keys.lead(self.study)}, {"owner": str(self.owner)})


def call_led(
    client: redis.Redis,
    leader: str,
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
    status = call(client, verb, led, {**arguments, "leader": leader}, rest)[0]
    if status == LEFT:
        raise left(name)
    return status
