"""Loader processes that a server forks: they read what spawned ones would, and never stay."""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from multiprocessing import resource_tracker

import psutil
import pytest
import torch
from torch.utils.data import DataLoader
from waiting import wait_until

from workers.managers import DataManager
from workers.managers.forked_loaders import ForkedLoaders
from workers.managers.loader_process import LoaderProcess
from workers.processes.registry import ProcessRecord, ProcessRegistry
from workers.protocol.states import ProcessKind

#: Rows whose values hang on all that may last in a process: the module's state, the data set's own,
#: the generators; and on the module's code. More tensors than files go over a socket at once.
ROWS = """
import atexit, os, threading, time
import numpy as np, torch
from torch.utils.data import Dataset

{top}
drawn = np.random.default_rng(0)
def told(): return 1.0

class Rows(Dataset):
    def __init__(self, act=""):
        self.act, self.own = act, np.random.default_rng(1)
        self.shared = [torch.tensor(float(at)) for at in range(300)]
    def __len__(self):
        return 8
    def __getitem__(self, index):
        exec(self.act)
        seen = [drawn.random(), self.own.random(), torch.rand(()).item(), np.random.rand(), told()]
        row = [os.getpid(), os.getppid(), *seen, self.shared[-index - 1]]
        return torch.tensor(row, dtype=torch.float64)
"""


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """Writes the module of the data set, and imports it."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(top="", edit=("", "")):
        (tmp_path / "rows_of_a_user.py").write_text(ROWS.format(top=top).replace(*edit))
        sys.modules.pop("rows_of_a_user", None)
        importlib.invalidate_caches()
        return importlib.import_module("rows_of_a_user")

    return write


@pytest.fixture
def forked():
    with closing(ForkedLoaders()) as loaders:
        yield loaders


def loader_of(data, context, num_workers=1, **options):
    return DataLoader(
        data,
        batch_size=2,
        num_workers=num_workers,
        multiprocessing_context=context,
        worker_init_fn=LoaderProcess(None, "s", 1),
        **options,
    )


def read(data, context, num_workers=1):
    """What a loader yields, the pids that read it, and that of the process that forked those."""
    torch.manual_seed(3)
    batches = torch.cat(list(loader_of(data, context, num_workers)))
    (parent,) = set(batches[:, 1].tolist())
    return batches[:, 2:].tolist(), {int(pid) for pid in batches[:, 0]}, int(parent)


def test_what_forked_processes_read_is_what_fresh_ones_would(rows, forked, tmp_path):
    module = rows()
    fresh, _, ours = read(module.Rows(), "fork")
    assert ours == os.getpid()
    first, pids, server = read(module.Rows(), forked.context(), num_workers=2)
    again, others, same = read(module.Rows(), forked.context(), num_workers=2)
    assert first == again
    assert server == same != ours
    assert pids.isdisjoint(others)
    assert read(module.Rows(), forked.context())[0] == fresh
    edited, *_ = read(rows(edit=("1.0", "20.0")).Rows(), forked.context())
    assert [row[4] for row in edited] == [20.0] * 8, "its module was edited"
    patches = "assert torch.rand.__name__ == 'rand'\ntorch.rand = lambda size: torch.ones(size)"
    left = f"atexit.register(open({str(tmp_path / 'left')!r}, 'a').write, 'left ')"
    there = f"{patches}\n{left}"
    module = rows(f"if os.getpid() != {os.getpid()}:\n    exec({there!r})")
    for _ in range(2):
        patched, _, same = read(module.Rows(), forked.context())
        assert [row[2] for row in patched] == [1.0] * 8, "what a module does to a library, it does"
        assert same == server
    # torch waits 5 s for a process to end, and goes on
    wait_until(lambda: (tmp_path / "left").read_text() == "left left ", "both have ended")


def test_a_killed_process_is_seen_and_a_killed_server_replaced(rows, forked):
    module = rows()
    loader = loader_of(module.Rows("time.sleep(index)"), forked.context())
    batches = iter(loader)
    pid, server = map(int, next(batches)[0, :2])
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid"):
        list(batches)
    whole, _, same = read(module.Rows(), forked.context())
    assert same == server
    os.kill(server, signal.SIGKILL)
    again, _, other = read(module.Rows(), forked.context())
    assert again == whole
    assert other != server
    os.kill(other, signal.SIGKILL)
    os.waitpid(other, 0)  # as an objective may
    assert forked.end_trial() == frozenset()


def test_what_a_trial_leaves_ends_with_it(rows, forked):
    module = rows()
    loader = loader_of(module.Rows(), forked.context(), 2, persistent_workers=True)
    pids = {int(row[0]) for batch in loader for row in batch}
    server = psutil.Process(pids.copy().pop()).ppid()
    assert {child.pid for child in psutil.Process(server).children()} == pids
    assert forked.end_trial() == {server}
    wait_until(lambda: not psutil.Process(server).children(), "both are gone")
    read(module.Rows(), forked.context())


def test_a_server_is_of_one_environment(rows, forked, monkeypatch):
    module = rows()
    loader = loader_of(module.Rows(), forked.context(), persistent_workers=True)
    (pid,) = {int(row[0]) for batch in loader for row in batch}
    server = psutil.Process(pid).ppid()
    monkeypatch.setenv("ANOTHER", "3.0")
    changed = module.Rows("global told; told = lambda: float(os.environ['ANOTHER'])")
    seen, _, other = read(changed, forked.context())
    assert seen[0][4] == 3.0
    assert other != server
    assert len(list(loader)) == 4, "those of the former one are at work"
    assert forked.end_trial() == {other}
    assert not psutil.pid_exists(server)
    wait_until(lambda: not psutil.pid_exists(pid), "what it forked ends with it")


def test_nothing_of_how_one_trial_used_its_process_is_met_by_the_next(
    rows, forked, tmp_path, monkeypatch
):
    module = rows()
    resource_tracker.ensure_running()  # else it keeps the output that it finds here
    # the server starts while a thread reads, output is elsewhere, and signals are held up
    read_end, write_end = os.pipe()
    before = os.dup(1)
    monkeypatch.setattr(sys, "path", [*sys.path, tmp_path, str(tmp_path / "later")])
    os.dup2(write_end, 1)
    seen = []
    act = "print('told', flush=True)"
    thread = threading.Thread(
        target=lambda: seen.append(read(module.Rows(act), forked.context())[2])
    )
    thread.start()
    thread.join()
    os.dup2(before, 1)
    os.close(before)
    os.close(write_end)
    with os.fdopen(read_end) as told:
        assert told.read() == "told\n" * 8, "whose end comes when the loaders have ended"
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "made_later.py").touch()
    _, _, server = read(module.Rows("import made_later"), forked.context())
    assert seen == [server], "it outlives the thread that started it"
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD, signal.SIGUSR1])
    try:
        masked = "assert signal.SIGUSR1 in signal.pthread_sigmask(signal.SIG_BLOCK, [])"
        _, _, other = read(module.Rows(f"import signal; {masked}"), forked.context())
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD, signal.SIGUSR1])
    assert other != server
    free = "assert signal.SIGUSR1 not in signal.pthread_sigmask(signal.SIG_BLOCK, [])"
    read(module.Rows(f"import signal; {free}"), forked.context())
    assert not psutil.pid_exists(server)
    assert not psutil.pid_exists(other), "none stays that has no work"


def test_loaders_start_whatever_an_objective_did_to_its_process(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    with closing(ForkedLoaders()) as forked:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "numpy.py").write_text("raise ValueError('of the user')")
        monkeypatch.chdir(tmp_path / "elsewhere")
        monkeypatch.setattr(sys, "path", sys.path[1:])
        module = rows()
        socket.setdefaulttimeout(0.001)
        before = os.dup(1)
        os.close(1)
        forks = os.fork()
        if forks == 0:
            signal.pause()  # with all that is open here, and later
        try:
            _, _, server = read(module.Rows(), forked.context(), num_workers=2)
            *_, same = read(module.Rows(), forked.context(), num_workers=2)
            began = time.monotonic()
            forked.close()
            assert time.monotonic() - began < 4.0, "it waits for no fork"
        finally:
            os.kill(forks, signal.SIGKILL)
            os.waitpid(forks, 0)
            os.dup2(before, 1)
            os.close(before)
            socket.setdefaulttimeout(None)
        assert same == server


@pytest.mark.long
def test_a_server_that_was_told_half_of_something_looks_after_what_it_forked(rows, forked):
    module = rows()
    loader = loader_of(module.Rows(), forked.context(), persistent_workers=True)
    (pid,) = {int(row[0]) for batch in loader for row in batch}
    with pytest.raises(OSError, match="Bad file descriptor"):
        forked.launch([10**6])
    *_, other = read(module.Rows(), forked.context())
    assert psutil.Process(pid).ppid() != other
    assert len(list(loader)) == 4
    (worker,) = loader._iterator._workers
    del loader
    gc.collect()
    worker.join(20)
    assert worker.exitcode == 0


def test_a_process_that_the_objective_forks_may_read_by_loaders_of_its_own(rows):
    loader = loader_of(rows().Rows(), "fork")  # what they do first was made here
    reader = multiprocessing.get_context("fork").Process(target=lambda: sys.exit(len(list(loader))))
    reader.start()
    reader.join(60)
    assert reader.exitcode == 4


PARENT = """
import time
from torch.utils.data import DataLoader
from workers.managers.forked_loaders import ForkedLoaders
from workers.managers.loader_process import LoaderProcess
from rows_of_a_user import Rows
if __name__ == "__main__":
    forked = ForkedLoaders()
    loader = DataLoader(Rows(), num_workers=1, multiprocessing_context=forked.context())
    batches = iter(loader)
    print(*next(batches)[0, :2].int().tolist(), flush=True)
    time.sleep(600)
"""


def test_server_and_loaders_die_with_their_parent(rows, tmp_path):
    rows()
    (tmp_path / "parent.py").write_text(PARENT)
    with subprocess.Popen(
        [sys.executable, "parent.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert all(map(psutil.pid_exists, pids))
        parent.kill()
    wait_until(lambda: not any(map(psutil.pid_exists, pids)), "both are gone")


def test_the_registry_shows_whose_rows_a_process_reads(rows, container, client, settings):
    registry = ProcessRegistry(client, settings.times)
    data = container.get(DataManager)
    data._record = ProcessRecord(registry, ProcessKind.TRIAL)
    data._record.note(study="s", trial=4)
    loader = DataLoader(rows().Rows(), num_workers=1, multiprocessing_context="spawn")
    batches = iter(data.registered(loader))
    pid = int(next(batches)[0, 0])
    (entry,) = registry.entries()
    shown = (entry.kind, entry.parent, entry.study, entry.trial, entry.identity.pid)
    assert shown == (ProcessKind.LOADER, os.getpid(), "s", 4, pid)
    list(batches)
    del batches
    wait_until(lambda: not list(registry.entries()), "it has left")
    (server,) = data.end_trial()
    data.close()
    assert not psutil.pid_exists(server)
