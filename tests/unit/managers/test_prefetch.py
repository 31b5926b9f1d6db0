from __future__ import annotations

import threading

import pytest
import torch
from waiting import wait_until

from workers.managers import prefetch
from workers.managers.device_copies import DeviceCopies
from workers.managers.prefetch import Prefetch


def prefetching():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


class Source:
    """Counts what was asked of it, and by whom; closed as generators are."""

    def __init__(self, length=10**9, error_at=None):
        self.length, self.error_at = length, error_at
        self.made, self.threads, self.is_closed = 0, set(), False

    def __call__(self):
        try:
            for number in range(self.length):
                if number == self.error_at:
                    raise ValueError("row 3 cannot be read")
                self.threads.add(threading.current_thread().name)
                self.made += 1
                yield number
        finally:
            self.is_closed = True


def test_items_come_in_their_order_from_another_thread_a_few_ahead():
    source = Source(50)
    with Prefetch(source) as ahead:
        assert next(ahead) == 0
        wait_until(lambda: source.made == 4, "two lie ready, and one more was made", 10)
        assert list(ahead) == list(range(1, 50))
        assert next(ahead, None) is None, "over once, over for good"
    assert source.threads == {"prefetch"}
    assert not prefetching()


def test_an_error_is_raised_where_its_item_was_wanted_after_those_before_it():
    seen = []
    with pytest.raises(ValueError, match="row 3") as caught, Prefetch(Source(9, 3)) as ahead:
        seen.extend(ahead)
    assert "__call__" in {entry.name for entry in caught.traceback}, "its own traceback is kept"
    seen = []
    with Prefetch(Source(9, 3)) as ahead:
        for item in ahead:
            seen.append(item)
            if item == 2:
                break
    assert seen == [0, 1, 2], "an error that nobody came to is nobody's"
    assert not prefetching()


@pytest.mark.parametrize("ended_by", [KeyError, KeyboardInterrupt, StopIteration])
def test_the_thread_ends_with_its_block_whatever_ends_that(ended_by):
    source = Source()

    def end():
        with Prefetch(source) as ahead:
            next(ahead)
            raise ended_by

    with pytest.raises(ended_by):
        end()
    assert not prefetching()
    assert source.is_closed


def test_a_block_ends_without_the_item_that_hangs(monkeypatch, capsys):
    monkeypatch.setattr(prefetch, "_JOIN_SECONDS", 0.05)
    reading, disk = threading.Event(), threading.Event()

    def make():
        yield 0
        reading.set()
        disk.wait()
        yield 1

    with Prefetch(make) as ahead:
        assert next(ahead) == 0
        assert reading.wait(10.0)
    assert "prefetch_hangs" in capsys.readouterr().out
    disk.set()
    wait_until(lambda: not prefetching(), "the thread ends as soon as it can", 10)


def test_what_is_sent_to_the_cpu_is_received_as_it_is():
    copies = DeviceCopies(torch.device("cpu"), lambda: None)
    batch = {"labels": torch.arange(3)}
    assert copies.receive(copies.send(batch))["labels"] is batch["labels"]
