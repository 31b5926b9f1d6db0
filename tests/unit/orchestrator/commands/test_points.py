from __future__ import annotations

import pytest

from orchestrator.commands.points import best_points, read_points
from orchestrator.handle import StudyHandle
from workers.protocol.errors import InvalidInputError


@pytest.mark.parametrize(
    ("count", "source", "told"),
    [
        (2, None, "--best 2: of which study? Its --from is missing"),
        (0, "before", "--from before: how many? its --best is missing"),
        (-1, "before", "--from before: how many? --best -1 is no number of trials"),
    ],
)
def test_one_of_two_options_that_go_together_is_refused_with_the_other_named(count, source, told):
    with pytest.raises(InvalidInputError) as refused:
        best_points(StudyHandle("now"), count, source)
    assert str(refused.value) == (
        f"{told}; give both, such as `trialfleet enqueue now --best 3 --from {source or 'OTHER'}`"
    )


def test_neither_of_both_options_names_no_points():
    assert best_points(StudyHandle("now"), 0, None) == []


def test_a_value_may_be_longer_than_the_name_of_a_file():
    assert read_points([f"prompt={'x' * 5000}"]) == [{"prompt": "x" * 5000}]


def test_a_value_without_a_name_is_refused():
    with pytest.raises(InvalidInputError, match="=3: neither NAME=VALUE nor a file"):
        read_points(["=3"])
