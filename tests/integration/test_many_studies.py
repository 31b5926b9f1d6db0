"""More studies at once than files or connections that a process may have open."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import redis
from hand_fleet import Fleet, is_over, put, turn_until
from waiting import wait_until

from orchestrator.driving import service as loop
from orchestrator.driving.driver import StudyDriver
from orchestrator.driving.service import Service
from orchestrator.storage import open_files
from orchestrator.storage.journal import JournalFile
from workers.coordination import keys
from workers.coordination import studies as studies_in_redis
from workers.coordination.studies import Studies
from workers.protocol.errors import StudyTakenOverError
from workers.protocol.states import Wish


@pytest.fixture
def fleet(client, settings, tmp_path):
    return Fleet(client, settings, tmp_path)


def open_now(name):
    """How many files of this process end with a name."""
    links = Path("/proc/self/fd").iterdir()
    return sum(str(link.readlink()).endswith(name) for link in links if link.is_symlink())


def test_more_journals_than_may_be_open_are_written_all_the_same(fleet, monkeypatch):
    monkeypatch.setattr(open_files, "most_journals", lambda: 3)
    names = [f"s-{index}" for index in range(12)]
    for name in names:
        put(fleet, name)
    fleet.pretend_worker(slots=24)
    with Service(fleet.settings) as service:
        leases = [Studies(fleet.client).leases(name) for name in names]
        turn_until(service, lambda: all(each.queued() for each in leases), "all are driven")
        turn_until(service, lambda: open_now("journal.log") <= 4, "most rest")
        turn_until(service, lambda: all(is_over(fleet, name) for name in names), "all are over")
    assert open_now("journal.log") == 0


def test_all_studies_of_a_database_share_a_few_connections(fleet, tmp_path):
    fleet.settings = fleet.settings.model_copy(update={"storage": f"sqlite:///{tmp_path}/s.db"})
    names = [f"s-{index}" for index in range(20)]
    for name in names:
        put(fleet, name)
    fleet.pretend_worker(slots=40)
    with Service(fleet.settings) as service:
        leases = [Studies(fleet.client).leases(name) for name in names]
        turn_until(service, lambda: all(each.queued() for each in leases), "all are driven")
        assert open_now("s.db") <= 15
    assert open_now("s.db") == 0


def test_a_journal_that_rested_while_another_process_wrote_it_is_written_no_more(tmp_path):
    path = tmp_path / "journal.log"
    first = JournalFile(path)
    first.append_logs([{"a": 1}])
    assert first.rest()
    assert path.read_text() == '{"a":1}\n'
    first.append_logs([{"a": 2}])
    first.sync()
    assert first.rest()
    second = JournalFile(path)
    with pytest.raises(StudyTakenOverError, match="by another"):
        first.append_logs([{"a": 3}])
    second.append_logs([{"b": 1}])
    second.close()
    with pytest.raises(StudyTakenOverError, match="by another"):
        first.append_logs([{"a": 3}])
    first.close()
    assert path.read_text() == '{"a":1}\n{"a":2}\n{"b":1}\n'


def test_of_studies_that_rest_few_are_seen_to_in_one_turn_and_each_again_and_again(
    fleet, monkeypatch
):
    monkeypatch.setattr(loop, "_AT_A_TIME", 2)
    names = [f"s-{index}" for index in range(7)]
    for name in names:
        put(fleet, name)
        Studies(fleet.client).want(name, Wish.PAUSE)
    seen_to, look_after, look_at_resting = [[]], StudyDriver.look_after, Service._look_at_resting
    is_among_them = []

    def noted(driver, sweep):
        if is_among_them:
            seen_to[-1].append(driver.name)
        look_after(driver, sweep)

    def note(service):
        is_among_them.append(True)
        look_at_resting(service)
        is_among_them.clear()

    monkeypatch.setattr(StudyDriver, "look_after", noted)
    monkeypatch.setattr(Service, "_look_at_resting", note)
    with Service(fleet.settings) as service:

        def have_all_been_seen_to():
            counted = Counter(name for turn in seen_to for name in turn)
            seen_to.append([])
            return all(counted[name] >= 2 for name in names)

        turn_until(service, have_all_been_seen_to, "each was seen to twice")
    assert max(map(len, seen_to)) <= 2


def test_all_studies_are_read_at_once_whatever_lies_in_the_place_of_one(fleet, monkeypatch):
    monkeypatch.setattr(studies_in_redis, "_AT_A_TIME", 2)
    for name in ("s-0", "s-1"):
        put(fleet, name)
    fleet.client.set(keys.study("odd"), "no hash")
    found = Studies(fleet.client).handed(["s-0", "odd", "none", "s-1", "odd"])
    assert list(found) == ["s-0", "odd", "none", "s-1"]
    assert [found[name].fields[2] for name in ("s-0", "s-1")] == ["run", "run"]
    assert (found["none"].error, set(found["none"].fields)) == (None, {None})
    assert isinstance(found["odd"].error, redis.ResponseError)
    assert Studies(fleet.client).handed([]) == {}


def test_serve_drives_more_studies_than_it_may_have_files_open(fleet):
    names = [f"s-{index:03}" for index in range(170)]
    for name in names:
        put(fleet, name)
    fleet.pretend_worker(slots=1000)
    environment = {**os.environ, **fleet.settings.to_environment()}
    command = f"ulimit -n 150; exec {sys.executable} -m orchestrator serve"
    process = subprocess.Popen(["bash", "-c", command], env=environment)
    try:
        studies = Studies(fleet.client)
        wait_until(
            lambda: all(studies.leases(name).queued() for name in names), "all are driven", 120.0
        )
        assert {studies.facts.get(name, "stalled") for name in names} == {None}
    finally:
        process.terminate()
        process.wait(60)
    assert process.returncode == 0
