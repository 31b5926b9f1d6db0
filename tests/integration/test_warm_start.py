"""`from: other-study`: its complete trials are given to the sampler, and are nobody's own."""

from __future__ import annotations

import optuna
import pytest
from one_process_fleet import OneProcessFleet

from orchestrator.driving.warm_sampler import WarmSampler
from orchestrator.handle import StudyHandle
from orchestrator.storage.attributes import former_name
from orchestrator.storage.former_trials import former_trials
from orchestrator.storage.opening import StudyStorage, storage_url
from orchestrator.submission.submit import submit
from workers.protocol.errors import InvalidInputError, StudyNotKnownError
from workers.protocol.spec import StudySpec

SPACE = {"x": {"type": "float", "low": 0.0, "high": 1.0}}


@pytest.fixture
def fleet(client, server, settings, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    (tmp_path / "warm_objective.py").write_text(
        "def objective(trial):\n    return trial.suggest_float('x', 0.0, 1.0)\n"
    )
    config = settings.model_copy(update={"objectives": ("*",)})
    with OneProcessFleet(client, server, config, tmp_path) as started:
        yield started


@pytest.fixture
def spec(tmp_path):
    def make(name, **fields):
        given = {"objective": f"{tmp_path}/warm_objective.py:objective", "space": SPACE, **fields}
        return StudySpec.model_validate({"name": name, "trials": 3, **given})

    return make


def test_former_trials_are_seen_by_the_sampler_and_counted_nowhere(fleet, spec, monkeypatch):
    fleet.run_studies([spec("first", trials=4)])
    seen = []
    relative = WarmSampler.infer_relative_search_space

    def noted(self, study, trial):
        seen.append((len(self._former), len(self._seen(study).get_trials(deepcopy=False))))
        return relative(self, study, trial)

    monkeypatch.setattr(WarmSampler, "infer_relative_search_space", noted)
    study = fleet.run_studies([spec("second", **{"from": "first"})])["second"]
    assert [trial.number for trial in study.trials] == [0, 1, 2]
    assert {former for former, _ in seen} == {4}
    assert min(count for _, count in seen) == 5  # the one that is drawn included
    status = StudyHandle("second", fleet.config).status()
    assert (status.trials["complete"], status.best.number) == (3, study.best_trial.number)
    # the first one may go: what was taken lies with the second
    (fleet.config.home / "studies" / "first" / "journal.log").unlink()
    extended = fleet.run_studies([spec("second", trials=5, **{"from": "first"})])["second"]
    assert len(extended.trials) == 5
    assert {former for former, _ in seen} == {4}


def test_trials_that_were_half_taken_are_taken_again(fleet, spec, tmp_path):
    fleet.run_studies([spec("first", trials=4)])
    warm = spec("second", **{"from": "first"})
    storage = StudyStorage.open(f"journal://{tmp_path}/half.log")
    half = optuna.create_study(study_name=former_name("second"), storage=storage.storage)
    half.add_trials(StudyHandle("first", fleet.config).study.trials[:1])
    for _ in range(2):
        assert len(former_trials(warm, storage.storage, fleet.config)) == 4
    storage.close()


def test_a_study_in_another_home_or_storage_will_do(fleet, spec, tmp_path):
    fleet.run_studies([spec("first", trials=4)])
    url = f"sqlite:///{tmp_path}/own.db"
    storage = StudyStorage.open(url)
    elsewhere = fleet.config.model_copy(update={"home": tmp_path / "elsewhere"})
    for source in (
        {"study": "first", "home": str(fleet.config.home)},
        {"study": "first", "storage": storage_url(fleet.config, "first")},
    ):
        name = f"warm-{'home' in source}"
        found = former_trials(spec(name, **{"from": source}), storage.storage, elsewhere)
        assert [trial.user_attrs["trialfleet:from"] for trial in found] == [
            f"first:{number}" for number in range(4)
        ]
    storage.close()


def test_what_cannot_be_started_from_is_refused_at_submission(fleet, spec):
    fleet.run_studies([spec("first", trials=1)])
    config = fleet.config
    with pytest.raises(StudyNotKnownError, match=r"from = 'frist'.*did you mean 'first'"):
        submit(spec("second", **{"from": "frist"}), config)
    with pytest.raises(InvalidInputError, match="its trials would mislead"):
        submit(spec("second", direction="maximize", **{"from": "first"}), config)
    with pytest.raises(InvalidInputError, match="use tpe or gp"):
        submit(spec("second", sampler="random", **{"from": "first"}), config)
    assert fleet.studies.names() == ["first"]


def test_it_is_said_how_many_of_the_trials_that_a_study_starts_from_it_can_learn_from(fleet, spec):
    fleet.run_studies([spec("first", trials=4, sampler={"type": "random", "seed": 1})])
    below = StudyHandle("first", fleet.config).study.get_trials()[0].params["x"]

    def said(name, space, source="first"):
        told = []
        submit(spec(name, space=space, **{"from": source}), fleet.config, tell=told.append)
        return told

    assert said("alike", SPACE) == []
    (none,) = said("other", {**SPACE, "y": {"type": "int", "low": 0, "high": 1}})
    assert none == (
        "from = 'first': none of its 4 complete trials lies in this study's space (they have no y),"
        " and the sampler learns nothing from it"
    )
    (some,) = said("narrower", {"x": {"type": "float", "low": below, "high": below + 1e-9}})
    assert "of its 4 complete trials 1 can be learnt from" in some
    assert "beyond this study's bounds" in some


def test_what_a_sampler_was_shown_of_an_ended_trial_it_is_shown_again():
    """The same object: whoever compares all trials with the last ones need not look into them."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    study.optimize(lambda trial: trial.suggest_float("x", 0.0, 1.0), n_trials=4)
    warm = WarmSampler(optuna.samplers.RandomSampler(seed=1), study.get_trials()[:2])
    running = study.ask({"x": optuna.distributions.FloatDistribution(0.0, 1.0)})

    def shown():
        return warm._shown(lambda _states: study.get_trials(deepcopy=False), None)

    first, second = shown(), shown()
    assert [trial.number for trial in first] == [0, 1, 2, 3, 4, 5, 6]
    assert all(one is other for one, other in zip(first[:6], second[:6], strict=True))
    study.tell(running, 0.5)
    assert shown()[6].state is optuna.trial.TrialState.COMPLETE
