from __future__ import annotations

import os
import subprocess
import sys

import psutil
from waiting import wait_until

from workers.coordination.identity import ProcessIdentity
from workers.processes.session import end_session

#: A leader that starts a member of its session and waits.
LEADER = """
import subprocess, sys
print(subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL).pid, flush=True)
sys.stdin.read()
"""


def test_a_dead_leaders_session_is_ended_and_its_exit_code_left_to_its_parent():
    leader = subprocess.Popen(
        [sys.executable, "-c", LEADER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with leader:
        member = psutil.Process(int(leader.stdout.readline()))
        identity = ProcessIdentity.of(leader.pid)
        assert end_session(identity) == [], "a leader that lives keeps its session"
        assert member.is_running()
        leader.kill()
        os.waitid(os.P_PID, leader.pid, os.WEXITED | os.WNOWAIT)
        assert end_session(identity) == []
        wait_until(
            lambda: not member.is_running() or member.status() == psutil.STATUS_ZOMBIE,
            "the member ends",
        )
        pid, status = os.waitpid(leader.pid, os.WNOHANG)
        assert (pid, os.WTERMSIG(status)) == (leader.pid, 9)
        leader.returncode = -9
