"""Every key name in Redis; nothing else spells one.

A study's keys share the hash tag `{study}`, so that they live together.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

#: The number of a trial or a token, or `*` in a pattern of keys.
Number: TypeAlias = int | Literal["*"]

#: A random id; missing or changed means that Redis lost its data.
EPOCH: Final = "fleet:epoch"
#: The fleet's id, also in its homes; unlike the epoch, it outlives a Redis that loses its data.
FLEET: Final = "fleet:id"
#: Set of the names of all studies.
STUDIES: Final = "fleet:studies"
#: Set of the names of studies that are over, so that nobody need look at each; what is said of each
#: in its own record counts.
OVER: Final = "fleet:over"
#: Set of the names of studies that somebody asked to delete, until that is done.
DELETING: Final = "fleet:deleting"
#: Sorted set: study that was deleted -> when, ms; for hosts that may hold something of it.
DELETED: Final = "fleet:deleted"
#: Sorted set: process record -> when it expires, ms.
PROCESSES: Final = "fleet:processes"
#: Stream: how the fleet's processes came and went.
FLEET_EVENTS: Final = "fleet:events"
#: Prefix of all that Celery keeps: its queues and its unacknowledged messages.
CELERY_PREFIX: Final = "fleet:celery:"
#: The pattern of channels that Celery's gossip subscribes to.
GOSSIP: Final = f"{CELERY_PREFIX}celeryev/worker.*"


def study(name: str) -> str:
    """Hash: the specification as submitted, and what the orchestrator publishes."""
    return f"fleet:{{{name}}}:study"


def trial(name: str, number: Number) -> str:
    """Hash: a trial's record, the only authority on who may run it."""
    return f"fleet:{{{name}}}:trial:{number}"


def leases(name: str) -> str:
    """Sorted set: running trial -> its lease's end, ms."""
    return f"fleet:{{{name}}}:leases"


def queued(name: str) -> str:
    """Sorted set: queued trial -> since when, ms."""
    return f"fleet:{{{name}}}:queued"


def paused(name: str) -> str:
    """Sorted set: trial that was paused at a rung -> since when, ms."""
    return f"fleet:{{{name}}}:paused"


def inbox(name: str) -> str:
    """Stream: what trials ask and report, and how they end."""
    return f"fleet:{{{name}}}:inbox"


def events(name: str) -> str:
    """Stream: what became of the study and its trials, as long as it is news."""
    return f"fleet:{{{name}}}:events"


def output(name: str, number: Number) -> str:
    """Hash with an expiry: the last that a trial's attempts printed."""
    return f"fleet:{{{name}}}:output:{number}"


def set_aside(name: str) -> str:
    """List: entries of the inbox that could not be taken in, the latest first."""
    return f"fleet:{{{name}}}:set_aside"


def reply(name: str, number: Number, token: Number) -> str:
    """List: the orchestrator's answers to one holder."""
    return f"fleet:{{{name}}}:reply:{number}:{token}"


def orders(name: str) -> str:
    """Hash: id -> a trial that people want and that the orchestrator has not taken in."""
    return f"fleet:{{{name}}}:orders"


def code(digest: str) -> str:
    """Hash: a package of code that studies ship, and the studies that do."""
    return f"fleet:code:{digest}"


def process(identity: object) -> str:
    """Hash with an expiry: a registered process."""
    return f"fleet:process:{identity}"


def device(name: str) -> str:
    """Hash with an expiry: the trials under which a device broke, and whether it is put aside."""
    return f"fleet:device:{name}"


def cleanup(place: str) -> str:
    """Hash: which process cleans up after a user's on a host, its token, until when."""
    return f"fleet:cleanup:{place}"


def lead(name: str) -> str:
    """String with an expiry: which orchestrator drives a study."""
    return f"fleet:{{{name}}}:lead"
