"""A grid comes to its end with its last point, whatever other trials there are."""

from __future__ import annotations

import optuna
import pytest
from optuna.distributions import IntDistribution
from optuna.samplers import GridSampler

from orchestrator.submission.further_grid import FurtherGrid, OwnGrid


@pytest.mark.parametrize("sampler", [OwnGrid, FurtherGrid])
def test_a_trial_without_a_point_may_end_last_or_while_a_point_is_tried(sampler, monkeypatch):
    study = optuna.create_study(sampler=sampler.of(GridSampler({"x": [0, 1]})))
    stops = []
    monkeypatch.setattr(study, "stop", lambda: stops.append(True))
    space = {"x": IntDistribution(0, 1)}
    for _ in range(2):
        study.enqueue_trial({"x": 1})
    first_given, last_given, one, other = (study.ask(space) for _ in range(4))
    study.tell(one, 0.0)
    assert not stops
    study.tell(first_given, 0.0)
    assert not stops, "a point is still being tried"
    study.tell(other, 0.0)
    assert stops
    stops.clear()
    study.tell(last_given, 0.0)
    assert stops
    assert sorted([one.params["x"], other.params["x"]]) == [0, 1]
