from __future__ import annotations

import pytest

from orchestrator.driving import reaper as module
from orchestrator.driving.reaper import Reaper
from workers.times import Times

TIMES = Times()


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(module, "lease_clock", lambda: made.seconds)
    return made


class Clock:
    """This host's clock, which goes on as the test has it."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def leap(self, seconds):
        """As a suspend does."""
        self.seconds += seconds

    def next_sweep(self, reaper, by_ms=0):
        """How long the reaper takes to sweep again, by a server whose clock is so far ahead."""
        began = self.seconds
        while not reaper.is_due(int(self.seconds * 1000) + by_ms):
            self.seconds += 0.25
            assert self.seconds - began < 1000
        return self.seconds - began


def test_nothing_is_reaped_for_one_lease_after_the_start_and_then_each_sweep(clock):
    reaper = Reaper(TIMES)
    assert clock.next_sweep(reaper) >= TIMES.lease
    assert clock.next_sweep(reaper) == TIMES.sweep


def test_nothing_is_reaped_for_one_lease_after_the_orchestrators_own_suspend(clock):
    reaper = Reaper(TIMES)
    clock.next_sweep(reaper)
    clock.leap(3600.0)
    assert clock.next_sweep(reaper) >= TIMES.lease
    assert clock.next_sweep(reaper) == TIMES.sweep


@pytest.mark.parametrize("by_ms", [3_600_000, -3_600_000, int(TIMES.lease * 1000)])
def test_nothing_is_reaped_for_one_lease_after_a_step_of_the_servers_clock(clock, by_ms):
    reaper = Reaper(TIMES)
    clock.next_sweep(reaper)
    assert clock.next_sweep(reaper, by_ms) >= TIMES.lease
    assert clock.next_sweep(reaper, by_ms) == TIMES.sweep
