"""The lead of a study: of several orchestrators, one drives it, and another takes over in time."""

from __future__ import annotations

from dataclasses import dataclass

import redis

from workers.coordination import keys
from workers.coordination.scripts import Value, call


@dataclass(frozen=True)
class StudyLead:
    """The right of one orchestrator to drive a study."""

    client: redis.Redis
    study: str
    owner: str
    lease_seconds: float

    def hold(self) -> bool:
        """Become or stay the study's orchestrator; False if another one is."""
        ttl_ms = int(self.lease_seconds * 1000)
        arguments: dict[str, Value] = {"owner": self.owner, "ttl_ms": ttl_ms}
        return call(self.client, "lead", {"lead": keys.lead(self.study)}, arguments)[0] == "OK"

    def release(self) -> None:
        """Let another one drive the study at once."""
        call(self.client, "unlead", {"lead": keys.lead(self.study)}, {"owner": self.owner})
