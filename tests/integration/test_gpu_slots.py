"""Workers of one host and its GPUs: real processes and locks, and an NVML that tells of GPUs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import wait_until

from workers.processes.registry import ProcessRegistry

GPUS = [f"GPU-{index}{'0' * 7}-1111-2222-3333-444455556666" for index in range(3)]

#: A worker's main process as far as its GPUs go, and its pool processes, one a GPU.
WORKER = """
import os, subprocess, sys, time
from workers.processes import gpu_slots
try:
    taken = gpu_slots.take_gpus(int(sys.argv[1]), float(sys.argv[2]))
except Exception as error:
    print(error, flush=True)
    sys.exit(2)
child = "import os, sys; from workers.processes.gpu_slots import take_gpu\\n"
child += "take_gpu(int(sys.argv[1])); print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True)\\n"
child += "sys.stdin.read()"
children = [
    subprocess.Popen([sys.executable, "-c", child, str(slot)], stdin=-1, stdout=-1, text=True)
    for slot in range(int(sys.argv[1]))
]
seen = [child.stdout.readline().strip() for child in children]
print(*seen, *(child.pid for child in children), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def environment(tmp_path):
    return {
        **{key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"},
        "PYTHONPATH": str(Path(__file__).parents[1] / "fake_nvml"),
        "FAKE_NVML": json.dumps([[uuid, None] for uuid in GPUS]),
        "FLEET_GPU_LOCKS": str(tmp_path / "gpus"),
    }


@pytest.fixture
def start(environment):
    started = []

    def start_worker(slots, patience=0.0, **variables):
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(slots), str(patience)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**environment, **variables},
            text=True,
        )
        started.append(worker)
        return worker

    yield start_worker
    for worker in started:
        worker.kill()
        worker.communicate()


def told(worker):
    """What a worker says, beside what it logs."""
    line = worker.stdout.readline()
    return (line if "[warning" not in line else worker.stdout.readline()).strip()


def test_each_worker_gets_gpus_that_no_other_one_has(start):
    first, second = start(2), start(1)
    seen = told(first).split()[:2] + told(second).split()[:1]
    assert sorted(seen) == ["0", "1", "2"]
    third = start(1)
    message = told(third)
    assert "all GPUs of this host" in message
    assert "set it empty to run on the CPU" in message
    assert third.wait(60) == 2
    by_uuid = start(1, CUDA_VISIBLE_DEVICES=GPUS[0])
    assert "another worker's" in told(by_uuid), "by whatever name it asks"


def test_more_slots_than_gpus_share_those_of_their_worker(start):
    assert told(start(3, CUDA_VISIBLE_DEVICES="2,0")).split()[:3] == ["2", "0", "2"]
    assert told(start(1)).split()[0] == "1"


def test_a_gpu_is_free_again_when_the_last_process_of_its_worker_is_gone(start):
    first = start(3)
    three = told(first).split()[-1]
    os.kill(int(three), signal.SIGSTOP)  # a process that the kernel does not let go of yet
    first.kill()
    first.wait()
    second = start(3)
    assert told(second).split()[:2] == ["0", "1"], "what is still in use is left"
    os.kill(int(three), signal.SIGKILL)
    assert told(start(1, patience=10.0)).split()[0] == "2"


def test_a_worker_waits_for_the_last_processes_of_one_that_was_killed(start):
    first = start(1, CUDA_VISIBLE_DEVICES="1")
    pid = int(told(first).split()[1])
    os.kill(pid, signal.SIGSTOP)
    first.kill()
    first.wait()
    second = start(1, patience=20.0, CUDA_VISIBLE_DEVICES="1")
    os.kill(pid, signal.SIGKILL)
    assert told(second).split()[0] == "1"


ANOTHER_USER = """
import os, sys
from workers.processes.gpu_slots import take_gpus
os.setresuid(12345, 12345, 12345)
take_gpus(3, 0.0)
print(os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_two_users_meet_in_one_directory(start, environment, tmp_path):
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(0o755)
    assert told(start(1)).split()[0] == "0"
    command = [sys.executable, "-c", ANOTHER_USER]
    with subprocess.Popen(command, stdin=-1, stdout=-1, env=environment, text=True) as other:
        assert told(other) == "1,2"
        assert "another worker's" in told(start(1, CUDA_VISIBLE_DEVICES="1"))
        other.kill()
    assert told(start(1, patience=10.0)).split()[0] == "1", "and locks the other one's files"


def test_real_workers_share_the_gpus_of_a_box_and_say_in_ps_who_has_which(
    client, settings, environment, tmp_path
):
    command = [Path(sys.executable).with_name("celery"), "-A", "workers", "worker"]
    own = {**environment, **settings.to_environment(), "WANDB_MODE": "disabled"}
    registry = ProcessRegistry(client, settings.times)

    def with_gpus(count):
        found = [entry.gpu for entry in registry.entries() if entry.gpu is not None]
        return sorted(found) if len(found) == count else None

    workers = []
    try:
        for slots, total in (("2", 2), ("", 3)):
            with (tmp_path / f"worker-{total}.log").open("w") as log:
                workers.append(
                    subprocess.Popen(
                        command, env={**own, "FLEET_SLOTS": slots}, stdout=log, stderr=log
                    )
                )
            seen = wait_until(lambda total=total: with_gpus(total), f"{total} have GPUs")
        assert seen == [f"{index} ({uuid[:12]})" for index, uuid in enumerate(GPUS)]
        refused = subprocess.run(command, env=own, capture_output=True, text=True, check=False)
        assert refused.returncode == 2
        assert "all GPUs of this host" in refused.stdout + refused.stderr
        assert "Traceback" not in refused.stdout + refused.stderr
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait(60)
