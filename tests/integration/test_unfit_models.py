"""Models that cannot be trained, on a fleet whose orchestrator could not try them."""

from __future__ import annotations

import csv
import shutil
import sys
from contextlib import ExitStack

import optuna
import pytest
from one_process_fleet import OneProcessFleet
from optuna.trial import TrialState
from transformers import BertConfig, BertForSequenceClassification

from orchestrator.handle import StudyHandle
from workers.coordination import keys
from workers.managers import TokenizerManager, weights
from workers.managers.model_check import find_problem
from workers.processes.registry import ProcessRecord, ProcessRegistry
from workers.protocol.finetune import FinetuneConfig
from workers.protocol.messages import RunTrial
from workers.protocol.spec import StudySpec
from workers.protocol.states import ProcessKind, Wish
from workers.trials.runner import TrialRunner


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


@pytest.fixture
def registry(client, settings):
    return ProcessRegistry(client, settings.times.scaled(1e4))


@pytest.fixture
def slot(fleet, client, server, settings, tmp_path, registry):
    """A slot of the fleet that other processes know of, in this process."""
    runner = TrialRunner(
        client=client,
        redis_url=server.url,
        settings=settings,
        container=fleet.container,
        record=ProcessRecord(registry, parent=1),
        drain_file=str(tmp_path / "drain"),
    )
    with runner:
        yield runner


def pretrained(fleet, folder):
    tokenizers = fleet.container.get(TokenizerManager)
    tokenizer = tokenizers.load(tokenizers.train(["text number 1"], 64).path)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(tokenizer), **shape)
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"id": str(folder)}


@pytest.mark.parametrize("lacking", ["peft", "a package of attention", "a GPU", "half precision"])
def test_a_worker_that_lacks_something_leaves_its_trials_to_others_as_long_as_there_are_some(
    fleet, slot, registry, tmp_path, monkeypatch, lacking
):
    fields, hidden, message = {
        "peft": ({"lora": {"r": 2}}, ("peft", None), "pip install 'trialfleet[peft]'"),
        "a package of attention": ({}, (), "does not have: no such package"),
        "a GPU": ({}, (), "takes a GPU"),
        "half precision": ({"precision": "fp16"}, (), "precision = 'fp16'"),
    }[lacking]
    spec = study(tmp_path, "mixed", {})
    model = pretrained(fleet, tmp_path / "model")
    if lacking == "a GPU":
        model["attn_implementation"] = "flex_attention"
    spec = spec.model_copy(
        update={"config": {**spec.config, "model": model, "tokenizer": {}, **fields}}
    )
    other = another_worker(registry)
    leases = await_first_trial(fleet, spec)

    with monkeypatch.context() as patch:
        if hidden:
            patch.setitem(sys.modules, *hidden)
        if lacking == "a package of attention":
            patch.setattr(weights, "build", no_such_package)
        assert find_problem(FinetuneConfig.model_validate(spec.config)) is None
        for _ in range(3):  # it does not take it again
            offer_first_trial(fleet, slot, leases)
            record = leases.record(0)
            assert (record.state.value, record.attempt, record.failures) == ("QUEUED", 1, 0)
            assert fleet.studies.wish("mixed") is Wish.RUN
        entries = [entry for entry in registry.entries() if "mixed" in entry.refuses]
        assert message in entries[0].refuses["mixed"]

        other.gone()
        offer_first_trial(fleet, slot, leases)
    handle = StudyHandle("mixed", fleet.config)
    fleet.until(lambda: handle.study.trials[0].state is TrialState.FAIL, "it has failed")
    assert message in handle.study.trials[0].user_attrs["trialfleet:error"]
    assert (fleet.studies.wish("mixed") is Wish.STOP) is (lacking != "half precision")


def another_worker(registry):
    """Another worker of the fleet, for all that its registry knows."""
    other = ProcessRecord(registry, ProcessKind.MAIN, fields={"slots": 1, "queues": ["default"]})
    other.identity = other.identity._replace(pid=2)
    other.register()
    return other


def await_first_trial(fleet, spec):
    fleet.studies.submit(spec)
    leases = fleet.studies.leases("mixed")
    fleet.until(lambda: 0 in leases.queued(), "its first trial waits")
    return leases


def offer_first_trial(fleet, slot, leases):
    offer(fleet, slot, leases, 0)


def offer(fleet, slot, leases, number):
    fleet.client.hset(keys.trial("mixed", number), "not_before", 0)
    hint = RunTrial(study="mixed", number=number, epoch=leases.epoch)
    slot.run(hint.sealed(fleet.config.seal))


@pytest.mark.parametrize("missing", ["data.source", "model.id", "tokenizer"])
def test_what_does_not_lie_on_a_workers_host_costs_no_trial_while_others_may_have_it(
    fleet, slot, registry, tmp_path, missing
):
    spec = study(tmp_path, "mixed", {})
    model = pretrained(fleet, tmp_path / "model")
    words = tmp_path / "words"
    shutil.copytree(tmp_path / "model", words)
    fields = {"model": model, "tokenizer": {"id": str(words)}}
    spec = spec.model_copy(update={"config": {**spec.config, **fields}})
    path = {"data.source": tmp_path / "rows.csv", "model.id": tmp_path / "model"}.get(
        missing, words
    )
    other = another_worker(registry)
    leases = await_first_trial(fleet, spec)
    path.rename(tmp_path / "unmounted")

    for _ in range(2):
        offer_first_trial(fleet, slot, leases)
        record = leases.record(0)
        assert (record.state.value, record.attempt, record.failures) == ("QUEUED", 1, 0)
        assert fleet.studies.wish("mixed") is Wish.RUN
    (reason,) = [entry.refuses["mixed"] for entry in registry.entries() if entry.refuses]
    assert missing in reason
    assert str(path) in reason

    other.gone()
    offer_first_trial(fleet, slot, leases)
    handle = StudyHandle("mixed", fleet.config)
    fleet.until(lambda: handle.study.trials[0].state is TrialState.FAIL, "nobody has it")
    assert str(path) in handle.study.trials[0].user_attrs["trialfleet:error"]
    assert fleet.studies.wish("mixed") is Wish.STOP


def test_what_a_study_was_trained_with_is_waited_for_while_it_is_away(
    fleet, slot, registry, tmp_path
):
    def refusals():
        return [entry.refuses["mixed"] for entry in registry.entries() if entry.refuses]

    shape = {"architecture": "bert", "hidden_size": 16, "num_attention_heads": 2}
    leases = await_first_trial(fleet, study(tmp_path, "mixed", shape))
    offer(fleet, slot, leases, 0)
    fleet.until(lambda: fleet.studies.facts.get("mixed", "best_value") is not None, "it is told")
    fleet.until(lambda: 1 in leases.queued(), "the next one waits")
    path = tmp_path / "rows.csv"
    path.rename(tmp_path / "unmounted")
    for _ in range(2):
        offer(fleet, slot, leases, 1)
        record = leases.record(1)
        assert (record.state.value, record.failures) == ("QUEUED", 0)
        assert fleet.studies.wish("mixed") is Wish.RUN
        (reason,) = refusals()
        assert str(path) in reason
    (tmp_path / "unmounted").rename(path)
    offer(fleet, slot, leases, 1)
    assert leases.record(1).state.value == "COMPLETE"
    assert refusals() == []


def no_such_package(*_):
    raise ModuleNotFoundError("no such package")
