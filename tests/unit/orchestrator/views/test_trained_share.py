from __future__ import annotations

from pathlib import Path

import pytest
from waiting import wait_until

from orchestrator.storage.event_history import EventHistory
from orchestrator.views import trained_share
from orchestrator.views.slot_time import slot_time
from orchestrator.views.trained_share import TrainedShare
from workers.protocol.events import Event, EventKind
from workers.protocol.states import TrialState


def event(seconds: float, kind: EventKind, **fields) -> Event:
    return Event(id=f"{round(seconds * 1000)}-0", kind=kind, trial=0, **fields)


#: A trial that was killed after its checkpoint, and the second attempt, which goes on.
EVENTS = [
    event(100, EventKind.CLAIMED, device="cpu-0"),
    event(106, EventKind.CHECKPOINT, step=3),
    event(110, EventKind.REQUEUED, held_ms=10_000, after_ms=2000),
    event(114, EventKind.CLAIMED, device="cpu-0"),
]
END = event(124, EventKind.ENDED, held_ms=10_000, after_ms=1000, state=TrialState.COMPLETE)


class Told(EventHistory):
    """What was told so far, and is read once."""

    def __init__(self, events: list[Event], now: float) -> None:
        super().__init__(file=None, stream=None)
        self.events, self.until = list(events), now

    @property
    def now(self) -> float:
        return self.until

    def read(self):
        told, self.events = self.events, []
        yield from told


def test_it_is_what_the_report_tells_of_the_same_events():
    history = Told(EVENTS, 120.0)
    share = TrainedShare(history)
    share.look()
    assert share.value == slot_time(EVENTS, 120.0).trained_share == pytest.approx(4 / 14)
    history.events, history.until = [END], 130.0
    share.look()
    assert share.value == slot_time([*EVENTS, END], None).trained_share == pytest.approx(13 / 24)


def test_looking_twice_counts_what_runs_once():
    history = Told(EVENTS, 120.0)
    share = TrainedShare(history)
    for _ in range(3):
        share.look()
    assert share.value == pytest.approx(4 / 14)


def test_it_is_read_beside_whoever_watches_and_outlives_what_cannot_be_read(monkeypatch):
    monkeypatch.setattr(trained_share, "_LOOK_SECONDS", 0.01)
    history = Told(EVENTS, 120.0)
    history.read, reads = lambda: (_ for _ in ()).throw(OSError("gone")), history.read
    with TrainedShare(history) as share:
        wait_until(share._thread.is_alive, "it reads")
        assert share.value is None
        history.read = reads
        wait_until(lambda: share.value, "it reads what is there")


def test_nothing_is_told_before_an_attempt_has_ended(tmp_path: Path):
    share = TrainedShare(EventHistory.of_study(None, tmp_path, "s"))
    share.look()
    assert share.value is None
