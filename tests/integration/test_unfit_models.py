"""Models that cannot be trained, on a fleet whose orchestrator could not try them."""

from __future__ import annotations

import csv
from contextlib import ExitStack

import optuna
import pytest
from one_process_fleet import OneProcessFleet
from optuna.trial import TrialState

from workers.protocol.spec import StudySpec
from workers.protocol.states import Wish


@pytest.fixture
def fleet(client, server, settings, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with ExitStack() as stack:
        yield stack.enter_context(OneProcessFleet(client, server, settings, tmp_path))


def study(tmp_path, name, model, **fields):
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(
            [("text", "label"), *((f"text number {n}", n % 2) for n in range(40))]
        )
    config = {
        "data": {"source": str(path), "max_length": 8},
        "tokenizer": {"vocab_size": 64},
        "model": {"num_hidden_layers": 1, **model},
        "epochs": 1,
    }
    return StudySpec(name=name, metric="accuracy", trials=20, config=config, **fields)


def ends(study: optuna.Study) -> list[TrialState]:
    return [trial.state for trial in study.trials]


def test_a_model_that_no_trial_could_train_ends_its_study_once_with_the_reason(fleet, tmp_path):
    spec = study(
        tmp_path,
        "unfit",
        {"architecture": "llama", "hidden_size": 66, "num_attention_heads": 2},
        space={"learning_rate": {"type": "float", "low": 1e-4, "high": 1e-3}},
    )
    told = fleet.run_studies([spec])["unfit"]
    errors = [
        error
        for trial in told.trials
        if "cannot be built so" in (error := str(trial.user_attrs.get("trialfleet:error")))
    ]
    assert len(errors) == 1, "the first trial told it"
    assert "hidden_size = 66" in errors[0]
    assert len(told.trials) < 20
    assert set(ends(told)) == {TrialState.FAIL}
    assert fleet.studies.wish("unfit") is Wish.STOP


def test_where_parameters_decide_the_model_the_other_trials_go_on(fleet, tmp_path):
    spec = study(
        tmp_path,
        "varied",
        {"architecture": "llama", "num_attention_heads": 2},
        space={"model.hidden_size": {"type": "categorical", "choices": [66, 64]}},
        sampler={"type": "grid"},
    )
    told = fleet.run_studies([spec])["varied"]
    assert sorted(ends(told)) == [TrialState.COMPLETE, TrialState.FAIL]
    assert fleet.studies.wish("varied") is Wish.RUN
