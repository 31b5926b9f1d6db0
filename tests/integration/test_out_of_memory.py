"""Trials that run out of memory, from the objective to the sampler: the real runner and service."""

from __future__ import annotations

import optuna
import pytest
from one_process_fleet import OneProcessFleet

from orchestrator.handle import StudyHandle
from orchestrator.submission.algorithms import make_sampler
from orchestrator.submission.space import suggest_all
from orchestrator.views.study_text import headline
from workers.protocol.spec import StudySpec

SPACE = {
    "width": {"type": "float", "low": 0.0, "high": 1.0},
    "rate": {"type": "float", "low": 0.0, "high": 1.0},
}

OBJECTIVE = """
def objective(trial):
    width = trial.suggest_float("width", 0, 1)
    if width > 0.5:
        raise MemoryError("no more")
    return width

def objective_of_two(trial):
    return objective(trial), 1.0
"""


@pytest.fixture
def fleet(client, server, settings, tmp_path):
    (tmp_path / "hungry.py").write_text(OBJECTIVE)
    config = settings.model_copy(update={"objectives": (str(tmp_path / "hungry.py"),)})
    with OneProcessFleet(client, server, config, tmp_path) as opened:
        yield opened


def test_what_runs_out_of_memory_is_pruned_with_a_constraint_counted_and_never_best(
    fleet, tmp_path
):
    given = {"space": {"width": SPACE["width"]}, "trials": 6, "sampler": {"type": "tpe", "seed": 2}}
    one = StudySpec(name="one", objective=f"{tmp_path}/hungry.py:objective", **given)
    two = StudySpec(
        name="two",
        objective=f"{tmp_path}/hungry.py:objective_of_two",
        directions=["minimize", "maximize"],
        **given,
    )
    for name, study in fleet.run_studies([one, two]).items():
        status = StudyHandle(name, fleet.config).status()
        hungry = [trial for trial in study.trials if trial.params["width"] > 0.5]
        assert hungry
        for trial in hungry:
            assert trial.state is optuna.trial.TrialState.PRUNED
            assert trial.constraints == {"oom": 1.0}
            assert trial.user_attrs["trialfleet:error"] == "out of memory: MemoryError: no more"
            assert trial.user_attrs["trialfleet:attempt"] == 2, "it was tried once more"
        assert status.out_of_memory == status.trials["pruned"] == len(hungry)
        assert status.trials["failed"] == 0
        assert f"{len(hungry)} out of memory" in headline(status)
        assert status.best.params["width"] <= 0.5


@pytest.mark.parametrize("options", [{}, {"multivariate": True, "group": True}])
def test_tpe_leaves_a_region_that_runs_out_of_memory(options):
    def share_of_the_hungry_half(end):
        sampler = {"type": "tpe", "seed": 5, **options}
        spec = StudySpec(name="s", space=SPACE, sampler=sampler)
        study = optuna.create_study(sampler=make_sampler(spec))
        hungry = 0
        for _ in range(100):
            trial = study.ask()
            values = suggest_all(trial, spec)
            if values["width"] > 0.5:
                hungry += 1
                end(study, trial)
            else:
                study.tell(trial, (values["rate"] - 0.3) ** 2)
        return hungry / 100

    def tell_pruned(study, trial):
        trial.set_constraint("oom", 1.0)
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)

    def tell_failed(study, trial):
        study.tell(trial, state=optuna.trial.TrialState.FAIL)

    told, untold = map(share_of_the_hungry_half, (tell_pruned, tell_failed))
    assert told < 0.25
    assert told < untold / 2
