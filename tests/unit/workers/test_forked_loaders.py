"""What a loader process that was forked looks like to `multiprocessing`."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver

import pytest

from workers.managers import forked_loaders
from workers.managers.forked_loaders import _Launched


def test_an_exit_code_is_that_of_the_process_to_each_thread_that_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of two at once, the second read what is told once, and took the process for killed."""
    process = object.__new__(_Launched)
    process.returncode, process._reads = None, threading.Lock()
    process.sentinel, told = os.pipe()
    forkserver.write_signed(told, 3)
    os.close(told)
    both, wait = threading.Barrier(2), forked_loaders.wait

    def wait_for_both(ready, timeout):
        found = wait(ready, timeout)
        both.wait(10)
        return found

    monkeypatch.setattr(forked_loaders, "wait", wait_for_both)
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda _: process.poll(), range(2)))
    os.close(process.sentinel)
    assert found == [3, 3]
