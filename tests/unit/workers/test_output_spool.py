"""The spool of a pool process: whose each part is, whatever was printed, and on a full disk."""

from __future__ import annotations

import os
from itertools import groupby

import pytest

from workers.coordination.trial_output import Attempt
from workers.disk import output_spool
from workers.disk.output_spool import OutputSpool, new_spool
from workers.disk.room import has_room

FIRST, SECOND = Attempt("s", 0, 1, 100), Attempt("s", 0, 2, 200)


@pytest.fixture
def spool(tmp_path):
    path, descriptor = new_spool(tmp_path)
    with OutputSpool(path) as spool:
        spool.write = lambda content: os.write(descriptor, content)
        yield spool
    os.close(descriptor)


def read(spool, *, is_last=False):
    """What each attempt printed in turn, and whether it prints no more."""
    pieces = [piece for chunk in spool.chunks(is_last=is_last) for piece in chunk]
    spool.note()
    return [
        (attempt, b"".join(each.content for each in group), group[-1].is_last)
        for attempt, found in groupby(pieces, lambda each: each.attempt)
        for group in [list(found)]
    ]


@pytest.mark.parametrize("head", [b"", b"a line\n", b"x" * 100])
@pytest.mark.parametrize("length", [1, 2**18 - 1, 2**18, 2**18 + 1, 3 * 2**18])
def test_a_separator_after_which_no_mark_comes_is_text_and_holds_up_nothing(spool, head, length):
    text = head + b"\x1e" + b"y" * length
    spool.write(spool.marks.of(FIRST) + text)
    before = b"".join(content for _, content, _ in read(spool))
    assert len(text) - len(before) < 2**18, "no more than a look takes is left for later"
    spool.write(b"z\n" + spool.marks.of(SECOND) + b"of the second\n")
    told = read(spool)
    assert told[0] == (FIRST, (text + b"z\n")[len(before) :], True)
    assert told[1] == (SECOND, b"of the second\n", False)


def test_of_separators_alone_nothing_is_lost_at_the_end(spool):
    text = b"\x1e" * 600_000
    spool.write(spool.marks.of(FIRST) + text)
    assert read(spool, is_last=True) == [(FIRST, text, True)]


def test_a_mark_is_not_taken_before_it_is_whole(spool):
    mark = spool.marks.of(SECOND)
    spool.write(spool.marks.of(FIRST) + b"one\n")
    told = read(spool)
    for each in mark:
        spool.write(bytes([each]))
        told += read(spool)
    spool.write(b"two\n")
    assert [*told, *read(spool)][:2] == [(FIRST, b"one\n", False), (FIRST, b"", True)]


@pytest.mark.parametrize("missing", [1, 3, 9])
def test_a_mark_of_which_a_full_disk_took_a_part_ends_nothing(spool, missing):
    spool.write(spool.marks.of(FIRST) + b"one\n" + spool.marks.of(None)[:-1])
    spool.write(spool.marks.of(SECOND)[:-missing])
    spool.write(spool.marks.of(FIRST) + b"two\n" + spool.marks.of(SECOND) + b"three\n")
    told = read(spool, is_last=True)
    assert [each for each in told if each[1]] == [
        (FIRST, b"one\ntwo\n", True),
        (SECOND, b"three\n", True),
    ]


def test_the_mark_of_the_attempt_that_prints_already_does_not_end_it(spool):
    spool.write(spool.marks.of(FIRST) + b"one\n" + spool.marks.of(FIRST) + b"two\n")
    assert read(spool) == [(FIRST, b"one\ntwo\n", False)]


def test_what_is_passed_over_is_said_and_no_mark_in_it_is_missed(spool, monkeypatch):
    monkeypatch.setattr(output_spool, "_MOST_UNREAD", 1000)
    second = spool.marks.of(SECOND)
    # the second's mark lies across the border of what is read at once
    spool.write(spool.marks.of(FIRST) + b"x" * (2**18 - len(second) - 20) + b"\n" + second)
    spool.write(b"y" * 5000 + b"\nlast\n")
    told = read(spool)
    assert [attempt for attempt, _, _ in told] == [SECOND]
    content = told[0][1]
    assert content.startswith(b"\n[trialfleet: ")
    assert b" bytes left out]\n" in content
    assert content.endswith(b"\nlast\n")
    assert len(content) < 1100


def test_room_is_taken_ahead_and_the_file_stays_as_long_as_it_is(tmp_path):
    with (tmp_path / "file").open("wb") as file:
        file.write(b"abc")
        file.flush()
        assert has_room(file.fileno(), 2**16)
        found = os.fstat(file.fileno())
        assert found.st_size == 3
        assert found.st_blocks * 512 >= 2**16
        assert not has_room(file.fileno(), 2**60)
