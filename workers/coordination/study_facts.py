"""What the orchestrator last published of each study.

Invariant: only who drives a study publishes of it, and nothing of one that was deleted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import redis

from workers.coordination import keys
from workers.coordination.clock import server_time_ms
from workers.coordination.scripts import Value
from workers.coordination.study_lead import call_led
from workers.coordination.submitted import speaking_of
from workers.protocol.events import brief


@dataclass(frozen=True)
class StudyFacts:
    """The facts that are shown of studies."""

    client: redis.Redis
    #: Who drives them, of an orchestrator: one that does not publishes nothing.
    leader: str = ""

    def publish(self, name: str, facts: Mapping[str, Any]) -> None:
        """Write what the orchestrator wants seen, each fact as JSON; orchestrator only.

        Of a study that somebody has deleted, nothing is written.
        """
        self._publish(name, facts)

    def publish_stall(self, name: str, reason: str | None, *, is_news: bool) -> None:
        """Show why a study does not get on; orchestrator only. Nor is anything written here then.

        Args:
            name: The study.
            reason: Why, without passwords; None if it does.
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
        return call_led(
            self.client, self.leader, "publish", name, speaking_of(name), arguments, pairs
        )

    def all(self, name: str) -> dict[str, Any]:
        """What the orchestrator last published."""
        fields = self.client.hgetall(keys.study(name))
        return {
            key.removeprefix("fact:"): json.loads(value)
            for key, value in fields.items()
            if key.startswith("fact:")
        }

    def get(self, name: str, key: str) -> Any:
        """One published fact, or None."""
        value = self.client.hget(keys.study(name), f"fact:{key}")
        return None if value is None else json.loads(value)

    def shown_seconds(self, name: str) -> float | None:
        """How long ago, by the server's clock, something was published of a study.

        None where nothing was, or by a release that did not tell.
        """
        shown_ms = self.get(name, "shown_ms")
        return None if shown_ms is None else (server_time_ms(self.client) - int(shown_ms)) / 1000

    def forget(self, name: str) -> None:
        """Drop what an orchestrator published of a study whose results were removed."""
        found = [each for each in self.client.hgetall(keys.study(name)) if each.startswith("fact:")]
        self.client.srem(keys.OVER, name)
        if found:
            self.client.hdel(keys.study(name), *found)
