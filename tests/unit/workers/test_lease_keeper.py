"""The one thread that goes through the rounds of whatever lease is held."""

from __future__ import annotations

import threading
import time

import pytest
from waiting import wait_until

from workers.trials.lease_keeper import LeaseKeeper


@pytest.fixture
def keeper():
    with LeaseKeeper() as found:
        yield found


def rounds(done, *pauses):
    """A lease that is gone through after each of some pauses, and notes when."""
    for number, pause in enumerate(pauses):
        yield pause
        done.append(number)
    yield 1e6


def test_each_round_comes_after_its_pause_and_none_when_the_lease_was_left(keeper):
    done, later = [], []
    begun = time.monotonic()
    keeper.keep(rounds(done, 0.05, 0.1, 0.0, 1e6))
    wait_until(lambda: done == [0, 1, 2], "three rounds")
    assert time.monotonic() - begun >= 0.15
    keeper.leave()
    keeper.keep(rounds(later, 0.0))
    wait_until(lambda: later, "the next lease's")
    assert done == [0, 1, 2]


def test_one_thread_serves_all_leases_and_ends_with_the_keeper():
    before = threading.active_count()
    with LeaseKeeper() as keeper:
        for _ in range(50):
            keeper.keep(rounds([], 1e6))
            keeper.leave()
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_a_lease_whose_round_comes_sooner_than_the_one_before_is_seen_to_in_time(keeper):
    keeper.keep(rounds([], 1e6))
    wait_until(lambda: keeper._wakes_at > time.monotonic() + 1e5, "it sleeps for long")
    keeper.leave()
    done = []
    keeper.keep(rounds(done, 0.01))
    wait_until(lambda: done, "its round")


def test_a_round_that_is_under_way_is_waited_for_when_its_lease_is_left(keeper):
    told, begun, may_end = [], threading.Event(), threading.Event()

    def renewal():
        yield 0.0
        begun.set()
        may_end.wait(20)
        told.append("renewed")
        yield 1e6

    keeper.keep(renewal())
    assert begun.wait(20)
    threading.Timer(0.1, may_end.set).start()
    keeper.leave()
    assert told == ["renewed"]


def test_a_round_that_fails_is_the_last_of_its_lease_and_not_of_the_next(keeper):
    def broken():
        yield 0.0
        raise ValueError("a bug")

    keeper.keep(broken())
    wait_until(lambda: keeper._rounds is None, "it is dropped")
    keeper.leave()
    done = []
    keeper.keep(rounds(done, 0.0))
    wait_until(lambda: done, "the next lease's round")
