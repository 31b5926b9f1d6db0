"""Secrets of a fleet, looked for in all that it writes, shows and sends, after things broke."""

from __future__ import annotations

import json
import stat
import subprocess
from urllib.parse import urlsplit

import psutil
import pytest
import yaml
from starlette.testclient import TestClient
from waiting import wait_until

from orchestrator.dashboard.app import make_app
from orchestrator.dashboard.door import Door
from workers.coordination.connection import endpoint_file

#: Of the kinds of values that people really have; none is a word.
SECRETS = {
    "FLEET_SECRET": "canary-of-the-fleet-5c1f0a77",
    "WANDB_API_KEY": "0ca4a2100ca4a2100ca4a2100ca4a2100ca4a210",
    "AWS_SECRET_ACCESS_KEY": "wJalrCanary/K7MDENG+bPxRfiCYEXAMPLEKEY",
    "HF_TOKEN": "hf_canaryOfTheHubAbCdEf",
    "MY_DATABASE_PASSWORD": "pa55-canary-of-mine",
}
STORAGE_PASSWORD = "canary-of-the-storage-9d"

OBJECTIVE = """
import logging, os, signal, subprocess, sys, warnings
from pathlib import Path

FOLDER = Path(__file__).parent


def objective(trial):
    trial.suggest_float("x", 0.0, 1.0)
    trial.report(0.5, step=0)
    print(dict(os.environ))
    for name, value in os.environ.items():
        print(f"{name}={value}", file=sys.stderr)
    subprocess.run(["env"], check=True)
    told = " ".join(os.environ.values())
    logging.getLogger(__name__).error("reached %s", told)
    warnings.warn(told)
    if trial.number == 0:
        raise RuntimeError(f"cannot reach {told}")
    if trial.number == 1 and not (FOLDER / "killed").exists():
        (FOLDER / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 0.5
"""

STUDY = {
    "name": "leaky",
    "objective": "leaky.py:objective",
    "direction": "minimize",
    "trials": 3,
    "max_failures": 1,
    "sampler": {"type": "random", "seed": 1},
    "wandb": {"mode": "offline"},
}

#: Commands that show something, as people call them.
SHOWN = (
    "status leaky", "status leaky --json", "studies", "ps", "ps --json", "events leaky",
    "events leaky --json", "explain leaky 0", "explain leaky 1", "logs leaky 0", "logs leaky 1",
    "export leaky", "best leaky --json", "doctor leaky --no-trial", "report leaky -o report.html",
)  # fmt: skip

#: Of the page; what of these does not exist answers by an error, which may leak as well.
PAGES = (
    "/", "/api/fleet", "/api/studies/leaky", "/api/studies/leaky/trials",
    "/api/studies/leaky/trials/0", "/api/studies/leaky/trials/1", "/api/studies/leaky/timeline",
    "/api/nothing",
)  # fmt: skip


def dump(client, key):
    kind = client.type(key)
    read = {
        "string": client.get,
        "hash": client.hgetall,
        "list": lambda name: client.lrange(name, 0, -1),
        "set": client.smembers,
        "zset": lambda name: client.zrange(name, 0, -1, withscores=True),
        "stream": client.xrange,
    }
    return str(read[kind](key)) if kind in read else ""


def in_redis(client):
    """All keys with their values."""
    return {f"Redis {key}": key + dump(client, key) for key in client.scan_iter()}


def in_files(folder):
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            found[str(path)] = path.read_bytes().decode("utf-8", "replace")
    return found


def in_arguments(pids):
    """What every user of the host can read of processes."""
    found = {}
    for pid in pids:
        try:
            found[f"process {pid}"] = " ".join(psutil.Process(pid).cmdline())
        except psutil.NoSuchProcess:
            continue
    return found


def leaks(places, secrets):
    return sorted(
        (name, where)
        for where, text in places.items()
        for name, secret in secrets.items()
        # as it is, and as JSON and representations have it
        if secret in text or json.dumps(secret)[1:-1] in text
    )


@pytest.mark.long
def test_no_secret_is_in_what_a_fleet_writes_shows_or_sends(fleet):
    (fleet.folder / "leaky.py").write_text(OBJECTIVE)
    (fleet.folder / "leaky.yaml").write_text(yaml.safe_dump(STUDY))
    secrets = {
        **SECRETS,
        "Redis": str(urlsplit(fleet.redis.url).password),
        "storage": STORAGE_PASSWORD,
    }
    fleet.use_studies(fleet.folder)
    environment = {**fleet.environment(), **SECRETS}
    with_storage = f"postgresql://fleet:{STORAGE_PASSWORD}@127.0.0.1:1/fleet"

    def call(*command, **variables):
        finished = subprocess.run(
            ["trialfleet", *command],
            env={**environment, **variables},
            cwd=fleet.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        return finished.stdout + finished.stderr

    orchestrator = fleet.serve(**SECRETS)
    fleet.worker(**SECRETS, FLEET_STORAGE=with_storage)
    wait_until(lambda: fleet.processes("trial"), "the worker is there")
    places = {"submit": call("submit", "leaky.yaml")}
    assert "submitted 'leaky'" in places["submit"], places["submit"]
    fleet.study = "leaky"
    entries = [*fleet.processes("main"), *fleet.processes("trial")]
    places |= in_arguments([orchestrator.pid, *(entry.identity.pid for entry in entries)])
    fleet.await_over()
    states = [trial.state.name for trial in fleet.trials()]
    assert states == ["FAIL", "COMPLETE", "COMPLETE"], states

    for line in SHOWN:
        places[line] = call(*line.split())
    assert "cannot reach" in places["explain leaky 0"]
    assert "FLEET_HOME" in places["logs leaky 0"], "it printed its environment"
    places["a storage that is away"] = call("status", "leaky", FLEET_STORAGE=with_storage)
    places["a Redis that is away"] = call(
        "ps", FLEET_REDIS_URL=f"redis://:{secrets['Redis']}@127.0.0.1:1/0"
    )
    places["a URL that is none"] = call("ps", FLEET_REDIS_URL=f"redis:/{secrets['Redis']}@a")
    app = make_app(fleet.settings, Door("127.0.0.1", is_open=True))
    page = TestClient(app, base_url="http://127.0.0.1:8000")
    for address in PAGES:
        places[f"page {address}"] = page.get(address).text
    places |= in_redis(fleet.client)
    places |= in_files(fleet.folder) | in_files(fleet.temporary) | in_files(fleet.settings.cache)

    own = endpoint_file(fleet.settings.home)  # of this user's commands, and closed to others
    assert stat.S_IMODE(own.stat().st_mode) == 0o600
    places.pop(str(own))
    assert any("wandb" in place for place in places), "W&B wrote its files"
    assert leaks(places, secrets) == []


def test_the_search_for_leaks_finds_them(tmp_path, client):
    client.hset("fleet:{s}:trial:0", "error", "no canary/1 here")
    client.xadd("fleet:{s}:inbox", {"body": "canary/1"})
    client.set("fleet:canary/1", "")
    client.set("fleet:epoch", "canary")
    (tmp_path / "log").write_bytes(b"\xff canary/1")
    found = leaks({**in_redis(client), **in_files(tmp_path)}, {"A": "canary/1"})
    assert found == [
        ("A", where)
        for where in sorted(
            [
                str(tmp_path / "log"),
                "Redis fleet:canary/1",
                "Redis fleet:{s}:inbox",
                "Redis fleet:{s}:trial:0",
            ]
        )
    ]
