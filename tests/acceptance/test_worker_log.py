"""What a worker tells its operator."""

from __future__ import annotations

import json

OBJECTIVE = """
import optuna

def objective(trial):
    trial.report(0.5, 1)
    if trial.number == 1:
        raise optuna.TrialPruned
    if trial.number == 2:
        raise ValueError("no good")
    return 0.5
"""


def test_a_worker_tells_one_line_a_trial_and_once_that_there_are_no_wandb_runs(machine):
    del machine.environment["FLEET_LOG_LEVEL"]
    (machine.folder / "short.py").write_text(OBJECTIVE)
    (machine.folder / "short.yaml").write_text(
        json.dumps({"objective": "short.py:objective", "trials": 12, "max_failures": 1})
    )
    machine.run("run", "short.yaml", "--slots", 2)
    lines = [json.loads(x) for x in machine.worker_log().splitlines() if x.startswith("{")]
    assert {line["level"] for line in lines} <= {"info", "warning", "error"}
    of_trials = [line for line in lines if "trial" in line]
    told = {line["trial"]: line for line in of_trials}
    assert sorted(line["trial"] for line in of_trials) == list(range(12)), of_trials
    assert (told[0]["event"], told[0]["state"], told[0]["attempt"]) == ("ended", "COMPLETE", 1)
    assert (told[0]["study"], told[1]["state"]) == ("short", "PRUNED")
    assert told[0]["busy_seconds"] >= 0
    assert (told[2]["event"], told[2]["level"]) == ("attempt_failed", "error")
    assert not [line for line in lines if "run_trial[" in line["event"]], "Celery tells of each"
    assert [line["event"] for line in lines].count("wandb_off") == 1
    assert not (machine.home / "wandb").exists()
