"""`trialfleet run` as a user runs it: real workers, real training, real signals."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from remains import ends_in_journal, processes_of
from waiting import wait_until


def assert_nothing_runs(machine):
    assert machine.processes("main") == []
    scratch = Path(tempfile.gettempdir()) / f"trialfleet-{os.getuid()}"
    assert list(scratch.glob("*")) == []
    assert not (machine.home / "redis" / "endpoint.json").exists()


def test_a_study_survives_a_killed_pool_process_and_counts_each_trial_once(machine):
    study = machine.write_study(config=machine.few_texts(), wandb={"mode": "offline"})
    machine.hold()
    process = machine.start("trialfleet", "run", study, "--slots", 2, "--json")
    victim, _ = machine.await_held(2)
    main = machine.processes("main")[0].identity.pid
    libraries = Path(f"/proc/{main}/maps").read_text()
    assert "libtorch" not in libraries, "the worker's main process never imports torch"
    os.kill(victim.identity.pid, signal.SIGKILL)
    machine.let_go()
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, machine.worker_log()[-3000:]

    status = json.loads(output)
    assert (status["study"], status["state"]) == ("accept", "finished")
    assert status["trials"] == {
        "queued": 0, "running": 0, "complete": 4, "pruned": 0, "failed": 0, "dead": 0,
        "cancelled": 0, "paused": 0,
    }  # fmt: skip
    assert status["best"]["value"] == max(trial["value"] for trial in status["top"]) > 0.3
    assert status["best"]["params"].keys() == {"learning_rate"}
    assert status["busy_seconds"] > 0
    assert status["wall_seconds"] > 0
    assert status["slots"] == 2
    attempts = {trial["number"]: trial["attempts"] for trial in status["recent"]}
    assert attempts[victim.trial] == 2
    assert ends_in_journal(machine.home, "accept") == dict.fromkeys(range(4), 1)
    assert machine.events("process_died")
    assert [event["trial"] for event in machine.events("reaped")] == [victim.trial]
    assert_nothing_runs(machine)

    warm = [event["seconds"] for event in machine.events("first_training_step") if event["warm"]]
    assert warm, "the second trial of a process is warm"
    results = machine.home / "studies" / "accept" / "trials"
    assert (results / str(status["best"]["number"]) / "result" / "metrics.json").exists()
    assert len(list(machine.home.glob("wandb/offline-run-*"))) >= 4
    assert machine.json("status", "accept")["best"] == status["best"]

    again = machine.run("run", study, timeout=200)
    assert "was finished before" in again


def test_an_interrupted_study_drains_leaves_nothing_behind_and_resumes(machine):
    study = machine.write_loop(trials=3)
    machine.hold()
    process = machine.start("trialfleet", "run", study, "--slots", 2)
    held = {entry.trial for entry in machine.await_held(2)}
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 130, output
    assert "draining" in output
    assert "resume with: trialfleet run" in output
    assert_nothing_runs(machine)
    assert {event["trial"] for event in machine.events("released")} == held
    status = machine.status()
    assert (status.state, status.trials["queued"]) == ("running", 3)
    assert {int(checkpoint.parts[-3]) for checkpoint in machine.checkpoints()} == held

    machine.let_go()
    finished = machine.json("run", study, "--slots", 1)
    assert finished["trials"]["complete"] == 3
    assert {event["trial"] for event in machine.events("resumed")} == held
    assert ends_in_journal(machine.home, "accept") == dict.fromkeys(range(3), 1)
    assert_nothing_runs(machine)


def test_a_second_interrupt_ends_at_once_and_is_still_safe(machine):
    study = machine.write_loop(trials=2)
    machine.hold()
    process = machine.start("trialfleet", "run", study, "--slots", 2)
    for entry in machine.await_held(2):
        os.kill(entry.identity.pid, signal.SIGSTOP)  # these cannot drain
    process.send_signal(signal.SIGINT)
    said = Said(process)
    wait_until(lambda: "draining" in said, "it drains")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    machine.let_go()
    finished = machine.json("run", study, "--slots", 1)
    assert finished["trials"]["complete"] == 2
    reaped = [event["ended"] for event in machine.events("reaped")]
    assert reaped.count("REQUEUED") == 2, "by a worker, before the leases end"
    assert_nothing_runs(machine)


def test_a_killed_worker_and_a_killed_redis_are_started_again(machine):
    machine.hold()
    study = machine.write_loop(trials=3)
    process = machine.start("trialfleet", "run", study, "--slots", 1, "--json")
    machine.await_held()
    endpoint = json.loads((machine.home / "redis" / "endpoint.json").read_text())
    os.kill(endpoint["pid"], signal.SIGKILL)
    (main,) = wait_until(lambda: machine.processes("main"), "the fleet has its Redis again")
    os.kill(main.identity.pid, signal.SIGKILL)
    machine.let_go()
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, machine.worker_log()[-3000:]
    assert json.loads(output)["trials"]["complete"] == 3
    assert "the embedded Redis was killed; started it again" in machine.errors()
    assert "the worker was killed; started it again" in machine.errors()
    assert ends_in_journal(machine.home, "accept") == dict.fromkeys(range(3), 1)
    assert_nothing_runs(machine)


def test_a_killed_run_is_resumed_by_the_next(machine):
    machine.environment["FLEET_TIME_SCALE"] = "0.1"
    study = machine.write_loop(trials=2)
    machine.hold()
    process = machine.start("trialfleet", "run", study, "--slots", 1)
    machine.await_held()
    process.kill()
    process.wait()
    # its Redis and its worker end with it
    wait_until(lambda: not processes_of(machine.home), "all that it started ends")
    machine.let_go()
    finished = machine.json("run", study, "--slots", 1)
    assert finished["trials"]["complete"] == 2
    assert machine.events("resumed")
    assert ends_in_journal(machine.home, "accept") == dict.fromkeys(range(2), 1)
    assert_nothing_runs(machine)


class Said:
    """All that a process has said so far; reading it never waits."""

    def __init__(self, process) -> None:
        self._descriptor = process.stdout.fileno()
        os.set_blocking(self._descriptor, False)
        self._bytes = b""

    def __contains__(self, text: str) -> bool:
        with suppress(BlockingIOError):
            self._bytes += os.read(self._descriptor, 65536)
        return text.encode() in self._bytes


RANDOM = """
import random

import numpy
import optuna
import torch

def objective(trial):
    x = trial.suggest_float("x", -1.0, 1.0)
    for step in range(3):
        x += random.random() + numpy.random.rand() + torch.rand(()).item()
        trial.report(x, step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return x
"""


def test_the_same_seed_and_one_slot_give_the_same_study(machine):
    (machine.folder / "drawn.py").write_text(RANDOM)
    study = machine.folder / "drawn.yaml"
    study.write_text(
        "{name: drawn, objective: 'drawn.py:objective', trials: 6, sampler: {type: tpe, seed: 7},"
        " pruner: {type: median, n_startup_trials: 1, n_warmup_steps: 0}}"
    )
    found = []
    for name in ("first", "second"):
        machine.home = machine.folder / name
        machine.environment["FLEET_HOME"] = str(machine.home)
        status = machine.json("run", study, "--slots", 1)
        found.append(
            [
                (trial["number"], trial["state"], trial["value"], trial["params"])
                for trial in sorted(status["recent"], key=lambda trial: trial["number"])
            ]
        )
    assert found[0] == found[1]
    assert len(found[0]) == 6
    assert {state for _, state, _, _ in found[0]} == {"complete", "pruned"}


PLAIN = """
import optuna

def objective(trial):
    x = trial.suggest_float("x", -10, 10)
    if trial.suggest_categorical("kind", ["plain", "half"]) == "half":
        trial.report(x, 0)
        if trial.should_prune():
            raise optuna.TrialPruned()
    if trial.number == 2:
        raise ValueError("two is bad")
    return x ** 2
"""


def test_any_optuna_objective_runs_unchanged_and_its_errors_are_shown(machine):
    """And the study's name is taken by its settings."""
    (machine.folder / "plain.py").write_text(PLAIN)
    output = machine.run("run", "plain.py:objective", "--trials", 8, "--slots", 1)
    assert "trial 2 failed  (0." in output
    assert "ValueError: two is bad" in output
    assert "plain-objective finished: 7 complete, 1 failed" in output
    assert "best: trial" in output
    assert_nothing_runs(machine)

    study = machine.folder / "other.yaml"
    study.write_text("{name: plain-objective, objective: 'plain.py:objective', metric: loss}")
    machine.run("run", study, code=2)
    assert 'exists with metric = null, and now it is "loss"' in machine.errors()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nowhere.yaml"], "nowhere.yaml: there is no such study file"),
        (["run", "STUDY", "--slots", "0"], "--slots = 0: a worker needs at least 1 slot"),
        (["run", "BROKEN"], "did you mean 'learning_rate'?"),
        (["submit", "LOOP"], "does not answer"),
        (["status", "nothing"], "study 'nothing' is not known"),
    ],
)
def test_bad_input_is_one_line_exit_code_two_and_nothing_enqueued(machine, arguments, message):
    machine.environment["FLEET_REDIS_URL"] = "redis://127.0.0.1:1/0"
    if arguments[0] in {"run", "status"}:
        del machine.environment["FLEET_REDIS_URL"]
    paths = {
        "STUDY": machine.write_study(),
        "LOOP": machine.write_loop(),
        "BROKEN": machine.write_study(
            name="broken", space={"learnig_rate": {"type": "float", "low": 0.1, "high": 0.2}}
        ),
    }
    assert machine.run(*[paths.get(part, part) for part in arguments], code=2) == ""
    (line,) = machine.errors().strip().splitlines()
    assert line.startswith("trialfleet: ")
    assert message in line
    assert not (machine.home / "studies").exists()
    assert not (machine.home / "redis").exists()
