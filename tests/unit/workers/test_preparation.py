from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from workers.trials import preparation
from workers.trials.preparation import Preparation


@pytest.fixture
def pass_seconds(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(preparation, "lease_clock", lambda: now[0])

    def move(seconds):
        now[0] += seconds

    return move


def test_what_takes_long_is_said_now_and_then_and_taken_back(pass_seconds):
    shown = []
    work = Preparation(shown.append, 5.0)
    with capture_logs() as logs:
        for second in range(12):
            work.tell("rows read", 1000 * second, 12000)
            pass_seconds(1.0)
        work.end()
        work.end()
    assert shown == ["rows read: 5,000 of 12,000", "rows read: 10,000 of 12,000", None]
    assert [(each["event"], each["done"], each["of"]) for each in logs] == [
        ("preparing", 5000, 12000),
        ("preparing", 10000, 12000),
    ]


def test_what_takes_a_moment_is_not_worth_a_word(pass_seconds):
    shown = []
    work = Preparation(shown.append, 5.0)
    for _ in range(3):
        work.tell("rows read", 0, 0)
        pass_seconds(4.0)
        work.end()
    assert shown == []
