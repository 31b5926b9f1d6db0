"""A Redis that restarts, stays away, forgets, loses replies, or refuses to work."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import redis
from lossy_proxy import LossyProxy
from waiting import wait_until

from orchestrator.local.servers import EmbeddedRedis
from workers.coordination import keys


def pass_time(seconds: float) -> None:
    """Keep a fault up for so long."""
    deadline = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= deadline, "time passes", seconds + 1)


def start_and_stay(fleet, order="stay until go", **fields):
    """A trial that has trained for four steps, and stays there."""
    fleet.order(order, step=4)
    fleet.submit(**fields)
    fleet.serve()
    fleet.worker()
    fleet.await_note(order)


@pytest.mark.fault(18)
def test_a_redis_that_restarts_for_three_seconds_is_not_noticed_by_a_trial(fleet):
    fleet.rescale(0.3)  # a lease of 13.5 s
    start_and_stay(fleet, trials=2)
    fleet.redis.stop()
    pass_time(3.0)
    fleet.redis.start()
    fleet.go()
    fleet.await_over()
    fleet.assert_sound(2, attempts={0: 1, 1: 1})


@pytest.mark.fault(19)
def test_a_redis_that_stays_away_for_two_leases_costs_an_attempt_and_no_failure(fleet):
    start_and_stay(fleet, trials=2)
    fleet.redis.stop()
    pass_time(2 * fleet.settings.times.lease)
    fleet.redis.start()
    assert fleet.await_note("starts", attempt=2).step == 3
    assert fleet.record().failures == 0
    fleet.await_over()
    fleet.assert_sound(2, attempts={0: 2})


@pytest.mark.fault(19)
def test_a_result_that_redis_was_not_there_to_take_is_committed_when_it_is_back(fleet):
    fleet.order("wait for go", step=0)
    fleet.submit(objective="quick")
    fleet.serve()
    fleet.worker()
    fleet.await_note("wait for go")
    fleet.redis.stop()
    fleet.go()
    pass_time(2 * fleet.settings.times.lease)
    fleet.redis.start()
    fleet.await_over()
    assert [trial.value for trial in fleet.trials()] == [1.0]
    assert fleet.trials()[0].user_attrs["trialfleet:attempt"] == 1
    assert len(fleet.notes("starts")) == 1

    def taken() -> int:
        """By its process or by the host agent, whoever is back first; told when it is done."""
        commits = [*fleet.events("committed_late"), *fleet.events("outbox_committed")]
        return [event["status"] for event in commits].count("OK")

    wait_until(taken, "it is told who committed it")
    assert taken() == 1


def append_only_file(fleet) -> Path:
    """The file that the server appends to now."""
    (path,) = (fleet.settings.home / "redis" / "appendonlydir").glob("*.incr.aof")
    return path


def cut_tail(fleet, size: int) -> None:
    """Kill the server, drop what it wrote beyond a size, and start it again."""
    os.kill(fleet.redis.pid, signal.SIGKILL)
    wait_until(lambda: fleet.redis._process.poll() is not None, "the server is dead")
    os.truncate(append_only_file(fleet), size)
    fleet.redis.start()


@pytest.mark.fault(20)
def test_a_claim_that_redis_forgot_is_made_again_and_the_first_holder_gives_up(fleet):
    fleet.order("wait for go", step=4)
    fleet.submit()
    fleet.pretend_slots(1)
    fleet.serve()
    wait_until(fleet.leases.queued, "it is enqueued")
    size = append_only_file(fleet).stat().st_size
    fleet.worker()
    first = fleet.await_note("wait for go")
    before = fleet.record().token
    cut_tail(fleet, size)

    def is_claimed_again() -> bool:
        record = fleet.leases.record(0)
        return record is not None and record.token > before

    wait_until(is_claimed_again, "it is claimed again")
    fleet.go()
    fleet.await_over()
    fleet.assert_sound()
    assert {note.pid for note in fleet.notes("starts")} >= {first.pid}
    assert len(fleet.notes("starts")) == 2


@pytest.mark.fault(20)
def test_a_commit_that_redis_forgot_counts_if_it_was_told(fleet):
    start_and_stay(fleet)
    size = append_only_file(fleet).stat().st_size
    fleet.go()
    fleet.await_over()
    value = fleet.trials()[0].value
    cut_tail(fleet, size)
    # whatever its state: the orchestrator may have settled it by now
    record = fleet.client.hgetall(keys.trial(fleet.study, 0))
    assert "result_token" not in record, "the server has gone back"
    fleet.submit(2)
    wait_until(lambda: len(fleet.trials()) == 2, "the study goes on")
    fleet.await_over()
    fleet.assert_sound(2)
    assert fleet.trials()[0].value == value


@pytest.mark.fault(21)
def test_a_study_is_built_up_again_after_flushall(fleet):
    start_and_stay(fleet, trials=2)
    epoch = fleet.client.get(keys.EPOCH)
    fleet.client.flushall()
    wait_until(lambda: fleet.client.get(keys.EPOCH) not in {None, epoch}, "there is a new epoch")
    wait_until(lambda: len(fleet.notes("starts", 0)) == 2, "the trial starts again")
    fleet.go()
    fleet.await_over()
    fleet.assert_sound(2)
    assert fleet.notes("starts", 0)[1].step == 3, "from the checkpoint that lies on disk"


@pytest.mark.fault(22)
def test_a_reply_that_is_lost_after_the_script_ran_changes_nothing(fleet):
    fleet.order("SystemExit", number=1)
    with LossyProxy(fleet.redis.port) as proxy:
        fleet.submit(3)
        fleet.serve()
        through_proxy = fleet.redis.url.replace(str(fleet.redis.port), str(proxy.port))
        fleet.worker(FLEET_REDIS_URL=through_proxy)
        fleet.await_over()
        fleet.assert_sound(3, attempts={0: 1, 1: 2, 2: 1})
        fleet.workers[0].stop(60.0)
        assert proxy.lost > 10


class Refusing:
    """The states in which a server answers, and does not do what it is asked."""

    def __init__(self, fleet) -> None:
        self.fleet, self.client = fleet, fleet.client

    def noscript(self) -> None:
        deadline = time.monotonic() + 2.0
        while time.monotonic() < deadline:
            self.client.script_flush()

    def oom(self) -> None:
        self.client.config_set("maxmemory", 1)
        pass_time(2.0)
        self.client.config_set("maxmemory", 0)

    def readonly(self) -> None:
        self.client.replicaof("127.0.0.1", 1)
        pass_time(2.0)
        self.client.replicaof("NO", "ONE")

    def busy(self) -> None:
        self.client.config_set("busy-reply-threshold", 50)
        other = redis.Redis.from_url(self.fleet.redis.url, retry=None, socket_timeout=1.0)
        with pytest.raises(redis.TimeoutError):
            other.eval("while true do end", 0)
        pass_time(1.0)
        other.script_kill()
        other.close()

    def loading(self) -> None:
        for number in range(2000):
            self.client.set(f"ballast:{number}", "x", ex=60)
        self.fleet.redis.stop()
        SlowlyLoadingRedis.start_in_place_of(self.fleet)


class SlowlyLoadingRedis(EmbeddedRedis):
    """Needs a millisecond for each key that it loads, and answers LOADING meanwhile."""

    @classmethod
    def start_in_place_of(cls, fleet) -> None:
        before = fleet.redis
        fleet.redis = cls(before.home, before.port, before._password)
        fleet.redis.start()

    def _configuration(self, folder: Path) -> str:
        return (
            super()._configuration(folder)
            + "key-load-delay 1000\nloading-process-events-interval-bytes 1024\n"
        )


@pytest.mark.fault(23)
def test_a_server_that_refuses_for_a_while_is_waited_for(fleet):
    """One trial after the other meets a state in training, and does not notice."""
    fleet.rescale(0.3)
    states = ["noscript", "oom", "readonly", "busy", "loading"]
    for number in range(len(states)):
        fleet.order("stay until go", number)
    fleet.submit(len(states) + 1)
    fleet.serve()
    worker = fleet.worker()
    for number, state in enumerate(states):
        fleet.await_note("stay until go", number)
        getattr(Refusing(fleet), state)()
        num_steps = len(fleet.notes("step", number))
        fleet.go()
        wait_until(lambda: len(fleet.notes("step", number)) > num_steps, f"{state}: it goes on")  # noqa: B023
        fleet.halt()
    fleet.await_over()
    fleet.assert_sound(6, attempts=dict.fromkeys(range(6), 1))
    assert worker.poll() is None
