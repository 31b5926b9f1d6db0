"""`delete`: a study with all that it left, whole, and its name free for a new one."""

from __future__ import annotations

import json
import shutil

import optuna
import pytest
from hand_fleet import Fleet, turn_until

import orchestrator
from orchestrator.driving.deletion import try_delete
from orchestrator.driving.driven import DrivenStudy
from orchestrator.driving.driver import StudyDriver
from orchestrator.driving.event_filing import EventFiling
from orchestrator.driving.service import Service
from orchestrator.handle import StudyHandle
from orchestrator.local.delete_study import delete_study
from orchestrator.storage import results_removal as removal
from orchestrator.storage.attributes import former_name
from orchestrator.storage.results_removal import remove_results
from workers.coordination import keys
from workers.coordination.deletions import Deletions
from workers.coordination.identity import ProcessIdentity
from workers.coordination.leases import TrialLeases
from workers.coordination.studies import Studies
from workers.disk.ended_trials import EndedTrials
from workers.processes.registry import ProcessRecord, ProcessRegistry
from workers.protocol.errors import InvalidInputError, StudyNotKnownError
from workers.protocol.messages import Result
from workers.protocol.states import ProcessKind, TrialState


@pytest.fixture
def fleet(client, settings, tmp_path):
    return Fleet(client, settings, tmp_path)


def test_a_script_takes_a_study_home_and_deletes_it(fleet, tmp_path):
    handle = fleet.submit(trials=1)
    with fleet.service() as service:
        turn_until(service, lambda: fleet.leases.is_queued(0), "it is in flight")
        assert handle.table().rows[0]["state"] == "queued"
        fleet.commit(0, 0.5)
        turn_until(service, lambda: service.status("s").is_over, "it is over")
    (row,) = json.loads(handle.export(tmp_path / "trials.json").read_text())
    assert (row["number"], row["state"], row["value"]) == (0, "complete", 0.5)
    assert handle.export(tmp_path / "trials.csv").read_text().startswith("number,state,value")
    with pytest.raises(InvalidInputError, match=r"name a file with \.csv, \.json, \.parquet"):
        handle.export(tmp_path / "trials.xlsx")
    with pytest.raises(InvalidInputError, match="nothing was written"):
        handle.export(tmp_path / "trials.csv" / "below.csv")
    handle.delete()
    assert remains(fleet) == set()
    with pytest.raises(StudyNotKnownError):
        handle.delete()
    assert orchestrator.delete_study is delete_study


@pytest.fixture
def serve(fleet):
    """An orchestrator of all studies."""

    def make(settings=None):
        return Service(settings or fleet.settings)

    return make


def leave_something(home):
    """What trials leave in a home."""
    paths = [home / "studies/s/trials/0/result/model", home / "checkpoints/s/1/5/step-1"]
    for path in paths:
        path.mkdir(parents=True)
        (path / "weights").write_bytes(b"w")


def remains(fleet, home=None):
    """What is left of study `s`, in Redis and in a home."""
    home = home or fleet.settings.home
    found = {key for key in fleet.client.keys("*") if "{s}" in key}
    found |= {"name"} if fleet.studies().exists("s") else set()
    found |= {str(path) for path in home.glob("*/s")}
    return found | {str(path) for path in home.glob("deleted/*")}


@pytest.fixture(autouse=True)
def _studies(monkeypatch):
    monkeypatch.setattr(Fleet, "studies", lambda self: Studies(self.client), raising=False)


def test_an_orchestrator_deletes_what_it_drives_and_the_name_is_free(fleet, serve):
    fleet.submit()
    leave_something(fleet.settings.home)
    with serve() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 3, "it is driven")
        fleet.commit(0, 0.5)
        turn_until(service, lambda: len(fleet.stored()) == 4, "it goes on")
        Deletions(fleet.client).begin("s")
        turn_until(service, lambda: not fleet.studies().exists("s"), "it is deleted")
        assert remains(fleet) == set()
        fleet.submit()
        turn_until(service, lambda: len(fleet.leases.queued()) == 3, "the new one is driven")
    stored = fleet.stored()
    assert [trial.number for trial in stored] == [0, 1, 2]
    assert not any(trial.state.is_finished() for trial in stored)
    assert StudyHandle("s", fleet.settings).status().state == "running"


def test_trials_that_run_end_first(fleet, serve):
    fleet.submit()
    with serve() as service:
        turn_until(service, fleet.leases.queued, "it is driven")
        grant = fleet.claim(0)
        Deletions(fleet.client).begin("s")
        for _ in range(10):
            service.turn()
        assert fleet.studies().exists("s")
        assert fleet.leases.renew(0, grant.token, 30.0, 1) == "CANCEL"
        fleet.leases.commit(0, grant.token, TrialState.CANCELLED, Result())
        turn_until(service, lambda: not fleet.studies().exists("s"), "it is deleted")
    assert remains(fleet) == set()


def test_a_study_whose_trials_run_is_refused(fleet, settings):
    fleet.submit()
    slot = ProcessRecord(ProcessRegistry(fleet.client, settings.times), ProcessKind.TRIAL)
    slot.identity = slot.identity._replace(pid=2)
    slot.update(study="s", trial=3)
    with pytest.raises(InvalidInputError, match="trials 3 run; `trialfleet cancel s` ends them"):
        delete_study("s", settings)
    assert Deletions(fleet.client).begun() == []


@pytest.mark.parametrize("storage", ["journal", "database"])
def test_without_an_orchestrator_the_command_does_it_itself(fleet, serve, tmp_path, storage):
    if storage == "database":
        url = f"sqlite:///{tmp_path}/studies.db"
        fleet.settings = fleet.settings.model_copy(update={"storage": url})
        kept = optuna.create_study(study_name="s-other", storage=url)
        optuna.create_study(study_name=former_name("s"), storage=url)
    fleet.submit()
    leave_something(fleet.settings.home)
    with serve() as service:
        turn_until(service, fleet.leases.queued, "it is driven")
    delete_study("s", fleet.settings)
    assert remains(fleet) == set()
    with pytest.raises(StudyNotKnownError):
        StudyHandle("s", fleet.settings).status()
    if storage == "database":
        assert optuna.get_all_study_names(url) == [kept.study_name]
    with serve() as service:  # it does not come back from anywhere
        for _ in range(3):
            service.turn()
    assert remains(fleet) == set()


@pytest.mark.parametrize("before", ["its results", "what Redis holds"])
def test_one_who_stood_still_past_his_right_deletes_nothing_of_a_new_study(
    fleet, serve, monkeypatch, before
):
    fleet.submit()
    with serve() as service:
        turn_until(service, fleet.leases.queued, "it is driven")
    Deletions(fleet.client).begin("s")
    locate, finish, suspended = removal.locate, Deletions.finish, []

    def stand_still():
        """Meanwhile the right runs out, another one deletes the study, and a new one is begun."""
        suspended.append(True)
        fleet.client.delete(keys.lead("s"))
        assert try_delete(fleet.client, fleet.settings, "s", ProcessIdentity("b", "b", 3, 4))
        fleet.submit(trials=9)
        with serve() as other:
            turn_until(other, fleet.leases.queued, "the new one is driven")

    def located(*arguments):
        found = locate(*arguments)
        if before == "its results" and not suspended:
            stand_still()
        return found

    def finished(*arguments):
        if before == "what Redis holds" and not suspended:
            stand_still()
        finish(*arguments)

    monkeypatch.setattr(removal, "locate", located)
    monkeypatch.setattr(Deletions, "finish", finished)
    assert not try_delete(fleet.client, fleet.settings, "s", ProcessIdentity("a", "b", 1, 2))
    assert suspended
    assert fleet.leases.queued(), "the trials of the new one are there"
    assert StudyHandle("s", fleet.settings).status().wanted == 9
    assert len(fleet.stored()) == 3


@pytest.mark.parametrize("step", ["begun", "results removed", "Redis forgot", "put aside"])
def test_a_deletion_that_was_broken_off_is_completed_by_the_next_orchestrator(fleet, serve, step):
    fleet.submit()
    leave_something(fleet.settings.home)
    with serve() as service:
        turn_until(service, fleet.leases.queued, "it is driven")
    Deletions(fleet.client).begin("s")
    origin = fleet.studies().origin("s")
    if step == "put aside":
        (fleet.settings.home / "deleted").mkdir()
        (fleet.settings.home / "studies/s").rename(fleet.settings.home / "deleted/s-1")
    if step in {"results removed", "Redis forgot"}:
        remove_results(fleet.settings, "s", origin)
    if step == "Redis forgot":
        fleet.studies().forget("s")
    with pytest.raises(InvalidInputError, match="is being deleted"):
        fleet.submit()
    with serve() as service:
        turn_until(service, lambda: not fleet.studies().exists("s"), "it is completed")
    assert remains(fleet) == set()
    fleet.submit()


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        (DrivenStudy, "_take_wider_space"),  # nothing of it is there yet
        (EventFiling, "begin"),
        (StudyDriver, "_catch_up"),
        (TrialLeases, "enqueue_all"),  # they are on disk
    ],
)
def test_one_that_was_suspended_in_a_turn_writes_nothing_of_what_is_deleted_meanwhile(
    fleet, serve, monkeypatch, kind, step
):
    fleet.submit()
    do, other = getattr(kind, step), ProcessIdentity.current()._replace(pid=1)
    has_deleted: list[bool] = []

    def suspended_before_it(*arguments):
        if not has_deleted:
            fleet.client.delete(keys.lead("s"))  # its time is up
            Deletions(fleet.client).begin("s")
            has_deleted.append(try_delete(fleet.client, fleet.settings, "s", other))
        return do(*arguments)

    monkeypatch.setattr(kind, step, suspended_before_it)
    with serve() as service:
        turn_until(service, lambda: has_deleted, "it is suspended, and goes on")
        turn_until(service, lambda: "s" not in service._roster, "it has noticed")
    assert has_deleted == [True]
    assert {key for key in fleet.client.keys("*") if "{s}" in key} == set()


def test_who_was_refused_the_study_does_not_bring_it_back(fleet, serve, settings):
    fleet.submit()
    with serve() as driver:
        turn_until(driver, fleet.leases.queued, "it is driven")
        with serve() as second:
            second._roster.submitted["s"] = fleet.studies().submitted(
                "s"
            )  # as one that was refused it
            Deletions(fleet.client).begin("s")
            turn_until(driver, lambda: not fleet.studies().exists("s"), "it is deleted")
            second._looked_at = 0.0
            second.turn()
            assert "s" not in second._roster.submitted
    assert remains(fleet) == set()


def test_other_hosts_remove_what_they_hold_unless_the_name_is_another_study_s(fleet, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    leave_something(elsewhere)
    fleet.submit()
    sweep = EndedTrials(fleet.client, elsewhere)
    sweep.remove()
    assert len(remains(fleet, elsewhere)) > 2
    delete_study("s", fleet.settings)
    fleet.submit()  # a new one
    sweep.remove()
    assert (elsewhere / "studies/s/trials/0/result/model/weights").exists()
    delete_study("s", fleet.settings)
    sweep.remove()
    assert remains(fleet, elsewhere) == set()


def test_what_was_deleted_and_put_back_from_a_copy_stays(fleet, settings, tmp_path):
    handle = fleet.submit(trials=1)
    with fleet.service() as service:
        turn_until(service, lambda: fleet.leases.is_queued(0), "it is in flight")
        fleet.commit(0, 0.25)
        turn_until(service, lambda: service.is_done("s"), "it is over")
    leave_something(settings.home)
    folder, copy = settings.home / "studies" / "s", tmp_path / "copy"
    shutil.copytree(folder, copy)
    handle.delete()
    shutil.copytree(copy, folder)
    EndedTrials(fleet.client, settings.home).remove()
    assert StudyHandle("s", settings).best_trial.value == 0.25
    assert (folder / "trials/0/result/model/weights").exists()
    delete_study("s", settings)
    EndedTrials(fleet.client, settings.home).remove()
    assert not folder.exists()


def test_results_that_are_kept_elsewhere_are_not_half_deleted(fleet, serve, settings, tmp_path):
    fleet.submit()
    with serve() as service:
        turn_until(service, fleet.leases.queued, "it is driven")
    fleet.client.hset(keys.study("s"), "place", "journal:///far/away/journal.log on other-host")
    own = settings.model_copy(update={"home": tmp_path / "own"})
    Deletions(fleet.client).begin("s")
    with pytest.raises(InvalidInputError, match="has its results in"):
        try_delete(fleet.client, own, "s", ProcessIdentity.current())
    assert fleet.studies().exists("s")


def test_a_name_that_is_not_there_is_answered_with_the_nearest(fleet, settings):
    fleet.submit(name="language-id")
    with pytest.raises(StudyNotKnownError, match="did you mean 'language-id'"):
        delete_study("langage-id", settings)
    assert Deletions(fleet.client).begun() == []
