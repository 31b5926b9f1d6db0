"""Plain Celery beside the fleet: a task that does nothing, and one that keeps some in flight."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Final

import redis
from celery import Celery

from orchestrator.driving.shares import MAX_READY_PER_SLOT

BROKER: Final = os.environ["BENCH_BROKER"]

#: Counts the tasks that were done.
DONE: Final = "bench:done"

#: As many as a fleet of two slots has of trials that take no time.
IN_FLIGHT: Final = 2 * (1 + MAX_READY_PER_SLOT)

app = Celery("plain", broker=BROKER)
app.conf.update(
    task_ignore_result=True,
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
)
client = redis.Redis.from_url(BROKER)


@app.task(name="nothing")
def nothing() -> None:
    """Count, and do nothing else."""
    client.incr(DONE)


def done() -> int:
    """How many tasks were done."""
    return int(client.get(DONE) or 0)


def main() -> None:
    """Keep `IN_FLIGHT` tasks in flight for some seconds; how many a second were done."""
    sent = 0

    def fill() -> None:
        nonlocal sent
        while sent - done() < IN_FLIGHT:
            nothing.apply_async()
            sent += 1

    while done() < 200:
        fill()
    start, before = time.monotonic(), done()
    while time.monotonic() - start < float(sys.argv[1]):
        fill()
    rate = (done() - before) / (time.monotonic() - start)
    print(json.dumps({"tasks_per_second": round(rate, 1)}))


if __name__ == "__main__":
    main()
