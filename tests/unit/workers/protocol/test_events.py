"""The schema of events: what is written is read again, by this release and by others."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.passwords import learn
from workers.protocol.events import (
    MAX_DETAIL,
    Cause,
    EventKind,
    brief,
    decode,
    encode,
    is_one_line,
    line_of,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
WHOLE = st.integers(min_value=0, max_value=2**53)
IDS = st.builds(
    "{}-{}".format,
    st.integers(min_value=0, max_value=10**14 - 1),
    st.integers(min_value=0, max_value=10**6),
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(["trial", "attempt", "step", "held_ms", "wait_ms", "count"], WHOLE),
        **dict.fromkeys(["process", "device", "state", "wish", "detail"], TEXT),
        "cause": st.sampled_from(Cause) | TEXT,
        "value": st.floats(allow_nan=False),
    },
)


@given(IDS, st.sampled_from(EventKind), FIELDS)
def test_an_event_comes_back_as_it_was_told(event_id, kind, fields):
    text = encode(kind, **fields)
    assert is_one_line(text)
    event = decode(line_of(event_id, text), study="s")
    told = {name: getattr(event, name) for name in fields}
    assert (event.id, event.kind, event.study) == (event_id, kind, "s")
    assert told == fields


@given(IDS, st.sampled_from(EventKind), FIELDS)
def test_its_document_is_strict_json_that_a_program_can_read(event_id, kind, fields):
    event = decode(line_of(event_id, encode(kind, **fields)))
    document = json.loads(json.dumps(event.document(), allow_nan=False))
    assert document["kind"] == kind
    assert set(document) == {"id", "time", "kind", *fields}


@given(st.binary(max_size=60) | st.text(max_size=60))
def test_a_line_that_is_no_event_is_none(line):
    assert decode(line) is None


@pytest.mark.parametrize(
    "line",
    [
        "[]", "1", "null", '{"id":"1-0"}', '{"id":"x","kind":"asked"}', '{"id":"1-0","kind":[]}',
        '{"id":"1-0","kind":"asked","trial":-1}', '{"id":"1-0","kind":"asked","trial":"a"}',
        '{"id":"1-0","kind":"asked","trial":' + "9" * 5000 + "}", '{"id":"1-0",' * 3000,
    ],
)  # fmt: skip
def test_so_is_one_whose_fields_are_not_as_they_are_to_be(line):
    assert decode(line) is None


def test_what_a_newer_release_tells_is_read_and_shown_as_it_stands():
    event = decode(
        '{"id":"5-0","kind":"cloned","version":2,"trial":3,"cause":"fancy","colour":"red"}'
    )
    assert (event.kind, event.is_known, event.cause, event.trial) == ("cloned", False, "fancy", 3)
    assert event.document()["colour"] == "red"


def test_a_kind_and_a_cause_of_this_release_are_known():
    event = decode('{"id":"5-0","kind":"requeued","cause":"died"}')
    assert event.is_known
    assert event.cause is Cause.DIED


@given(st.text(max_size=400))
def test_a_brief_text_is_one_line_and_short_whatever_it_was(text):
    told = brief(text)
    assert len(told.encode()) <= MAX_DETAIL
    assert len(told.splitlines()) <= 1


def test_a_brief_text_tells_no_password():
    learn("hunter2-of-events")
    assert "hunter2" not in brief("no answer from redis://u:hunter2-of-events@h:6379/0")
    assert brief(None) == brief("") == ""


def test_a_value_that_json_has_no_number_for_is_text_in_a_document():
    event = decode('{"id":"5-0","kind":"ended","value":"NaN"}')
    assert math.isnan(event.value)
    assert event.document()["value"] == "NaN"


def test_an_event_knows_the_host_and_the_pid_of_its_process():
    event = decode('{"id":"1500-3","kind":"claimed","process":"a:b:c.1:42:99"}')
    assert (event.host, event.pid) == ("a:b", 42)
    assert event.time.isoformat() == "1970-01-01T00:00:01.500000+00:00"
    assert decode('{"id":"1-0","kind":"claimed","process":"odd"}').pid is None
