"""The one task: decode the hint, claim the trial, run it, commit; all the rest is the runner's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from celery.exceptions import Reject

from workers import bootstrap
from workers.celery import app
from workers.protocol.messages import RUN_TRIAL, RunTrial

#: The exit code of a pool process that an objective changed for good.
EXIT_REPLACED: Final = 74


@app.task(name=RUN_TRIAL)
def run_trial(message: Mapping[str, Any]) -> None:
    """Run the trial that `message` hints at, if it can be claimed."""
    outcome = bootstrap.trial_runner().run(RunTrial.decode(message))
    if outcome.goes_back:
        raise Reject("drained", requeue=True)
    if outcome.ends_process:
        raise SystemExit(EXIT_REPLACED)  # the pool tells of the task's end first, then replaces us
