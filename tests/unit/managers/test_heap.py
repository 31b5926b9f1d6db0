"""When memory that was freed goes back to the system."""

from __future__ import annotations

import sys

import psutil
import pytest
import torch

from workers.managers.heap import Heap

MB = 1 << 20

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc is asked")


class Times:
    """What a heap is told of the time and of its process."""

    def __init__(self):
        self.seconds, self.rss = 0.0, 500 * MB
        self.heap = Heap(lambda: self.seconds, lambda: self.rss)


def test_little_is_kept_and_much_goes_back_for_two_hundredths_of_the_time():
    told = Times()
    told.seconds, told.rss = 100.0, 512 * MB
    assert not told.heap.give_back(), "12 MB are no matter"
    told.rss = 600 * MB
    assert told.heap.give_back()
    told.rss = 800 * MB
    told.seconds += 9.0
    assert not told.heap.give_back(), "200 MB take a while, and it was done just now"
    told.seconds += 2.0
    assert told.heap.give_back()


def test_what_was_freed_below_what_is_still_there_goes_back():
    process = psutil.Process()
    trim = Heap()._trim
    assert trim is not None
    trim(0)  # what tests before left
    seconds = iter([0.0, 60.0, 60.0])
    heap = Heap(lambda: next(seconds))
    before = process.memory_info().rss
    freed, kept = [], []
    for at in range(1000):
        freed.append(torch.ones(25_000))  # 100 kB: too small for maps of their own
        if not at % 100:
            kept.append(torch.ones(20_000))
    kept.append(torch.ones(20_000))
    freed.clear()
    assert process.memory_info().rss - before > 60 * MB, "glibc keeps it"
    assert heap.give_back()
    assert process.memory_info().rss - before < 40 * MB
    assert len(kept) == 11
