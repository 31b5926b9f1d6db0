"""Studies whose results lie in a database: PostgreSQL, and SQLite."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator

import optuna
import psycopg
import pytest
from hand_fleet import Fleet, turn_until
from postgres import PASSWORD, Postgres
from waiting import wait_until

from orchestrator.handle import StudyHandle
from orchestrator.status_building import stored_status
from orchestrator.storage.opening import StudyStorage, load_readonly, open_reader, stored_identity
from workers.protocol.errors import FleetError, InvalidInputError
from workers.protocol.messages import Result
from workers.protocol.states import TrialState


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    with Postgres() as started:
        yield started


@pytest.fixture(params=["sqlite", "postgres"])
def database(request, tmp_path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/studies.db"
    return request.getfixturevalue("postgres").url


def num_connections(url: str) -> int:
    """Sessions of a PostgreSQL but for the one that asks."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        return connection.execute(query).fetchone()[0] - 1


def test_a_database_whose_tables_another_process_is_just_making_holds_no_study_yet(tmp_path):
    path = tmp_path / "studies.db"
    url = f"sqlite:///{path}"
    optuna.storages.RDBStorage(url)
    with sqlite3.connect(path) as half_made:
        half_made.execute("DELETE FROM alembic_version")
    half_made.close()
    assert open_reader(url) is None
    with sqlite3.connect(path) as left:
        assert left.execute("SELECT count(*) FROM alembic_version").fetchone() == (0,)
    left.close()


def test_a_study_runs_from_submission_to_its_results_on_a_database(
    client, settings, tmp_path, database
):
    fleet = Fleet(client, settings.model_copy(update={"storage": database}), tmp_path)
    handle = fleet.submit(direction="maximize")
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 3, "three are in flight")
        grant = fleet.claim(0)
        for step, value in ((1, 0.5), (2, float("inf")), (3, float("nan"))):
            fleet.leases.report(0, grant.token, step, value)
        result = Result(values=[float("inf")], user_attrs={"text": "ä" * 3000, "list": [1, None]})
        fleet.leases.commit(0, grant.token, TrialState.COMPLETE, result)
        fleet.commit(1, None, TrialState.FAILED)
        turn_until(service, lambda: len(fleet.leases.queued()) > 1, "the next is asked for")
        fleet.commit(2, 0.25)
        fleet.commit(3, -1.5)
        turn_until(service, lambda: service.status("s").is_over, "all are told")
    states = ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert [trial.state.name for trial in handle.study.trials] == states
    assert handle.best_trial.value == float("inf")
    plain = optuna.load_study(study_name="s", storage=database)
    assert [trial.state.name for trial in plain.trials] == states
    first = plain.trials[0]
    assert (first.intermediate_values[1], first.intermediate_values[2]) == (0.5, float("inf"))
    assert first.user_attrs["text"] == "ä" * 3000
    plain._storage._backend.engine.dispose()
    # from the database alone, as for somebody who comes much later
    client.flushall()
    later = stored_status("s", fleet.settings)
    assert (later.state, later.trials["complete"], later.trials["failed"]) == ("finished", 3, 1)
    assert fleet.submit(direction="maximize").name == "s"
    with pytest.raises(InvalidInputError, match="direction"):
        fleet.submit(direction="minimize")


def test_who_looks_at_a_database_writes_nothing_there(tmp_path, database):
    assert open_reader(database) is None
    assert stored_identity(database, "s") is None
    with pytest.raises(InvalidInputError, match="study 's' is not known"):
        load_readonly(database, "s")
    opened = StudyStorage.open(database)
    study = optuna.create_study(study_name="s", storage=opened.storage)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    seen = load_readonly(database, "s")
    assert seen.trials == study.trials
    for write in (seen.ask, lambda: seen.set_user_attr("k", 1), lambda: seen.enqueue_trial({})):
        with pytest.raises(FleetError, match="reading only"):
            write()
    assert len(study.trials) == 3
    opened.close()


def test_who_looks_at_a_file_that_is_not_there_makes_none(tmp_path):
    for _ in range(2):
        assert open_reader(f"sqlite:///{tmp_path}/studies.db") is None
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(InvalidInputError, match="unable to open database file"):
        open_reader(f"sqlite:///{tmp_path}/no/such/folder/studies.db")


def test_neither_who_looks_nor_who_has_closed_keeps_a_connection(postgres):
    opened = StudyStorage.open(postgres.url)
    optuna.create_study(study_name="s", storage=opened.storage)
    before = num_connections(postgres.url)
    kept = [load_readonly(postgres.url, "s") for _ in range(5)]
    assert [each.trials for each in kept] == [[]] * 5
    wait_until(lambda: num_connections(postgres.url) == before, "only the writer is connected")
    opened.close()
    wait_until(lambda: num_connections(postgres.url) == 0, "nobody is connected")


def test_several_who_open_an_empty_database_at_once_find_it_made(postgres):
    for attempt in range(3):
        with psycopg.connect(postgres.url.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE at_once_{attempt}")
        url = postgres.url.rpartition("/")[0] + f"/at_once_{attempt}"
        together, opened, failed = threading.Barrier(4), [], []

        def open_it(url=url, together=together, opened=opened, failed=failed):
            together.wait()
            try:
                opened.append(StudyStorage.open(url))
            except FleetError as error:
                failed.append(error)

        threads = [threading.Thread(target=open_it) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for each in opened:
            each.close()
        assert failed == []


def test_a_database_that_is_away_for_seconds_is_waited_for(client, settings, tmp_path, postgres):
    fleet = Fleet(client, settings.model_copy(update={"storage": postgres.url}), tmp_path)
    handle = fleet.submit(trials=3)
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 3, "three are in flight")
        postgres.stop()
        fleet.commit(0, 0.5)
        turn_until(service, lambda: handle.status().stalled, "it stands still, and says why")
        assert PASSWORD not in str(handle.status().stalled)
        fleet.commit(1, 0.25)
        postgres.start()
        fleet.commit(2, 0.75)
        turn_until(service, lambda: service.status("s").is_over, "it goes on")
        assert handle.status().stalled is None
    assert [trial.values for trial in handle.study.trials] == [[0.5], [0.25], [0.75]]


def test_the_schema_of_a_release_that_is_too_new_is_refused_by_name(tmp_path):
    path = tmp_path / "studies.db"
    StudyStorage.open(f"sqlite:///{path}").close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v99.0.0.a'")
    connection.close()
    for look in (StudyStorage.open, open_reader):
        with pytest.raises(InvalidInputError, match=r"studies\.db.*no longer compatible"):
            look(f"sqlite:///{path}")


def test_a_databases_password_is_in_no_key_of_redis(client, settings, tmp_path, postgres):
    fleet = Fleet(client, settings.model_copy(update={"storage": postgres.url}), tmp_path)
    fleet.submit(trials=1)
    with fleet.service() as service:
        turn_until(service, fleet.leases.queued, "one is in flight")
        fleet.commit(0, 0.5)
        turn_until(service, lambda: service.status("s").is_over, "it is over")
    for key in client.scan_iter():
        assert PASSWORD.encode() not in client.dump(key) or client.type(key) == "none", key
    assert PASSWORD not in str(StudyHandle("s", fleet.settings).status().model_dump())
