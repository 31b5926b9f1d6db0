"""The spool of a pool process: whose each part is, whatever was printed, and on a full disk."""

from __future__ import annotations

import os
from itertools import groupby

import pytest

from workers.coordination.trial_output import Attempt
from workers.disk import output_spool
from workers.disk.output_spool import OutputSpool, new_spool
from workers.disk.room import has_room
from workers.passwords import learn

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


def left_out(count):
    return f"\n[trialfleet: {count} bytes left out]\n".encode()


def test_what_is_passed_over_is_said_and_no_mark_in_it_is_missed(spool, monkeypatch):
    monkeypatch.setattr(output_spool, "_MOST_UNREAD", 1000)
    second = spool.marks.of(SECOND)
    # the second's mark lies across the border of what is read at once
    first = b"x" * (2**18 - len(second) - 20) + b"\n"
    spool.write(spool.marks.of(FIRST) + first + second + b"y\n" * 2500 + b"last\n")
    (begun, told, is_over), (attempt, content, _) = read(spool)
    assert (begun, told, is_over) == (FIRST, left_out(len(first)), True)
    assert attempt == SECOND
    count = (5000 + len(b"last\n") - 1000) // 2 * 2
    assert content == left_out(count) + b"y\n" * (2500 - count // 2) + b"last\n"


def test_an_attempt_that_is_passed_over_is_told_its_own_part_and_its_end(spool, monkeypatch):
    monkeypatch.setattr(output_spool, "_MOST_UNREAD", 1000)
    monkeypatch.setattr(output_spool, "_CHUNK", 700)
    spool.write(spool.marks.of(FIRST) + b"a\n")
    assert read(spool) == [(FIRST, b"a\n", False)]
    third, marks = FIRST._replace(trial=7), spool.marks
    spool.write(b"a\n" * 1000 + marks.of(None) + b"nobody's\n" * 99 + marks.of(SECOND))
    spool.write(b"b\n" * 500 + marks.of(third) + b"c\n" * 1000)
    told = read(spool)
    assert told[:2] == [(FIRST, left_out(2000), True), (SECOND, left_out(1000), True)]
    assert told[2:] == [(third, left_out(1000) + b"c\n" * 500, False)]


def test_who_goes_on_in_the_midst_of_what_is_passed_over_misses_no_end(spool, monkeypatch):
    monkeypatch.setattr(output_spool, "_MOST_UNREAD", 1000)
    monkeypatch.setattr(output_spool, "_CHUNK", 700)
    spool.write(spool.marks.of(FIRST) + b"a\n" * 900 + spool.marks.of(SECOND) + b"b\n" * 900)
    told = [next(iter(spool.chunks()))]  # and is killed when it has noted that
    spool.note()
    with OutputSpool(spool.path) as other:
        told += other.chunks(is_last=True)
    pieces = [piece for chunk in told for piece in chunk]
    assert [piece.attempt for piece in pieces if piece.is_last] == [FIRST, SECOND]
    kept = sum(piece.content.count(b"b\n") for piece in pieces)
    parts = [int(piece.content.split()[1]) for piece in pieces if b"left out" in piece.content]
    assert sum(parts) + 2 * kept == 3600


def test_what_is_in_the_log_already_stays_so_where_its_mark_is_passed_over(spool, monkeypatch):
    def is_logged():
        pieces = [piece for chunk in spool.chunks() for piece in chunk]
        return {text: piece.is_logged for piece in pieces for text in piece.content.split()}

    monkeypatch.setattr(output_spool, "_MOST_UNREAD", 1000)
    spool.write(spool.marks.of(FIRST) + spool.marks.logged("logged\n" * 500) + b"printed\n" * 9)
    found = is_logged()
    assert (found[b"logged"], found[b"printed"]) == (True, False)
    logged = spool.marks.logged("logged\n" * 500)
    spool.write(logged[:500])
    assert is_logged() == {b"logged": True}
    spool.write(logged[500:] + b"printed\n" * 500)
    assert is_logged()[b"printed"] is False


def test_no_password_is_cut_in_two_where_the_rest_is_passed_over(spool, monkeypatch):
    monkeypatch.setattr(output_spool, "_MOST_UNREAD", 1000)
    secret = b"a-s3cret-of-some-length"
    learn(secret.decode())
    spool.write(spool.marks.of(FIRST) + b"x" * 9000 + secret + b"y" * 990)
    ((_, content, _),) = read(spool, is_last=True)
    assert secret in content


def test_room_is_taken_ahead_and_the_file_stays_as_long_as_it_is(tmp_path):
    with (tmp_path / "file").open("wb") as file:
        file.write(b"abc")
        file.flush()
        assert has_room(file.fileno(), 2**16)
        found = os.fstat(file.fileno())
        assert found.st_size == 3
        assert found.st_blocks * 512 >= 2**16
        assert not has_room(file.fileno(), 2**60)
