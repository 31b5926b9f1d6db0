"""What cannot be read in Redis is shown with the reason, beside all that can."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from command_line import CommandLine
from waiting import wait_until

from workers.coordination import keys
from workers.coordination.clock import server_time_ms
from workers.coordination.studies import Studies
from workers.disk.fleet_home import FleetHome
from workers.processes.cleaner import Cleaner
from workers.processes.registry import ProcessRecord, ProcessRegistry
from workers.protocol.spec import StudySpec
from workers.protocol.states import ProcessKind

SPACE = {"x": {"type": "float", "low": 0.0, "high": 1.0}}

#: Ways in which a study lies in Redis that no release wrote, by what makes them.
DAMAGE = {
    "fields": lambda client, key: client.hset(key, "spec", '{"name": 3}'),
    "no-json": lambda client, key: client.hset(key, "spec", "what is [red]this"),
    "no-text": lambda client, key: client.hset(key, "spec", b"\xff\x00\x1b[31m"),
    "deep": lambda client, key: client.hset(key, "spec", "[" * 100_000),
    "gone": lambda client, key: client.hdel(key, "spec"),
    "no-hash": lambda client, key: [client.delete(key), client.set(key, "text")],
    "status": lambda client, key: client.hset(key, "fact:status", '{"study": 3}'),
    "broken-status": lambda client, key: client.hset(key, "fact:status", "{"),
    "number": lambda client, key: client.hset(key, "fact:status", "7"),
    "broken-stall": lambda client, key: client.hset(key, "fact:stalled", "{"),
}


@pytest.fixture
def command(settings, monkeypatch, capsys):
    """Runs a command, without a terminal; its exit code and what it printed."""
    run = CommandLine(monkeypatch, capsys, **settings.to_environment(), COLUMNS="300")

    def checked(*words):
        ended = run(*words)
        assert "Traceback" not in ended.err, ended.err
        return ended

    return checked


def submit(client, settings, name):
    spec = StudySpec(name=name, objective="a.py:b", space=SPACE, trials=3)
    Studies(client).submit(spec)


def test_an_unreadable_study_is_listed_with_its_reason_and_hides_no_other(
    client, settings, command
):
    for name, damage in DAMAGE.items():
        submit(client, settings, name)
        damage(client, keys.study(name))
    submit(client, settings, "good")
    submit(client, settings, "still")
    Studies(client).facts.publish("still", {"stalled": "opening it: a [reason]"})
    found = {each["study"]: each for each in json.loads(command("studies", "--json").out)}
    assert set(found) == {*DAMAGE, "good", "still"}
    assert found["good"]["state"] == "running"
    assert found["still"]["stalled"] == "opening it: a [reason]"
    for name in DAMAGE:
        assert found[name]["state"] == "unreadable"
        assert name in found[name]["reason"]
    table = command("studies")
    assert table.code == 0
    assert "good " in table.out
    assert "stalled: opening it: a [reason]" in table.out
    for name in DAMAGE:
        assert f"{name} " in table.out
    shown = command("status", "no-hash", "--json")
    assert shown.code == 2
    assert "WRONGTYPE" in json.loads(shown.out)["error"]["message"]
    assert shown.err.startswith("trialfleet: study 'no-hash': what Redis holds of it cannot be")


def test_ps_shows_records_that_it_cannot_read_beside_all_others(client, settings, command):
    registry = ProcessRegistry(client, settings.times.scaled(100))
    record = ProcessRecord(registry, ProcessKind.MAIN, fields={"slots": 1, "queues": ["default"]})
    record.register()
    lasts = server_time_ms(client) + 60_000
    client.hset(keys.process("h:b:7:8"), "kind", '"of another release"')
    client.set(keys.process("h:b:7:9"), "no record")
    client.hset(keys.process("no \x1b[31mname"), "kind", '"main"')
    members = ["h:b:7:8", "h:b:7:9", "no \x1b[31mname"]
    client.zadd(keys.PROCESSES, dict.fromkeys(members, lasts))
    found = json.loads(command("ps", "--json").out)
    assert [each["identity"]["pid"] for each in found if each["kind"] == "main"] == [os.getpid()]
    unreadable = {each["record"]: each["reason"] for each in found if each["kind"] == "unreadable"}
    assert set(unreadable) == set(members)
    assert "of another release" in unreadable["h:b:7:8"]
    assert "WRONGTYPE" in unreadable["h:b:7:9"]
    tree = command("ps").out
    assert f"main {os.getpid()}" in tree
    assert "! h:b:7:8: " in tree
    assert "\x1b" not in tree, "a terminal does not act on it"


def test_what_a_host_cannot_do_is_told_by_its_worker_s_record(client, settings, command):
    home = FleetHome(client, settings.home)
    home.lead()
    registry = ProcessRegistry(client, settings.times.scaled(100))
    cleaner = Cleaner(client, registry, settings)
    outbox = Path(settings.home, "outbox")
    outbox.mkdir(parents=True)
    (outbox / "s-0-1.json").write_text("no [entry]")
    cleaner.sweep_host()
    (setback,) = cleaner.setbacks()
    assert setback.startswith("s-0-1.json: outbox_unreadable: ValidationError")
    ProcessRecord(registry, ProcessKind.MAIN, fields={"stalled": cleaner.setbacks()}).register()
    assert "! s-0-1.json: outbox_unreadable" in command("ps").out
    assert json.loads(command("ps", "--json").out)[0]["stalled"] == [setback]
    (outbox / "s-0-1.json").unlink()

    def is_forgotten():
        cleaner.sweep_host()
        return not cleaner.setbacks()

    wait_until(is_forgotten, "what is gone is forgotten")
    cleaner.close()
    home.close()
