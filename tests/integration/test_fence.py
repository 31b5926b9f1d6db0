"""On a database, the last that opened a study writes it; whoever had it before commits nothing."""

from __future__ import annotations

import optuna
import pytest

from orchestrator.storage.opening import StudyStorage
from workers.protocol.errors import FleetError, StudyTakenOverError


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/studies.db"


def opened(url):
    storage = StudyStorage.open(url)
    study = optuna.create_study(study_name="s", storage=storage.storage, load_if_exists=True)
    storage.raise_fence("s")
    return storage, study


def test_whoever_had_a_study_before_can_commit_nothing_of_any_kind(url):
    former, study = opened(url)
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    latter, study_of_latter = opened(url)
    before = study_of_latter.trials
    database, key = former.storage, trial._trial_id
    writes = {
        "ask": study.ask,
        "suggest": lambda: trial.suggest_float("y", 0, 1),
        "report": lambda: trial.report(0.5, 1),
        "attribute of a trial": lambda: trial.set_user_attr("a", 1),
        "attribute of the study": lambda: study.set_user_attr("a", 1),
        "tell": lambda: study.tell(trial, 0.5),
        "state": lambda: database.set_trial_state_values(key, optuna.trial.TrialState.FAIL),
        "enqueue": lambda: study.enqueue_trial({"x": 0.5}),
        "add": lambda: study.add_trial(optuna.create_trial(value=1.0)),
        "the mark itself": lambda: study.set_user_attr("trialfleet:writer", "mine again"),
    }
    for what, write in writes.items():
        with pytest.raises(StudyTakenOverError, match="took it over"):
            write()
        assert latter.storage.get_all_trials(study_of_latter._study_id) == before, what
    assert set(study_of_latter.user_attrs) == {"trialfleet:writer"}
    assert former.storage.get_n_trials(study._study_id) == 1, "what it reads is no matter"
    study_of_latter.tell(study_of_latter.ask(), 0.5)
    assert latter.count_trials("s") == 2
    former.close()
    latter.close()


def test_a_study_that_was_removed_is_written_by_nobody_nor_is_another_one_with_its_id(url):
    former, study = opened(url)
    study.ask()
    optuna.delete_study(study_name="s", storage=url)
    optuna.create_study(study_name="other", storage=url)
    with pytest.raises((FleetError, KeyError)):
        study.ask()
    assert optuna.load_study(study_name="other", storage=url).trials == []
    former.close()
