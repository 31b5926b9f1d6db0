"""Which errors tell of a loader process that was killed."""

from __future__ import annotations

import os
import signal
import time

import pytest
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from workers.trials.dead_loaders import DeadLoader, dead_loader


class EndsOneByOne(IterableDataset):
    """The first process has no rows; the second one gives one, and is killed."""

    def __iter__(self):
        if get_worker_info().id == 1:
            yield 0
            time.sleep(1.0)
            os.kill(os.getpid(), signal.SIGKILL)


class Stuck(Dataset):
    """Never gives a row, and does not leave when it is asked to."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        time.sleep(600)


class Killed(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGTRAP)


class WithoutTextError(Exception):
    def __str__(self):
        raise LookupError


def batches_of(rows, **options):
    return iter(DataLoader(rows, multiprocessing_context="fork", **options))


def raised_by(ask):
    with pytest.raises(Exception) as raised:  # noqa: PT011 - whatever it is
        ask()
    return raised.value


def test_of_one_that_dies_after_its_pipe_broke_and_after_another_has_ended():
    batches = batches_of(EndsOneByOne(), num_workers=2, batch_size=None, prefetch_factor=1)
    assert next(batches) == 0
    batches._workers[0].join()
    batches._data_queue._reader.close()  # as a process that dies leaves it
    error = raised_by(lambda: next(batches))
    assert isinstance(error, OSError)
    dead = dead_loader(error)
    assert dead is not None
    assert dead == DeadLoader(batches._workers[1].pid, "SIGKILL")


def test_one_that_was_closed_tells_nothing():
    batches = batches_of(Stuck(), num_workers=1, timeout=1)
    error = raised_by(lambda: next(batches))
    batches._workers[0].kill()
    batches._worker_pids_set = False
    batches._workers[0].join()
    batches._workers[0].close()
    try:
        assert dead_loader(error) is None
    finally:
        batches._workers.clear()


def test_a_signal_of_any_name_and_an_error_of_no_text():
    batches = batches_of(Killed(), num_workers=1)
    error = raised_by(lambda: next(batches))
    assert dead_loader(error) == DeadLoader(batches._workers[0].pid, "SIGTRAP")
    last = WithoutTextError()
    last.__context__ = error
    assert dead_loader(last).was_survived
    assert dead_loader(WithoutTextError()) is None
