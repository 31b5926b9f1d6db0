#!/usr/bin/env python
"""What the protocol costs on loopback: one trial's scripts, and a thousand holders that beat.

First, one client claims and commits trials one after the other, beside a PING, which is what the
network alone costs. Then 1,000 holders renew their leases and beat for their process records every
10 s, an orchestrator looks at the registry every second, and claims are timed meanwhile.

Prints one JSON line; times in milliseconds, the server's load as a share of one core.

    python ops/bench/leases.py --holders 1000 --seconds 60
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Final

import psutil
import redis

from orchestrator.local.servers import EmbeddedRedis
from workers.coordination.grants import Grant
from workers.coordination.identity import ProcessIdentity
from workers.coordination.leases import TrialLeases
from workers.coordination.studies import Studies, ensure_epoch
from workers.processes.registry import ProcessRegistry
from workers.protocol.messages import Result
from workers.protocol.states import TrialState
from workers.times import Times

TIMES: Final = Times()

#: Trials that one client takes through their lives.
NUM_SEQUENTIAL: Final = 3000

#: Between two claims that are timed while all holders beat.
CLAIM_EVERY_SECONDS: Final = 0.05


def open_leases(url: str, study: str) -> tuple[redis.Redis, TrialLeases]:
    """A client of its own, and a study's trials."""
    client = redis.Redis.from_url(url, decode_responses=True)
    return client, Studies(client).leases(study, ensure_epoch(client))


def timed_ms(call: Callable[[], Any]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


def claim(leases: TrialLeases, number: int) -> Grant:
    """Claim a trial that is there to be claimed."""
    grant = leases.claim(number, "bench", TIMES.lease)
    assert isinstance(grant, Grant)  # noqa: S101 - it was enqueued for this
    return grant


def measure_one(url: str) -> dict[str, float]:
    """The medians of a trial's claim and commit, and of a PING."""
    client, leases = open_leases(url, "one")
    params = {"learning_rate": 1e-3, "batch_size": 32, "layers": 2, "dropout": 0.1, "seed": 7}
    result = Result(values=[0.5], busy_seconds=1.0)
    both, pings = [], []
    for number in range(NUM_SEQUENTIAL):
        leases.enqueue(number, params)
        pings.append(timed_ms(client.ping))

        def claim_and_commit(number: int = number) -> None:
            token = claim(leases, number).token
            leases.commit(number, token, TrialState.COMPLETE, result)

        both.append(timed_ms(claim_and_commit))
        leases.settle(number, TrialState.COMPLETE)
    client.close()
    return {
        "claim_commit_ms": round(statistics.median(both), 3),
        "claim_commit_p99_ms": round(quantile(both, 0.99), 3),
        "ping_ms": round(statistics.median(pings), 3),
    }


def hold(url: str, holders: int, ready: Event, done: Event) -> None:
    """Beat for all holders, evenly over each interval, until told to stop."""
    client, leases = open_leases(url, "held")
    registry = ProcessRegistry(client, TIMES)
    held: list[tuple[int, int, ProcessIdentity]] = []
    for number in range(holders):
        leases.enqueue(number, {"learning_rate": 1e-3})
        identity = ProcessIdentity(f"host-{number // 8}", "boot", number + 1, number + 1)
        registry.register(identity, {"kind": "trial", "parent": 1, "study": "held"})
        held.append((number, claim(leases, number).token, identity))
    ready.set()
    due, turn = time.monotonic(), 0
    while not done.is_set():
        number, token, identity = held[turn % holders]
        leases.renew(number, token, TIMES.lease, turn)
        registry.beat(identity)
        turn += 1
        due += TIMES.beat / holders
        time.sleep(max(0.0, due - time.monotonic()))
    client.close()


def look(url: str, done: Event) -> None:
    """What an orchestrator asks for: the registry every second, the leases every sweep."""
    client, leases = open_leases(url, "held")
    registry = ProcessRegistry(client, TIMES)
    turn = 0
    while not done.wait(1.0):
        list(registry.entries())
        turn += 1
        if turn % TIMES.sweep == 0:
            leases.running()
    client.close()


def measure_many(server: EmbeddedRedis, holders: int, seconds: float) -> dict[str, Any]:
    """The server's load under all holders, and what a claim takes meanwhile."""
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    members = [
        context.Process(target=hold, args=(server.url, holders, ready, done)),
        context.Process(target=look, args=(server.url, done)),
    ]
    for member in members:
        member.start()
    ready.wait(60.0)
    client, leases = open_leases(server.url, "claimed")
    process = psutil.Process(server.pid)
    claims: list[float] = []
    before, start = process.cpu_times(), time.monotonic()
    while time.monotonic() - start < seconds:
        number = len(claims)
        leases.enqueue(number, {"learning_rate": 1e-3})
        claims.append(timed_ms(partial(claim, leases, number)))
        time.sleep(CLAIM_EVERY_SECONDS)
    elapsed, after = time.monotonic() - start, process.cpu_times()
    done.set()
    for member in members:
        member.join()
    client.close()
    used = after.user + after.system - before.user - before.system
    return {
        "holders": holders,
        "seconds": round(elapsed, 1),
        "server_load": round(used / elapsed, 4),
        "claims": len(claims),
        "claim_ms": round(statistics.median(claims), 3),
        "claim_p99_ms": round(quantile(claims, 0.99), 3),
    }


def quantile(values: list[float], share: float) -> float:
    """The value below which a share of all lies."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--holders", type=int, default=1000, help="leases that are held")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long they are")
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="trialfleet-leases-") as home,
        EmbeddedRedis(Path(home)) as server,
    ):
        print("one client", file=sys.stderr)
        one = measure_one(server.url)
        print(f"{given.holders} holders for {given.seconds:.0f} s", file=sys.stderr)
        many = measure_many(server, given.holders, given.seconds)
    print(json.dumps({"bench": "leases", **one, **many}))


if __name__ == "__main__":
    main()
