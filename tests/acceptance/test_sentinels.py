"""A fleet whose Redis is watched by sentinels: a replica takes over, and everybody follows it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_fleet import FaultFleet
from sentinel_servers import SentinelServers
from waiting import wait_until

from workers.coordination.connection import connect
from workers.coordination.rights import Role
from workers.coordination.studies import ensure_epoch


class SentinelFleet(FaultFleet):
    """A fleet on two servers, of which one is broken."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.redis = SentinelServers(folder)
        self.settings = self.settings.model_copy(update={"redis_url": self.redis.url})
        # a lease of 13.5 s: longer than the sentinels take to agree on another primary
        self.rescale(0.3)

    def start(self) -> None:
        self.redis.start()
        self.client = connect(self.settings, Role.USER)
        ensure_epoch(self.client)

    def begin(self, trials: int, waiting: int) -> int:
        """Have trials run in two slots, the first ones until `go`; the port of the primary."""
        for number in range(waiting):
            self.order("stay until go", number)
        self.submit(trials)
        self.serve()
        self.worker(slots=2)
        for number in range(waiting):
            self.await_note("stay until go", number, seconds=300)
        return self.redis.primary()

    def ended(self) -> list[int]:
        """The trials whose end is in the results."""
        return [trial.number for trial in self.trials() if trial.state.is_finished()]


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[SentinelFleet]:
    made = SentinelFleet(tmp_path)
    try:
        made.start()
        yield made
    finally:
        made.stop()
    made.assert_nothing_told()
    made.assert_nothing_left()


@pytest.mark.long
@pytest.mark.fault(33)
def test_a_primary_that_is_killed_is_followed_by_its_replica_and_so_by_the_fleet(fleet):
    primary = fleet.begin(trials=6, waiting=2)
    fleet.redis.signal(primary, signal.SIGKILL)
    fleet.redis.await_failover(primary)
    fleet.go()
    fleet.await_over()
    fleet.assert_sound(6)
    assert fleet.events("redis_restarted")
    assert_all_live(fleet)
    # the next one: the first comes back, follows, and takes over in its turn
    fleet.redis.start_server(primary)
    wait_until(lambda: fleet.redis.follows(primary), "the first follows the second")
    second = fleet.redis.primary()
    fleet.redis.signal(second, signal.SIGKILL)
    fleet.redis.await_failover(second)
    fleet.submit(8)
    fleet.await_over()
    fleet.assert_sound(8)
    assert_all_live(fleet)


@pytest.mark.long
@pytest.mark.fault(33)
def test_a_primary_that_stands_still_and_comes_back_as_a_replica_is_left(fleet):
    primary = fleet.begin(trials=6, waiting=2)
    fleet.redis.signal(primary, signal.SIGSTOP)
    fleet.redis.await_failover(primary)
    # for a moment there are two that take writes: what the first is told now is lost
    fleet.redis.signal(primary, signal.SIGCONT)
    fleet.go()
    wait_until(lambda: fleet.redis.role(primary) == "slave", "it is demoted")
    fleet.await_over()
    fleet.assert_sound(6)
    assert_all_live(fleet)


@pytest.mark.long
@pytest.mark.fault(33)
def test_a_primary_that_stands_still_for_good_holds_up_nobody(fleet):
    """As one whose host is gone: no connection to it ends, and none is answered."""
    primary = fleet.begin(trials=4, waiting=2)
    fleet.redis.signal(primary, signal.SIGSTOP)
    fleet.go()
    fleet.await_over(300)
    fleet.assert_sound(4)
    assert_all_live(fleet)


@pytest.mark.long
@pytest.mark.fault(33)
def test_what_the_replica_did_not_hear_of_is_done_again_and_counts_once(fleet):
    primary = fleet.begin(trials=6, waiting=2)
    behind = next(port for port in fleet.redis.ports if port != primary)
    fleet.redis.cut_off(behind)
    fleet.go()
    # two results, two claims and what they told are known to the primary alone
    wait_until(lambda: len(fleet.ended()) >= 2 and fleet.notes("step", 3), "they end, others begin")
    fleet.redis.signal(primary, signal.SIGKILL)
    fleet.redis.await_failover(primary)
    fleet.await_over()
    fleet.assert_sound(6)
    assert len(fleet.notes("starts", 3)) == 2, "the replica knew nothing of its first claim"
    assert [len(fleet.notes("starts", number)) for number in (0, 1)] == [1, 1]
    assert fleet.events("lost"), "who held it gave up"
    assert_all_live(fleet)


def assert_all_live(fleet):
    """Nobody ended over it."""
    assert [worker.poll() for worker in fleet.workers] == [None]
    assert [process.poll() for process in fleet.orchestrators] == [None]
