"""How often a page looks that stands open."""

from __future__ import annotations

import pytest

from orchestrator.dashboard.live import seconds_between


@pytest.mark.parametrize(
    ("took", "waited"), [(0.0, 0.5), (0.01, 0.5), (0.05, 1.2), (0.2, 3.0), (2.0, 8.0)]
)
def test_a_look_takes_a_small_share_of_the_time_and_a_long_one_is_not_put_off_for_ever(
    took, waited
):
    assert seconds_between(took) == pytest.approx(waited)
