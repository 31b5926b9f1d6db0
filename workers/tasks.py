"""The one task: decode the hint, claim the trial, run it, commit; all the rest is the runner's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery.exceptions import Reject

from workers import bootstrap
from workers.celery import app
from workers.protocol.messages import RUN_TRIAL, RunTrial


@app.task(name=RUN_TRIAL)
def run_trial(message: Mapping[str, Any]) -> None:
    """Run the trial that `message` hints at, if it can be claimed."""
    outcome = bootstrap.trial_runner().run(RunTrial.decode(message))
    if outcome.goes_back:
        raise Reject("drained", requeue=True)
    if outcome.exit_code is not None:
        raise SystemExit(
            outcome.exit_code
        )  # the pool tells of the task's end first, then replaces us
