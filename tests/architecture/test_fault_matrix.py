"""Each row of the fault matrix has a test."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]

#: As `tests/README.md` lists them.
ROWS = range(1, 34)


def test_every_row_has_a_test_and_a_line_in_the_readme():
    marked = {
        int(row)
        for path in TESTS.glob("*/**/test_*.py")
        for row in re.findall(r"mark\.fault\((\d+)\)", path.read_text())
    }
    listed = re.findall(r"^\| (\d+) \|", (TESTS / "README.md").read_text(), re.MULTILINE)
    assert sorted(marked) == list(ROWS)
    assert [int(row) for row in listed] == list(ROWS)
