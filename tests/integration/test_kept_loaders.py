"""Loader processes that are kept: what they read is what fresh ones would, and they never stay."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import psutil
import pytest
import torch
from torch.utils.data import DataLoader
from waiting import wait_until

from workers.managers import DataManager, kept_loaders
from workers.managers.kept_loaders import KeptLoaders
from workers.managers.loader_process import LoaderProcess
from workers.processes.registry import ProcessRecord, ProcessRegistry
from workers.protocol.states import ProcessKind

#: Rows whose values hang on all that may last in a process: the module's state, the data set's own,
#: the generators; and on the module's code.
ROWS = """
import os, threading, time
import numpy as np, torch
from torch.utils.data import Dataset

{top}
drawn = np.random.default_rng(0)
def told(): return 1.0

class Rows(Dataset):
    def __init__(self, act=""):
        self.act, self.own, self.shared = act, np.random.default_rng(1), torch.arange(8.0)
    def __len__(self):
        return 8
    def __getitem__(self, index):
        exec(self.act)
        seen = [drawn.random(), self.own.random(), torch.rand(()).item(), np.random.rand(), told()]
        return torch.tensor([os.getpid(), *seen, self.shared[index]], dtype=torch.float64)
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
def kept():
    with closing(KeptLoaders(lambda: LoaderProcess(None, "s", 1), 600.0)) as loaders:
        yield loaders


def has_ended(pid):
    """Whether a process has ended, waited for or not."""
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def read(data, context, num_workers=1):
    """What a loader yields, and the pids that read it."""
    torch.manual_seed(3)
    first = LoaderProcess(None, "s", 1)
    batches = torch.cat(
        list(
            DataLoader(
                data,
                batch_size=2,
                num_workers=num_workers,
                multiprocessing_context=context,
                worker_init_fn=first,
            )
        )
    )
    return batches[:, 1:].tolist(), {int(pid) for pid in batches[:, 0]}


def test_what_a_kept_process_reads_is_what_a_fresh_one_would(rows, kept, monkeypatch):
    module = rows()
    fresh, _ = read(module.Rows(), "fork")
    first, pids = read(module.Rows(), kept.context())
    again, same = read(module.Rows(), kept.context())
    assert (first, again) == (fresh, fresh)
    assert same == pids
    edited, same = read(rows(edit=("1.0", "20.0")).Rows(), kept.context())
    assert [row[4] for row in edited] == [20.0] * 8, "its module was edited"
    assert same == pids
    monkeypatch.setenv("ANOTHER", "1")
    registers = "assert not hasattr(torch, 'registered')\ntorch.registered = True"
    module = rows()
    Path(module.__file__).write_text(ROWS.format(top=registers))
    changed, others = read(module.Rows(), kept.context())
    assert changed == fresh
    assert others.isdisjoint(pids), "a fresh one would have another environment"
    again, third = read(module.Rows(), kept.context())
    assert again == fresh
    assert third.isdisjoint(others), "a process can import this module but once"


def test_a_killed_process_is_replaced(rows, kept):
    module = rows()
    whole, pids = read(module.Rows(), kept.context())
    os.kill(pids.pop(), signal.SIGKILL)
    again, pids = read(module.Rows(), kept.context())
    assert again == whole
    loader = DataLoader(
        module.Rows("time.sleep(index)"), num_workers=1, multiprocessing_context=kept.context()
    )
    batches = iter(loader)
    next(batches)
    os.kill(pids.pop(), signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid"):
        list(batches)
    assert kept.end_trial() == frozenset()


def test_no_more_are_kept_than_a_trial_had_and_none_that_cannot_be_put_back(rows, kept):
    module = rows()
    _, pids = read(module.Rows(), kept.context(), num_workers=2)
    assert kept.end_trial() == pids
    read(module.Rows(), kept.context())
    (left,) = kept.end_trial()
    assert left in pids
    assert [pid for pid in pids if psutil.pid_exists(pid)] == [left]
    lasting = "threading.Thread(target=time.sleep, args=(600,)).start()"  # no exit waits it out
    _, (pid,) = read(module.Rows(lasting), kept.context())
    assert kept.end_trial() == frozenset()
    assert not psutil.pid_exists(pid), "the one with a thread is ended"


def test_a_process_without_work_ends_by_itself(rows, monkeypatch):
    monkeypatch.setattr(kept_loaders, "_MARGIN_SECONDS", 0.1)
    with closing(KeptLoaders(lambda: LoaderProcess(None), 0.1)) as kept:
        _, (pid,) = read(rows().Rows(), kept.context())
        wait_until(lambda: has_ended(pid), "it has ended")
        assert kept.end_trial() == frozenset()
        assert not psutil.pid_exists(pid)


PARENT = """
from torch.utils.data import DataLoader
from workers.managers.kept_loaders import KeptLoaders
from workers.managers.loader_process import LoaderProcess
from rows_of_a_user import Rows
if __name__ == "__main__":
    kept = KeptLoaders(lambda: LoaderProcess(None), 600.0)
    loader = DataLoader(Rows(), num_workers=1, multiprocessing_context=kept.context())
    print(*{int(row[0, 0]) for row in loader}, flush=True)
    time.sleep(600)
"""


@pytest.mark.long  # tests/acceptance/test_killed_workers.py kills one whose loaders are at work
def test_a_process_without_work_dies_with_its_parent(rows, tmp_path):
    rows()
    (tmp_path / "parent.py").write_text(PARENT)
    with subprocess.Popen(
        [sys.executable, "parent.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as parent:
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        parent.kill()
    wait_until(lambda: not psutil.pid_exists(pid), "it is gone")


def test_the_registry_shows_whose_rows_a_kept_process_reads(rows, container, client, settings):
    registry = ProcessRegistry(client, settings.times)
    data = container.get(DataManager)
    data._record = ProcessRecord(registry, ProcessKind.TRIAL)
    data._loaders = KeptLoaders(data.loader_process, 600.0)
    module, shown = rows(), []
    for trial in (4, 5):
        data._record.note(study="s", trial=trial)
        loader = DataLoader(module.Rows(), num_workers=1, multiprocessing_context="spawn")
        batches = iter(data.registered(loader))
        next(batches)
        (entry,) = registry.entries()
        shown.append((entry.kind, entry.parent, entry.study, entry.trial, entry.identity.pid))
        list(batches)
        del batches
        wait_until(lambda: next(registry.entries()).trial is None, "it rests")
    pid = shown[0][-1]
    assert shown == [(ProcessKind.LOADER, os.getpid(), "s", trial, pid) for trial in (4, 5)]
    data.close()
    wait_until(lambda: not list(registry.entries()), "it has left")
