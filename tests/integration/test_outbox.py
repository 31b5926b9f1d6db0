"""Results and files on disk, of processes that live, that died, and of trials that ended."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, BrokenBarrierError

import pytest

from workers.coordination.identity import ProcessIdentity
from workers.coordination.studies import Studies
from workers.disk.ended_trials import EndedTrials
from workers.disk.outbox import Outbox, OutboxEntry
from workers.disk.results import draft_directory, earlier_draft_directory
from workers.protocol.messages import Result
from workers.protocol.spec import StudySpec
from workers.protocol.states import TrialState

LEASE = 45.0


@pytest.fixture
def leases(client):
    studies = Studies(client)
    studies.submit(StudySpec(name="s"))
    return studies.leases("s")


@pytest.fixture
def dead():
    """The identity of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = ProcessIdentity.of(process.pid)
    process.kill()
    process.communicate()
    return identity


def entry_of(leases, owner, home, number=0):
    leases.enqueue(number, {})
    grant = leases.claim(number, "o", LEASE)
    files = draft_directory(home, "s", number, grant.token)
    files.mkdir(parents=True)
    return OutboxEntry(
        study="s",
        number=number,
        epoch=leases.epoch,
        token=grant.token,
        state=TrialState.COMPLETE,
        result=Result(values=[0.5]),
        owner=owner,
        files=files,
    )


def result_of(home, number):
    return home / "studies" / "s" / "trials" / str(number) / "result"


def test_the_result_of_a_dead_process_is_committed_and_published_and_of_a_live_one_left(
    leases, dead, tmp_path
):
    outbox = Outbox(tmp_path)
    abandoned = entry_of(leases, dead, tmp_path)
    own = entry_of(leases, ProcessIdentity.current(), tmp_path, number=1)
    outbox.write(abandoned)
    outbox.write(own)
    outbox.commit_abandoned(lambda *_: leases, LEASE)
    assert leases.record(0).state is TrialState.COMPLETE
    assert result_of(tmp_path, 0).is_dir()
    assert leases.record(1).state is TrialState.RUNNING
    assert outbox.entries() == [own]
    outbox.commit_abandoned(lambda *_: leases, 0.0)
    assert outbox.entries() == [], "after a lease, nobody else will do it"


def test_a_result_that_two_commit_at_once_is_published_once(leases, tmp_path, monkeypatch):
    both_look = Barrier(2)
    remove = shutil.rmtree

    def meet_and_remove(path, **options):
        try:
            both_look.wait(timeout=0.5)
        except BrokenBarrierError:
            both_look.reset()
        remove(path, **options)

    monkeypatch.setattr(shutil, "rmtree", meet_and_remove)
    entry = entry_of(leases, ProcessIdentity.current(), tmp_path)
    (entry.files / "model").write_text("weights")
    Outbox(tmp_path).write(entry)
    with ThreadPoolExecutor(2) as pool:
        commits = [pool.submit(Outbox(tmp_path).commit, entry, leases) for _ in range(2)]
    assert sorted(commit.result() for commit in commits) == ["DUP", "OK"]
    assert (result_of(tmp_path, 0) / "model").read_text() == "weights"


def test_a_kill_between_the_old_result_and_the_new_one_leaves_the_new_one(
    leases, dead, tmp_path, monkeypatch
):
    (result_of(tmp_path, 0)).mkdir(parents=True)
    (result_of(tmp_path, 0) / "model").write_text("of a study before")
    entry = entry_of(leases, dead, tmp_path)
    (entry.files / "model").write_text("weights")
    Outbox(tmp_path).write(entry)

    def killed(_self, _target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            Outbox(tmp_path).commit(entry, leases)
    assert not result_of(tmp_path, 0).exists()
    Outbox(tmp_path).commit_abandoned(lambda *_: leases, LEASE)
    assert (result_of(tmp_path, 0) / "model").read_text() == "weights"
    assert Outbox(tmp_path).entries() == []


def test_a_result_is_published_where_the_disk_takes_no_lock(leases, tmp_path):
    entry = entry_of(leases, ProcessIdentity.current(), tmp_path)
    (tmp_path / "outbox.lock").mkdir()  # stands for an error of the disk
    assert Outbox(tmp_path).commit(entry, leases) == "OK"
    assert result_of(tmp_path, 0).is_dir()


def test_a_draft_that_was_never_finished_is_no_result_and_goes_in_time(leases, dead, tmp_path):
    outbox = Outbox(tmp_path)
    outbox.write(entry_of(leases, dead, tmp_path))
    (path,) = (tmp_path / "outbox").iterdir()
    draft = path.rename(path.with_name(f"{path.name}.draft"))
    outbox.commit_abandoned(lambda *_: leases, LEASE)
    assert leases.record(0).state is TrialState.RUNNING
    assert draft.exists()
    os.utime(draft, (0, 0))
    outbox.commit_abandoned(lambda *_: leases, LEASE)
    assert not draft.exists()


@pytest.mark.parametrize("content", [b"", bytes(300)])
def test_an_entry_that_a_power_cut_left_without_content_goes_after_a_lease(tmp_path, content):
    outbox = Outbox(tmp_path)
    (tmp_path / "outbox").mkdir()
    empty, broken = (tmp_path / "outbox" / name for name in ("s-0-7.json", "s-1-7.json"))
    empty.write_bytes(content)
    broken.write_bytes(b"{")
    os.utime(broken, (0, 0))
    outbox.commit_abandoned(lambda *_: None, LEASE)
    assert empty.exists(), "it may be on its way to the disk"
    os.utime(empty, (0, 0))
    outbox.commit_abandoned(lambda *_: None, LEASE)
    assert (empty.exists(), broken.exists()) == (False, True)


def test_a_result_that_redis_lost_its_data_for_is_brought_to_disk(leases, tmp_path, monkeypatch):
    entry = entry_of(leases, ProcessIdentity.current(), tmp_path)
    outbox, brought = Outbox(tmp_path), []
    outbox.write(entry)
    monkeypatch.setattr(Outbox, "bring_to_disk", lambda _, entry: brought.append(entry.name))
    outbox.settle(entry, "LOST", leases)
    assert (brought, outbox.entries()) == ([], []), "another attempt runs"
    outbox.write(entry)
    with monkeypatch.context() as patch:
        patch.setattr(type(leases), "is_current", lambda _: False)
        outbox.settle(entry, "LOST", leases)
    assert (brought, outbox.entries()) == ([entry.name], [entry])


def test_what_ended_trials_left_is_removed_and_what_others_need_is_not(client, leases, tmp_path):
    current = ProcessIdentity.current()
    ended, running = (entry_of(leases, current, tmp_path, number) for number in (0, 1))
    for number in (0, 1, 2):
        (tmp_path / "checkpoints" / "s" / str(number) / "7" / "step-000000001").mkdir(parents=True)
    (tmp_path / "checkpoints" / "unknown" / "0").mkdir(parents=True)
    lost = [
        draft_directory(tmp_path, "s", 0, 7),
        earlier_draft_directory(tmp_path, "s", 0, 8),
        earlier_draft_directory(tmp_path, "s", 0, 9),
    ]
    for path in lost[:2]:
        path.mkdir(parents=True)
    strange = draft_directory(tmp_path, "s", 0, 7).with_name("0-7.kept")
    strange.mkdir()
    leases.commit(0, ended.token, TrialState.COMPLETE, Result(values=[0.5]))
    ended_trials = EndedTrials(client, tmp_path)
    ended_trials.remove()
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.glob("checkpoints/*/*")}
    assert left == {"checkpoints/s/1", "checkpoints/s/2", "checkpoints/unknown/0"}
    assert [path.exists() for path in lost] == [False] * 3
    assert strange.exists(), "it has no name of ours"
    assert ended.files.exists(), "it was accepted, and is about to be published"
    assert running.files.exists()
    lost[2].mkdir(parents=True)
    assert ended_trials.remove() == [], "what the earlier release left is looked for once"


def test_drafts_of_a_dead_trial_are_removed_whoever_wrote_them(client, leases, tmp_path):
    entry = entry_of(leases, ProcessIdentity.current(), tmp_path)
    leases.fail(0, entry.token, Result(error="boom"), 1, 0.0)
    assert EndedTrials(client, tmp_path).remove() == [entry.files]
    assert not entry.files.exists()


def test_an_entry_of_the_earlier_release_is_published_from_where_its_files_lie(
    leases, dead, tmp_path
):
    entry = entry_of(leases, dead, tmp_path)
    earlier = earlier_draft_directory(tmp_path, "s", 0, entry.token)
    earlier.parent.mkdir(parents=True)
    entry.files.rename(earlier)
    (earlier / "model").write_text("weights")
    outbox = Outbox(tmp_path)
    outbox.write(entry.model_copy(update={"files": earlier}))
    outbox.commit_abandoned(lambda *_: leases, LEASE)
    assert leases.record(0).state is TrialState.COMPLETE
    assert (result_of(tmp_path, 0) / "model").read_text() == "weights"
    assert not earlier.exists()


def test_a_result_is_flushed_to_disk_only_where_redis_does_not_answer_at_once(
    leases, tmp_path, monkeypatch
):
    entry = entry_of(leases, ProcessIdentity.current(), tmp_path)
    flushed: list[str] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    outbox = Outbox(tmp_path)
    outbox.write(entry)
    assert outbox.entries() == [entry]
    assert flushed == []
    outbox.bring_to_disk(entry)
    assert flushed == [entry.name, "outbox"]
    outbox.commit(entry, leases)
    outbox.bring_to_disk(entry)  # somebody has committed it: nothing is left to flush
    assert outbox.entries() == []
