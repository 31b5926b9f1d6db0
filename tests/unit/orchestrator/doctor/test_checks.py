"""Each check finds what is wrong, and is content where nothing is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from celery import Celery
from celery.concurrency import prefork

from orchestrator.doctor import (
    disks,
    host,
    installation,
    members,
    one_study,
    redis_server,
    sentinels,
)
from orchestrator.doctor.drawing import draw_group, summary
from orchestrator.doctor.examination import Group, worst
from orchestrator.doctor.findings import Finding, Level, error, ok, warning
from orchestrator.doctor.traps import AT_LEAST, AT_MOST, EXACTLY, fallen_into
from orchestrator.status import UnreadableRecord
from orchestrator.status_building import build_status
from orchestrator.storage.tally import Tally
from workers.celery import worker_settings
from workers.coordination.address import parse_address
from workers.coordination.identity import ProcessIdentity
from workers.coordination.rights import Role
from workers.processes.control_groups import memory_limit
from workers.processes.membership import Membership, celery_of
from workers.processes.registry import ProcessEntry
from workers.protocol.seals import Seal
from workers.protocol.spec import StudySpec
from workers.protocol.states import ProcessKind

GIB = 2**30
HOST = host.HostFacts()
REDIS = redis_server.RedisFacts(
    address=parse_address("redis://:password@127.0.0.1:6379/0"),
    info={
        "redis_version": "7.2.0", "maxmemory_policy": "noeviction", "maxmemory": 0,
        "used_memory": 10**6, "total_system_memory": 64 * GIB, "aof_enabled": 1,
    },
)  # fmt: skip
STATE = {"ip": "10.0.0.1", "port": 6379, "num-other-sentinels": 2, "quorum": 2}
SENTINELS = sentinels.SentinelFacts(
    states=dict.fromkeys(("a:26379", "b:26379", "c:26379"), STATE),
    replication={"connected_slaves": 1, "min_slaves_good_slaves": 1},
)
FOLDER = disks.FolderFacts(Path("/home/fleet"))
DISKS = disks.DiskFacts(home=FOLDER, cache=FOLDER)
INSTALLATION = installation.InstallationFacts(release="1.0", python="3.11.1")
SECRET, OTHER = "a" * 32, "b" * 32
CELERY = {name: wanted for name, (wanted, _) in EXACTLY.items()} | {
    name: limit for limits in (AT_LEAST, AT_MOST) for name, (limit, _) in limits.items()
}


def process(kind, pid, **fields):
    membership = Membership(release="1.0", celery=CELERY if kind is ProcessKind.MAIN else {})
    given = {"kind": kind, "membership": membership, **fields}
    return ProcessEntry(identity=ProcessIdentity("box", "boot", pid, 7), **given)


SERVING = process(ProcessKind.ORCHESTRATOR, 10)
WORKER = process(ProcessKind.MAIN, 20, slots=2, queues=["default"])
MEMBERS = members.MemberFacts((SERVING, WORKER), release="1.0")
SPEC = StudySpec(name="s", objective="train:objective")
UNTRIED = one_study.StudyFacts(SPEC, build_status(SPEC, Tally(SPEC.all_directions)))
STUDY = replace(
    UNTRIED, status=UNTRIED.status.model_copy(update={"trials": {"queued": 1, "running": 1}})
)


def info(**changes):
    return replace(REDIS, info={**REDIS.info, **changes})


def at(url):
    return replace(REDIS, address=parse_address(url))


def with_celery(**changes):
    told = Membership(release="1.0", celery={**CELERY, **changes})
    return replace(MEMBERS, entries=(SERVING, WORKER.model_copy(update={"membership": told})))


def with_secrets(*given):
    """Of an orchestrator, a worker and who looks."""
    marks = [Seal.of(text).marks() for text in given]
    told = [Membership(release="1.0", secrets=each) for each in marks]
    entries = [
        each.model_copy(update={"membership": membership})
        for each, membership in zip((SERVING, WORKER), told, strict=False)
    ]
    return members.MemberFacts(tuple(entries), "1.0", tuple(marks[2]))


def changed(entry, **fields):
    others = [each for each in MEMBERS.entries if each is not entry]
    return replace(MEMBERS, entries=(*others, entry.model_copy(update=fields)))


ILL = [
    (host, host.shared_memory, replace(HOST, shared_memory_free=64 * 2**20), "SIGBUS"),
    (host, host.shared_memory, replace(HOST, shared_memory_free=None), "not there"),
    (host, host.temporary_files, replace(HOST, temporary_free=2**20), "1M free"),
    (host, host.temporary_files, replace(HOST, is_temporary_writable=False), "may not write"),
    (host, host.open_files, replace(HOST, max_files=256), "256"),
    (host, host.processors, replace(HOST, slots=4), "FLEET_SLOTS=4"),
    (host, host.memory, replace(HOST, memory=GIB, is_memory_limited=True), "control group"),
    (host, host.gpus, replace(HOST, gpu_trouble="NVML fails: 9"), "NVML fails"),
    (host, host.gpus, replace(HOST, gpus=("H100",)), "for the CPU alone"),
    (
        host,
        host.gpus,
        replace(HOST, gpus=("H100",), torch_cuda=(13, 0), driver_cuda=(12, 4)),
        "the driver of 12.4",
    ),
    (redis_server, redis_server.answers, replace(REDIS, latency_seconds=0.2), "200.0 ms"),
    (redis_server, redis_server.version, info(redis_version="5.0.14"), "5.0.14"),
    (redis_server, redis_server.version, info(redis_mode="cluster"), "Cluster"),
    (redis_server, redis_server.version, info(role="slave", master_host="a"), "replica of a"),
    (redis_server, redis_server.eviction, info(maxmemory_policy="allkeys-lru"), "allkeys-lru"),
    (redis_server, redis_server.memory, info(maxmemory=10**6), "refused"),
    (redis_server, redis_server.memory, info(maxmemory=int(1.15e6)), "in use"),
    (redis_server, redis_server.persistence, info(aof_enabled=0), "no append-only file"),
    (redis_server, redis_server.persistence, info(rdb_last_bgsave_status="err"), "rdb_last"),
    (redis_server, redis_server.clock, replace(REDIS, skew_seconds=-30.0), "30 s behind"),
    (
        redis_server,
        redis_server.rights,
        replace(REDIS, missing={Role.USER: "lacks info; give it: ACL SETUSER a +info"}),
        "lacks info",
    ),
    (redis_server, redis_server.transport, at("redis://:password@box:6379/0"), "clear text"),
    (
        redis_server,
        redis_server.transport,
        at("rediss://:p@box:6379?ssl_cert_reqs=none"),
        "not ver",
    ),
    (redis_server, redis_server.transport, at("rediss://box:6379/0"), "no password"),
    (redis_server, redis_server.tenants, replace(REDIS, foreign_keys=("_kombu.b",)), "_kombu.b"),
    (redis_server, redis_server.tenants, replace(REDIS, home_trouble="of another. Set"), "another"),
    (
        redis_server,
        redis_server.transport,
        at("sentinel://:p@127.0.0.1,box/0?service=a"),
        "clear text",
    ),
    (sentinels, sentinels.answers, replace(SENTINELS, silent={"d:26379": "refused"}), "d:26379"),
    (
        sentinels,
        sentinels.majority,
        replace(SENTINELS, states={"a:26379": STATE}, silent={"b:26379": "-", "c:26379": "-"}),
        "no replica can take over",
    ),
    (
        sentinels,
        sentinels.majority,
        replace(SENTINELS, states={"a:26379": {**STATE, "num-other-sentinels": 1}}),
        "where one is gone",
    ),
    (
        sentinels,
        sentinels.agreement,
        replace(SENTINELS, states={**SENTINELS.states, "b:26379": {**STATE, "ip": "10.0.0.2"}}),
        "10.0.0.1:6379, 10.0.0.2:6379",
    ),
    (
        sentinels,
        sentinels.replicas,
        replace(SENTINELS, replication={"connected_slaves": 0}),
        "has none",
    ),
    (
        sentinels,
        sentinels.lost_writes,
        replace(SENTINELS, replication={"connected_slaves": 1}),
        "cut off",
    ),
    (disks, disks.home, replace(DISKS, home=replace(FOLDER, trouble="Read-only")), "Read-only"),
    (disks, disks.home, replace(DISKS, home=replace(FOLDER, has_locks=False)), "without locks"),
    (disks, disks.home, replace(DISKS, home=replace(FOLDER, free=2**20)), "1M free"),
    (disks, disks.cache, replace(DISKS, cache=replace(FOLDER, has_locks=False)), "without locks"),
    (
        disks,
        disks.home_is_private,
        replace(DISKS, home=replace(FOLDER, is_open_to_others=True)),
        "all users",
    ),
    (disks, disks.store, replace(DISKS, store="s3://b", store_trouble="no such"), "no such"),
    (
        installation,
        installation.packages,
        replace(INSTALLATION, unfit=(("optuna", "4.0", "optuna>=5.0"), ("rich", None, "rich>=1"))),
        "is 4.0",
    ),
    (
        installation,
        installation.extras,
        replace(INSTALLATION, wanted_extras=(("s3", "X"),)),
        "[s3]",
    ),
    (installation, installation.system, replace(INSTALLATION, is_linux=False), "no Linux"),
    (
        installation,
        installation.variables,
        replace(INSTALLATION, mistyped={"FLEET_SECRT": "FLEET_SECRET"}),
        "no setting is called so; FLEET_SECRET has its default",
    ),
    (members, members.orchestrators, replace(MEMBERS, entries=(WORKER,)), "none runs"),
    (members, members.workers, replace(MEMBERS, entries=(SERVING,)), "none runs"),
    (members, members.workers, changed(WORKER, is_draining=True), "draining"),
    (members, members.releases, replace(MEMBERS, release="2.0"), "of 1.0"),
    (members, members.releases, changed(WORKER, membership=None), "an earlier release"),
    (members, members.secrets, with_secrets(SECRET, OTHER, SECRET), "worker 20 on box"),
    (members, members.secrets, with_secrets(SECRET, SECRET, ""), "this command"),
    (members, members.secrets, with_secrets("", SECRET, SECRET), "orchestrator 10 on box"),
    (members, members.complaints, changed(WORKER, stalled=["the disk is full"]), "disk is full"),
    (members, members.complaints, changed(WORKER, aside="cuda:0 is sick"), "takes no trials"),
    (
        members,
        members.complaints,
        replace(MEMBERS, unreadable=(UnreadableRecord("box:1", "no JSON"),)),
        "no JSON",
    ),
    (
        one_study,
        one_study.objective,
        replace(STUDY, refusals=(("box", "no module x"),)),
        "no module",
    ),
    (
        one_study,
        one_study.code,
        replace(STUDY, status=STUDY.status.model_copy(update={"other_code": ["box: differs"]})),
        "differs",
    ),
    (
        one_study,
        one_study.progress,
        replace(STUDY, status=STUDY.status.model_copy(update={"stalled": "no journal"})),
        "no journal",
    ),
    (
        one_study,
        one_study.progress,
        replace(STUDY, status=STUDY.status.model_copy(update={"waits_for": ["no worker: start"]})),
        "no worker",
    ),
]
WELL = [
    (host, HOST),
    (host, replace(HOST, gpus=("H100",), torch_cuda=(12, 8), driver_cuda=(13, 0))),
    (host, replace(HOST, gpus=("H100",), has_torch=False)),
    (redis_server, REDIS),
    (redis_server, replace(REDIS, info={}, foreign_keys=None)),
    (redis_server, at("unix:///run/redis.sock?db=0")),
    (redis_server, at("rediss://u:password@box:6379/0")),
    (redis_server, at("sentinel://:password@127.0.0.1:1,127.0.0.1:2/0?service=a")),
    (redis_server, at("rediss+sentinel://u:password@a,b/0?service=a")),
    (sentinels, SENTINELS),
    (sentinels, replace(SENTINELS, replication={})),
    (sentinels, replace(SENTINELS, states={"a:26379": STATE})),
    (disks, replace(DISKS, store="file:///mnt/store")),
    (installation, INSTALLATION),
    (installation, replace(INSTALLATION, missing_for_trials=("torch",))),
    (members, MEMBERS),
    (members, with_secrets(SECRET, f"{SECRET},{OTHER}", SECRET)),
    (one_study, STUDY),
]


def run(checks, facts) -> list[Finding]:
    found = [check(facts) for check in checks]
    return [each for one in found for each in ([one] if isinstance(one, Finding) else one)]


@pytest.mark.parametrize(("module", "check", "facts", "told"), ILL)
def test_each_check_finds_what_is_wrong_and_names_a_fix(module, check, facts, told):
    assert check in module.CHECKS
    findings = [each for each in run([check], facts) if each.level is not Level.OK]
    assert findings
    assert any(told in each.told for each in findings), findings
    assert all(each.fix for each in findings)
    assert all("\n" not in f"{each.told}{each.fix}" for each in findings)


@pytest.mark.parametrize(("module", "facts"), WELL)
def test_each_check_is_content_where_nothing_is_wrong(module, facts):
    assert [each for each in run(module.CHECKS, facts) if each.level is not Level.OK] == []


def test_no_check_goes_untested():
    tested = {check for _, check, _, _ in ILL}
    everything = {
        check
        for module in (host, redis_server, sentinels, disks, installation, members, one_study)
        for check in module.CHECKS
    }
    never_amiss = {installation.trials_here, members.celery}
    assert everything - tested == never_amiss


@pytest.mark.parametrize("setting", [*EXACTLY, *AT_LEAST, *AT_MOST])
def test_each_trap_of_celery_is_seen(setting):
    found = 3600 if setting in AT_MOST else 0.5
    (finding,) = run([members.celery], with_celery(**{setting: found}))
    assert finding.level is Level.ERROR
    assert f"worker 20 on box: {setting} is {found}" in finding.told
    assert list(fallen_into(CELERY)) == []


def test_a_worker_as_it_is_started_tells_each_setting_and_falls_into_no_trap(monkeypatch):
    monkeypatch.setenv("FLEET_REDIS_URL", "redis://127.0.0.1:1/0")
    app = Celery()
    app.add_defaults(worker_settings)
    told = celery_of(SimpleNamespace(app=app, pool_cls=prefork.TaskPool))
    assert told.keys() == EXACTLY.keys() | AT_LEAST.keys() | AT_MOST.keys()
    assert list(fallen_into(told)) == []


def test_an_objective_that_no_worker_has_tried_is_not_called_well():
    (finding,) = run([one_study.objective], UNTRIED)
    assert finding.level is Level.WARNING
    assert "no worker has tried train:objective yet" in finding.told
    assert run([one_study.objective], STUDY)[0].level is Level.OK


def test_marks_tell_secrets_apart_and_are_no_part_of_them():
    first, second = Seal.of(f"{SECRET},{OTHER}").marks()
    assert first != second
    assert Seal.of(SECRET).marks() == [first]
    assert len(first) == 8
    assert Seal.of("").marks() == []


def test_the_worst_finding_counts_and_all_are_drawn():
    groups = [
        Group(subject="a", findings=[ok("x", "fine"), warning("y", "hm \x1b[31m", "do it")]),
        Group(subject="b", findings=[error("z", "broken", "mend it")]),
    ]
    assert worst(groups) is Level.ERROR
    assert worst(groups[:1]) is Level.WARNING
    assert worst([]) is Level.OK
    assert str(summary(groups)) == "1 error and 1 warning of 3 looks"
    for group in groups:
        draw_group(group)
    assert json.loads(groups[0].model_dump_json())["findings"][0] == {
        "looked_at": "x", "level": "ok", "told": "fine", "fix": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("group", "mount", "files", "expected"),
    [
        ("0::/a/b", "cgroup2 cgroup2 rw", {"a/b/memory.max": "max", "a/memory.max": "1024"}, 1024),
        ("0::/", "cgroup2 cgroup2 rw", {"memory.max": "max"}, None),
        (
            "4:memory:/a",
            "cgroup cgroup rw,memory",
            {"a/memory.limit_in_bytes": "2048", "memory.limit_in_bytes": str(2**63 - 4096)},
            2048,
        ),
        ("4:cpu:/a", "cgroup cgroup rw,cpu", {"a/memory.limit_in_bytes": "2048"}, None),
    ],
)
def test_the_least_memory_of_all_groups_counts(tmp_path, group, mount, files, expected):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(group + "\n")
    (tmp_path / "proc/self/mountinfo").write_text(f"33 23 0:29 / /sys/fs/cgroup rw - {mount}\n")
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert memory_limit(tmp_path) == expected
