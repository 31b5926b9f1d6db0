"""A hub and a file share that are away while trials want to read from them."""

from __future__ import annotations

import builtins
import errno
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import optuna
import pytest
from one_process_fleet import OneProcessFleet
from waiting import wait_until

from orchestrator.handle import StudyHandle
from workers.coordination import keys
from workers.coordination.clock import server_time_ms
from workers.managers import ModelManager, TokenizerManager
from workers.protocol.finetune import ModelConfig
from workers.protocol.messages import RunTrial
from workers.protocol.spec import StudySpec

WORDS = ["red", "green", "blue", "one", "two", "three"]


@pytest.fixture
def fleet(client, server, settings, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with ExitStack() as stack:
        yield stack.enter_context(OneProcessFleet(client, server, settings, tmp_path))


@pytest.fixture
def spec(tmp_path):
    rows = [f"{WORDS[i % 6]} {WORDS[i % 5]} {i % 11},{i % 3}" for i in range(60)]
    path = tmp_path / "texts.csv"
    path.write_text("\n".join(["text,label", *rows]))

    def make(model, **fields):
        config = {
            "data": {"source": str(path), "max_length": 12, "validation_fraction": 0.3},
            "model": model,
            "tokenizer": {"vocab_size": 80},
            "epochs": 1,
        }
        study = {"direction": "maximize", "metric": "accuracy", "trials": 2, **fields}
        return StudySpec(name="s", config=config, **study)

    return make


@pytest.fixture
def published(fleet, hub, tmp_path):
    """A small pretrained model on the hub."""
    folder = tmp_path / "model"
    vocabulary = fleet.container.get(TokenizerManager).train(WORDS, 80)
    vocabulary = getattr(vocabulary, "path", vocabulary)
    models = fleet.container.get(ModelManager)
    bert = ModelConfig(architecture="bert", hidden_size=32, num_hidden_layers=1)
    models.save(models.sequence_classifier(bert, num_labels=3, vocab_size=80), folder)
    files = {path.name: path.read_bytes() for path in [*folder.iterdir(), *vocabulary.iterdir()]}
    repo = hub.repo("models", "me/tiny")
    repo.commit(files)
    return repo


def run_once(fleet, number=0):
    """One attempt of a trial, whatever it waits for."""
    leases = fleet.studies.leases("s")
    fleet.until(lambda: leases.record(number), "it is enqueued")
    fleet.client.hset(keys.trial("s", number), "not_before", 0)
    fleet.runner.run(RunTrial(study="s", number=number, epoch=leases.epoch))
    return leases.record(number)


def test_a_hub_that_is_away_burns_no_trial_and_status_says_what_is_waited_for(
    fleet, hub, published, spec
):
    study = spec({"id": "me/tiny"}, max_failures=1, max_losses=1)
    fleet.studies.submit(study)
    handle = StudyHandle("s", fleet.service.settings)
    for fault in ("reset", 503, (429, {"Retry-After": "600"})):
        hub.always = fault
        record = run_once(fleet)
        assert (record.state, record.failures, record.losses) == ("QUEUED", 0, 0)
        assert record.waits_for.startswith("tokenizer 'me/tiny' cannot be read for now: ")
        assert record.not_before_ms > server_time_ms(fleet.client)
    pause_ms = record.not_before_ms - server_time_ms(fleet.client)
    assert 590_000 < pause_ms <= 600_000, "as long as the hub wants"
    fleet.until(
        lambda: (
            [(each.number, each.waits_for) for each in handle.status().waiting]
            == [(0, record.waits_for)]
        ),
        "status says so",
    )
    assert (
        handle.status()
        .waits_for[0]
        .startswith("trial 0, given back and tried again later: tokenizer 'me/tiny' cannot be read")
    )
    hub.always = None
    fleet.until(lambda: fleet.run_queued("s") or handle.status().is_over, "it is over")
    ended = {trial.state for trial in handle.study.trials}
    assert ended == {optuna.trial.TrialState.COMPLETE}
    assert handle.status().waiting == []


def test_a_drain_does_not_wait_for_a_hub_that_is_away(fleet, hub, published, spec, tmp_path):
    fleet.studies.submit(spec({"id": "me/tiny"}))
    fleet.until(lambda: fleet.studies.leases("s").record(0), "it is enqueued")
    hub.always = (503, {"Retry-After": "0.7"})
    hub.requests.clear()

    def drain():
        wait_until(lambda: hub.requests, "the hub is asked")
        (tmp_path / "drain").touch()

    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(drain)
        record = run_once(fleet)
    asked.result()
    assert (record.state, record.waits_for) == ("QUEUED", None), "it did not ask to the end"


def test_a_hubs_cache_that_is_cleaned_under_a_live_worker_costs_no_trial(
    fleet, hub, published, spec
):
    fleet.studies.submit(spec({"id": "me/tiny"}))
    assert run_once(fleet, 0).state == "COMPLETE"
    shutil.rmtree(Path(os.environ["HF_HOME"]) / "hub")
    assert run_once(fleet, 1).state == "COMPLETE"


def test_what_is_not_on_the_hub_fails_once_and_clearly(fleet, hub, published, spec):
    published.is_gated = True
    fleet.run_studies([spec({"id": "me/tiny"}, trials=1)])
    (trial,) = StudyHandle("s", fleet.service.settings).status().recent
    assert (trial.state, trial.attempts) == ("failed", 1)
    assert "tokenizer 'me/tiny' does not load (" in trial.error


def test_a_file_share_that_is_away_burns_no_trial(fleet, spec, monkeypatch):
    study = spec({"architecture": "bert", "hidden_size": 32, "num_hidden_layers": 1}, trials=1)
    source = study.config["data"]["source"]
    away = [True]

    def refuse(path):
        if away[0] and str(path) == source:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), source)

    read, look = builtins.open, Path.open
    monkeypatch.setattr(builtins, "open", lambda p, *a, **k: refuse(p) or read(p, *a, **k))
    monkeypatch.setattr(Path, "open", lambda p, *a, **k: refuse(p) or look(p, *a, **k))
    fleet.studies.submit(study)
    record = run_once(fleet)
    assert (record.state, record.failures) == ("QUEUED", 0)
    assert "Stale file handle" in record.waits_for
    away[0] = False
    assert run_once(fleet).state == "COMPLETE"
