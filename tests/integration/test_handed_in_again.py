"""A study that is handed in again while it is known, on a real Redis."""

from __future__ import annotations

import pytest
from hand_fleet import Fleet, turn_until


@pytest.fixture
def fleet(client, settings, tmp_path):
    return Fleet(client, settings, tmp_path)


def test_a_study_that_is_moved_to_another_queue_goes_on_there(fleet):
    """The worker reads `default` alone."""
    handle = fleet.submit(trials=2, resources={"queue": "big"})
    with fleet.service() as service:
        turn_until(service, lambda: service.status("s") is not None, "it is driven")
        assert not fleet.stored(), "no worker would take a trial"
        fleet.submit(trials=2)
        turn_until(service, lambda: len(fleet.leases.queued()) == 2, "it goes on")
        sent = []
        service._hints.send = lambda _study, number, _epoch, queue, *_: sent.append((number, queue))
        fleet.submit(trials=2, resources={"queue": "big"})
        turn_until(service, lambda: len(sent) == 2, "what waits is announced there")
        assert sorted(sent) == [(0, "big"), (1, "big")]
        for number in (0, 1):
            fleet.commit(number, 0.5)
        turn_until(service, lambda: handle.status().is_over, "it is over")
