"""Orchestrators that keep results in one database share its studies."""

from __future__ import annotations

import time
from collections import Counter, deque
from contextlib import contextmanager

import pytest
from hand_fleet import Fleet, is_over, put
from sqlalchemy.exc import OperationalError
from waiting import wait_until

from orchestrator.driving import driver, sharing
from orchestrator.driving.roster import Roster
from orchestrator.driving.service import Service
from orchestrator.handle import StudyHandle
from workers.coordination import keys
from workers.coordination.identity import ProcessIdentity
from workers.coordination.studies import Studies
from workers.coordination.study_lead import StudyLead, renew_all
from workers.processes.registry import ProcessRegistry
from workers.protocol.errors import InvalidInputError
from workers.protocol.messages import Result
from workers.protocol.states import TrialState, Wish


@pytest.fixture
def fleet(client, settings, tmp_path):
    database = {"storage": f"sqlite:///{tmp_path}/s.db"}
    made = Fleet(client, settings.model_copy(update=database), tmp_path)
    made.pretend_worker(queues=["default", *(f"of-s-{index}" for index in range(10))])
    return made


def put_alone(fleet, name):
    """Submit a study in a queue of its own."""
    put(fleet, name, resources={"queue": f"of-{name}"})


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
        put_alone(fleet, name)
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
            put_alone(fleet, name)

        def has_its_part(one):
            (others,) = one._sharing._others.values()
            return len(driven(one)) == 3 and sum(others.queues.values()) == 3

        turn(both, lambda: all(map(has_its_part, both)), "each has its part, and tells so")
        parts = driven(first), driven(second)
        kept_until = time.monotonic() + 4 * first._sharing._grace
        turn(both, lambda: time.monotonic() > kept_until, "some looks")
        assert (driven(first), driven(second)) == parts, "and keeps it"


def test_what_one_drove_that_vanished_is_taken_over_within_a_lease(fleet):
    names = {f"s-{index}" for index in range(4)}
    for name in names:
        put_alone(fleet, name)
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
    put_alone(fleet, "s-0")
    put_alone(fleet, "s-1")
    with Service(fleet.settings) as first:
        with on_another_host(fleet) as second:
            turn([first, second], lambda: len(driven(first)) == len(driven(second)) == 1, "shared")
        left_at = time.monotonic()
        turn([first], lambda: len(driven(first)) == 2, "the other one has both")
        assert time.monotonic() - left_at < fleet.settings.times.lease / 2


def test_who_keeps_results_elsewhere_shares_nothing(fleet, tmp_path):
    put_alone(fleet, "s-0")
    put_alone(fleet, "s-1")
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
        assert shares.queues == {"of-s-0": 1, "of-s-1": 1}


class TwoSlots:
    """Work on what is asked for, two trials at a time, in the order in which it was asked for."""

    def __init__(self, fleet, names):
        self.leases = {name: Studies(fleet.client).leases(name) for name in names}
        self.seen, self.waiting, self.held = set(), deque(), []
        self.num_ended = Counter()

    def look(self):
        """How many trials wait for a slot."""
        for name, leases in self.leases.items():
            new = {(name, number) for number in leases.queued()} - self.seen
            self.seen |= new
            self.waiting.extend(sorted(new))
        return len(self.waiting)

    def end(self):
        """End the trials that run."""
        for name, number, token in self.held:
            told = Result(values=[0.5], busy_seconds=60.0)
            self.leases[name].commit(number, token, TrialState.COMPLETE, told)
            self.num_ended[name] += 1

    def begin(self):
        """Begin two others."""
        begun = [self.waiting.popleft() for _ in range(2)]
        claims = [self.leases[name].claim(number, "hand", 600.0) for name, number in begun]
        self.held = [(*each, claim.token) for each, claim in zip(begun, claims, strict=True)]


def test_studies_of_one_queue_are_shared_and_its_slots_by_their_weights(fleet):
    weights = {"s-0": 1, "s-1": 3, "s-2": 1, "s-3": 3}
    for name, weight in weights.items():
        put(fleet, name, trials=200, share={"weight": weight})
    slots = TwoSlots(fleet, weights)
    with Service(fleet.settings) as first, on_another_host(fleet) as second:
        both = [first, second]
        turn(both, lambda: len(driven(first)) == len(driven(second)) == 2, "shared")
        for number in range(32):
            until = time.monotonic() + 0.2
            turn(both, lambda until=until: time.monotonic() > until, "they tell")
            slots.end()
            turn(both, lambda: slots.look() >= 2, "no slot stays idle")
            # what each asked for before it saw the other one is in flight at first
            assert len(slots.waiting) <= 5 or number < 10
            slots.begin()
    ended = sum(slots.num_ended.values())
    assert ended > 55
    for name, weight in weights.items():
        assert slots.num_ended[name] == pytest.approx(ended * weight / 8, abs=4), slots.num_ended


def test_who_cannot_open_a_study_is_handed_no_more_for_a_while(fleet, monkeypatch):
    names = {f"s-{index}" for index in range(4)}
    for name in names:
        put_alone(fleet, name)
    handed_on = []
    leave = Roster.leave
    monkeypatch.setattr(
        Roster, "leave", lambda self, name: (handed_on.append(name), leave(self, name))
    )
    with Service(fleet.settings) as first:
        turn([first], lambda: driven(first) == names, "the only one has all")
        with on_another_host(fleet) as second:
            own = str(second._record.identity)
            begin = driver.DrivenStudy.__init__

            def refuse(study, client, hints, name, settings, leader):
                if leader == own:
                    raise InvalidInputError("the database does not answer")
                begin(study, client, hints, name, settings, leader)

            monkeypatch.setattr(driver.DrivenStudy, "__init__", refuse)
            both = [first, second]
            turn(both, lambda: handed_on, "it is handed some")
            turn(both, lambda: driven(first) == names, "they come back")
            until = time.monotonic() + 20 * first._sharing._grace
            turn(both, lambda: time.monotonic() > until, "some looks more")
            assert driven(first) == names
            assert len(handed_on) <= 2, "once, and never again"
            handed_on.clear()


def test_what_does_not_get_on_for_long_is_left_to_one_where_it_does(fleet, monkeypatch):
    names = {f"s-{index}" for index in range(4)}
    for name in names:
        put(fleet, name)
    with Service(fleet.settings) as first, on_another_host(fleet) as second:
        both = [first, second]
        turn(both, lambda: len(driven(first)) == len(driven(second)) == 2, "shared")
        take_in, go_on = driver.StudyDriver.take_in, driver.StudyDriver.go_on

        def without_database(turn):
            def failing(self, *given):
                if any(self is each for each in second._roster.drivers.values()):
                    raise OperationalError("SELECT 1", {}, OSError("no route to host"))
                return turn(self, *given)

            return failing

        monkeypatch.setattr(driver.StudyDriver, "take_in", without_database(take_in))
        monkeypatch.setattr(driver.StudyDriver, "go_on", without_database(go_on))
        began = time.monotonic()
        turn(both, lambda: driven(first) == names, "the other one has all")
        assert time.monotonic() - began >= fleet.settings.times.lease
        turn([first], lambda: all(is_over(fleet, name) for name in names), "all end")


def test_what_others_drive_is_known_as_it_was_last_handed_in(fleet):
    put_alone(fleet, "s-0")
    with Service(fleet.settings) as first, on_another_host(fleet) as second:
        both = [first, second]
        turn(both, lambda: len(driven(first) | driven(second)) == 1, "it is driven")
        turn(both, lambda: all("s-0" in each._roster.submitted for each in both), "both know it")
        Studies(fleet.client).want("s-0", Wish.PAUSE)
        turn(
            both,
            lambda: all(each._roster.submitted["s-0"].wish is Wish.PAUSE for each in both),
            "a Redis that lost it gets it back from whomever as it was",
        )


def test_who_leaves_is_handed_nothing(fleet):
    put_alone(fleet, "s-0")
    with Service(fleet.settings) as first, on_another_host(fleet) as second:
        turn([first, second], lambda: first._sharing._others, "they see one another")
        second._sharing.withdraw()
        first._look()
        first._looked_at = 0.0
        first._look()
        assert not first._sharing._others


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("postgresql://u:a@db/fleet", "postgresql://u:b@db/fleet", True),
        ("postgresql+psycopg://u@db/fleet", "postgresql://u@db/fleet", True),
        ("postgresql://db/fleet", "postgresql://db/fleet?options=-csearch_path%3Db", False),
        ("postgresql://db/fleet", "postgresql://db:5433/fleet", False),
        ("postgresql://u@db/fleet", "postgresql://v@db/fleet", False),
        ("sqlite:////tmp/a.db", "sqlite:////tmp/../tmp/a.db", True),
        ("sqlite:////tmp/a.db", "sqlite:////tmp/b.db", False),
    ],
)
def test_one_database_is_told_from_another(one, other, is_same):
    assert (sharing._mark_of(one) == sharing._mark_of(other)) is is_same


@pytest.mark.parametrize(
    ("url", "is_local"),
    [
        ("postgresql://localhost/fleet", True),
        ("postgresql:///fleet", True),
        ("postgresql://[::1]/fleet", True),
        ("postgresql://127.0.1.1/fleet", True),
        ("sqlite:////tmp/a.db", True),
        ("postgresql://db/fleet", False),
        ("mysql+pymysql://10.0.0.7/fleet", False),
    ],
)
def test_a_database_of_this_host_is_not_that_of_another(url, is_local, monkeypatch):
    here = sharing._mark_of(url)
    monkeypatch.setattr(sharing, "hostname", lambda: "another")
    assert (sharing._mark_of(url) != here) is is_local


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
