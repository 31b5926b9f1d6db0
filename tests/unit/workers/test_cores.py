from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from workers.processes.cores import count_cores, quotas, share_cores

V2 = "30 23 0:26 {inside} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1 = "33 23 0:29 {inside} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
OTHER = "22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw"


def host(root, group, mount, files):
    """Lays down what a process sees of its control groups."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(group + "\n")
    (root / "proc/self/mountinfo").write_text(f"{OTHER}\n{mount}\n")
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("group", "inside", "files", "expected"),
    [
        ("0::/", "/", {"cpu.max": "150000 100000"}, [1.5]),
        ("0::/", "/", {"cpu.max": "max 100000"}, []),
        ("0::/", "/", {}, []),
        ("0::/a/b", "/", {"a/b/cpu.max": "max 100000", "a/cpu.max": "200000 100000"}, [2.0]),
        (
            "0::/a/b",
            "/",
            {"a/b/cpu.max": "400000 100000", "a/cpu.max": "50000 100000"},
            [4.0, 0.5],
        ),
        ("0::/docker/abc", "/docker/abc", {"cpu.max": "300000 100000"}, [3.0]),
        ("0::/../outside", "/", {"cpu.max": "1 0"}, []),
        ("0::/", "/", {"cpu.max": "garbage"}, []),
    ],
)
def test_the_quota_of_version_2_counts_whichever_group_it_is_set_on(
    tmp_path, group, inside, files, expected
):
    root = host(tmp_path, group, V2.format(inside=inside), files)
    assert list(quotas(root)) == expected


@pytest.mark.parametrize(
    ("path", "inside", "folder", "quota", "expected"),
    [
        ("/", "/", "", "250000", [2.5]),
        ("/", "/", "", "-1", []),
        ("/docker/abc", "/docker/abc", "", "100000", [1.0]),
        ("/docker/abc", "/", "docker/abc/", "100000", [1.0]),
        ("/docker/abc", "/docker/other", "", "100000", []),
    ],
)
def test_the_quota_of_version_1_counts(tmp_path, path, inside, folder, quota, expected):
    group = f"5:memory:/elsewhere\n4:cpu,cpuacct:{path}"
    files = {
        f"cpu,cpuacct/{folder}cpu.cfs_quota_us": quota,
        f"cpu,cpuacct/{folder}cpu.cfs_period_us": "100000",
    }
    assert list(quotas(host(tmp_path, group, V1.format(inside=inside), files))) == expected


def test_without_control_groups_the_cores_that_the_scheduler_gives_count(tmp_path):
    assert list(quotas(tmp_path)) == []
    assert count_cores() >= 1


def _hierarchy():
    """Where a group can be made here, and the file and text that give it one core."""
    if os.access("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", os.W_OK):
        return Path("/sys/fs/cgroup/cpu"), "cpu.cfs_quota_us", "100000"
    controllers = Path("/sys/fs/cgroup/cgroup.subtree_control")
    if os.access(controllers, os.W_OK) and "cpu" in controllers.read_text().split():
        return Path("/sys/fs/cgroup"), "cpu.max", "100000 100000"
    return None


@pytest.mark.skipif(_hierarchy() is None, reason="no control group can be made here")
def test_a_process_in_a_real_group_of_one_core_counts_one():
    top, file, text = _hierarchy()
    group = top / f"trialfleet-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / file).write_text(text)
        program = "from workers.processes.cores import count_cores; print(count_cores())"
        command = f"echo $$ > {group}/cgroup.procs && exec {sys.executable} -c '{program}'"
        seen = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
        assert seen.stdout.strip() == "1"
    finally:
        group.rmdir()


@pytest.mark.parametrize(
    ("slots", "given", "threads"), [(4, "", "4"), (5, "", "3"), (99, "", "1"), (4, "7", "7")]
)
def test_a_slot_tokenises_with_its_share_or_what_the_user_says(monkeypatch, slots, given, threads):
    environment = {"RAYON_NUM_THREADS": given} if given else {}
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr("workers.processes.cores.count_cores", lambda: 16)
    share_cores(slots)
    assert environment["RAYON_NUM_THREADS"] == threads
    assert "TOKENIZERS_PARALLELISM" not in environment, "set, it would hang a process that forks"
