"""`keep: {models: best N}`: whose models stay on the disks of a fleet."""

from __future__ import annotations

import pytest
from desk import run, study_of
from one_process_fleet import OneProcessFleet
from pydantic import ValidationError
from structlog.testing import capture_logs

from workers.coordination.studies import Studies
from workers.disk import durable
from workers.disk.ended_trials import EndedTrials
from workers.disk.kept_models import KeptModels
from workers.disk.results import draft_directory, result_directory
from workers.disk.uploads import Uploads
from workers.protocol.spec import StudySpec
from workers.protocol.study_options import KeepSpec

OBJECTIVE = """
import optuna
VALUES = [1.0, 5.0, 4.0, 2.0, 6.0, 3.0]
def leaves_a_model(trial):
    folder = trial.result_directory
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "weights").write_text("w")
    (folder / "model.pt").write_text("w")
    (folder / "metrics.json").write_text("{}")
    if "violated" in trial.config:
        trial.set_constraint("too large", [9.0, 2.0, 1.0, 4.0, 2.0, 0.5, 0.1][trial.number])
    if trial.number == 6:
        raise optuna.TrialPruned
    return VALUES[trial.number]
"""


def models_in(home, study):
    found = {
        path.parent.parent.name for path in home.glob(f"studies/{study}/trials/*/result/model*")
    }
    return sorted(map(int, found))


def test_the_best_trials_alone_keep_their_models_where_a_study_says_so(
    client, server, settings, tmp_path
):
    file = tmp_path / "leaving.py"
    file.write_text(OBJECTIVE)
    config = settings.model_copy(update={"objectives": (str(file),)})
    fields = {"objective": f"{file}:leaves_a_model", "direction": "maximize", "trials": 7}
    specs = [
        StudySpec(name="all", **fields),
        StudySpec(name="two", keep={"models": "best 2"}, **fields),
        StudySpec(name="nearest", keep={"models": "best 3"}, config={"violated": True}, **fields),
    ]
    with OneProcessFleet(client, server, config, tmp_path) as fleet:
        fleet.run_studies(specs, 60.0)
    EndedTrials(client, config.home).remove()
    assert models_in(config.home, "all") == list(range(7))
    assert models_in(config.home, "two") == [1, 4]
    assert models_in(config.home, "nearest") == [2, 4, 5], "none is feasible"
    assert len(list(config.home.glob("studies/two/trials/*/result/metrics.json"))) == 7


BREAKS_OFF = """
import optuna
def breaks_off(trial):
    trial.leave_out("trainer/checkpoint-*")
    for name in ["checkpoint-3", "runs"]:
        (trial.result_directory / "trainer" / name).mkdir(parents=True)
    raise [optuna.TrialPruned, MemoryError][trial.number]
"""


def test_what_a_training_that_broke_off_would_have_removed_is_no_result(
    client, server, settings, tmp_path
):
    file = tmp_path / "breaking.py"
    file.write_text(BREAKS_OFF)
    config = settings.model_copy(update={"objectives": (str(file),)})
    spec = StudySpec(name="s", objective=f"{file}:breaks_off", trials=2, max_failures=1)
    with OneProcessFleet(client, server, config, tmp_path) as fleet:
        fleet.run_studies([spec], 60.0)
    left = list(config.home.glob("studies/s/trials/*/result/trainer/*"))
    assert [path.name for path in left] == ["runs"] * 2


def test_a_model_goes_when_its_trial_has_ended_and_others_are_better(client, tmp_path):
    studies = Studies(client)
    studies.submit(StudySpec(name="s", objective="m:f", keep={"models": "best 1"}))
    kept = KeptModels(studies, tmp_path, Uploads(tmp_path, has_store=True))

    def leave(number):
        folder = result_directory(tmp_path, "s", number)
        (folder / "model").mkdir(parents=True)

    def look(best, num_known, still_open=()):
        facts = {"best": best, "num_known": num_known, "open": list(still_open)}
        studies.facts.publish("s", {"kept_models": facts})
        kept.remove_others()
        return models_in(tmp_path, "s")

    for number in range(4):
        leave(number)
    assert kept.remove_others() == [], "nothing is known yet"
    assert look([1], 3, still_open=[2]) == [1, 2, 3], "2 runs, and 3 is not known"
    assert look([2], 4) == [2]
    draft = draft_directory(tmp_path, "s", 4, 7)
    draft.mkdir(parents=True)
    assert look([2], 5) == [2]
    draft.rmdir()
    leave(4)  # which was accepted, and is published later than its trial was told
    assert look([2], 5) == [2]
    leave(0)
    assert look([2], 5) == [0, 2], "which was looked at before"
    assert look([1], 1) == [2], "another study of this name"
    studies.facts.publish("s", {"kept_models": None})
    leave(1)
    kept.remove_others()
    assert models_in(tmp_path, "s") == [1, 2]


def test_a_model_that_could_not_be_removed_is_tried_again_and_holds_up_no_other(
    client, tmp_path, monkeypatch
):
    studies = Studies(client)
    studies.submit(StudySpec(name="s", objective="m:f", keep={"models": "best 1"}))
    studies.facts.publish("s", {"kept_models": {"best": [3], "num_known": 4, "open": []}})
    for number in range(4):
        (result_directory(tmp_path, "s", number) / "model").mkdir(parents=True)
    (result_directory(tmp_path, "s", 1) / "model.pt").touch()
    kept, remove = KeptModels(studies, tmp_path, Uploads(tmp_path, has_store=False)), durable.remove

    def remove_others(path):
        number = path.parent.parent.name
        if number == "0":
            return  # half a folder, as `rmtree` leaves it
        if number == "1":
            raise PermissionError(13, "no", str(path))
        remove(path)

    with monkeypatch.context() as patch, capture_logs() as logs:
        patch.setattr(durable, "remove", remove_others)
        assert kept.remove_others() == [result_directory(tmp_path, "s", 2) / "model"]
        assert kept.remove_others() == []
    assert models_in(tmp_path, "s") == [0, 1, 3]
    assert [(log["event"], log["trials"]) for log in logs] == [("models_not_removed", [0, 1])]
    kept.remove_others()
    assert models_in(tmp_path, "s") == [3]


@pytest.mark.parametrize(
    "fact",
    [
        [],
        "best",
        {},
        {"best": [0], "num_known": "5", "open": []},
        {"best": [0], "num_known": -1, "open": []},
        {"best": None, "num_known": 5, "open": []},
        {"best": ["0"], "num_known": 5, "open": [1.5]},
        {"best": [0], "num_known": float("inf"), "open": []},
    ],
)
def test_what_makes_no_sense_as_a_list_of_models_removes_none_and_is_said_once(
    client, tmp_path, fact
):
    studies = Studies(client)
    for name in ("a", "b"):
        studies.submit(StudySpec(name=name, objective="m:f", keep={"models": "best 1"}))
        for number in range(2):
            (result_directory(tmp_path, name, number) / "model").mkdir(parents=True)
    studies.facts.publish("a", {"kept_models": fact})
    studies.facts.publish("b", {"kept_models": {"best": [0], "num_known": 2, "open": []}})
    kept = KeptModels(studies, tmp_path, Uploads(tmp_path, has_store=False))
    with capture_logs() as logs:
        kept.remove_others()
        kept.remove_others()
    assert [(log["event"], log["study"]) for log in logs] == [("kept_models_unreadable", "a")]
    assert (models_in(tmp_path, "a"), models_in(tmp_path, "b")) == ([0, 1], [0])


def test_a_look_takes_as_long_as_there_are_trials_whatever_number_is_said_to_be_known(
    client, tmp_path
):
    studies = Studies(client)
    studies.submit(StudySpec(name="s", objective="m:f", keep={"models": "best 1"}))
    (result_directory(tmp_path, "s", 7) / "model").mkdir(parents=True)
    (result_directory(tmp_path, "s", 8).parents[1] / "not a number").mkdir()
    studies.facts.publish("s", {"kept_models": {"best": [2], "num_known": 10**15, "open": []}})
    KeptModels(studies, tmp_path, Uploads(tmp_path, has_store=False)).remove_others()
    assert models_in(tmp_path, "s") == []


@pytest.mark.parametrize("given", ["best", "best 0", "best 101", "3", "none", "best -1"])
def test_what_is_no_way_to_keep_models_is_refused(given):
    with pytest.raises(ValidationError, match="models"):
        KeepSpec(models=given)


@pytest.mark.parametrize(
    ("fields", "save_model", "is_left"),
    [
        ({}, None, False),
        ({"keep": {"models": "best 3"}}, None, True),
        ({"keep": {"models": "best 3"}}, "best", False),
        ({"directions": ["maximize", "minimize"], "metric": ["accuracy", "loss"]}, None, True),
        ({"directions": ["maximize", "minimize"], "metric": ["accuracy", "loss"]}, "none", False),
    ],
)
def test_finetune_leaves_the_model_of_a_trial_that_may_be_kept_though_another_beats_it(
    desk, container, texts, fields, save_model, is_left
):
    settings = {} if save_model is None else {"save_model": save_model}
    study = study_of(texts, epochs=1, **settings) | fields
    if "directions" in fields:
        del study["direction"]
    place = desk(**study)
    place.studies.facts.publish("s", {"best_value": 2.0})
    trial = place.claim(0)
    run(container, trial)
    assert (trial.result_directory / "model").exists() == is_left
