"""A trial's record of which somebody wrote one field wrong: the trial alone is seen to."""

from __future__ import annotations

import pytest
from hand_fleet import Fleet, turn_until, work

from workers.coordination import keys
from workers.coordination.grants import Refusal
from workers.coordination.trial_record import TrialRecord

#: Fields of a record, with what no release writes there.
BAD = {
    "param:x": "{",
    "state": "BUSY",
    "token": "7.5",
    "attempt": "",
    "failures": "many",
    "losses": " 1",
    "not_before": "soon",
    "drawn": "[]",
    "error": "not JSON",
    "rung": "-",
    "step": "nan",
    "reported_step": "one",
    "checkpoint": "/somewhere",  # and nothing of its step
}


@pytest.fixture
def fleet(client, settings, tmp_path):
    return Fleet(client, settings.model_copy(update={"time_scale": 0.02}), tmp_path)


@pytest.mark.parametrize("name", BAD)
def test_an_error_names_the_field_and_what_it_holds(fleet, name):
    fleet.submit()
    fleet.leases.enqueue(0, {"x": 0.5})
    fields = fleet.client.hgetall(keys.trial("s", 0)) | {name: BAD[name]}
    named = "checkpoint_step is missing" if name == "checkpoint" else f"^{name} = {BAD[name]!r} "
    with pytest.raises(ValueError, match=named.replace("[", r"\[").replace("{", r"\{")):
        TrialRecord.parse(fields)


def test_records_that_cannot_be_read_are_written_anew_and_nothing_stands_still(fleet):
    handle = fleet.submit(trials=len(BAD), sampler={"type": "random"})
    fleet.pretend_worker(slots=len(BAD))
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == len(BAD), "they are in flight")
    drawn = [trial.params for trial in fleet.stored()]
    for number, name in enumerate(BAD):
        fleet.client.hset(keys.trial("s", number), name, BAD[name])
    assert fleet.leases.claim(0, "hand", 45.0) == Refusal("ALTERED"), "nobody runs what it says"
    with fleet.service() as service:

        def is_over():
            work(fleet, "s")
            return service.status("s") is not None and service.status("s").is_over

        turn_until(service, is_over, "all are run")
    assert [trial.params for trial in fleet.stored()] == drawn, "as they were drawn"
    assert handle.status().trials["complete"] == len(BAD)
    assert any("written anew" in reason for reason in handle.status().set_aside)
    assert handle.status().losses == 0
