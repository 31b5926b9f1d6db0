"""What can be told of entries of an inbox without taking them in."""

from __future__ import annotations

import pytest

from workers.coordination.inbox import are_ends
from workers.protocol.messages import BrokenEntry, read_entry


def entry(kind):
    told = {"number": "0", "token": "1", "attempt": "1", "subject": "0", "body": "0"}
    return read_entry("1-0", {"kind": kind, **told})


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (["terminal"], True),
        (["terminal", "terminal"], True),
        (["terminal", "report"], False),
        (["suggest"], False),
        (["terminal", "of a later release"], False),
        ([], False),
    ],
)
def test_ends_alone_are_what_nobody_waits_for_an_answer_to(kinds, expected):
    assert are_ends(entry(kind) for kind in kinds) is expected


@pytest.mark.parametrize("number", ["-1", "1.5", "", "nan"])
def test_an_entry_of_no_trial_is_none_of_the_last_one(number):
    told = {"kind": "terminal", "token": "1", "attempt": "1", "subject": "DEAD", "body": "{}"}
    assert isinstance(read_entry("1-0", {**told, "number": number}), BrokenEntry)
