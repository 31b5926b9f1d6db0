"""Which trials the page's list shows, and in which order; by Node.js."""

from __future__ import annotations

import pytest
from node import told_by_node

SCRIPT = """
import { choose, rangeOf } from "./trials.js";
const store = { states: [..."CPFCDO"], values: [[5, null, null, 2, null, null]],
  seconds: [1, 9, 2, 3, 4, 0] };
const of = (given, direction = "minimize") =>
  choose(store, { state: "", numbers: "", order: "newest", ...given }, direction);
console.log(JSON.stringify({
  newest: of({}), oldest: of({ order: "oldest" }), longest: of({ order: "longest" }),
  least: of({ order: "best" }), most: of({ order: "best" }, "maximize"),
  failed: of({ state: "F" }), some: of({ numbers: "1 - 3" }), one: of({ numbers: "4" }),
  beyond: of({ numbers: "4-99" }), backwards: of({ numbers: "4-1" }), wrong: of({ numbers: "x" }),
  both: of({ numbers: "1-5", state: "C" }),
  ranges: ["", "7", "1-2", "-1", "1-", "1.5"].map((each) => rangeOf(each)),
}));
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> dict:
    return told_by_node(tmp_path_factory.mktemp("page"), SCRIPT)


def test_trials_are_chosen_by_state_and_number(told):
    assert told["failed"] == [2]
    assert (told["some"], told["one"], told["beyond"]) == ([3, 2, 1], [4], [5, 4])
    assert told["both"] == [3]
    assert told["backwards"] == told["wrong"] == []
    assert told["ranges"] == [[0, None], [7, 7], [1, 2], None, None, None]


def test_trials_without_a_value_come_after_those_that_have_one(told):
    assert told["newest"] == [5, 4, 3, 2, 1, 0]
    assert told["oldest"] == [0, 1, 2, 3, 4, 5]
    assert told["longest"] == [1, 4, 3, 2, 0, 5]
    assert told["least"][:2] == [3, 0]
    assert told["most"][:2] == [0, 3]
    assert sorted(told["least"]) == told["oldest"]
