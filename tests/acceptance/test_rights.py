"""Each role of a fleet under a user of its own, with the rights that it needs and no others."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import get_args
from urllib.parse import urlsplit

import pytest
import redis
from command_line import CommandLine
from fault_fleet import signal_all, tree_of
from recording_proxy import RecordingProxy
from waiting import wait_until

from orchestrator.handle import StudyHandle
from workers.coordination import keys
from workers.coordination.rights import Role, rights_of, user_line
from workers.coordination.scripts import Verb, script

OBJECTIVE = '''
import sys
import time
sys.path.insert(0, {folder!r})
import faulty


def objective(trial):
    """Whatever a trial can ask of its fleet."""
    trial.suggest_float("x", 0.0, 1.0)
    print("it begins", flush=True)
    trial.report(0.5, 1)
    trial.should_prune()
    loss = faulty.train(trial)
    time.sleep(0.3)  # so long that what was drawn before is told before the end
    if trial.number == 8:  # asked for when others had ended: its `x` was drawn before
        trial.study.stop()
    return loss
'''


class Members:
    """Starts the members of a fleet under their users, each through what notes its commands."""

    def __init__(self, fleet, stack, run: CommandLine) -> None:
        self.fleet = fleet
        self._run = run
        parts = urlsplit(fleet.redis.url)
        fleet.client.acl_setuser(
            "admin",
            enabled=True,
            passwords=["+PASSWORD"],
            categories=["+@all"],
            keys=["*"],
            channels=["*"],
        )
        self.admin = redis.Redis(
            port=parts.port, username="admin", password="PASSWORD", decode_responses=True
        )
        stack.callback(self.admin.close)
        for role in Role:
            self.do(user_line(role, role.value))
        self.do("ACL SETUSER default off")
        fleet.client.close()
        fleet.client = self.admin
        self.proxies = {role: stack.enter_context(RecordingProxy(parts.port)) for role in Role}
        self.settings = fleet.settings

    def do(self, line) -> None:
        self.admin.execute_command(*line.split())

    def allow(self, objective: str) -> None:
        """Have workers import an objective's file."""
        allowed = (*self.settings.objectives, objective)
        self.settings = self.settings.model_copy(update={"objectives": allowed})

    def as_role(self, role) -> None:
        """Have what is started next be of a role."""
        url = f"redis://{role.value}:PASSWORD@127.0.0.1:{self.proxies[role].port}/0"
        self.fleet.settings = self.settings.model_copy(update={"redis_url": url})

    def serve(self):
        self.as_role(Role.ORCHESTRATOR)
        return self.fleet.serve()

    def worker(self, **options):
        self.as_role(Role.WORKER)
        return self.fleet.worker(**options)

    def submit(self) -> None:
        """Hand the study in, from a process that has not imported another `faulty`."""
        self.as_role(Role.USER)
        line = [sys.executable, "-m", "orchestrator.cli", "submit", "study.yaml"]
        environment = self.fleet.environment()
        subprocess.run(line, env=environment, cwd=self.fleet.folder, check=True, timeout=300)

    def command(self, *words, role=Role.USER, code=0):
        self.as_role(role)
        ended = self._run(*words, **self.fleet.settings.to_environment())
        codes = code if isinstance(code, set) else {code}
        assert ended.code in codes, ended.out + ended.err
        return ended.out if 0 in codes else ended.err

    def view(self, *words):
        return self.command(*words, role=Role.VIEWER)

    def await_sent(self, role, needed: set[str]) -> None:
        """Wait until a role has sent all of them: some it sends now and then."""
        left: set[str] = set()

        def is_sent() -> bool:
            left.clear()
            left.update(needed - self.sent(role)[0])
            return not left

        try:
            wait_until(is_sent, f"{role} needs all that it may do")
        except AssertionError as error:
            raise AssertionError(f"{role} never sent {sorted(left)}") from error

    def sent(self, role) -> tuple[set[str], set[str]]:
        """The commands that a role sent, or had scripts call, and the keys and channels in them."""
        names, places = set(), set()
        for name, *words in self.proxies[role].commands():
            if name.islower():
                continue  # asked for at the start, and not carried out
            names.add(f"{name}|{words[0]}".lower() if name in CONTAINERS else name.lower())
            if name == "EVALSHA":
                names |= CALLED.get(words[0], frozenset())
            places.update(word for word in words if word.startswith("fleet:"))
        return names, places


#: Commands whose first word belongs to their name.
CONTAINERS = {"SCRIPT", "XGROUP", "XINFO", "CLIENT"}

#: What redis-py says of itself at each connection, whether or not it may.
COURTESIES = {"hello", "client|setinfo", "client|maint_notifications"}

#: The commands of each script, by the name that its text has on the server.
CALLED = {
    hashlib.sha1(script(verb).source.encode()).hexdigest(): script(verb).commands
    for verb in get_args(Verb)
}


#: What is sent where something is found amiss, which is not done to this fleet: an ended trial
#: of whose end nothing is left, a host that vanishes, so that the
#: orchestrator reaps its trials, a study that vanishes while its hint is read, a record that is
#: signed anew, a package whose study was refused; and what kombu says
#: when it closes a connection, if it is in time.
RARE = {
    Role.WORKER: {"smembers", "punsubscribe"},
    Role.ORCHESTRATOR: {"xlen", "hincrby", "xadd", "hkeys"},
    # as for the rest, it may look as a viewer may
    Role.USER: {"hkeys", "hdel", "del"} | set(rights_of(Role.VIEWER).commands),
    Role.VIEWER: {"multi"},  # by which rights are asked for
}

#: What studies that promote, or bring their code along, alone touch: `test_halving.py`,
#: `integration/test_shipped_code.py`.
OF_OTHER_STUDIES = {keys.paused("*"), keys.code("*")}

#: What a user has for the sake of looking alone.
VIEWED = set(rights_of(Role.VIEWER).keys)


@pytest.fixture
def members(fleet, monkeypatch, capsys):
    monkeypatch.chdir(fleet.folder)
    with ExitStack() as stack:
        yield Members(fleet, stack, CommandLine(monkeypatch, capsys, NETRC=os.devnull))


def write_objective(fleet):
    path = fleet.folder / "whole.py"
    path.write_text(OBJECTIVE.format(folder=str(fleet.folder)))
    study = {"name": "fault", "objective": f"{path}:objective", "trials": 12}
    (fleet.folder / "study.yaml").write_text(json.dumps(study))
    return str(path)


def test_a_study_survives_its_kills_under_three_users_with_what_is_stated_and_no_more(
    fleet, members
):
    members.allow(write_objective(fleet))
    members.submit()
    members.command("enqueue", "fault", "x=0.5")
    fleet.study = "fault"
    members.admin.zadd(keys.PROCESSES, {"nobody": 4e12})
    members.view("ps")
    for words in (["events"], ["events", "fault"]):
        members.view(*words, "--json")
    members.command("doctor", "--json", role=Role.VIEWER, code={0, 1, 3})
    refusal = members.command("pause", "fault", role=Role.VIEWER, code=2)
    assert "user 'viewer' lacks what a command that acts needs: " in refusal
    assert refusal.count("\n") == 1
    fleet.order("stay until go", attempt="*")
    members.serve()
    worker = members.worker(slots=2)
    os.kill(fleet.await_note("stay until go").pid, signal.SIGKILL)
    members.admin.xadd(keys.inbox("fault"), {"kind": "nobody knows"})
    fleet.await_note("stay until go", attempt=2)
    fleet.orchestrators[-1].kill()
    members.serve()
    signal_all(tree_of(worker.pid), signal.SIGKILL)
    worker = members.worker(slots=2)
    fleet.await_note("stay until go", attempt=3)
    members.do("CLIENT KILL USER worker")
    wait_until(lambda: "unacknowledged" in worker.log.read_text(), "it connects again")
    worker.drain()
    wait_until(lambda: worker.poll() is not None, "it drains")
    fleet.orchestrators[-1].kill()
    fleet.orchestrators[-1].wait()
    members.admin.flushall()
    fleet.go()
    members.serve()
    members.worker(slots=2)
    for words in (["status", "fault"], ["studies"], ["watch", "fault", "--json"]):
        members.view(*words)
    for words in (
        ["explain", "fault", "0"],
        ["logs", "fault", "0", "--follow"],
        ["export", "fault"],
    ):
        members.view(*words)
    told = [trial.user_attrs["trialfleet:state"] for trial in fleet.trials()]
    assert told[8] == "COMPLETE"
    assert set(told) <= {"COMPLETE", "CANCELLED"}, "the objective stops its study"
    members.command("delete", "fault", "--yes")
    wait_until(lambda: not fleet.client.exists(keys.study("fault")), "it is deleted")
    told_deleted = members.command("status", "fault", role=Role.VIEWER, code=2)
    assert "study 'fault' was deleted" in told_deleted
    wait_until(lambda: keys.DELETED in members.sent(Role.WORKER)[1], "its host hears of it")
    for role in Role:
        stated = rights_of(role)
        members.await_sent(role, set(stated.commands) - RARE[role])
        names, places = members.sent(role)
        assert names - COURTESIES <= set(stated.commands)
        seen_to = OF_OTHER_STUDIES | VIEWED if role is Role.USER else OF_OTHER_STUDIES
        for pattern in {*stated.keys, *stated.channels} - seen_to:
            assert any(fnmatch.fnmatchcase(place, pattern) for place in places), pattern


def test_rights_that_are_taken_away_are_waited_for_with_the_reason_and_all_goes_on(fleet, members):
    started_at = time.monotonic()
    members.serve()
    worker = members.worker(slots=1)
    members.as_role(Role.USER)
    fleet.order("stay until go")
    fleet.submit(2)
    pid = fleet.await_note("stay until go").pid
    taken = {Role.WORKER: "-evalsha -brpop -time", Role.ORCHESTRATOR: "-xreadgroup -lpush"}
    for role, rules in taken.items():
        members.do(f"ACL SETUSER {role.value} {rules}")
    os.kill(pid, signal.SIGKILL)

    def status():
        members.as_role(Role.USER)
        return StudyHandle("fault", fleet.settings).status()

    wait_until(lambda: "'orchestrator' lacks" in (status().stalled or ""), "it says why")
    assert "ACL SETUSER orchestrator +lpush +xreadgroup" in status().stalled
    members.do("ACL SETUSER orchestrator -@all")
    wait_until(
        lambda: "ACL SETUSER worker +brpop +evalsha +time" in worker.log.read_text(),
        "the worker says why",
    )
    assert worker.poll() is None
    assert fleet.orchestrators[0].poll() is None
    fleet.go()
    for role in Role:
        members.do(user_line(role, role.value))
    members.as_role(Role.USER)
    fleet.await_over()
    fleet.assert_sound(2)
    assert status().stalled is None
    seconds = time.monotonic() - started_at
    most = 2 * (1 + seconds / fleet.settings.times.reconcile)
    assert len(fleet.events("announced_again")) <= most, "not at each turn"
    for event in fleet.events("redis_lost"):
        assert "PASSWORD" not in json.dumps(event)
