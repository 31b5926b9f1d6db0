"""A trial that failed in a process is left to others, and for how long."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from workers.protocol.messages import RunTrial
from workers.protocol.spec import StudySpec
from workers.protocol.states import TrialState
from workers.trials import passing_on
from workers.trials.outcomes import Outcome
from workers.trials.passing_on import PassingOn

BEAT = 10.0


class Place:
    """A process in which trial 0 failed, and another one in which it did not."""

    def __init__(self, monkeypatch) -> None:
        self.now, self.attempt, self.pause, self.is_taken = 0.0, 1, 0.0, False
        monkeypatch.setattr(passing_on, "lease_clock", lambda: self.now)
        monkeypatch.setattr(passing_on.time, "sleep", self._sleep)
        nobody = SimpleNamespace(
            differs=lambda _: False,
            is_lacking=lambda _: False,
            has=lambda *_: True,
            has_other_than=lambda *_: True,
            pass_on=lambda *_: None,
        )
        self.others = PassingOn(
            nobody, nobody, nobody, nobody, nobody, nobody, nobody, nobody, BEAT
        )
        self.leases = SimpleNamespace(
            record=lambda _: SimpleNamespace(
                state=TrialState.QUEUED, attempt=self.attempt, failed_in=()
            ),
            is_queued=lambda _: not self.is_taken,
            pause_seconds=lambda _: self.pause,
        )

    def _sleep(self, seconds: float) -> None:
        self.now += seconds

    def offered(self) -> Outcome | None:
        spec = StudySpec(name="s", objective="a:b")
        trials = SimpleNamespace(hand_on=lambda _: None)
        return self.others.leave(
            self.leases, spec, RunTrial(study="s", number=0, epoch="e"), trials
        )


@pytest.fixture
def place(monkeypatch):
    return Place(monkeypatch)


def test_a_fresh_process_takes_the_place_where_all_others_are_busy_for_a_minute(place):
    while place.offered() is Outcome.ENDED:
        assert place.now < 100
    assert place.offered() is Outcome.SICK
    assert place.now >= 60


def test_what_another_one_takes_or_had_meanwhile_ends_no_process(place):
    assert place.offered() is Outcome.ENDED
    place.now += 300
    place.is_taken = True
    assert place.offered() is Outcome.ENDED, "another one is quicker"
    place.is_taken, place.attempt = False, 2
    place.now += 300
    assert place.offered() is Outcome.ENDED, "it failed there, too, and is left anew"


def test_the_pause_before_another_attempt_is_no_time_in_which_others_are_busy(place):
    place.pause = 128.0
    assert place.offered() is Outcome.ENDED
    place.now, place.pause = 128.0, 0.0
    assert place.offered() is Outcome.ENDED
