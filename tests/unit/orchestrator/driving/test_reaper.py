from __future__ import annotations

import time

import pytest
from waiting import wait_until

from orchestrator.driving import reaper as module
from orchestrator.driving.reaper import Reaper
from workers.times import Times

#: Leases of 0.9 s, sweeps of 0.1 s.
TIMES = Times().scaled(0.02)


@pytest.fixture
def leap(monkeypatch):
    """Moves this host's clock ahead, as a suspend does."""
    ahead = 0.0

    def clock():
        return time.clock_gettime(time.CLOCK_BOOTTIME) + ahead

    def move(seconds):
        nonlocal ahead
        ahead += seconds

    monkeypatch.setattr(module, "lease_clock", clock)
    return move


def now_ms():
    return int(time.time() * 1000)


def next_sweep(reaper, by_ms=0, seconds=5.0):
    """How long the reaper takes to sweep again, by a server whose clock is so far ahead."""
    began = time.monotonic()
    wait_until(lambda: reaper.is_due(now_ms() + by_ms), "it sweeps", seconds)
    return time.monotonic() - began


def test_nothing_is_reaped_for_one_lease_after_the_start_and_then_each_sweep():
    reaper = Reaper(TIMES)
    assert next_sweep(reaper) > TIMES.lease * 0.9
    assert next_sweep(reaper) < TIMES.lease / 2


def test_nothing_is_reaped_for_one_lease_after_the_orchestrators_own_suspend(leap):
    reaper = Reaper(TIMES)
    next_sweep(reaper)
    leap(3600.0)
    assert not reaper.is_due(now_ms() + 3_600_000)
    assert next_sweep(reaper, 3_600_000) > TIMES.lease * 0.9
    assert next_sweep(reaper, 3_600_000) < TIMES.lease / 2


@pytest.mark.parametrize("by_ms", [3_600_000, -3_600_000, int(TIMES.lease * 1000)])
def test_nothing_is_reaped_for_one_lease_after_a_step_of_the_servers_clock(by_ms):
    reaper = Reaper(TIMES)
    next_sweep(reaper)
    assert next_sweep(reaper, by_ms) > TIMES.lease * 0.9
    assert next_sweep(reaper, by_ms) < TIMES.lease / 2
