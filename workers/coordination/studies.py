"""Studies in Redis: what was submitted, and what the orchestrator last published of each.

Invariant: a study's specification changes only in what may be extended; its name is for ever.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import redis

from workers.coordination import keys
from workers.coordination.leases import TrialLeases
from workers.protocol.errors import InvalidInputError, StudyNotKnownError, nearest
from workers.protocol.plain import describe_error
from workers.protocol.spec import StudySpec


def ensure_epoch(client: redis.Redis) -> str:
    """The epoch of this Redis; the first orchestrator or submitter draws it."""
    client.set(keys.EPOCH, uuid.uuid4().hex, nx=True)
    return str(client.get(keys.EPOCH))


class Submitted(NamedTuple):
    """A study as people handed it in."""

    spec: StudySpec
    storage_url: str
    is_stopped: bool
    """Whether somebody asked that no further trial be started."""


@dataclass(frozen=True)
class Studies:
    """The studies that this Redis knows."""

    client: redis.Redis

    def submit(self, spec: StudySpec, storage_url: str) -> None:
        """Write or extend a study; the caller has checked that it is the same one."""
        self.restore(Submitted(spec, storage_url, is_stopped=False))

    def restore(self, submitted: Submitted) -> None:
        """Write a study as it was in a Redis that lost its data."""
        spec, storage_url, is_stopped = submitted
        fields = {"spec": spec.model_dump_json(), "storage": storage_url}
        pipeline = self.client.pipeline()
        pipeline.hset(keys.study(spec.name), mapping=fields)
        pipeline.hsetnx(keys.study(spec.name), "state", "running")
        if is_stopped:
            pipeline.hset(keys.study(spec.name), "stopped", "1")
        else:
            pipeline.hdel(keys.study(spec.name), "stopped", "fact:over")
        pipeline.sadd(keys.STUDIES, spec.name)
        pipeline.execute()

    def submitted(self, name: str) -> Submitted:
        """A study as it was handed in.

        Raises:
            InvalidInputError: There is no such study, or what lies there is no specification.
        """
        return Submitted(self.spec(name), str(self.storage_url(name)), self.is_stopped(name))

    def ask_to_stop(self, name: str) -> None:
        """Have no further trial of a study started; handing it in again revokes it."""
        self.client.hset(keys.study(name), "stopped", "1")

    def is_stopped(self, name: str) -> bool:
        """Whether somebody asked that no further trial be started."""
        return bool(self.client.hexists(keys.study(name), "stopped"))

    def names(self) -> list[str]:
        """All studies, in alphabetical order."""
        return sorted(self.client.smembers(keys.STUDIES))

    def exists(self, name: str) -> bool:
        """Whether a study was submitted under this name."""
        return bool(self.client.sismember(keys.STUDIES, name))

    def spec(self, name: str) -> StudySpec:
        """A study's specification.

        Raises:
            InvalidInputError: There is no such study, or what lies there is no specification.
        """
        text = self.client.hget(keys.study(name), "spec")
        if text is None:
            names = self.names()
            known = nearest(name, names) or f"; it knows: {', '.join(names) or 'none yet'}"
            raise StudyNotKnownError(f"study {name!r}: not known to this fleet{known}")
        try:
            return StudySpec.read(text)
        except ValueError as error:
            raise InvalidInputError(
                f"study {name!r}: its specification in Redis cannot be read"
                f" ({describe_error(error, 200)}); submit it again, with this release"
            ) from error

    def publish(self, name: str, facts: Mapping[str, Any]) -> None:
        """Write what the orchestrator wants seen, each fact as JSON; orchestrator only."""
        encoded = {f"fact:{key}": json.dumps(value) for key, value in facts.items()}
        self.client.hset(keys.study(name), mapping=encoded)

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

    def storage_url(self, name: str) -> str | None:
        """The Optuna storage that holds the study's results."""
        url: str | None = self.client.hget(keys.study(name), "storage")
        return url

    def leases(self, name: str, epoch: str | None = None) -> TrialLeases:
        """The study's trials."""
        return TrialLeases(self.client, name, epoch or ensure_epoch(self.client))
