"""The file of events: none twice, none torn, none lost, and bounded."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.storage.event_file import NUM_EARLIER, EventFile, Mark
from orchestrator.storage.event_history import EventHistory
from workers.coordination.event_stream import BEGINNING, Told
from workers.disk.file_locks import lock_file
from workers.protocol.events import EventKind, decode, encode


def told(*places, kind=EventKind.ASKED, **fields):
    return [Told(f"{place}-0", encode(kind, trial=place, **fields)) for place in places]


def trials_in(file):
    return [event.trial for line in file.lines() if (event := decode(line))]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "studies" / "s" / "events.jsonl"


def test_a_file_says_how_far_the_stream_was_read(path):
    file = EventFile(path)
    assert file.place() == BEGINNING
    assert file.add(told(1, 2))
    assert EventFile(path).place() == "2-0"


def test_what_is_in_it_is_not_added_again(path):
    EventFile(path).add(told(1, 2, 3))
    EventFile(path).add(told(2, 3, 4))
    assert trials_in(EventFile(path)) == [1, 2, 3, 4]


def test_two_that_add_in_turn_see_what_the_other_has_added(path):
    one, other = EventFile(path), EventFile(path)
    one.add(told(1))
    other.add(told(1, 2))
    one.add(told(1, 2, 3))
    assert trials_in(one) == [1, 2, 3]


def test_nothing_is_added_while_another_process_does(path):
    file = EventFile(path)
    file.add(told(1))
    with lock_file(path):
        assert not file.add(told(2))
    assert file.add(told(2))
    assert trials_in(file) == [1, 2]


@settings(max_examples=60)
@given(data=st.data())
def test_a_torn_end_is_cut_off_and_added_again(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("events") / "events.jsonl"
    EventFile(path).add(told(1, 2, 3, detail="é" * 20))
    whole = path.read_bytes()
    cut = data.draw(st.integers(min_value=0, max_value=len(whole)))
    path.write_bytes(whole[:cut] + data.draw(st.sampled_from([b"", b"\xc3", b"\0\0"])))
    EventFile(path).add(told(1, 2, 3, 4, detail="é" * 20))
    assert trials_in(EventFile(path)) == [1, 2, 3, 4]
    assert all(decode(line) for line in path.read_bytes().splitlines()), "no torn line is left"


def test_a_torn_end_longer_than_any_line_is_cut_off_too(path):
    file = EventFile(path)
    file.add(told(1))
    with path.open("ab") as torn:
        torn.write(b"x" * 200_000)
    file.add(told(2))
    assert path.read_bytes().count(b"\n") == 2


def test_it_is_bounded_and_its_end_is_kept(path):
    file = EventFile(path, max_bytes=2000)
    for number in range(1, 400):
        assert file.add(told(number))
    found = trials_in(file)
    assert found == list(range(found[0], 400)), "the oldest go, and no other"
    assert sum(each.stat().st_size for each in path.parent.iterdir()) < 2100 * (NUM_EARLIER + 1)


def test_the_place_is_known_when_the_next_file_was_just_begun(path):
    file = EventFile(path, max_bytes=10)
    file.add(told(1))
    assert not path.exists()
    assert EventFile(path).place() == "1-0"
    file.add(told(1, 2))
    assert trials_in(file) == [1, 2]


def test_events_of_an_earlier_study_of_the_name_are_passed_over(path):
    file = EventFile(path)
    file.add(told(1, kind=EventKind.DRIVEN, generation="old"))
    file.add(told(2))
    file.add(told(3, kind=EventKind.DRIVEN, generation="new"))
    file.add(told(4, kind=EventKind.DRIVEN, generation="new"))
    file.add(told(5))
    history = EventHistory(file, None, "s")
    found = list(history.read())
    assert [event.trial for event in found] == [3, 4, 5]
    assert {event.generation for event in found} == {"new"}
    assert {event.study for event in found} == {"s"}
    assert list(history.read()) == [], "what was read does not come again"


def test_a_place_that_cannot_be_written_raises_an_os_error(tmp_path):
    (tmp_path / "s").touch()
    with pytest.raises(OSError, match="s"):
        EventFile(tmp_path / "s" / "events.jsonl").add(told(1))


def test_whoever_reads_on_gets_each_event_once_across_files_and_no_torn_line(path):
    file, mark, seen = EventFile(path, max_bytes=400), Mark(), []

    def read_on():
        seen.extend(event.trial for line in file.lines(mark) if (event := decode(line)))

    for number in range(1, 40):
        file.add(told(number))
        if number % 5 == 0:  # once or twice a file
            read_on()
    with path.open("ab") as torn:
        torn.write(b'{"torn": ')
    read_on()
    read_on()
    assert seen == [*range(1, 40)]
    file.add(told(40))
    read_on()
    assert seen == [*range(1, 41)], "what was torn is cut off, and read on from there"


def test_whoever_was_away_for_too_long_reads_what_there_is(path):
    file, mark = EventFile(path, max_bytes=400), Mark()
    file.add(told(1))
    assert len([*file.lines(mark)]) == 1
    for number in range(2, 80):
        file.add(told(number))
    assert trials_in(file) == [decode(line).trial for line in file.lines(mark)]


def test_a_history_without_redis_reads_on_from_the_file(path):
    file = EventFile(path)
    file.add(told(1, 2))
    whole, one = EventHistory(file, None, "s"), EventHistory(file, None, "s", trial=2)
    assert [event.trial for event in whole.read()] == [1, 2]
    assert [event.trial for event in one.read()] == [2]
    file.add(told(3))
    file.add([Told("4-0", encode(EventKind.ASKED, trial=2))])
    assert [event.trial for event in whole.read()] == [3, 2]
    assert [event.trial for event in one.read()] == [2]
    assert [*whole.read(), *one.read()] == []
