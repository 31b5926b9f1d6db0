"""Orchestrators that keep results in one database share its studies."""

from __future__ import annotations

import time
from contextlib import contextmanager

import pytest
from hand_fleet import Fleet, is_over, put
from waiting import wait_until

from orchestrator.driving.service import Service
from orchestrator.handle import StudyHandle
from workers.coordination import keys
from workers.coordination.identity import ProcessIdentity
from workers.coordination.study_lead import StudyLead, renew_all
from workers.processes.registry import ProcessRegistry


@pytest.fixture
def fleet(client, settings, tmp_path):
    database = {"storage": f"sqlite:///{tmp_path}/s.db"}
    return Fleet(client, settings.model_copy(update=database), tmp_path)


@contextmanager
def on_another_host(fleet):
    """A second orchestrator, with a home of its own, that is no process of this host."""
    settings = fleet.settings.model_copy(update={"home": fleet.settings.home.parent / "other"})
    other = ProcessIdentity.current()._replace(host="other")
    service = Service(settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProcessIdentity, "current", classmethod(lambda _: other))
        service.__enter__()
    try:
        yield service
    finally:
        service.__exit__()


def driven(service):
    return set(service._roster.drivers)


def turn(services, condition, what):
    def turned():
        for each in services:
            each.turn()
        return condition()

    wait_until(turned, what)


def test_who_comes_later_gets_its_part_and_no_trial_is_lost_or_doubled(fleet):
    names = {f"s-{index}" for index in range(7)}
    for name in names:
        put(fleet, name)
    with Service(fleet.settings) as first:
        turn([first], lambda: driven(first) == names, "the only one has all")
        with on_another_host(fleet) as second:
            both = [first, second]
            turn(
                both,
                lambda: len(driven(second)) >= 3 and len(driven(first)) >= 3,
                "it gets its part",
            )
            turn(both, lambda: all(is_over(fleet, name) for name in names), "all end")
    for name in names:
        states = [trial.state.name for trial in StudyHandle(name, fleet.settings).study.trials]
        assert states == ["COMPLETE"] * 2


def test_what_is_handed_in_beside_two_goes_to_both(fleet):
    with Service(fleet.settings) as first, on_another_host(fleet) as second:
        both = [first, second]
        turn(both, lambda: first._sharing._others and second._sharing._others, "they see them")
        names = {f"s-{index}" for index in range(6)}
        for name in names:
            put(fleet, name)
        turn(
            both,
            lambda: len(driven(first)) == len(driven(second)) == 3,
            "each has its part",
        )
        parts = driven(first), driven(second)
        kept_until = time.monotonic() + 4 * first._sharing._grace
        turn(both, lambda: time.monotonic() > kept_until, "some looks")
        assert (driven(first), driven(second)) == parts, "and keeps it"


def test_what_one_drove_that_vanished_is_taken_over_within_a_lease(fleet):
    names = {f"s-{index}" for index in range(4)}
    for name in names:
        put(fleet, name)
    with Service(fleet.settings) as first, on_another_host(fleet) as second:
        turn([first, second], lambda: len(driven(first)) == len(driven(second)) == 2, "shared")
        vanished_at = time.monotonic()
        turn([first], lambda: driven(first) == names, "the other one has all")
        taken = time.monotonic() - vanished_at
        times = fleet.settings.times
        assert times.lease / 2 < taken < 2 * times.lease
        second.turn()  # it goes on as if nothing had been
        assert not driven(second) & driven(first)


def test_what_one_leaves_is_taken_up_at_once(fleet):
    put(fleet, "s-0")
    put(fleet, "s-1")
    with Service(fleet.settings) as first:
        with on_another_host(fleet) as second:
            turn([first, second], lambda: len(driven(first)) == len(driven(second)) == 1, "shared")
        left_at = time.monotonic()
        turn([first], lambda: len(driven(first)) == 2, "the other one has both")
        assert time.monotonic() - left_at < fleet.settings.times.lease / 2


def test_who_keeps_results_elsewhere_shares_nothing(fleet, tmp_path):
    put(fleet, "s-0")
    put(fleet, "s-1")
    with Service(fleet.settings) as first:
        turn([first], lambda: len(driven(first)) == 2, "it has both")
        elsewhere = {"storage": f"sqlite:///{tmp_path}/elsewhere.db"}
        fleet.settings = fleet.settings.model_copy(update=elsewhere)
        with on_another_host(fleet) as second:
            for _ in range(20):
                first.turn(), second.turn()
            assert len(driven(first)) == 2
        found = ProcessRegistry(fleet.client, fleet.settings.times).entries()
        (shares,) = [each.shares for each in found if each.shares]
        assert shares.studies == 2


def test_rights_are_renewed_together_but_those_that_are_anothers_by_now(client):
    own, other = ProcessIdentity.current(), ProcessIdentity.current()._replace(host="other")
    rights = [StudyLead(client, f"s-{index}", own, 40.0) for index in range(3)]
    assert all(right.hold() for right in rights)
    for right in rights:
        client.pexpire(keys.lead(right.study), 20_000)
    client.set(keys.lead("s-1"), str(other), px=20_000)
    assert renew_all(rights) == [True, False, True]
    assert rights[1].holder() == other
    left = [client.pttl(keys.lead(right.study)) > 30_000 for right in rights]
    assert left == [True, False, True]
    client.delete(keys.lead("s-2"))
    client.lpush(keys.lead("s-2"), "nobody's")
    assert renew_all(rights) == [False] * 3, "which one is wrong is found one by one"
