"""Hosts of other shapes, by real namespaces: containers that share files, pids that are hidden."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    os.getuid() != 0 or not Path("/proc/self/ns/pid").exists(),
    reason="only root makes namespaces, on Linux",
)

#: Has the child of a fresh pid namespace: pid 2 in each, as the main process is pid 1 in each.
CONTAINER = """
import json, os, sys, time
from pathlib import Path
from workers.coordination.identity import ProcessIdentity
from workers.disk.scratch import make_scratch, name_scratch, remove_scratch, remove_stale_scratch
from workers.disk.shared_memory import remove_shared_memory, semaphore_prefix
from workers.disk.shared_memory import shared_memory_prefixes

def child(body):
    pid = os.fork()
    if pid == 0:
        body()
        os._exit(0)
    return pid

def use():
    make_scratch(scratch := name_scratch(ProcessIdentity.current()))
    segment = open(f"/dev/shm/torch_{os.getpid()}_{sys.argv[1]}", "w")
    semaphore = f"/dev/shm/sem.{semaphore_prefix(os.getpid())[1:]}-{sys.argv[1]}"
    open(semaphore, "w")
    print(json.dumps([os.getpid(), str(scratch), segment.name, semaphore]), flush=True)
    sys.stdin.read()
"""

NEIGHBOUR = CONTAINER + "os.waitpid(child(use), 0)\n"

CLEANER = (
    CONTAINER
    + """
known, tell = os.pipe()
pid = child(lambda: os.read(known, 1) and use())
identity = ProcessIdentity.of(pid)
scratch = name_scratch(identity)
os.write(tell, b"!")
os.waitpid(pid, 0)
assert identity.is_dead()
remove_stale_scratch()
left = remove_shared_memory(identity, shared_memory_prefixes(pid))
print(json.dumps([str(path) for path in left]), flush=True)
"""
)


def container(program, name, **options):
    """Run a program as pid 1 of its own pid namespace; host name, /tmp and /dev/shm are shared."""
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-c"]
    return subprocess.Popen(
        [*command, program, name], stdin=-1, stdout=subprocess.PIPE, text=True, **options
    )


@pytest.fixture
def own_tmp(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def test_containers_that_share_tmp_and_shared_memory_leave_one_anothers_alone(own_tmp):
    with container(NEIGHBOUR, "neighbour") as neighbour:
        pid, *theirs = json.loads(neighbour.stdout.readline())
        with container(CLEANER, "cleaner") as cleaner:
            same_pid, *own = json.loads(cleaner.stdout.readline())
            assert pid == same_pid
            assert all(Path(path).exists() for path in theirs + own)
            cleaner.stdin.close()
            assert json.loads(cleaner.stdout.read().splitlines()[-1]) == [], "nothing was left"
        assert cleaner.wait(60) == 0
        assert [path for path in theirs if not Path(path).exists()] == []
        assert [path for path in own if Path(path).exists()] == []
        neighbour.stdin.close()
        assert neighbour.wait(60) == 0
    for path in theirs[1:]:
        Path(path).unlink()


HIDDEN = """
import json, sys
from workers.coordination.identity import ProcessIdentity
identity = ProcessIdentity.parse(sys.argv[1])
gone = identity._replace(pid=2**22 - 1)
print(json.dumps([each.life().value for each in (identity, gone)] + [identity.has_freed_its_pid()]))
"""


@pytest.mark.parametrize("hidepid", [1, 2])
def test_a_process_that_proc_hides_is_not_taken_for_dead(hidepid):
    from workers.coordination.identity import ProcessIdentity

    mount = f"mount -t proc -o hidepid={hidepid} proc /proc && exec"
    person = "setpriv --reuid 12345 --regid 12345 --clear-groups"
    identity = str(ProcessIdentity.current())
    command = f"{mount} {person} {sys.executable} -c '{HIDDEN}' '{identity}'"
    seen = subprocess.run(
        ["unshare", "--mount", "sh", "-c", command], capture_output=True, text=True, check=True
    )
    assert json.loads(seen.stdout) == ["unknown", "dead", False]


def test_a_worker_whose_scratch_root_is_another_users_says_so_and_ends(tmp_path, settings):
    root = tmp_path / f"trialfleet-{os.getuid()}"
    root.mkdir()
    os.chown(root, 12345, -1)
    ended = subprocess.run(
        [Path(sys.executable).with_name("celery"), "-A", "workers", "worker"],
        env={**os.environ, **settings.to_environment(), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    output = ended.stdout + ended.stderr
    assert ended.returncode == 2, output
    assert "is a directory of user 12345" in output
    assert "Traceback" not in output


def test_a_user_without_passwd_entry_and_home_is_told_to_set_one():
    environment = {key: value for key, value in os.environ.items() if key not in {"HOME", "USER"}}
    nobody = ["unshare", "--user", "--map-user=12345", "--map-group=12345"]
    command = [*nobody, sys.executable, "-m", "orchestrator.cli", "studies"]
    seen = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert seen.returncode == 2
    assert "no home directory; set FLEET_HOME" in seen.stderr


def test_such_a_users_cache_lies_in_the_home_that_is_set(tmp_path):
    program = "from workers.settings import Settings; print(Settings.from_environment().cache)"
    nobody = ["unshare", "--user", "--map-user=12345", "--map-group=12345"]
    environment = {"PATH": os.environ["PATH"], "FLEET_HOME": str(tmp_path)}
    seen = subprocess.run(
        [*nobody, sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert seen.stdout.strip() == str(tmp_path / "cache")
    assert "Traceback" not in seen.stderr


LOADING = """
import os, sys, tempfile
from workers.coordination.rights import Role
from workers.coordination.connection import connect
from workers.managers import cleanup_managers, ensure_process_initialized, get_directory_manager
from workers.processes.registry import ProcessRecord, ProcessRegistry
from workers.settings import Settings

if __name__ == "__main__":
    import torch
    from torch.utils.data import DataLoader, TensorDataset
    settings = Settings.from_environment()
    client = connect(settings, Role.USER)
    record = ProcessRecord(ProcessRegistry(client, settings.times))
    record.register()
    ensure_process_initialized(settings, record=record)
    data = TensorDataset(torch.arange(64.0))
    loader = DataLoader(data, batch_size=8, num_workers=2, multiprocessing_context="spawn")
    total = sum(float(batch.sum()) for (batch,) in loader)
    assert tempfile.gettempdir() == str(get_directory_manager().scratch())
    scratch = ProcessRegistry(client, settings.times).find(record.identity).scratch
    assert all(path.is_dir() for path in scratch)
    cleanup_managers()
    record.gone()
    client.close()
    print(total, *scratch)
"""


def test_loaders_work_below_a_tmpdir_that_is_too_long_for_sockets(settings, tmp_path):
    long = tmp_path / ("x" * max(1, 99 - len(str(tmp_path))))
    long.mkdir()
    program = tmp_path / "loading.py"
    program.write_text(LOADING)
    seen = subprocess.run(
        [sys.executable, program],
        env={**os.environ, **settings.to_environment(), "TMPDIR": str(long)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert seen.returncode == 0, seen.stderr
    total, *scratch = seen.stdout.split()
    assert total == "2016.0"
    assert len(scratch) == 2
    assert not any(Path(path).exists() for path in scratch)
