"""The doctor's round: what is looked at, in order, and what came of it.

Invariant: a look that fails is a finding, and ends no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import redis
from pydantic import BaseModel, ConfigDict

from orchestrator.doctor import (
    disks,
    host,
    installation,
    members,
    one_study,
    redis_server,
    sentinels,
    trial,
)
from orchestrator.doctor.findings import Finding, Level, error, ok, warning
from orchestrator.fleet import Fleet
from workers.coordination.address import parse_address
from workers.coordination.connection import connect, resolve_url, text_of, way_out_of
from workers.coordination.rights import Role
from workers.coordination.studies import Studies
from workers.protocol.errors import FleetError, InvalidInputError
from workers.protocol.plain import describe_error, plain_text
from workers.protocol.spec import StudySpec
from workers.settings import Settings

T = TypeVar("T")

#: The group of what is found of the server; where it does not answer, its only finding.
_REDIS: Final = "Redis"


class Group(BaseModel):
    """What is found of one subject."""

    model_config = ConfigDict(frozen=True)

    subject: str
    findings: list[Finding]


@dataclass(frozen=True)
class Examination:
    """What is to be looked at.

    Args:
        settings: Where the fleet is.
        study: A study that is looked at, too.
        with_trial: Whether a trial is run through the fleet; by default, where one runs.
    """

    settings: Settings
    study: str | None = None
    with_trial: bool | None = None

    def groups(self) -> Iterator[Group]:
        """What is found, subject after subject.

        Raises:
            InvalidInputError: The address is none, or the study is not known to the fleet.
        """
        client = connect(self.settings, Role.VIEWER, check=False)
        trouble = _trouble(client)
        with Fleet(self.settings, client) as fleet:
            spec = None if self.study is None or trouble else self._spec(client)
            looked = installation.look(self.settings, spec)
            yield _group("installation", installation.CHECKS, lambda: looked)
            yield _group("host", host.CHECKS, lambda: host.look(self.settings))
            yield _group("disks", disks.CHECKS, lambda: disks.look(self.settings))
            if trouble is not None:
                yield Group(subject=_REDIS, findings=[self._no_redis(trouble)])
                return
            yield _group(
                _REDIS, redis_server.CHECKS, lambda: redis_server.look(client, self.settings)
            )
            if parse_address(resolve_url(self.settings)).sentinels:
                yield _group(
                    "Sentinel", sentinels.CHECKS, lambda: sentinels.look(client, self.settings)
                )
            yield from self._fleet(fleet, looked.release, spec)

    def _fleet(self, fleet: Fleet, release: str, spec: StudySpec | None) -> Iterator[Group]:
        yield _group("fleet", members.CHECKS, lambda: members.look(fleet, release))
        if spec is not None:
            name = spec.name
            yield _group(f"study {name}", one_study.CHECKS, lambda: one_study.look(fleet, name))
        queue = None if spec is None else spec.resources.queue
        if self.with_trial is not False and (is_there := _has_fleet(fleet)) is not None:
            if redis_server.may_only_look(fleet.client):
                yield Group(subject="trial", findings=self._no_trial())
            elif is_there:

                def a_trial(fleet: Fleet) -> Finding:  # its name tells what could not be looked at
                    return trial.try_fleet(fleet, queue)

                yield _group("trial", [a_trial], lambda: fleet)
            elif self.with_trial:
                told = "none was run: there is no orchestrator, or no worker"
                fix = "trialfleet serve, and celery -A workers worker"
                yield Group(subject="trial", findings=[error("a trial", told, fix)])

    def _spec(self, client: redis.Redis) -> StudySpec:
        return Studies(client, seal=self.settings.seal).spec(str(self.study))

    def _no_trial(self) -> list[Finding]:
        told = "none was run: this user of Redis may only look"
        if not self.with_trial:
            return [ok("a trial", told)]
        return [error("a trial", told, "FLEET_REDIS_URL of a user that may act")]

    def _no_redis(self, trouble: redis.RedisError) -> Finding:
        address = parse_address(resolve_url(self.settings))
        if (way_out := way_out_of(trouble)) is not None:
            return error("connection", f"{address} refuses: {text_of(trouble)}", way_out)
        told = f"{address} does not answer ({plain_text(describe_error(trouble, 200))})"
        if self.settings.redis_url is not None:
            fix = "start that server, or mend FLEET_REDIS_URL"
            return error("connection", f"{told}: no fleet can be looked at", fix)
        fix = "trialfleet run STUDY brings its own; for a fleet, start one and set FLEET_REDIS_URL"
        return warning("connection", f"{told}, and FLEET_REDIS_URL is not set", fix)


def worst(groups: Sequence[Group]) -> Level:
    """The worst of all findings."""
    order = list(Level)
    levels = [finding.level for group in groups for finding in group.findings]
    return max(levels, key=order.index, default=Level.OK)


def _group(
    subject: str,
    checks: Iterable[Callable[[T], Finding | Iterable[Finding]]],
    look: Callable[[], T],
) -> Group:
    try:
        facts = look()
    except InvalidInputError:
        raise
    except (FleetError, redis.RedisError, OSError) as problem:
        return Group(subject=subject, findings=[_not_seen(subject, problem)])
    findings: list[Finding] = []
    for check in checks:
        try:
            found: Any = check(facts)
            findings += [found] if isinstance(found, Finding) else list(found)
        except (FleetError, redis.RedisError, OSError, ValueError) as problem:
            findings.append(_not_seen(check.__name__.replace("_", " "), problem))
    return Group(subject=subject, findings=findings)


def _not_seen(what: str, problem: Exception) -> Finding:
    told = plain_text(describe_error(problem, 300))
    return error(what, f"it cannot be looked at: {told}", "mend that, and look again")


def _trouble(client: redis.Redis) -> redis.RedisError | None:
    """Why Redis does not answer."""
    try:
        client.ping()
    except redis.exceptions.NoPermissionError:
        return None  # it answers; what it does not allow is a finding
    except redis.RedisError as problem:
        return problem
    return None


def _has_fleet(fleet: Fleet) -> bool | None:
    """Whether one runs that can be tried; None where that cannot be seen."""
    try:
        return trial.has_fleet(tuple(fleet.processes()))
    except redis.RedisError:
        return None
