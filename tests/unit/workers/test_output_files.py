from __future__ import annotations

import os

import pytest

from workers.coordination.trial_output import Attempt
from workers.disk.output_files import OutputFile, output_file, outputs_of
from workers.disk.output_spool import OutputSpool, new_spool, spools_in
from workers.passwords import learn

FIRST, SECOND = Attempt("s", 3, 1, 100, "g"), Attempt("s", 3, 2, 200)


@pytest.fixture
def spool(tmp_path):
    path, descriptor = new_spool(tmp_path)
    with OutputSpool(path) as opened:
        opened.write = lambda content: os.write(descriptor, content)
        yield opened
    os.close(descriptor)


def read(spool, **options):
    return [
        (each.attempt, each.content, each.is_last)
        for pieces in spool.chunks(**options)
        for each in pieces
    ]


def test_what_is_printed_is_whose_mark_is_before_it(spool):
    spool.write(b"nobody's\n" + spool.marks.of(FIRST) + b"one\ntwo")
    assert read(spool) == [(None, b"nobody's\n", False), (FIRST, b"one\n", False)]
    assert read(spool) == [], "a line that is not complete waits"
    spool.write(b"\n\x1e no mark\n" + spool.marks.of(SECOND) + b"three\n" + spool.marks.of(None))
    assert read(spool) == [
        (FIRST, b"two\n\x1e no mark\n", False),
        (FIRST, b"", True),
        (SECOND, b"three\n", False),
        (SECOND, b"", True),
    ]


def test_a_mark_that_is_half_written_waits_for_the_rest(spool):
    mark = spool.marks.of(FIRST)
    spool.write(b"before\n" + mark[:9])
    assert read(spool) == [(None, b"before\n", False)]
    spool.write(mark[9:] + b"after\n")
    assert read(spool) == [(FIRST, b"after\n", False)]


def test_a_line_that_never_ends_is_taken_in_parts_and_the_last_words_in_the_end(spool):
    spool.write(spool.marks.of(FIRST) + b"x" * 20_000)
    assert [len(content) for _, content, _ in read(spool)] == [20_000]
    spool.write(b"last words")
    assert read(spool) == []
    assert read(spool, is_last=True) == [(FIRST, b"last words", False), (FIRST, b"", True)]


def test_no_password_lies_in_two_parts_however_long_the_line_or_the_text_is(spool):
    secret = "hf_a-secret-of-some-length"
    learn(secret)
    half = len(secret) // 2
    spool.write(spool.marks.of(FIRST) + b"x" * 20_000 + secret[:half].encode())
    first = read(spool)
    spool.write(secret[half:].encode() + b" " + b"y\n" * 10)
    begin = spool.marks.of(FIRST)
    filled = 2**18 - len(begin) - half
    spool.write(begin + b"z" * filled + secret.encode() + b"z\n")
    printed = [content for _, content, _ in [*first, *read(spool, is_last=True)]]
    assert b"".join(printed).count(secret.encode()) == 2
    assert sum(content.count(secret.encode()) for content in printed) == 2
    spool.write(begin + secret.encode()[:half])
    assert read(spool) == []
    assert read(spool, is_last=True)[0][1] == secret.encode()[:half]


def test_whoever_goes_on_begins_where_reading_was_noted(spool):
    spool.write(spool.marks.of(FIRST) + b"one\n")
    read(spool)
    spool.printed, spool.lost = 4, 3
    spool.note()
    spool.write(b"two\n")
    with OutputSpool(spool.path) as other:
        assert (other.printed, other.lost) == (4, 3)
        assert read(other, is_last=True) == [(FIRST, b"two\n", False), (FIRST, b"", True)]
    assert spools_in(spool.path.parent) == [spool.path]


def test_room_of_what_was_read_is_given_back(spool):
    spool.write(spool.marks.of(FIRST) + (b"y" * 99 + b"\n") * 100_000)
    assert sum(len(content) for _, content, _ in read(spool)) == 10_000_000
    spool.note()
    assert spool.path.stat().st_blocks * 512 < 1_000_000


def test_whose_output_it_is_stays_known_where_nobody_reads_as_fast_as_it_comes(spool, monkeypatch):
    monkeypatch.setattr("workers.disk.output_spool._MOST_UNREAD", 1000)
    spool.write(spool.marks.of(FIRST) + b"z\n" * 5000)
    found = read(spool)
    assert {attempt for attempt, _, _ in found} == {FIRST}
    text = b"".join(content for _, content, _ in found)
    assert text.count(b"z\n") == 500
    assert b"bytes left out]" in text


def test_a_file_keeps_its_beginning_and_its_end_and_says_what_it_cut(tmp_path):
    file, printed = OutputFile(tmp_path / "a" / "output.log", most_bytes=4000), ""
    for index in range(1500):
        line = f"lïne {index}\n"
        printed += line
        file.write(len(printed.encode()) - len(line.encode()), line)
        text, end = file.read()
        assert end == len(printed.encode())
        assert len(text.encode()) <= 4000
    begin, _, rest = text.partition("\n[trialfleet: ")
    cut, _, last = rest.partition(" bytes cut]\n")
    assert printed.startswith(begin)
    assert printed.endswith(last)
    assert len(begin.encode()) + int(cut) + len(last.encode()) == end
    assert len(last) > 500
    assert "\N{REPLACEMENT CHARACTER}" not in text


def test_what_a_file_has_already_is_not_written_again(tmp_path):
    file = OutputFile(tmp_path / "output.log", most_bytes=4000)
    assert file.end() == 0
    file.write(0, "one\ntw")
    file.write(0, "one\ntwo\n")
    file.write(4, "two\n")
    assert file.read() == ("one\ntwo\n", 8)
    file.write(8, "x" * 10_000)
    before = file.read()
    assert before[1] == file.end() == 10_008
    file.write(8, "x" * 10_000)
    assert file.read() == before, "of one that was cut, all that was printed counts"
    file.write(10_000, "x" * 8 + "last")
    assert (file.end(), file.read()[0][-5:]) == (10_012, "xlast")


def test_files_are_found_in_the_order_of_their_attempts(tmp_path):
    for attempt, token in ((2, 2000), (1, 900), (1, 3000)):
        output_file(tmp_path, "s", 3, attempt, token).write(0, "text")
    output_file(tmp_path, "s", 4, 1, 1).write(0, "text")
    (tmp_path / "studies" / "s" / "trials" / "3" / "output" / "junk").mkdir()
    found = [(each.attempt, each.token) for each in outputs_of(tmp_path, "s", 3)]
    assert found == [(1, 900), (2, 2000), (1, 3000)]
