from __future__ import annotations

import os
import re
import threading

import pytest
from waiting import wait_until

from workers.processes.onward import Onward

LINE = "y" * 99


def in_a_thread(call):
    """Have a call made that might never end."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    wait_until(lambda: not thread.is_alive(), "it ends")


@pytest.fixture
def pipe():
    reader, writer = os.pipe()
    yield reader, writer
    for descriptor in (reader, writer):
        os.close(descriptor)


def test_a_reader_that_stands_still_is_not_waited_for_and_is_told_what_was_left_out(pipe):
    reader, writer = pipe
    onward, num_lines = Onward(writer), 40_000

    def print_on():
        for number in range(num_lines // 1000):
            onward.add("\n".join(f"{1000 * number + line:06} {LINE}" for line in range(1000)))
            onward.flush()

    in_a_thread(print_on)
    assert len(onward._waiting) <= 2**20
    read = bytearray()

    def everything():
        onward.flush()
        read.extend(os.read(reader, 2**16))
        return read.endswith(f"{num_lines - 1:06} {LINE}\n".encode())

    wait_until(everything, "what waited is written once somebody reads")
    (note,) = re.findall(rb"\n\[trialfleet: (\d+) bytes left out\]\n", read)
    shown = len(read) - len(note) - len(b"\n[trialfleet:  bytes left out]\n")
    assert shown + int(note) == num_lines * 107
    onward.add("next")
    onward.flush()
    assert os.read(reader, 100) == b"next\n"


def test_a_reader_that_is_gone_costs_nothing():
    reader, writer = os.pipe()
    os.close(reader)
    onward = Onward(writer)
    onward.add("one")
    onward.flush()
    os.close(writer)
    onward.add("two")
    onward.flush()
    assert not onward._waiting


def test_a_slow_reader_gets_all_of_it(pipe):
    reader, writer = pipe
    onward, read = Onward(writer), bytearray()

    def read_on():
        while not read.endswith(b"end\n"):
            read.extend(os.read(reader, 1000))

    thread = threading.Thread(target=read_on, daemon=True)
    thread.start()
    onward.add("x" * 500_000 + "end")
    wait_until(lambda: onward.flush() or not onward._waiting, "it is written")
    wait_until(lambda: not thread.is_alive(), "it is read")
    assert read == b"x" * 500_000 + b"end\n"
