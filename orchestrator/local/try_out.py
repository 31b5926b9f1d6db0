"""`trialfleet try`: one trial in the foreground, on a fleet of its own that nobody sees.

Invariant: nothing is recorded: home, Redis and results go when it ends, and W&B is off.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, TextIO

from orchestrator.driving.service import Service
from orchestrator.local.run import worker_environment
from orchestrator.local.servers import EmbeddedRedis
from orchestrator.status import StudyStatus
from orchestrator.submission.submit import submit
from workers.installed import refuse_if_missing
from workers.protocol.errors import FleetError
from workers.protocol.spec import StudySpec
from workers.protocol.study_options import PrunerSpec
from workers.settings import Settings

#: How long the orchestrator may take to take in how the trial ended.
_END_SECONDS: Final = 10.0

#: A debugger may stand for as long as somebody thinks.
_NEVER_SECONDS: Final = 1e9


def try_out(
    spec: StudySpec,
    import_directory: Path,
    settings: Settings,
    tell: Callable[[str], None],
    *,
    with_pdb: bool = False,
    output: TextIO | None = None,
) -> StudyStatus:
    """Run one trial of a study in the foreground.

    Args:
        spec: The study.
        import_directory: Where the objective's module lies.
        settings: The cache and the allowed objectives; all else is its own.
        tell: Told what people should know.
        with_pdb: Whether what the objective raises is debugged where it was raised.
        output: Where what the objective prints goes; by default to standard output.

    Returns:
        The status of a study of that one trial.

    Raises:
        InvalidInputError: The study cannot run.
        FleetError: The process of the trial ended before its trial did.
    """
    refuse_if_missing("local")
    with TemporaryDirectory(prefix="trialfleet-try-") as folder, EmbeddedRedis(Path(folder)) as own:
        own_settings = settings.model_copy(
            update={
                "home": Path(folder),
                "storage": None,
                "redis_url": own.url,
                "slots": 1,
                "metrics_port": None,
            }
        )
        spec = _of_one_trial(spec)
        handle = submit(spec, own_settings, import_directory=import_directory, tell=tell)
        spec = handle.spec()
        environment = worker_environment(spec, import_directory, own_settings)
        with Service(own_settings, only=spec.name) as service:
            return _drive(service, spec.name, environment, with_pdb=with_pdb, output=output)


def _of_one_trial(spec: StudySpec) -> StudySpec:
    """The study as it is tried: one trial, once, for as long as it takes."""
    changes = {
        "trials": 1,
        "timeout": None,
        "trial_timeout": None,
        "on_end": None,
        "max_failures": 1,
        "max_losses": 1,
        "progress_timeout": _NEVER_SECONDS,
        "warm_start": None,
        # there would be none to be promoted before
        "pruner": PrunerSpec() if spec.pruner.promote else spec.pruner,
    }
    return spec.model_copy(update=changes)


def _drive(
    service: Service,
    name: str,
    environment: Mapping[str, str],
    *,
    with_pdb: bool,
    output: TextIO | None,
) -> StudyStatus:
    """Turn the orchestrator's loop until the trial's process has ended and its end is known."""
    command = [sys.executable, "-P", "-m", "workers.trials.try_out", name]
    child = subprocess.Popen(
        [*command, *(["--pdb"] if with_pdb else [])],
        env={**environment, "WANDB_MODE": "disabled"},
        stdout=output,
    )
    with _deaf_to_interrupts(child):
        deadline = None
        while True:
            service.turn()
            status = service.status(name)
            if status is not None and status.is_over and child.poll() is not None:
                return status
            if child.poll() is not None:
                deadline = deadline or time.monotonic() + _END_SECONDS
                if time.monotonic() > deadline:
                    waits = "" if status is None else "; ".join(status.waits_for)
                    raise FleetError(
                        f"the process of the trial ended with code {child.returncode}, and the"
                        f" trial has not{f': {waits}' if waits else ''}"
                    )


@contextmanager
def _deaf_to_interrupts(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Leave Ctrl-C to the trial's process, which the terminal tells, too; it dies with us."""
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if child.poll() is None:
            child.kill()
            child.wait()
