"""The lead of a study: of several orchestrators, one drives it, and another takes over in time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import redis

from workers.coordination import keys
from workers.coordination.identity import ProcessIdentity
from workers.coordination.scripts import Value, call
from workers.protocol.errors import InvalidInputError


@dataclass(frozen=True)
class StudyLead:
    """The right of one orchestrator to drive a study."""

    client: redis.Redis
    study: str
    owner: ProcessIdentity
    lease_seconds: float

    def hold(self) -> bool:
        """Become or stay the study's orchestrator; False if another one is.

        Raises:
            InvalidInputError: Who it is cannot be read.
        """
        if self._try():
            return True
        holder = self.holder()
        # one that died on this host is not waited for
        if holder is not None and holder.is_dead():
            replace(self, owner=holder).release()
            return self._try()
        return False

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

    def _try(self) -> bool:
        ttl_ms = int(self.lease_seconds * 1000)
        arguments: dict[str, Value] = {"owner": str(self.owner), "ttl_ms": ttl_ms}
        return call(self.client, "lead", {"lead": keys.lead(self.study)}, arguments)[0] == "OK"

    def release(self) -> None:
        """Let another one drive the study at once."""
        call(self.client, "unlead", {"lead": keys.lead(self.study)}, {"owner": str(self.owner)})
