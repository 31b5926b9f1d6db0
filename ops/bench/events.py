#!/usr/bin/env python
"""What an event costs: bytes, the server's time, and the time to file it and to read it.

Trials are enqueued, claimed and committed one after the other, in rounds that tell events and
rounds whose scripts tell none; three events a trial. Then what was told is filed as an orchestrator
does, and read as `trialfleet events` does.

Prints one JSON line; times in milliseconds an event.

    python ops/bench/events.py --trials 2000
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import redis

from orchestrator.driving.event_filing import EventFiling
from orchestrator.local.servers import EmbeddedRedis
from orchestrator.storage.event_file import EventFile, events_file
from orchestrator.storage.event_history import EventHistory
from workers.coordination import keys, scripts
from workers.coordination.grants import Grant
from workers.coordination.identity import ProcessIdentity
from workers.coordination.leases import TrialLeases
from workers.coordination.studies import ensure_epoch
from workers.protocol.messages import Result
from workers.protocol.states import TrialState

STUDY: Final = "events"
EVENTS_A_TRIAL: Final = 3
ROUNDS: Final = 5

#: How `tell_event` begins in Lua.
_BEGINS: Final = "local function tell_event(events, kind, ...)\n"


@contextmanager
def silent() -> Iterator[None]:
    """Scripts that tell no events."""
    right = scripts.script

    def without_events(verb: scripts.Verb) -> scripts.Script:
        definition = right(verb)
        source = definition.source.replace(_BEGINS, f"{_BEGINS}  do return end\n")
        assert source != definition.source  # noqa: S101 - it is measured against this
        return replace(definition, source=source)

    scripts.script = without_events  # type: ignore[assignment]
    try:
        yield
    finally:
        scripts.script = right


def live(leases: TrialLeases, numbers: range) -> None:
    """The life of some trials, from their record to their end."""
    owner, device = str(ProcessIdentity.current()), "host/1234/cpu-0"
    for number in numbers:
        leases.enqueue(number, {"x": 0.5})
        grant = leases.claim(number, owner, 45.0, device=device)
        assert isinstance(grant, Grant)  # noqa: S101 - nobody else claims
        leases.commit(number, grant.token, TrialState.COMPLETE, Result(values=[0.123456789]))


def server_seconds(client: redis.Redis) -> float:
    """The processor time that the server has used."""
    found: Any = client.info("cpu")
    return float(found["used_cpu_user"]) + float(found["used_cpu_sys"])


def measure(client: redis.Redis, act: Callable[[], None]) -> tuple[float, float]:
    """The server's seconds and the clock's."""
    used, began = server_seconds(client), time.perf_counter()
    act()
    return server_seconds(client) - used, time.perf_counter() - began


def run(home: Path, client: redis.Redis, trials: int) -> dict[str, Any]:
    """All figures."""
    leases = TrialLeases(client, STUDY, ensure_epoch(client))
    told: list[tuple[float, float]] = []
    not_told: list[tuple[float, float]] = []
    number = 0
    for _ in range(ROUNDS):
        told.append(measure(client, partial(live, leases, range(number, number + trials))))
        number += trials
        with silent():
            not_told.append(measure(client, partial(live, leases, range(number, number + trials))))
        number += trials
    return {
        "server_ms": _difference(told, not_told, 0, trials),
        "round_trip_ms": _difference(told, not_told, 1, trials),
        "bytes": bytes_by_kind(client),
        "redis_bytes": client.memory_usage(keys.events(STUDY)) // client.xlen(keys.events(STUDY)),
        **filed_and_read(home, client),
    }


def _difference(
    told: list[tuple[float, float]], not_told: list[tuple[float, float]], which: int, trials: int
) -> float:
    medians = [statistics.median(each[which] for each in side) for side in (told, not_told)]
    return round(1000 * (medians[0] - medians[1]) / (EVENTS_A_TRIAL * trials), 4)


def bytes_by_kind(client: redis.Redis) -> dict[str, int]:
    """The longest text of each kind."""
    longest: dict[str, int] = defaultdict(int)
    found: Any = client.xrange(keys.events(STUDY))
    for _, fields in found:
        kind = json.loads(fields["event"])["kind"]
        longest[kind] = max(longest[kind], len(fields["event"].encode()))
    return dict(longest)


def filed_and_read(home: Path, client: redis.Redis) -> dict[str, float]:
    """What it takes to file what is in the stream, and to read it again."""
    count = client.xlen(keys.events(STUDY))
    filing = EventFiling(client, home, STUDY)
    began = time.process_time()
    filing.file_all()
    filed = time.process_time() - began
    history = EventHistory(EventFile(events_file(home, STUDY)), None, STUDY)
    began = time.process_time()
    read = sum(1 for _ in history.read())
    seconds = time.process_time() - began
    return {
        "filing_ms": round(1000 * filed / count, 4),
        "reading_ms": round(1000 * seconds / max(1, read), 4),
        "events": read,
    }


def main() -> None:
    """Measure and print one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=2000, help="of each round")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="trialfleet-") as folder:
        home = Path(folder)
        with (
            EmbeddedRedis(home) as server,
            redis.Redis.from_url(server.url, decode_responses=True) as client,
        ):
            print(json.dumps({"bench": "events", **run(home, client, arguments.trials)}))


if __name__ == "__main__":
    main()
