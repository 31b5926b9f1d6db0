"""`best`, `export` and `schema`, on a study that lies in a home without a fleet."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import time

import optuna
import pandas as pd
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.handle import StudyHandle
from orchestrator.storage.attributes import ATTR, CODE_ATTR, SPEC_ATTR
from orchestrator.storage.event_file import events_file
from orchestrator.storage.opening import StudyStorage, create_or_load_study, storage_url
from orchestrator.submission.study import load_study
from orchestrator.views.complaints import run_command
from workers.disk.output_files import output_file
from workers.protocol.choices import Choices
from workers.protocol.errors import (
    FleetError,
    InvalidInputError,
    RedisUnavailableError,
    StudyNotKnownError,
)
from workers.protocol.events import EventKind, encode, line_of
from workers.protocol.spec import StudySpec
from workers.settings import Settings

X = FloatDistribution(-10, 10)
C = CategoricalDistribution(["no", "1e-5", "0o10", 3, None, True])


def trial(x, c="no", state=TrialState.COMPLETE, values=None, **attrs):
    own = {f"{ATTR}{name}": value for name, value in attrs.pop("own", {}).items()}
    done = values or [x * x] if state is TrialState.COMPLETE else None
    return create_trial(
        state=state,
        values=done,
        params={"x": x, "c": c},
        distributions={"x": X, "c": C},
        user_attrs={**attrs, **own},
    )


TRIALS = [
    trial(2.0, "1e-5", own={"attempt": 2, "busy_seconds": 1.5}, note={"a": [1, math.inf]}),
    trial(0.5, "0o10", flag=True, own={"code": "c0de"}),
    trial(3.0, state=TrialState.FAIL, own={"state": "CANCELLED", "error": "it was stopped"}),
    trial(4.0, state=TrialState.FAIL, own={"state": "DEAD", "losses": 3}),
    trial(5.0, state=TrialState.PRUNED),
    trial(math.pi, None, values=[math.inf]),
    trial(0.1, 3, state=TrialState.RUNNING),
]


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name in ("FLEET_REDIS_URL", "FLEET_STORAGE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FLEET_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def stored(home):
    """Puts a study with some trials under the home."""

    def store(trials=TRIALS, **fields):
        given = {"name": "s", "objective": "/a/train.py:objective", "config": {"epochs": 2}}
        spec = StudySpec.model_validate({**given, **fields})
        storage = StudyStorage.open(storage_url(Settings(home=home), spec.name))
        sampler, pruner = optuna.samplers.RandomSampler(), optuna.pruners.NopPruner()
        study = create_or_load_study(spec, storage.storage, sampler, pruner)
        study.set_user_attr(SPEC_ATTR, spec.model_dump_json())
        study.set_user_attr(f"{CODE_ATTR}c0de", {"sha256": "ab", "git_dirty": False})
        study.add_trials(trials)
        storage.close()
        return spec

    return store


def run(*arguments):
    """What a command prints."""
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout_bytes


def refused(*arguments, by=InvalidInputError):
    with pytest.raises(by) as error:
        run(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_best_trial_is_told_with_all_that_it_came_to(stored, home):
    stored()
    folder = home / "studies" / "s" / "trials" / "1" / "result"
    (folder / "model").mkdir(parents=True)
    told = json.loads(run("best", "s", "--json"))
    assert (told["trial"], told["values"], told["params"]["x"]) == (1, {"value": 0.25}, 0.5)
    assert told["user_attrs"] == {"flag": True}
    assert told["code"]["sha256"] == "ab"
    assert (told["folder"], told["model"]) == (str(folder), str(folder / "model"))
    text = run("best", "s").decode()
    assert "s: trial 1" in text
    assert f"model: {folder}/model\n" in text
    assert json.loads(run("best", "s", "--trial", "5", "--json"))["values"] == {"value": "Infinity"}


def test_an_attribute_of_a_megabyte_is_no_flood_in_a_terminal(stored):
    stored([trial(0.25, summary="x" * 2**20, seed=3)])
    lines = run("best", "s").decode().splitlines()
    assert max(map(len, lines)) < 1100
    assert "  seed = 3" in lines
    assert json.loads(run("best", "s", "--json"))["user_attrs"]["summary"] == "x" * 2**20


def test_a_trial_taken_home_is_whole_and_its_study_file_has_its_parameters(stored, home, tmp_path):
    stored(objective="/a/train.py:objective", resources={"gpus": 0}, sampler={"seed": 7})
    folder = home / "studies" / "s" / "trials" / "1" / "result"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "weights").write_bytes(b"\x00" * 10)
    target = tmp_path / "out" / "best"
    target.mkdir(parents=True)  # an empty one will do
    run("best", "s", "--copy", str(target))
    assert (target / "model" / "weights").read_bytes() == b"\x00" * 10
    assert json.loads((target / "trial.json").read_text())["params"]["x"] == 0.5
    spec = load_study(str(target / "study.yaml"))
    assert spec.name == "s-trial-1"
    assert (spec.objective, spec.trials, spec.config) == ("/a/train.py:objective", 1, {"epochs": 2})
    fixed = {name: dimension.choices for name, dimension in spec.space.items()}
    assert fixed == {"x": [0.5], "c": ["0o10"]}
    assert (spec.resources.gpus, spec.sampler.seed) == (0, 7)
    assert sorted(path.name for path in target.parent.iterdir()) == ["best"]
    assert "is not empty" in refused("best", "s", "--copy", str(target))
    assert "is no folder" in refused("best", "s", "--copy", str(target / "study.yaml"))


def test_a_file_of_the_trial_s_own_is_kept_beside_ours_of_its_name(stored, home, tmp_path):
    stored()
    folder = home / "studies" / "s" / "trials" / "1" / "result"
    folder.mkdir(parents=True)
    for name in ("trial.json", "study.yaml"):
        (folder / name).write_text("the objective's")
    target = tmp_path / "best"
    run("best", "s", "--copy", str(target))
    assert json.loads((target / "trial.json").read_text())["trial"] == 1
    assert load_study(str(target / "study.yaml")).name == "s-trial-1"
    for name in ("trial.json", "study.yaml"):
        assert (target / f"own-{name}").read_text() == "the objective's"


def test_choices_that_are_told_are_those_of_the_study_and_not_their_names(stored, tmp_path):
    choices = [1, "1", True, None]
    space = {"c": {"type": "categorical", "choices": choices}}
    named = CategoricalDistribution(list(Choices.of(choices, "c").names))
    trials = [
        create_trial(value=float(number), params={"c": name}, distributions={"c": named})
        for number, name in enumerate(named.choices)
    ]
    stored(trials, space=space)
    for number, choice in enumerate(choices):
        told = json.loads(run("best", "s", "--trial", str(number), "--json"))["params"]["c"]
        assert (told, type(told)) == (choice, type(choice))


def test_what_cannot_be_copied_whole_is_not_copied(stored, home, tmp_path):
    stored(objective="finetune", metric="accuracy")
    assert "not on this machine" in refused("best", "s", "--copy", str(tmp_path / "out"))
    folder = home / "studies" / "s" / "trials" / "1" / "result"
    folder.mkdir(parents=True)
    (folder / "broken").symlink_to("/nowhere/at/all")
    said = refused("best", "s", "--copy", str(tmp_path / "out"), by=FleetError)
    assert said.endswith(f"No such file or directory: '{folder}/broken'; nothing was copied")
    assert "[(" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home"]


def test_a_study_file_of_finetune_has_the_parameters_among_its_settings(stored):
    stored(
        [create_trial(value=1.0, params={"model.x": 0.5}, distributions={"model.x": X})],
        objective="finetune",
        metric="accuracy",
        direction="maximize",
        config={"epochs": 2, "model": {"architecture": "bert"}},
    )
    text = run("best", "s", "--yaml").decode()
    assert "space" not in text
    assert "model:\n    architecture: bert\n    x: 0.5\n" in text
    assert "direction: maximize\nmetric: accuracy\n" in text


def test_of_several_directions_a_trial_of_the_front_is_chosen_by_its_number(stored):
    front = [trial(1.0, values=[1.0, 5.0]), trial(2.0, values=[2.0, 9.0])]
    stored(front, directions=["minimize", "maximize"], metric=["loss", "f1"])
    assert json.loads(run("best", "s", "--json"))["values"] == {"loss": 1.0, "f1": 5.0}
    assert json.loads(run("best", "s", "--trial", "1", "--json"))["values"]["f1"] == 9.0
    assert run("export", "s").decode().startswith("number,state,values_loss,values_f1,datetime_")
    assert "has 2 trials" in refused("best", "s", "--trial", "2")


def test_export_has_a_row_a_trial_in_the_fleet_s_own_terms(stored):
    stored()
    rows = list(csv.DictReader(io.StringIO(run("export", "s").decode())))
    states = ["complete", "complete", "cancelled", "dead", "pruned", "complete", "queued"]
    assert [row["state"] for row in rows] == states
    assert list(rows[0])[:3] == ["number", "state", "value"]
    assert rows[0]["user_attrs_note"] == '{"a": [1, "Infinity"]}'
    assert (rows[0]["attempts"], rows[3]["losses"]) == ("2", "3")
    assert (rows[2]["error"], rows[2]["value"]) == ("it was stopped", "")
    assert (rows[1]["code_sha256"], rows[1]["code_git_dirty"]) == ("ab", "false")
    assert rows[5]["value"] == "inf"
    document = json.loads(run("export", "s", "--format", "json"), parse_constant=pytest.fail)
    assert document[5]["value"] == "Infinity"
    assert document[0]["user_attrs_note"] == {"a": [1, "Infinity"]}
    assert [row["params_x"] for row in document[:2]] == [2.0, 0.5]
    assert json.loads(run("export", "s", "--json")) == document


def test_every_format_reads_back_in_pandas_with_the_columns_of_optuna(stored, tmp_path):
    stored()
    theirs = StudyHandle("s").study.trials_dataframe()
    run("export", "s", "-o", str(tmp_path / "t.parquet"))
    ours = pd.read_parquet(tmp_path / "t.parquet")
    shared = {name for name in theirs.columns if not name.startswith(("user_attrs_", "duration"))}
    assert shared - {"system_attrs"} <= set(ours.columns) | {"system_attrs"}
    assert ours["params_x"].tolist() == theirs["params_x"].tolist()
    assert ours["value"].isna().sum() == 4
    assert str(ours["datetime_start"].dtype).startswith("datetime64[us, UTC")
    told = json.loads(run("export", "s", "-o", str(tmp_path / "t.CSV"), "--json"))
    assert (told["format"], told["trials"]) == ("csv", 7)
    assert len(pd.read_csv(tmp_path / "t.CSV")) == 7


def test_what_is_exported_into_a_folder_is_refused_and_the_folder_stays(stored, tmp_path):
    stored()
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "best.pt").write_text("weeks of work")
    (tmp_path / "to-models").symlink_to(folder)
    for place in (folder, tmp_path / "to-models"):
        assert "it is a folder; name a file in it" in refused("export", "s", "-o", str(place))
        with pytest.raises(InvalidInputError, match="csv"):
            StudyHandle("s").export(place)
    with_suffix = folder.rename(tmp_path / "models.csv")
    with pytest.raises(InvalidInputError, match="it is a folder"):
        StudyHandle("s").export(with_suffix)
    assert (with_suffix / "best.pt").read_text() == "weeks of work"


def test_what_is_exported_goes_through_a_link_and_into_a_pipe(stored, tmp_path):
    stored()
    (tmp_path / "latest.csv").symlink_to(tmp_path / "t.csv")
    run("export", "s", "-o", str(tmp_path / "latest.csv"))
    assert (tmp_path / "latest.csv").is_symlink()
    table = (tmp_path / "t.csv").read_bytes()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        run("export", "s", "-o", str(pipe))
        assert os.read(reader, len(table) + 1) == table
    finally:
        os.close(reader)


def test_20_000_trials_are_exported_in_seconds(stored):
    stored([trial(each / 1e4, own={"attempt": 1}, loss=1.0, acc=2.0) for each in range(20_000)])
    started = time.process_time()
    assert run("export", "s", "--format", "parquet")[:4] == b"PAR1"
    assert time.process_time() - started < 15.0  # some two seconds on an idle machine


def test_a_wrong_name_or_format_is_one_line_with_the_nearest(stored):
    stored()
    stored(name="language-id")
    assert "did you mean 'language-id'?" in refused("best", "langage-id", by=StudyNotKnownError)
    assert "did you mean 'language-id'?" in refused("status", "langage-id", by=StudyNotKnownError)
    assert "did you mean 'parquet'?" in refused("export", "s", "--format", "parqet")
    assert "give one of them" in refused("best", "s", "--yaml", "--json")
    assert "nothing was written" in refused("export", "s", "-o", "/proc/nowhere/t.csv")


@pytest.mark.parametrize(
    "words",
    [
        ("best", "s"), ("export", "s"), ("logs", "s", "1"), ("explain", "s", "1"),
        ("events", "s"), ("report", "s", "-o", "report.json"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_results_are_read_while_the_redis_that_was_named_does_not_answer(
    stored, home, monkeypatch, tmp_path, words
):
    monkeypatch.setenv("FLEET_REDIS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.chdir(tmp_path)
    stored()
    output_file(home, "s", 1, 1, 100).write(0, "what it printed\n")
    if words[0] in {"explain", "events"}:
        ended = encode(EventKind.ENDED, trial=1, attempt=1, state="COMPLETE", held_ms=3000)
        events_file(home, "s").write_text(line_of("9000-0", ended))
    shown = run(*words).decode()
    assert shown
    assert words[0] != "logs" or shown == "what it printed\n"
    if words[0] == "report":
        waits_for = json.loads((tmp_path / "report.json").read_text())["status"]["waits_for"]
        assert "127.0.0.1:1/0 does not answer" in waits_for[0]
    refused(words[0], "t", *words[2:], by=FleetError)
    refused("status", "s", by=RedisUnavailableError)  # which asks how the fleet is


def test_an_empty_study_has_no_best_and_an_empty_table(stored):
    stored([])
    assert "no complete trial" in refused("best", "s", by=FleetError)
    assert run("export", "s").decode().startswith("number,state,value")
    assert json.loads(run("export", "s", "--json")) == []


@pytest.mark.parametrize(
    ("constraints", "lacks", "sentence"),
    [
        ({}, "no complete trial yet", "No trial is complete"),
        (
            {"size": 1.0},
            "no complete trial that violates no constraint yet",
            "No complete trial keeps to the constraints",
        ),
    ],
    ids=["none is complete", "all violate one"],
)
def test_why_there_is_no_best_is_told_in_the_words_of_the_case(
    stored, tmp_path, monkeypatch, constraints, lacks, sentence
):
    monkeypatch.chdir(tmp_path)
    found = trial(0.5, state=TrialState.COMPLETE if constraints else TrialState.FAIL)
    for name, value in constraints.items():
        found.set_constraint(name, value)
    stored([found])
    assert lacks in refused("best", "s", by=FleetError)
    with pytest.raises(FleetError, match=lacks):
        _ = StudyHandle("s").best_trial
    run("report", "s", "-o", "report.json")
    told = json.loads((tmp_path / "report.json").read_text())["outcome"]
    assert any(line.startswith(sentence) for line in told)


def test_the_schema_is_printed_as_json():
    assert "trials" in json.loads(run("schema"))["properties"]


@pytest.mark.parametrize(
    "words",
    [
        ("best", "s"), ("best", "s", "--json"), ("status", "s"), ("status", "s", "--json"),
        ("export", "s"), ("export", "s", "--format", "json"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_no_command_tells_a_secret_that_an_objective_put_into_its_trial(
    stored, monkeypatch, capsys, words
):
    secret = "canary-of-the-environment"
    monkeypatch.setenv("SOME_API_KEY", secret)
    told = create_trial(
        value=0.5,
        params={"c": secret, f"p-{secret}": 0.5},
        distributions={"c": CategoricalDistribution([secret]), f"p-{secret}": X},
        user_attrs={"a": [{secret: f"at {secret}"}]},
    )
    stored([told])
    assert run_command(lambda: app(list(words), standalone_mode=False)) == 0
    shown = capsys.readouterr()
    assert "***" in shown.out
    assert secret not in shown.out + shown.err


def test_a_trial_that_is_taken_home_tells_no_secret_that_its_objective_put_into_it(
    stored, home, monkeypatch, tmp_path
):
    secret = "canary-of-the-environment"
    monkeypatch.setenv("SOME_API_KEY", secret)
    stored([trial(0.5, a=[{secret: f"at {secret}"}])])
    (home / "studies" / "s" / "trials" / "0" / "result").mkdir(parents=True)
    told = run_command(
        lambda: app(["best", "s", "--copy", str(tmp_path / "taken")], standalone_mode=False)
    )
    assert told == 0
    (about,) = (tmp_path / "taken").glob("trial.json")
    assert json.loads(about.read_text())["user_attrs"] == {"a": [{"***": "at ***"}]}
