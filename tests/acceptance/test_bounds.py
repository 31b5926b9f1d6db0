"""The keys of a fleet that is worked and killed are those of the table, and end as it says."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

from fault_fleet import signal_all, tree_of
from waiting import wait_until

from workers.coordination import keys

README = Path(__file__).parents[2] / "workers" / "coordination" / "README.md"

ROW = re.compile(
    r"^\| `(?P<key>fleet:[^`]+)` \| (?P<kind>\w+) \| .* \| (?P<ends>[^|]+) \|$", re.MULTILINE
)


class Table:
    """What the README says of each key."""

    def __init__(self) -> None:
        # a queue's row would match every key of Celery's
        rows = sorted(ROW.finditer(README.read_text()), key=lambda row: "<queue>" in row["key"])
        self.rows = [
            (re.compile(re.sub(r"<\w+>", ".+", re.escape(row["key"]))), row["kind"], row["ends"])
            for row in rows
        ]

    def row(self, key: str) -> tuple[str, str]:
        found = [(kind, ends) for pattern, kind, ends in self.rows if pattern.fullmatch(key)]
        assert found, f"no row tells of {key}"
        return found[0]


def assert_as_told(client, table: Table) -> set[str]:
    """Hold all that is in Redis against the table; the keys."""
    found = set(client.scan_iter(count=1000))
    for key in found:
        kind, ends = table.row(key)
        is_there = client.exists(key)
        assert not is_there or kind in {client.type(key), "any"}, key
        is_record = ":trial:" in key  # of one in flight, it does not expire
        if ends == "expires" and not is_record and is_there:
            assert client.pttl(key) != -1, f"{key} never expires"
    return found


def test_every_key_is_in_the_table_and_ends_as_it_says(fleet):
    table, seen = Table(), set()
    fleet.order("kill", step=4)
    fleet.order("exit 3", number=2)
    fleet.order("wait for go", number=1, step=4)
    fleet.submit(6, "train", pruner={"type": "median"})
    fleet.serve()
    killed = fleet.worker()
    fleet.await_note("wait for go", number=1)
    seen |= assert_as_told(fleet.client, table)
    signal_all(tree_of(killed.pid), signal.SIGKILL)
    orchestrator = fleet.orchestrators[0]
    os.kill(orchestrator.pid, signal.SIGKILL)
    orchestrator.wait()
    fleet.go()
    fleet.serve()
    worker = fleet.worker()
    wait_until(lambda: fleet.notes("step", 3), "it goes on")
    seen |= assert_as_told(fleet.client, table)
    fleet.await_over()
    fleet.assert_sound(6)
    worker.stop(60.0)
    left = assert_as_told(fleet.client, table)
    still = {key for key in left if table.row(key)[1] == "when the study is over"}
    assert still <= {keys.inbox("fault")}
    assert fleet.client.xlen(keys.inbox("fault")) == 0
    assert fleet.client.hlen(f"{keys.CELERY_PREFIX}unacked") <= 3, "what the killed worker held"
    assert all(fleet.client.pttl(key) > 0 for key in left if ":trial:" in key)
    assert {table.row(key)[0] for key in seen} >= {"hash", "zset", "stream", "list", "string"}
