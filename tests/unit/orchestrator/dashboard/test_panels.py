"""When the page draws which chart; by Node.js."""

from __future__ import annotations

import pytest
from node import told_by_node

SCRIPT = """
import { isDue, undrawn } from "./panels.js";
const seen = (given, ...rest) => Object.assign(undrawn(...rest), { isSeen: true }, given);
const due = (panel, others = [], now = 10_000) => isDue(panel, [panel, ...others], now);
const slow = seen({}, 5000, true);
console.log(JSON.stringify({
  first: due(seen({}, 1000)), unseen: due(undrawn(1000)),
  busy: due(seen({ isDrawing: true }, 1000)),
  fresh: due(seen({ stale: false, drawnAt: 0 }, 1000)),
  early: due(seen({ drawnAt: 9500 }, 1000)), later: due(seen({ drawnAt: 8900 }, 1000)),
  costly: due(seen({ drawnAt: 8900, took: 200 }, 1000)),
  rested: due(seen({ drawnAt: 7900, took: 200 }, 1000)),
  slowAlone: due(slow, [undrawn(1000)]), slowFirst: due(slow, [seen({}, 1000)]),
  slowBeside: due(slow, [seen({ drawnAt: 9000, isDrawing: true }, 1000)]),
  slowAfter: due(slow, [seen({ drawnAt: 9000 }, 1000)]), quick: due(seen({}, 1000), [slow]),
}));
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> dict:
    return told_by_node(tmp_path_factory.mktemp("page"), SCRIPT)


def test_what_is_seen_and_stale_is_drawn_not_too_often(told):
    assert (told["first"], told["later"]) == (True, True)
    assert not any(told[name] for name in ("unseen", "busy", "fresh", "early"))


def test_what_takes_long_to_draw_is_drawn_less_often(told):
    assert (told["costly"], told["rested"]) == (False, True)


def test_a_slow_chart_waits_for_those_that_are_seen_beside_it(told):
    assert (told["slowFirst"], told["slowBeside"]) == (False, False)
    assert (told["slowAlone"], told["slowAfter"], told["quick"]) == (True, True, True)
