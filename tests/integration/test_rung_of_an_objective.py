"""Where objectives of every kind are paused at a rung: the real runner, orchestrator and disk."""

from __future__ import annotations

import json

import pytest
from desk import study_of
from one_process_fleet import OneProcessFleet

from orchestrator.handle import StudyHandle
from orchestrator.submission.preflight import check
from orchestrator.views.study_text import headline
from workers.disk.manifests import checkpoint_root
from workers.protocol.spec import StudySpec

OBJECTIVES = """
import optuna
from pathlib import Path

from workers.protocol.errors import DrainRequested

NOTES = Path(__file__).with_name("notes")

def note(trial, what, step):
    with NOTES.open("a") as notes:
        print(trial.study_name, trial.number, what, step, file=notes)

def train(trial, step):
    note(trial, "step", step + 1)
    return step + 1

def start(trial):
    state = trial.load_checkpoint()
    return 0 if state is None else state["step"]

def progress(trial):
    step = start(trial)
    try:
        while step < 9:
            trial.progress(step)
            step = train(trial, step)
            trial.report(trial.number, step)
            assert not trial.should_prune()
    except DrainRequested:
        trial.save_checkpoint(step, {"step": step})
        note(trial, "tidied", step)
        raise
    return trial.number

def saves(trial):
    step = start(trial)
    while step < 9:
        step = train(trial, step)
        trial.report(trial.number, step)
        if trial.should_prune():
            raise optuna.TrialPruned
        trial.save_checkpoint(step, {"step": step})
    return trial.number

def saves_first(trial):
    step = start(trial)
    while step < 9:
        step = train(trial, step)
        trial.save_checkpoint(step, {"step": step})
        trial.report(trial.number, step)
    return trial.number

def plain(trial):
    for step in range(9):
        trial.report(trial.number, train(trial, step))
        if trial.should_prune():
            raise optuna.TrialPruned
    return trial.number

def never_asks(trial):
    for step in range(9):
        trial.report(trial.number, train(trial, step))
    return trial.number

def takes_it_for_pruning(trial):
    step = start(trial)
    try:
        while step < 9:
            trial.progress(step)
            step = train(trial, step)
            trial.report(trial.number, step)
    except DrainRequested as error:
        trial.save_checkpoint(step, {"step": step})
        raise optuna.TrialPruned from error
    return trial.number

def stumbles(trial):
    step = start(trial)
    while step < 9:
        trial.progress(step)
        step = train(trial, step)
        trial.save_checkpoint(step, {"step": step})
        trial.report(trial.number, step)
        if trial.attempt == 1:
            raise RuntimeError("after its report")
    return trial.number

def loop(trial):
    import torch

    model = torch.nn.Linear(1, 1)
    with trial.training(model) as run:
        for epoch in run.epochs(9):
            for _ in run.steps([torch.ones(1)] * 2):
                pass
            note(trial, "step", epoch + 1)
            run.report(trial.number)
            trial.report(trial.number, 0)  # where training could not be resumed
    return trial.number

def ends_at_a_rung(trial):
    for step in range(3):
        trial.progress(step)
        trial.report(trial.number, train(trial, step))
    return trial.number

def returns(trial):
    return trial.number

def sets_things(trial):
    trial.set_user_attr("attempt", trial.attempt)
    trial.set_constraint("size", 1.0 - trial.attempt)
    return progress(trial)
"""

ASHA = {"type": "asha", "promote": True, "reduction_factor": 3, "max_resource": 9}


def file_in(folder):
    """A file whose name no other test's has, as modules have that are imported once."""
    return folder / f"{folder.name}.py"


@pytest.fixture
def fleet(client, server, settings, tmp_path):
    file = file_in(tmp_path)
    file.write_text(OBJECTIVES)
    config = settings.model_copy(update={"objectives": (str(file),)})
    with OneProcessFleet(client, server, config, tmp_path) as opened:
        yield opened


def spec_of(tmp_path, name, **fields):
    given = {"pruner": ASHA, "trials": 3, **fields}
    return StudySpec(name=name, objective=f"{file_in(tmp_path)}:{name}", **given)


def made(tmp_path, study, what="step"):
    """The steps that each trial of a study made, in order."""
    found: dict[int, list[int]] = {}
    for line in (tmp_path / "notes").read_text().splitlines():
        name, number, noted, step = line.split()
        if (name, noted) == (study, what):
            found.setdefault(int(number), []).append(int(step))
    return found


def test_objectives_of_every_kind_are_paused_at_their_rungs(fleet, tmp_path):
    every = [*range(1, 10)]
    anew = [1, *range(1, 4), *every]
    kinds = {
        "progress": {0: every, 1: [1], 2: [1]},
        "saves": {0: every, 1: [1], 2: [1]},
        "plain": {0: anew, 1: [1], 2: [1]},
        "takes_it_for_pruning": {0: every, 1: [1], 2: [1]},
        "stumbles": {0: every, 1: [1], 2: [1]},
        "loop": {0: every, 1: [1], 2: [1]},
    }
    specs = [spec_of(tmp_path, name) for name in kinds]
    studies = fleet.run_studies(specs)
    for name, expected in kinds.items():
        assert made(tmp_path, name) == expected, name
        states = [trial.state.name for trial in studies[name].trials]
        assert states == ["COMPLETE", "PRUNED", "PRUNED"], name
        assert [max(trial.intermediate_values) for trial in studies[name].trials] == [9, 1, 1]
    assert made(tmp_path, "progress", "tidied") == {0: [1, 3], 1: [1], 2: [1]}, "to its end"
    assert list(checkpoint_root(fleet.config.home).glob("*/0")) == []


def test_who_saves_before_it_reports_or_never_asks_learns_of_it_with_the_next_report(
    fleet, tmp_path
):
    studies = fleet.run_studies([spec_of(tmp_path, n) for n in ("saves_first", "never_asks")])
    assert made(tmp_path, "saves_first")[1] == [1, 2]
    assert made(tmp_path, "never_asks")[1] == [1, 2]
    for study in studies.values():
        assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED", "PRUNED"]
        assert set(study.trials[1].intermediate_values) == {1}


def test_who_returns_at_a_rung_or_before_any_is_complete(fleet, tmp_path):
    studies = fleet.run_studies([spec_of(tmp_path, n) for n in ("ends_at_a_rung", "returns")])
    assert [trial.state.name for trial in studies["returns"].trials] == ["COMPLETE"] * 3
    assert studies["ends_at_a_rung"].trials[0].state.name == "COMPLETE"


def test_what_a_trial_set_is_kept_in_its_pause_and_the_last_attempt_has_the_last_word(
    fleet, tmp_path
):
    (study,) = fleet.run_studies([spec_of(tmp_path, "sets_things")]).values()
    best, second, third = study.trials
    assert (best.user_attrs["attempt"], best.constraints) == (3, {"size": -2.0})
    for trial in (second, third):
        assert (trial.user_attrs["attempt"], trial.constraints) == (1, {"size": 0.0})
    status = StudyHandle("sets_things", fleet.config).status()
    assert (status.best.number, status.infeasible) == (0, 0)
    assert "paused" not in headline(status)


def test_finetune_goes_on_where_it_was_paused(fleet, texts):
    given = study_of(texts, epochs=1, evaluations_per_epoch=4, seed=5)
    given["space"] = {"dropout": {"type": "float", "low": 0.1, "high": 0.11}}
    spec = StudySpec(name="s", pruner={**ASHA, "max_resource": 4}, trials=3, **given)
    (study,) = fleet.run_studies([spec], seconds=120.0).values()
    lasts = [max(trial.intermediate_values) for trial in study.trials]
    assert sorted(lasts) == [1, 1, 4]
    best = study.trials[lasts.index(4)]
    steps = [entry["step"] for entry in history(fleet, best.number)]
    assert len(steps) == 4, "all four evaluations are of one training"
    assert steps == sorted(set(steps))
    assert best.value == best.intermediate_values[4]


def history(fleet, number):
    """The evaluations that a trial's result tells of."""
    results = fleet.config.home / "studies" / "s" / "trials" / str(number) / "result"
    found: list[dict[str, float]] = json.loads((results / "metrics.json").read_text())[
        "evaluations"
    ]
    return found


def test_a_study_whose_objective_loads_no_checkpoint_is_told_so(tmp_path):
    (tmp_path / "anew.py").write_text("def objective(trial):\n    return 0.0\n")
    (tmp_path / "resumes.py").write_text(OBJECTIVES)
    spec = StudySpec(name="s", objective=f"{tmp_path}/anew.py:objective", pruner=ASHA)
    (finding,) = check(spec, import_directory=tmp_path)
    assert "anew.py never calls trial.load_checkpoint" in finding
    resuming = spec.model_copy(update={"objective": f"{tmp_path}/resumes.py:progress"})
    assert check(resuming, import_directory=tmp_path) == []
    assert check(spec.model_copy(update={"pruner": type(spec.pruner)()})) == []
