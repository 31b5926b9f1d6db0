"""Process records and outbox entries that hold anything: 10,000 of each kind of damage together.

Nothing that they name is touched, nobody stops for them, and what lies beside them is seen to.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from workers.coordination import keys
from workers.coordination.identity import ProcessIdentity
from workers.coordination.setbacks import Setbacks
from workers.coordination.studies import Studies
from workers.disk.fleet_home import FleetHome
from workers.disk.outbox import Outbox, OutboxEntry
from workers.disk.results import draft_directory
from workers.disk.scratch import make_scratch, name_scratch, remove_scratch
from workers.disk.shared_memory import shared_memory_prefixes
from workers.processes.cleaner import Cleaner
from workers.processes.registry import ProcessRecord, ProcessRegistry
from workers.protocol.messages import Result
from workers.protocol.spec import StudySpec
from workers.protocol.states import TrialState

SEED = int(os.environ.get("RECORDS_SEED", random.SystemRandom().randrange(10**6)))
ROUNDS = 20
PER_ROUND = 250


@pytest.fixture
def pick():
    print(f"RECORDS_SEED={SEED}")
    return random.Random(SEED)


@pytest.fixture
def dead():
    """The identity of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        identity = ProcessIdentity.of(process.pid)
        process.kill()
    return identity


@pytest.fixture
def cleaner(client, settings):
    home = FleetHome(client, settings.home)
    home.lead()
    made = Cleaner(client, ProcessRegistry(client, settings.times), settings)
    yield made
    made.close()
    home.close()


def nasty(pick, tmp_path):
    """A value that somebody might write where another one belongs."""
    precious = str(tmp_path / "precious")
    return pick.choice([
        None, True, -1, 0, 2**70, 1.5, float("nan"), "", "..", "../..", "/", precious, "\0", "s",
        "\ud800", "x" * 5000, f"{precious}/../precious", [], [precious], [None], {}, {"a": 1},
        ["/dev/shm/", "torch_"], [[[[]]]], "main", "COMPLETE", "0", os.getpid(), str(Path.cwd()),
    ])  # fmt: skip


def mutated_bytes(pick, content):
    """A file as a disk or an editor may leave it."""
    data = bytearray(content)
    for _ in range(pick.randrange(1, 4)):
        at = pick.randrange(len(data) + 1) if data else 0
        match pick.randrange(5):
            case 0:
                del data[at:]
            case 1:
                data[at : at + pick.randrange(20)] = b""
            case 2:
                data[at:at] = bytes(pick.randrange(256) for _ in range(pick.randrange(8)))
            case 3:
                data[at : at + 1] = pick.choice(
                    [b"[" * 3000, b"{", b"}", b'"', b"\xff", b"\0", b"../"]
                )
            case 4:
                data[at:at] = data[: pick.randrange(len(data) + 1)]
    return bytes(data)


def tree(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def abandoned(leases, owner, home, number):
    leases.enqueue(number, {})
    grant = leases.claim(number, "o", 45.0)
    files = draft_directory(home, leases.study, number, grant.token)
    files.mkdir(parents=True)
    return OutboxEntry(
        study=leases.study,
        number=number,
        epoch=leases.epoch,
        token=grant.token,
        state=TrialState.COMPLETE,
        result=Result(values=[0.5]),
        owner=owner,
        files=files,
    )


def submitted(client):
    studies = Studies(client)
    studies.submit(StudySpec(name="s"))
    return studies.leases("s")


def test_of_10000_damaged_outbox_entries_none_stops_anybody_or_reaches_outside(
    client, settings, cleaner, dead, pick, tmp_path
):
    home, leases = settings.home, submitted(client)
    for folder in (tmp_path / "precious", home / "studies" / "other" / "trials" / "0" / "result"):
        folder.mkdir(parents=True)
        (folder / "file").write_text("x")
    (tmp_path / "precious" / "attempt-1").mkdir()
    kept = tree(tmp_path / "precious"), tree(home / "studies" / "other")
    registry = ProcessRegistry(client, settings.times)
    for number in range(ROUNDS):
        entry = abandoned(leases, dead, home, number)
        Outbox(home).write(entry)
        text = (home / "outbox" / entry.name).read_text()
        for each in range(PER_ROUND):
            document = json.loads(text)
            # its owner is not dead, for all that anybody knows, unless the mutation says so
            document[pick.choice(list(document))] = nasty(pick, tmp_path)
            inner = document.get("result")
            if isinstance(inner, dict) and pick.random() < 0.3:
                inner[pick.choice([*inner, "new"])] = nasty(pick, tmp_path)
            whole = json.dumps(document).encode()
            name = pick.choice([entry.name.replace(".json", f"{each}.json"), f"s-{each}-7.json"])
            (home / "outbox" / name).write_bytes(whole)
            (home / "outbox" / f"{each}.json").write_bytes(mutated_bytes(pick, text.encode()))
        (home / "outbox" / f"folder-{number}.json").mkdir()
        cleaner._outbox = Outbox(home)  # one that has not given any of them up yet
        cleaner.sweep_host()
        assert leases.record(number).state is TrialState.COMPLETE, "the whole one was committed"
        assert (home / "studies" / "s" / "trials" / str(number) / "result").is_dir()
        assert (tree(tmp_path / "precious"), tree(home / "studies" / "other")) == kept
        assert len(list((home / "outbox").iterdir())) > PER_ROUND, "what cannot be read is left"
        shutil.rmtree(home / "outbox")
    assert list(registry.entries()) == []
    assert {path.name for path in home.iterdir()} >= {"studies", "fleet.id"}


def test_of_10000_damaged_process_records_none_stops_anybody_or_reaches_outside(
    client, settings, cleaner, dead, pick, tmp_path, monkeypatch
):
    leases = submitted(client)
    registry = ProcessRegistry(client, settings.times)
    own = ProcessRecord(registry)
    own.add_scratch(used := name_scratch(own.identity))
    make_scratch(used)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x")
    kept = tree(tmp_path / "precious")
    for number in range(ROUNDS):
        leases.enqueue(number, {})
        token = leases.claim(number, str(dead), 45.0).token
        (left := name_scratch(dead)).mkdir(parents=True)
        fields = {"kind": "trial", "user": os.getuid(), "study": "s", "trial": number}
        fields |= {"token": token, "scratch": [str(left)], "shared_memory": []}
        registry.register(dead, fields)
        written = _write_damaged(client, registry, pick, tmp_path, dead, fields, used)
        cleaner.sweep_host()
        assert leases.record(number).state is TrialState.QUEUED, "the whole one was seen to"
        assert not left.exists()
        assert registry.find(dead) is None
        assert used.exists()
        assert tree(tmp_path / "precious") == kept
        own.beat()  # a busy machine takes longer for a round than its lease is long
        assert str(own.identity) in {str(entry.identity) for entry in registry.entries()}
        for member in written:
            client.zrem(keys.PROCESSES, member)
            client.delete(keys.process(member))
    own.gone()
    remove_scratch(used, own.identity)


def _write_damaged(client, registry, pick, tmp_path, dead, fields, used):
    """Records of this process, of dead ones, of strangers and of nobody; whose they are."""
    current, written = ProcessIdentity.current(), []
    pipeline = client.pipeline()
    for each in range(2 * PER_ROUND):
        identity = pick.choice([
            current._replace(start_ticks=each + 1),  # another one has its pid now
            current._replace(host="elsewhere", start_ticks=each),
            current._replace(boot_id="before", start_ticks=each),
            ProcessIdentity(dead.host, dead.boot_id, pick.choice([1, 2**31, 2**70, 2**22]), each),
        ])  # fmt: skip
        member = str(identity)
        if pick.random() < 0.1:
            member = pick.choice([f"{each}", f":::{each}", f"a:b:-1:{each}", f"\udcff{each}" * 3])
            member = member.encode(errors="backslashreplace").decode()
        record = {
            **fields,
            "scratch": [str(used), str(used.parent / ".."), str(tmp_path / "precious")],
        }
        record[pick.choice(list(record))] = nasty(pick, tmp_path)
        pairs = {name: json.dumps(value) for name, value in record.items()}
        if pick.random() < 0.2:
            pairs[pick.choice(list(pairs))] = pick.choice(["", "{", "[" * 5000, "NaN", "\0"])
        if pick.random() < 0.05:
            pipeline.set(keys.process(member), "no hash")
        else:
            pipeline.hset(keys.process(member), mapping=pairs)
        pipeline.zadd(keys.PROCESSES, {member: pick.choice([0, 1e18, float("inf")])})
        written.append(member)
    pipeline.execute(raise_on_error=False)
    return written


def test_a_result_comes_back_to_a_redis_that_lost_its_data(client, settings, cleaner, dead):
    leases = submitted(client)
    entry = abandoned(leases, dead, settings.home, 0)
    (entry.files / "model").write_text("weights")
    Outbox(settings.home).write(entry)
    fleet = client.get(keys.FLEET)
    client.flushall()
    client.set(keys.FLEET, fleet)
    cleaner.sweep_host()
    assert len(Outbox(settings.home).entries()) == 1, "the study is not back yet"
    leases = submitted(client)
    leases.enqueue(0, {})
    running = leases.claim(0, "another attempt", 45.0)
    cleaner.sweep_host()
    assert leases.record(0).token == running.token, "which is left alone"
    leases.release(0, running.token)
    cleaner.sweep_host()
    assert leases.record(0).state is TrialState.COMPLETE
    assert (
        settings.home / "studies" / "s" / "trials" / "0" / "result" / "model"
    ).read_text() == "weights"
    assert Outbox(settings.home).entries() == []


def test_its_owner_leaves_a_result_that_redis_lost_its_data_under(client, settings, dead):
    leases = submitted(client)
    outbox, entry = Outbox(settings.home), abandoned(leases, dead, settings.home, 0)
    outbox.write(entry)
    client.set(keys.EPOCH, "another")
    assert outbox.commit(entry, leases) == "LOST"
    assert outbox.entries() == [entry]


def test_an_entry_of_a_fenced_attempt_goes(client, settings, dead):
    leases = submitted(client)
    outbox, entry = Outbox(settings.home), abandoned(leases, dead, settings.home, 0)
    leases.release(0, entry.token)
    outbox.write(entry)
    assert outbox.commit(entry, leases) == "LOST"
    assert outbox.entries() == []


def test_a_damaged_study_holds_up_no_other(client, settings, cleaner, dead):
    """Its specification cannot be read; the dead process's record waits for one that can be."""
    registry = ProcessRegistry(client, settings.times)
    leases = submitted(client)
    leases.enqueue(0, {})
    token = leases.claim(0, str(dead), 45.0).token
    registry.register(dead, {"kind": "trial", "study": "s", "trial": 0, "token": token})
    spec = client.hget(keys.study("s"), "spec")
    client.hset(keys.study("s"), "spec", "{")
    cleaner.sweep_host()
    assert registry.find(dead) is not None
    client.hset(keys.study("s"), "spec", spec)
    cleaner._setbacks = Setbacks(0.0)
    cleaner.sweep_host()
    assert registry.find(dead) is None
    assert leases.record(0).state is TrialState.QUEUED


def test_a_record_goes_last_only_when_nothing_is_left(client, settings, cleaner, dead, monkeypatch):
    registry = ProcessRegistry(client, settings.times)
    (left := name_scratch(dead)).mkdir(parents=True)
    registry.register(dead, {"kind": "trial", "scratch": [str(left)]})
    cleaner._setbacks = Setbacks(0.0)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda *_, **__: None)  # a disk that lets go of nothing
        cleaner.sweep_host()
        assert registry.find(dead).scratch == [left]
    cleaner.sweep_host()
    assert not left.exists()
    assert registry.find(dead) is None


def test_the_last_look_tries_again_what_was_left_a_moment_ago(
    client, settings, cleaner, dead, monkeypatch
):
    """No other worker may come here again."""
    registry = ProcessRegistry(client, settings.times)
    (left := name_scratch(dead)).mkdir(parents=True)
    registry.register(dead, {"kind": "trial", "scratch": [str(left)]})
    cleaner._setbacks = Setbacks(1000.0)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda *_, **__: None)
        cleaner.sweep_host()
    cleaner.sweep_host()
    assert left.exists(), "it is left for a while"
    cleaner.sweep_host(is_last=True)
    assert not left.exists()
    assert registry.find(dead) is None


def test_a_dead_process_s_semaphore_goes_while_another_still_holds_it(
    client, settings, cleaner, dead
):
    """Its name tells whose it was; a child that ends a moment later leaves nothing behind."""
    registry = ProcessRegistry(client, settings.times)
    held = Path(f"/dev/shm/{shared_memory_prefixes(dead.pid)[-1]}held")
    registry.register(dead, {"kind": "main", "shared_memory": shared_memory_prefixes(dead.pid)})
    with held.open("w"):
        cleaner.sweep_host()
        assert not held.exists()
    assert registry.find(dead) is None


@pytest.mark.skipif(os.getuid() != 0, reason="root sees others' processes, and must leave them")
def test_what_another_users_process_left_is_that_users(client, settings, cleaner, dead):
    registry = ProcessRegistry(client, settings.times)
    registry.register(dead, {"kind": "trial", "user": 12345})
    cleaner.sweep_host()
    assert registry.find(dead) is not None


def test_a_setback_is_left_longer_each_time_and_forgotten_when_it_is_over():
    setbacks = Setbacks(1000.0)
    assert setbacks.is_due("a")
    setbacks.failed("a", "failed", "why")
    assert not setbacks.is_due("a")
    assert setbacks.is_due("b")
    setbacks.done("a")
    assert setbacks.is_due("a")


def test_a_record_as_the_release_before_wrote_it_is_cleaned_up_after(
    client, settings, cleaner, dead
):
    leases = submitted(client)
    leases.enqueue(0, {})
    grant = leases.claim(0, str(dead), 45.0)
    scratch = name_scratch(dead)
    make_scratch(scratch)
    fields = {
        "kind": "trial", "parent": 1, "shared_memory": [f"torch_{dead.pid}_"], "slot": 0,
        "gpu": None, "scratch": [str(scratch)], "started_at": 1.5, "study": "s", "trial": 0,
        "token": grant.token, "is_draining": False,
    }  # fmt: skip
    key = keys.process(dead)
    client.hset(key, mapping={name: json.dumps(value) for name, value in fields.items()})
    client.zadd(keys.PROCESSES, {str(dead): 2**42})
    cleaner.sweep_host()
    assert leases.record(0).state is TrialState.QUEUED
    assert not scratch.exists()
    assert not client.exists(key)
