"""Workers that are killed, stopped, told to end, and told so twice; pools that start badly."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import psutil
import pytest
from fault_fleet import is_gone, signal_all, tree_of
from remains import processes_of, shared_memory
from waiting import wait_until

from orchestrator.handle import StudyHandle


def members(fleet) -> list[str]:
    """Processes of the fleet's workers, by their environment, wherever they hang."""
    others = ("valkey-server", "redis-server", "orchestrator.cli")
    return [
        line
        for line in processes_of(fleet.settings.home)
        if not any(name in line for name in others)
    ]


def go_on_with_another_worker(fleet) -> None:
    """The trial ends in its second attempt, as if nothing had happened to the first."""
    fleet.worker()
    fleet.await_over()
    fleet.assert_sound(attempts={0: 2})


def give_up(fleet) -> None:
    """End the trial, which waits for a worker: how it goes on with one, others show."""
    record = fleet.record()
    assert (record.state, record.failures) == ("QUEUED", 0)
    StudyHandle(fleet.study, fleet.settings).cancel()
    fleet.await_over()
    shutil.rmtree(fleet.settings.home / "checkpoints")  # as the host's next worker would


def train(fleet):
    """A worker whose trial is amid its training, and goes no further."""
    fleet.order("stay until go")
    fleet.submit()
    fleet.serve()
    worker = fleet.worker()
    fleet.await_note("stay until go")
    return worker


def kill_whole_tree(fleet, worker) -> None:
    """Kill a worker's processes so that none sees another's death."""
    tree = tree_of(worker.pid)
    signal_all(tree, signal.SIGSTOP)
    signal_all(tree, signal.SIGKILL)
    wait_until(lambda: not members(fleet), "all of the worker's processes are gone")


def test_a_worker_whose_semaphore_tracker_was_killed_replaces_its_slots_all_the_same(fleet):
    before = shared_memory()
    worker = train(fleet)
    (tracker,) = (
        child
        for child in psutil.Process(worker.pid).children()
        if "semaphore_tracker" in " ".join(child.cmdline())
    )
    tracker.kill()
    os.kill(fleet.await_note("stay until go").pid, signal.SIGKILL)
    fleet.await_over()
    fleet.assert_sound(attempts={0: 2})
    worker.stop(60.0)
    assert shared_memory() <= before
    assert "KeyError" not in worker.log.read_text()


@pytest.mark.fault(7)
def test_a_killed_main_process_takes_all_loader_processes_with_it(fleet):
    before = shared_memory()
    fleet.order("wait for go")  # so that it lasts
    fleet.submit(objective="train_with_loaders")
    fleet.serve()
    worker = fleet.worker()
    pid = fleet.await_note("wait for go").pid
    wait_until(
        lambda: [entry.parent for entry in fleet.processes("loader")] == [pid] * 2,
        "both loaders have registered",
    )
    os.kill(worker.pid, signal.SIGKILL)
    wait_until(lambda: not members(fleet), "all of the worker's processes are gone")
    go_on_with_another_worker(fleet)
    fleet.workers[-1].stop(60.0)
    assert shared_memory() <= before


@pytest.mark.long
@pytest.mark.fault(7)
def test_a_killed_main_process_takes_the_loader_processes_of_a_users_own_loop_with_it(fleet):
    before = shared_memory()
    fleet.order("wait for go", step=6)
    fleet.submit(objective="train_in_a_loop")
    fleet.serve()
    worker = fleet.worker()
    fleet.await_note("wait for go")
    wait_until(lambda: len(fleet.processes("loader")) == 2, "both loaders have registered")
    os.kill(worker.pid, signal.SIGKILL)
    wait_until(lambda: not members(fleet), "all of the worker's processes are gone")
    go_on_with_another_worker(fleet)
    fleet.workers[-1].stop(60.0)
    assert shared_memory() <= before
    again = [note.step for note in fleet.notes("step") if note.attempt == 2]
    assert 1 < again[0] <= 7, "it went on from a checkpoint"


@pytest.mark.fault(8)
def test_a_whole_tree_that_is_killed_at_once_leaves_nothing_to_the_next_worker(fleet):
    before = shared_memory()
    fleet.order("wait for go")  # so that it lasts
    fleet.submit(objective="train_with_loaders")
    fleet.serve()
    worker = fleet.worker()
    fleet.await_note("wait for go")
    assert any("trialfleet" in name for name in shared_memory() - before)
    kill_whole_tree(fleet, worker)
    go_on_with_another_worker(fleet)
    fleet.workers[-1].stop(60.0)
    assert shared_memory() <= before


@pytest.mark.fault(9)
def test_a_stopped_main_process_loses_nothing_and_comes_back(fleet):
    fleet.submit(3)
    fleet.serve()
    worker = fleet.worker()
    fleet.await_note("starts")
    os.kill(worker.pid, signal.SIGSTOP)
    wait_until(lambda: not fleet.processes("main"), "its lease runs out")
    wait_until(lambda: fleet.record().state.is_terminal, "its child goes on")
    os.kill(worker.pid, signal.SIGCONT)
    fleet.await_over()
    fleet.assert_sound(3, attempts={0: 1, 1: 1, 2: 1})
    wait_until(lambda: fleet.processes("main"), "it has registered again")


@pytest.mark.fault(12)
def test_a_sigterm_to_the_main_process_saves_and_gives_back(fleet):
    worker = train(fleet)
    os.kill(worker.pid, signal.SIGTERM)
    drained = fleet.await_note("drained")
    wait_until(is_gone(worker.pid), "the worker ends")
    assert worker.poll() == 0
    lines = worker.log.read_text().splitlines()
    assert not any(line.startswith("Traceback") for line in lines), "no stumbling at the end"
    record = fleet.record()
    assert (record.state, record.failures) == ("QUEUED", 0)
    assert record.checkpoint.step == drained.step
    go_on_with_another_worker(fleet)
    assert fleet.await_note("starts", attempt=2).step == drained.step, "no step is trained twice"


def test_a_drain_that_cannot_be_written_to_its_file_is_told_all_the_same(fleet):
    worker = train(fleet)
    (main,) = fleet.processes("main")
    shutil.rmtree(main.scratch[0])  # as those do that tidy up /tmp
    ended = is_gone(worker.pid)
    os.kill(worker.pid, signal.SIGTERM)
    drained = fleet.await_note("drained")
    wait_until(ended, "the worker ends")
    assert fleet.events("drain_file_not_made")
    assert fleet.record().checkpoint.step == drained.step
    give_up(fleet)


@pytest.mark.fault(13)
def test_a_sigterm_to_all_processes_at_once_saves_and_gives_back_too(fleet):
    worker = train(fleet)
    ended = is_gone(worker.pid)
    signal_all(list(reversed(tree_of(worker.pid))), signal.SIGTERM)
    drained = fleet.await_note("drained")
    wait_until(ended, "the worker ends")
    assert fleet.record().checkpoint.step == drained.step
    give_up(fleet)


@pytest.mark.parametrize(
    "to_all",
    [
        pytest.param(False, marks=pytest.mark.fault(14), id="main"),
        pytest.param(True, marks=pytest.mark.fault(15), id="all"),
    ],
)
def test_a_second_signal_ends_at_once_and_the_trial_goes_on_elsewhere(fleet, to_all):
    fleet.order("hang", step=4)  # it does not hear the first one
    fleet.submit()
    fleet.serve()
    worker = fleet.worker()
    fleet.await_note("hang")
    tree, ended = tree_of(worker.pid), is_gone(worker.pid)
    targets = list(reversed(tree)) if to_all else tree[:1]
    signal_all(targets, signal.SIGTERM)
    wait_until(lambda: any(each.is_draining for each in fleet.processes("main")), "it drains")
    assert not ended()
    signal_all(targets, signal.SIGTERM)
    wait_until(ended, "it ends", 30.0)  # long before the step counts as one that hangs
    wait_until(lambda: not members(fleet), "and so do all of its processes")
    assert fleet.record().state == "QUEUED", "it was given back before the end"
    if to_all:
        go_on_with_another_worker(fleet)
    else:
        give_up(fleet)


def test_a_pool_that_does_not_end_when_it_has_drained_is_ended(fleet):
    fleet.order("hang at exit", step=2)
    worker = train(fleet)
    ended = is_gone(worker.pid)
    os.kill(worker.pid, signal.SIGTERM)
    wait_until(ended, "the worker ends")
    assert fleet.events("pool_stuck")
    wait_until(lambda: not members(fleet), "and so do all of its processes")
    give_up(fleet)


SLOW_TO_ACCEPT = """
import sys
if "billiard.spawn" in " ".join(sys.orig_argv):
    import time
    from pathlib import Path
    from billiard.pool import Worker
    make = Worker._make_protected_receive
    def make_slow(self, connection):
        receive = make(self, connection)
        def receive_and_wait():
            request = receive()
            if Path({flag!r}).exists():
                Path({flag!r}).with_name("received").touch()
                time.sleep(2)
            return request
        return receive_and_wait
    Worker._make_protected_receive = make_slow
"""


def test_a_drain_does_not_wait_for_a_message_that_celery_forgot(fleet):
    """Celery drops what a child was sent and has not accepted, and reads no answer to it."""
    folder, flag = fleet.folder / "site", fleet.folder / "slow"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SLOW_TO_ACCEPT.format(flag=str(flag)))
    fleet.order("wait for go", step=0)
    fleet.submit(2, objective="quick")
    fleet.serve()
    worker = fleet.worker(PYTHONPATH=str(folder))
    fleet.await_note("wait for go")
    flag.touch()
    fleet.go()
    wait_until((fleet.folder / "received").exists, "the next message is in the child's hands")
    os.kill(worker.pid, signal.SIGTERM)
    wait_until(lambda: worker.poll() is not None, "the worker ends")
    assert worker.poll() == 0
    assert not fleet.events("pool_stuck")
    flag.unlink()
    fleet.worker()
    fleet.await_over()
    assert [trial.value for trial in fleet.trials()] == [1.0, 1.0]


SLOW_START = """
import sys, time
from pathlib import Path
# a pool process, from the second on
if "--billiard-fork" in sys.argv or "billiard.spawn" in " ".join(sys.orig_argv):
    if Path({flag!r}).exists():
        {action}
"""


def disturb_replacements(fleet, action: str) -> dict[str, str]:
    """Variables of a worker whose pool processes do something at their start, once told to."""
    folder, flag = fleet.folder / "site", fleet.folder / "disturb"
    folder.mkdir()
    program = SLOW_START.format(flag=str(flag), action=action)
    (folder / "sitecustomize.py").write_text(program)
    return {"PYTHONPATH": str(folder)}


@pytest.mark.fault(16)
def test_a_replacement_that_starts_slowly_is_waited_for(fleet):
    fleet.order("kill")
    fleet.submit()
    fleet.serve()
    worker = fleet.worker(**disturb_replacements(fleet, "time.sleep(6)"))
    fleet.await_note("starts")
    (fleet.folder / "disturb").touch()
    fleet.await_over()
    fleet.assert_sound(attempts={0: 2})
    assert worker.poll() is None
    assert len(fleet.events("managers_ready")) == 2, "Celery's own patience would be 4 s"


BLIND_POOL = """
import sys
if "celery" in sys.orig_argv:
    from celery.concurrency.asynpool import AsynPool
    AsynPool._event_process_exit = lambda self, hub, proc: self._untrack_child_process(proc, hub)
    AsynPool.timers = property(lambda self: {})
"""


def test_a_child_whose_end_celery_missed_is_replaced_all_the_same(fleet):
    folder = fleet.folder / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(BLIND_POOL)
    fleet.order("kill")
    fleet.submit()
    fleet.serve()
    fleet.worker(PYTHONPATH=str(folder))
    fleet.await_over()
    fleet.assert_sound(attempts={0: 2})


@pytest.mark.fault(17)
def test_a_replacement_that_cannot_build_its_managers_stops_the_worker(fleet):
    fleet.order("kill")
    fleet.submit()
    fleet.serve()
    worker = fleet.worker(**disturb_replacements(fleet, "sys.modules['torch'] = None"))
    fleet.await_note("starts")
    (fleet.folder / "disturb").touch()
    wait_until(lambda: worker.poll() is not None, "the worker ends")
    assert 1 <= len(fleet.events("managers_not_built")) <= 3, "no storm"
    wait_until(lambda: fleet.record().state == "QUEUED", "its trial is taken from it")
    give_up(fleet)


def test_a_host_agent_that_fails_stops_its_worker(fleet):
    fleet.submit()
    folder = fleet.folder / "site"
    folder.mkdir()
    program = "import psutil\npsutil.process_iter = lambda: 1 / 0\n"
    (folder / "sitecustomize.py").write_text(program)
    fleet.order("kill")
    fleet.serve()
    worker = fleet.worker(PYTHONPATH=str(folder))
    wait_until(lambda: worker.poll() is not None, "the worker ends")
    assert fleet.events("host_agent_failed")
    go_on_with_another_worker(fleet)  # which cleans up after the process that was killed


@pytest.mark.fault(28)
def test_a_stranger_that_got_a_dead_processs_pid_is_spared(fleet):
    """The kernel is told to give the pid again, where that is allowed."""
    fleet.submit(objective="quick")
    fleet.order("wait for go", step=0)
    fleet.serve()
    worker = fleet.worker()
    held = fleet.await_note("wait for go")
    kill_whole_tree(fleet, worker)
    stranger = process_with_pid(held.pid)
    try:
        fleet.go()
        fleet.worker()
        fleet.await_over()
        wait_until(lambda: fleet.events("process_died"), "the dead one is cleaned up after")
        assert stranger.is_running()
        assert stranger.status() != psutil.STATUS_ZOMBIE
        assert fleet.trials()[0].user_attrs["trialfleet:attempt"] == 2
    finally:
        stranger.kill()
        stranger.wait()


def process_with_pid(pid: int) -> psutil.Popen:
    """A process in a session of its own that has this very pid."""
    wait_until(lambda: not psutil.pid_exists(pid), "nothing has it any more")
    for _ in range(1000):
        try:
            Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        except OSError:
            pytest.skip("only root may choose a pid")
        made = psutil.Popen(["sleep", "600"], start_new_session=True)
        if made.pid == pid:
            return made
        made.kill()
        made.wait()
    raise AssertionError(f"the kernel gave {pid} to nobody of ours")
