"""Workers that start before their Redis, or while it is away, and what they exit with."""

from __future__ import annotations

import os

from waiting import wait_until


def has_logged(worker, event):
    return lambda: worker.log.exists() and event in worker.log.read_text()


def exit_code(worker):
    return wait_until(lambda: worker.poll() is not None and [worker.poll()], "it ends")[0]


#: Has a pool process of a worker wait for a file before it imports anything of the fleet, and for
#: another one when it has told Redis of itself and is about to import the managers.
LATE_POOL = """
import pathlib, sys, time

def wait_for(name):
    while not pathlib.Path({folder!r}, name).exists():
        time.sleep(0.05)

class BeforeManagers:
    def find_spec(self, name, *_):
        if name == "workers.managers":
            wait_for("managers")

if b"--billiard-fork" in pathlib.Path("/proc/self/cmdline").read_bytes():
    wait_for("start")
    sys.meta_path.insert(0, BeforeManagers())
"""


def test_a_worker_waits_for_its_redis_and_so_does_a_pool_process(fleet):
    folder = fleet.folder / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(LATE_POOL.format(folder=str(folder)))
    fleet.redis.stop()
    worker = fleet.worker(PYTHONPATH=str(folder))
    wait_until(has_logged(worker, "redis_awaited"), "it waits")
    assert worker.poll() is None
    fleet.redis.start()
    wait_until(lambda: fleet.processes("main"), "it found Redis, and starts its pool")
    fleet.redis.stop()
    (folder / "start").touch()
    wait_until(lambda: worker.log.read_text().count("redis_awaited") == 2, "that one waits, too")
    assert worker.poll() is None
    fleet.redis.start()
    wait_until(lambda: fleet.processes("trial"), "it found Redis, too")
    fleet.redis.stop()
    (folder / "managers").touch()
    wait_until(lambda: worker.log.read_text().count("redis_awaited") == 3, "it waits once more")
    fleet.redis.start()
    fleet.serve()
    broken = fleet.settings.home / "outbox" / "fault-0-1.json"
    broken.parent.mkdir(exist_ok=True)
    broken.write_text("no entry")
    fleet.submit(1)
    fleet.await_over()
    fleet.assert_sound(1)
    wait_until(
        lambda: "outbox_unreadable" in str([each.stalled for each in fleet.processes("main")]),
        "ps tells of it",
    )
    broken.unlink()
    wait_until(
        lambda: [each.stalled for each in fleet.processes("main")] == [[]],
        "ps no longer tells of it",
    )
    assert "mingle" not in worker.log.read_text()


def test_a_worker_exits_with_zero_after_a_drain_alone(fleet, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('a file that is called like torch')\n")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    broken = fleet.worker(PYTHONPATH=path)
    stranger = fleet.worker(FLEET_REDIS_URL=fleet.redis.url.replace("://:", "://:no"))
    early = fleet.worker(FLEET_REDIS_URL="redis://127.0.0.1:1/0")
    wait_until(has_logged(early, "redis_awaited"), "it waits")
    early.drain()
    assert exit_code(early) == 0
    assert exit_code(stranger) == 2
    assert exit_code(broken) == 70
    assert "managers_not_built" in broken.log.read_text()
