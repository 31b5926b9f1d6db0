"""The code that a trial ran: recorded, compared with the submitter's, and left where it differs."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
from one_process_fleet import OneProcessFleet
from structlog.testing import capture_logs

from orchestrator.handle import StudyHandle
from orchestrator.storage.attributes import ATTR, CODE_ATTR, code_of
from orchestrator.submission.submitted_code import with_code
from workers.coordination.studies import Studies, ensure_epoch
from workers.objective_source import find_source, sha256_of
from workers.processes.registry import ProcessRecord, ProcessRegistry
from workers.protocol.spec import StudySpec
from workers.protocol.states import ProcessKind, TrialState
from workers.protocol.study_options import CodeSpec
from workers.trials.code_that_ran import CodeThatRan

CODE = "def objective(trial):\n    return trial.suggest_float('x', 0, 1)\n"


def git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def train(tmp_path):
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "train_it.py").write_text(CODE)
    return folder / "train_it.py"


@pytest.fixture
def committed(train):
    if shutil.which("git") is None:
        pytest.skip("needs git")
    git(train.parent, "init", "-q")
    git(train.parent, "add", ".")
    git(train.parent, "commit", "-q", "-m", "first")
    return git(train.parent, "rev-parse", "HEAD")


@pytest.fixture
def fleet(client, server, settings, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    config = settings.model_copy(update={"objectives": ("*",)})
    with OneProcessFleet(client, server, config, tmp_path) as started:
        yield started


def spec_of(train, **fields):
    return StudySpec(name="s", objective=f"{train}:objective", trials=2, **fields)


def test_each_trial_names_the_code_that_it_ran(fleet, train, committed):
    study = fleet.run_studies([spec_of(train)])["s"]
    ran = [code_of(trial.user_attrs, study.user_attrs) for trial in study.trials]
    assert ran[0] == ran[1]
    assert (ran[0]["file"], ran[0]["sha256"]) == (str(train), sha256_of(train))
    assert (ran[0]["git_commit"], ran[0]["git_dirty"]) == (committed, False)
    assert ran[0]["torch"]
    assert ran[0]["host"]
    # the facts lie with the study, once
    assert sum(name.startswith(CODE_ATTR) for name in study.user_attrs) == 1
    assert len(study.trials[0].user_attrs[f"{ATTR}code"]) == 12

    train.write_text(f"{CODE}# edited\n")
    edited = fleet.run_studies([spec_of(train, max_failures=4).model_copy(update={"trials": 3})])
    ran = code_of(edited["s"].trials[2].user_attrs, edited["s"].user_attrs)
    assert (ran["sha256"], ran["git_dirty"]) == (sha256_of(train), True)


def test_code_without_a_repository_has_no_commit(fleet, train, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(train.parents[1]))
    study = fleet.run_studies([spec_of(train)])["s"]
    ran = code_of(study.trials[0].user_attrs, study.user_attrs)
    assert (ran["git_commit"], ran["git_dirty"]) == (None, None)


def test_other_code_than_the_submitter_s_runs_and_is_said_once(fleet, train):
    spec = with_code(spec_of(train), None)
    assert spec.code.sha256 == sha256_of(train)
    train.write_text(f"{CODE}# edited on the worker\n")
    with capture_logs() as logs:
        study = fleet.run_studies([spec])["s"]
    assert len(study.trials) == 2
    assert [each["event"] for each in logs].count("objective_differs") == 1


def test_where_code_must_match_a_worker_with_other_code_runs_nothing(fleet, train):
    spec = with_code(spec_of(train, code=CodeSpec(must_match=True)), None)
    submitted = train.read_text()
    train.write_text(f"{CODE}# edited on the worker\n")
    fleet.studies.submit(spec)
    leases = fleet.studies.leases("s")
    fleet.until(leases.queued, "a trial waits")
    for _ in range(3):
        fleet.run_queued("s")
    record = leases.record(0)
    assert (record.state, record.attempt) == (TrialState.QUEUED, 0)
    train.write_text(submitted)  # the file is brought to the worker
    study = fleet.run_studies([spec])["s"]
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE"]


def test_status_names_hosts_with_other_code_and_a_study_that_nobody_may_run(
    client, settings, train
):
    ensure_epoch(client)
    registry = ProcessRegistry(client, settings.times.scaled(100))
    fields = {"slots": 1, "queues": ["default"]}
    main = ProcessRecord(registry, ProcessKind.MAIN, fields=fields)
    main.identity = main.identity._replace(pid=1)
    main.register()
    slot = ProcessRecord(registry, ProcessKind.TRIAL, parent=1, fields={"device": "cpu 0"})
    spec = with_code(spec_of(train), None)
    Studies(client).submit(spec)
    train.write_text(f"{CODE}# edited\n")
    code = CodeThatRan(slot)
    assert code.differs(spec)
    (told,) = StudyHandle("s", settings).status().other_code
    assert slot.identity.host in told
    assert "must_match: true" in told
    strict = spec.model_copy(update={"code": CodeSpec(must_match=True, sha256=spec.code.sha256)})
    Studies(client).submit(strict)
    assert "no worker has the objective's file" in " ".join(
        StudyHandle("s", settings).status().waits_for
    )
    train.write_text(CODE)
    assert not code.differs(strict)
    assert StudyHandle("s", settings).status().other_code == []
    assert json.loads(StudyHandle("s", settings).status().model_dump_json())["other_code"] == []


def test_a_module_is_found_without_importing_its_packages(tmp_path):
    package = tmp_path / "a_package" / "inner"
    package.mkdir(parents=True)
    (tmp_path / "a_package" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (package / "train.py").write_text(CODE)
    path = [str(tmp_path)]
    assert find_source("a_package.inner.train:f", path) == package / "train.py"
    assert find_source("a_package.inner:f", path) == package / "__init__.py"
    for missing in ("a_package.other:f", "nowhere_at_all.x:f", "finetune", f"{tmp_path}/no.py:f"):
        assert find_source(missing, path) is None
    (tmp_path / "spaced").mkdir()
    (tmp_path / "spaced" / "mod.py").write_text(CODE)
    assert find_source("spaced.mod:f", path) == tmp_path / "spaced" / "mod.py"
