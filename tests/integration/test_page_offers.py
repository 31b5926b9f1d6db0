"""What the page offers of a study is what the fleet would do of it, in each state that there is."""

from __future__ import annotations

import json

import pytest
from hand_fleet import Fleet, turn_until

from orchestrator.dashboard.actions import act
from orchestrator.dashboard.study_feed import StudyFeed
from orchestrator.handle import StudyHandle
from workers.coordination import keys
from workers.protocol.errors import InvalidInputError
from workers.protocol.states import TrialState, Wish

#: What is asked of each verb: each would change something where it is taken.
ASKED = {
    "resume": {}, "pause": {}, "stop": {}, "cancel": {}, "enqueue": {"params": {"x": 0.75}},
    "extend": {"trials": 9}, "retry": {},
}  # fmt: skip


@pytest.fixture(params=["running", "over"])
def fleet(request, client, settings, tmp_path) -> Fleet:
    """One trial failed, and one is complete or waits."""
    made = Fleet(client, settings, tmp_path)
    made.submit(trials=2, max_failures=1)
    with made.service() as service:
        turn_until(service, lambda: made.leases.is_queued(0), "the first is enqueued")
        made.commit(0, None, TrialState.FAILED)
        turn_until(service, lambda: made.leases.is_queued(1), "the second is enqueued")
        if request.param == "over":
            made.commit(1, 0.5)
            turn_until(service, lambda: service.is_done("s"), "it is over")
        handle = StudyHandle("s", settings)
        turn_until(service, lambda: handle.status().trials["failed"] == 1, "it is published")
    assert handle.status().is_over == (request.param == "over")
    return made


def snapshot(client) -> dict[str, bytes]:
    """All that Redis holds, to be put back."""
    return {key: client.dump(key) for key in client.keys("*")}


def put_back(client, held: dict[str, bytes]) -> None:
    for key in client.keys("*"):
        if key not in held:
            client.delete(key)
    for key, value in held.items():
        client.restore(key, 0, value, replace=True)


def wished(client, wish: Wish) -> None:
    """Have the study be one of which this is wanted, as its orchestrator would publish it."""
    key = keys.study("s")
    told = json.loads(client.hget(key, "fact:status"))
    client.hset(key, mapping={"wish": wish.value, "fact:status": json.dumps(told | {"wish": wish})})


def of_the_study(client) -> list:
    """What people's wishes and orders are kept in; one pause or the other is the same here."""
    wish, *told = client.hmget(keys.study("s"), "wish", "spec", "ordered")
    return [Wish(wish or Wish.RUN).is_pause or wish, told, client.hgetall(keys.orders("s"))]


@pytest.mark.parametrize("wish", Wish)
def test_what_is_offered_is_what_would_be_done(fleet, settings, client, wish):
    handle, feed = StudyHandle("s", settings), StudyFeed("s", settings)
    wished(client, wish)
    feed.look()
    document = feed.since(-1)["study"]
    assert (document["wish"], document["num_failed"]) == (wish, 1)
    before, held = of_the_study(client), snapshot(client)
    done = []
    for verb, asked in ASKED.items():
        try:
            act(handle, verb, json.dumps(asked).encode())
        except InvalidInputError:
            assert of_the_study(client) == before, f"{verb} was refused, and done"
        if of_the_study(client) != before:
            done.append(verb)
        put_back(client, held)
    assert sorted(document["offers"]) == sorted(done)
