"""Events that come at once are printed at once, and each is printed."""

from __future__ import annotations

import pytest
import redis

from orchestrator.commands import events
from workers.protocol.events import decode


def told(number, error=None):
    for at in range(number):
        yield decode(f'{{"id":"{at}-0","kind":"asked","trial":{at}}}')
    if error is not None:
        raise error


def test_they_come_in_order_and_so_many_at_a_time(monkeypatch):
    monkeypatch.setattr(events, "_PRINTED_AT_ONCE", 3)
    found = [[each.trial for each in batch] for batch in events._batches(told(7))]
    assert found == [[0, 1, 2], [3, 4, 5], [6]]


def test_what_was_told_before_redis_went_away_is_printed_as_it_is_not_told_again():
    found = []
    with pytest.raises(redis.ConnectionError):
        found.extend(events._batches(told(2, redis.ConnectionError("it is away"))))
    assert [each.trial for batch in found for each in batch] == [0, 1]
