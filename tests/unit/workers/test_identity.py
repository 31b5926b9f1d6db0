from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import psutil
import pytest
from waiting import wait_until

from workers.coordination.identity import Life, ProcessIdentity
from workers.processes.child_watch import ChildWatch


@pytest.fixture
def sleeper():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def test_an_identity_survives_being_written_down():
    identity = ProcessIdentity.current()
    assert ProcessIdentity.parse(str(identity)) == identity
    assert identity.life() is Life.ALIVE


@pytest.mark.parametrize(
    "change", [{"host": "elsewhere"}, {"boot_id": "before"}, {"start_ticks": 1}]
)
def test_another_process_with_the_same_pid_is_told_apart(change):
    assert ProcessIdentity.current()._replace(**change).life() is not Life.ALIVE


def test_a_zombie_is_not_alive(sleeper):
    identity = ProcessIdentity.of(sleeper.pid)
    assert identity.life() is Life.ALIVE
    os.kill(sleeper.pid, signal.SIGKILL)
    wait_until(identity.is_dead, "the sleeper is dead, and nobody has reaped it")
    assert sleeper.returncode is None


def test_no_process_has_no_identity():
    with pytest.raises(ProcessLookupError):
        ProcessIdentity.of(2**22 + 1)


LEADERLESS = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=[60]).start()
print("ready", flush=True)
input()
ctypes.CDLL(None).pthread_exit(None)
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="only pidfd can tell")
def test_a_process_is_not_dead_while_one_of_its_threads_lives():
    command = [sys.executable, "-c", LEADERLESS]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout.readline()
        watch = ChildWatch()
        watch.add(process.pid)
        process.stdin.write(b"\n")
        process.stdin.flush()
        leader = psutil.Process(process.pid)
        wait_until(lambda: leader.status() == psutil.STATUS_ZOMBIE, "its first thread ends")
        assert watch.wait(0.1) == []
        process.kill()
        assert [each.pid for each in watch.wait(60)] == [process.pid]
        watch.close()


def refuse_pidfd(_pid):
    raise OSError(errno.ENOSYS, "no such system call")


def test_a_death_is_seen_where_the_kernel_has_no_pidfd(sleeper, monkeypatch):
    if hasattr(os, "pidfd_open"):
        monkeypatch.setattr(os, "pidfd_open", refuse_pidfd)
    watch = ChildWatch()
    watch.add(sleeper.pid)
    identity = ProcessIdentity.of(sleeper.pid)
    assert watch.wait(0.0) == []
    sleeper.kill()
    assert wait_until(lambda: watch.wait(0.1), "the death is seen") == [identity]
    assert not watch.is_watching
    watch.close()


def test_a_death_is_seen_at_once_and_once(sleeper):
    watch = ChildWatch()
    watch.add(sleeper.pid)
    watch.add(sleeper.pid)
    identity = ProcessIdentity.of(sleeper.pid)
    assert watch.wait(0.0) == []
    sleeper.kill()
    assert wait_until(lambda: watch.wait(60), "the death is seen") == [identity]
    assert watch.wait(0.0) == []
    watch.close()
