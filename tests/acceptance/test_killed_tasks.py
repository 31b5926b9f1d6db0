"""Trainings of `finetune` whose processes are killed in the middle, by what they learn."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from mixed_trials import write_texts
from waiting import wait_until

from orchestrator.handle import StudyHandle
from workers.coordination.studies import Studies

HELD_TRIALS = Path(__file__).parents[1] / "held_trials"

BERT = {"architecture": "bert", "hidden_size": 32, "num_hidden_layers": 1}

#: Each task with its model, its data, and what it is measured by.
TASKS = {
    "causal_lm": ({**BERT, "architecture": "gpt2"}, {"block_size": 16}, "perplexity"),
    "masked_lm": (BERT, {"max_length": 16}, "perplexity"),
    "token_classification": (BERT, {"max_length": 16, "text": "words", "label": "tags"}, "loss"),
}


def study_of(task: str, source: str, name: str) -> dict:
    model, data, metric = TASKS[task]
    return {
        "name": name,
        "metric": metric,
        "direction": "minimize",
        "trials": 1,
        "sampler": {"type": "random", "seed": 7},
        "space": {"learning_rate": {"type": "float", "low": 1e-3, "high": 1e-2, "log": True}},
        "config": {
            "task": task,
            "model": model,
            "data": {"source": source, "validation_fraction": 0.3, **data},
            "tokenizer": {"vocab_size": 80},
            "dropout": 0.1,
            "batch_size": 8,
            "epochs": 3,
            "checkpoint_every": {"steps": 3},
        },
    }


@pytest.mark.long
def test_each_task_that_is_killed_in_the_middle_comes_to_the_value_of_an_undisturbed_one(fleet):
    texts = fleet.folder / "texts.jsonl"
    write_texts(texts, count=64, longest=8)
    hold = fleet.folder / "hold"
    hold.touch()
    fleet.serve()
    fleet.worker(len(TASKS), PYTHONPATH=str(HELD_TRIALS), HELD_TRIALS=str(fleet.folder))
    killed = {task: f"killed-{task}" for task in TASKS}
    for task, name in killed.items():
        fleet.hand_in(study_of(task, texts.name, name))
    studies = Studies(fleet.client)

    def records():
        found = [studies.leases(name).record(0) for name in killed.values()]
        return found if all(each is not None and each.checkpoint for each in found) else None

    saved = wait_until(records, "each has a checkpoint, and stays", 300.0)
    # a thread writes them while the training goes on
    assert all(0 < each.checkpoint.step < 15 for each in saved), "in the middle"
    pids = {each.study: each.identity.pid for each in fleet.processes("trial") if each.study}
    assert pids.keys() == set(killed.values())
    for pid in pids.values():
        os.kill(pid, signal.SIGKILL)
    hold.unlink()
    whole = {task: f"whole-{task}" for task in TASKS}
    for task, name in whole.items():
        fleet.hand_in(study_of(task, texts.name, name))
    for name in (*killed.values(), *whole.values()):
        fleet.study = name
        fleet.await_over(300)

    for task in TASKS:
        again, once = (
            StudyHandle(names[task], fleet.settings).study.trials[0] for names in (killed, whole)
        )
        assert again.state.name == once.state.name == "COMPLETE"
        assert again.user_attrs["trialfleet:attempt"] == 2
        assert once.user_attrs.get("trialfleet:attempt", 1) == 1
        assert (again.params, again.value) == (once.params, once.value), task
        assert again.intermediate_values == once.intermediate_values
