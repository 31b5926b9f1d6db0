"""Every pair of what the storage and Redis may hold of a study has one answer; none waits."""

from __future__ import annotations

import itertools
import json
import shutil

import optuna
import pytest
from hand_fleet import SPACE, Fleet, turn_until

from orchestrator.driving import service as service_module
from orchestrator.driving.service import Service
from orchestrator.storage.attributes import GENERATION_ATTR
from orchestrator.storage.opening import StudyStorage, journal_path, open_reader, storage_url
from orchestrator.storage.place import place_of
from workers.coordination import keys
from workers.coordination.grants import Grant
from workers.coordination.studies import Studies
from workers.protocol.errors import InvalidInputError
from workers.protocol.messages import Result
from workers.protocol.states import TrialState

WANTED = 4


@pytest.fixture(params=["journal", "sqlite"])
def fleet(request, client, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(service_module, "_BLOCK_MS", 5)  # more turns in the same time
    database = f"sqlite:///{tmp_path}/studies.db" if request.param == "sqlite" else None
    return Fleet(client, settings.model_copy(update={"storage": database}), tmp_path)


def url(fleet):
    return storage_url(fleet.settings, "s")


def submit(fleet):
    return fleet.submit(trials=WANTED)


def serve_until(fleet, num_ended, value, place=None):
    """Serve, as the only worker, until so many trials have ended; each returns a value."""
    studies, lies_at = Studies(fleet.client), place or url(fleet)
    with Service(fleet.settings) as service:

        def are_there():
            leases = studies.leases("s")
            # what is left of an earlier study may be worked on, and is dropped: it does not count
            left = num_ended - num_complete(lies_at) - fleet.client.xlen(keys.inbox("s"))
            for number in sorted(leases.queued())[: max(0, left)]:
                grant = leases.claim(number, "hand", 45.0)
                if isinstance(grant, Grant):
                    result = Result(values=[value])
                    leases.commit(number, grant.token, TrialState.COMPLETE, result)
            status = studies.facts.get("s", "status")
            is_shown = status is not None and status["trials"]["complete"] >= num_ended
            return is_shown and num_complete(lies_at) >= num_ended

        turn_until(service, are_there, f"{num_ended} have ended")


def num_complete(lies_at):
    storage = open_reader(lies_at)
    studies = [] if storage is None else storage.get_all_studies()
    return sum(len(complete(storage, each)) for each in studies)


def complete(storage, study):
    return storage.get_all_trials(
        study._study_id, deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)
    )


def values(fleet):
    return [trial.value for trial in fleet.stored()]


def generation(fleet):
    (study,) = open_reader(url(fleet)).get_all_studies()
    return study.user_attrs.get(GENERATION_ATTR)


def remove_storage(fleet):
    if fleet.settings.storage:
        optuna.delete_study(study_name="s", storage=fleet.settings.storage)
    else:
        shutil.rmtree(journal_path(fleet.settings.home, "s").parent)


def forget_generation(fleet):
    """Leave the storage as a release before this one did."""
    if fleet.settings.storage:
        storage = StudyStorage.open(fleet.settings.storage)
        study_id = storage.storage.get_study_id_from_name("s")
        storage.storage.set_study_user_attr(study_id, GENERATION_ATTR, "")
        storage.close()
        return
    path = journal_path(fleet.settings.home, "s")
    lines = [line for line in path.read_text().splitlines(True) if GENERATION_ATTR not in line]
    path.write_text("".join(lines))


#: What befalls the storage; whether the results of before are kept.
STORAGE = {
    "it stays": (lambda _fleet: None, True),
    "it was removed by hand": (remove_storage, False),
    "it is of a release before": (forget_generation, True),
}


def trial_keys(fleet):
    return [key for key in fleet.client.scan_iter("fleet:{s}:*") if key != keys.study("s")]


def drop_study_hash(fleet):
    fleet.client.delete(keys.study("s"))
    fleet.client.srem(keys.STUDIES, "s")


def as_a_release_before(fleet):
    fleet.client.hdel(keys.study("s"), "generation", "place")
    fleet.client.hset(keys.study("s"), "storage", url(fleet))


def of_another_generation(fleet):
    fleet.client.hset(keys.study("s"), "generation", "f" * 32)


#: What befalls Redis.
REDIS = {
    "it stays": lambda _fleet: None,
    "it lost its data": lambda fleet: (fleet.client.flushall(), fleet.pretend_worker()),
    "its trials are gone": lambda fleet: fleet.client.delete(*trial_keys(fleet)),
    "its study is gone": drop_study_hash,
    "it is of a release before": as_a_release_before,
    "it is of another generation": of_another_generation,
}


@pytest.mark.parametrize(
    ("fleet", "ended"),
    [
        pytest.param("journal", 2, id="journal-amid it"),
        pytest.param("journal", WANTED, id="journal-after its end"),
        pytest.param("sqlite", 2, id="sqlite-amid it"),
        pytest.param("sqlite", WANTED, id="sqlite-after its end", marks=pytest.mark.long),
    ],
    indirect=["fleet"],
)
def test_whatever_befell_storage_and_redis_a_study_that_is_handed_in_again_comes_to_its_end(
    fleet, ended
):
    removed = "it was removed by hand"
    # a database takes long, and differs where rows are removed
    rows = {removed: STORAGE[removed]} if fleet.settings.storage else STORAGE
    for (of_storage, (spoil_storage, keeps)), (of_redis, spoil_redis) in itertools.product(
        rows.items(), REDIS.items()
    ):
        submit(fleet)
        serve_until(fleet, ended, 1.0)
        before = generation(fleet)
        told = values(fleet)
        assert len(told) - told.count(None) >= ended
        spoil_storage(fleet)
        spoil_redis(fleet)
        submit(fleet)
        serve_until(fleet, WANTED, 2.0)
        found = values(fleet)
        assert len(found) == WANTED, (of_storage, of_redis)
        if keeps:
            assert found[:ended] == told[:ended], (of_storage, of_redis)
        else:
            assert found == [2.0] * WANTED, (of_storage, of_redis)
        is_same = of_storage == "it stays"
        assert (generation(fleet) == before) is is_same or of_storage.endswith("before")
        origin = Studies(fleet.client).origin("s")
        assert origin == (generation(fleet), place_of(url(fleet)), None)
        remove_storage(fleet)
        fleet.client.flushall()
        fleet.pretend_worker()


def test_a_storage_that_is_removed_under_a_serving_orchestrator_is_begun_anew(fleet):
    submit(fleet)
    studies = Studies(fleet.client)
    with Service(fleet.settings) as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 3, "it is in flight")
        before = generation(fleet)
        old = fleet.claim(0)
        remove_storage(fleet)
        turn_until(service, lambda: open_reader(url(fleet)), "there is a storage again")

        def is_new():
            return studies.origin("s").generation not in {None, before}

        turn_until(service, is_new, "it is another one")
        turn_until(service, lambda: len(fleet.leases.queued()) == 3, "it is in flight again")
        assert fleet.leases.renew(0, old.token, 45.0, 1) is None, "the old one is fenced"
        assert (
            fleet.leases.commit(0, old.token, TrialState.COMPLETE, Result(values=[9.0])) == "LOST"
        )
    serve_until(fleet, WANTED, 2.0)
    assert values(fleet) == [2.0] * WANTED


def test_a_removed_study_may_come_back_with_other_settings(fleet):
    submit(fleet)
    serve_until(fleet, WANTED, 1.0)
    remove_storage(fleet)
    handle = fleet.submit(trials=WANTED, direction="maximize", space={**SPACE, "y": SPACE["x"]})
    assert handle.status().best is None, "nothing is shown of the one before"
    serve_until(fleet, WANTED, 2.0)
    assert values(fleet) == [2.0] * WANTED
    assert all(set(trial.params) == {"x", "y"} for trial in fleet.stored())


def test_an_orchestrator_that_keeps_results_elsewhere_does_not_begin_a_study_twice(fleet, tmp_path):
    submit(fleet)
    serve_until(fleet, 1, 1.0)
    elsewhere = tmp_path / "elsewhere"
    other = fleet.settings.model_copy(
        update={"home": elsewhere, "storage": f"sqlite:///{tmp_path}/other.db"}
    )
    if fleet.settings.storage:
        # the place of a server is no file that could be opened by its name
        fleet.client.hset(keys.study("s"), "place", "postgresql://***@db.example/studies")
        fleet.client.hset(keys.study("s"), "generation", "0" * 32)
        with Service(other) as service:
            reason = turn_until(
                service, lambda: Studies(fleet.client).facts.get("s", "stalled"), "it says why"
            )
        assert "postgresql://***@db.example/studies" in reason
        with (
            Service(other, only="s") as alone,
            pytest.raises(InvalidInputError, match="has its results in postgresql"),
        ):
            alone.turn()
        return
    moved = fleet.settings.model_copy(update={"home": fleet.settings.home})
    fleet.settings = moved.model_copy(update={"storage": None})
    serve_until(fleet, WANTED, 2.0)
    assert values(fleet)[0] == 1.0


def test_no_password_of_a_storage_comes_into_redis_nor_its_url_from_a_submitter(fleet, tmp_path):
    secret = f"sqlite:///file:{tmp_path}/x.db?uri=true&password=mallory"
    theirs = fleet.settings.model_copy(update={"storage": secret})
    ours, fleet.settings = fleet.settings, theirs
    submit(fleet)
    fleet.settings = ours
    serve_until(fleet, WANTED, 2.0)
    dump = json.dumps([fleet.client.hgetall(key) for key in fleet.client.scan_iter("*:study")])
    assert "mallory" not in dump
    assert "x.db" not in dump
    assert values(fleet) == [2.0] * WANTED, "in the orchestrator's own storage"
    assert json.loads(dump)[0]["place"] == place_of(url(fleet))


def test_an_earlier_releases_place_is_gone_on_with(fleet, tmp_path):
    """It was the submitter's choice, a password perhaps included."""
    theirs = tmp_path / "of-the-submitter" / "studies" / "s" / "journal.log"
    submit(fleet)
    ours, fleet.settings = (
        fleet.settings,
        fleet.settings.model_copy(update={"home": fleet.settings.home, "storage": None}),
    )
    serve_until(fleet, 2, 1.0)
    theirs.parent.mkdir(parents=True)
    journal_path(fleet.settings.home, "s").rename(theirs)
    fleet.settings = ours
    fleet.client.hdel(keys.study("s"), "generation", "place")
    fleet.client.hset(keys.study("s"), "storage", f"journal://{theirs}")
    serve_until(fleet, WANTED, 2.0, f"journal://{theirs}")
    assert Studies(fleet.client).origin("s").place == place_of(f"journal://{theirs}")
    found = [trial.value for trial in optuna.load_study(
        study_name="s", storage=open_reader(f"journal://{theirs}")
    ).trials]  # fmt: skip
    assert found.count(1.0) >= 2
    assert len(found) == WANTED


@pytest.mark.parametrize("fleet", ["journal"], indirect=True)
def test_a_storage_that_lost_its_tail_asks_anew_for_what_redis_has_as_ended(fleet):
    submit(fleet)
    serve_until(fleet, 3, 1.0)
    running = fleet.claim(3)
    path = journal_path(fleet.settings.home, "s")
    lines = path.read_text().splitlines(keepends=True)
    creations = [at for at, line in enumerate(lines) if json.loads(line)["op_code"] == 4]
    path.write_text("".join(lines[: creations[2]]))
    assert len(values(fleet)) == 2
    studies = Studies(fleet.client)
    with Service(fleet.settings) as service:

        def is_over():
            for number in fleet.leases.queued():
                fleet.commit(number, 2.0)
            status = studies.facts.get("s", "status")
            return len(values(fleet)) == WANTED and status["state"] == "finished"

        turn_until(service, is_over, "it is over")
    late = Result(values=[9.0])
    assert fleet.leases.commit(3, running.token, TrialState.COMPLETE, late) == "LOST"
    assert values(fleet)[2:] == [2.0, 2.0]
    lost = [trial for trial in fleet.stored()[:2] if trial.value is None]
    assert all("result was lost" in trial.user_attrs["trialfleet:error"] for trial in lost)
