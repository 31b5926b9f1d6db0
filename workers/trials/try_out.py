"""`python -m workers.trials.try_out STUDY`: one trial in the foreground, for `trialfleet try`.

It is a worker of one slot without Celery: runner, managers and lease are the real ones, and the
objective runs in the main thread of a process that owns the terminal, as a debugger wants it.

Invariant: the study is tried once, whatever becomes of its trial.
"""

from __future__ import annotations

import argparse
import logging
import os
import pdb  # noqa: T100 - it is asked for by --pdb
import sys
import time
import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from workers.coordination.connection import connect, resolve_url
from workers.coordination.rights import Role
from workers.coordination.studies import Studies
from workers.logs import configure_logging
from workers.processes.gpu_slots import device_name, take_gpu, take_gpus
from workers.processes.registry import ProcessRecord, ProcessRegistry
from workers.protocol.errors import FleetError
from workers.protocol.messages import RunTrial
from workers.protocol.states import ProcessKind
from workers.settings import Settings, forget_secret

if TYPE_CHECKING:
    from workers.trials.runner import TrialRunner

#: How long the orchestrator may take to ask for the trial.
_PATIENCE_SECONDS: Final = 60.0

#: By how much the lease of the record of this worker is longer: nothing renews it.
_FOR_EVER: Final = 1e4


def main() -> None:
    """Run the one trial of a study that was just submitted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study")
    parser.add_argument("--pdb", action="store_true", help="debug what the objective raises")
    given = parser.parse_args()
    configure_logging(level=logging.CRITICAL)
    settings = Settings.from_environment()
    forget_secret()
    with ExitStack() as stack:
        client = connect(settings, Role.WORKER)
        stack.callback(client.close)
        registry = ProcessRegistry(client, settings.times.scaled(_FOR_EVER))
        queue = Studies(client).spec(given.study).resources.queue
        try:
            take_gpus(1, 0.0)
        except FleetError as error:
            sys.exit(f"trialfleet: {error}")
        gpu = take_gpu(0)  # before torch is imported
        main_fields = {"slots": 1, "queues": [queue]}
        worker = ProcessRecord(registry, ProcessKind.MAIN, fields=main_fields)
        worker.identity = worker.identity._replace(pid=os.getppid())
        slot = ProcessRecord(
            registry,
            ProcessKind.TRIAL,
            parent=worker.identity.pid,
            fields={"gpu": "cpu" if gpu is None else str(gpu), "device": device_name(gpu)},
        )
        slot.register()
        runner = stack.enter_context(_open_runner(settings, slot, with_pdb=given.pdb))
        worker.register()  # from now on, the orchestrator asks for the trial
        hint = _await_trial(Studies(client), given.study)
        runner.run(hint.sealed(settings.seal))


def _open_runner(settings: Settings, record: ProcessRecord, *, with_pdb: bool) -> TrialRunner:
    """A runner that shows at once what its objective raises."""
    from workers.managers import ensure_process_initialized
    from workers.trials.runner import TrialRunner

    def show(error: BaseException) -> None:
        traceback.print_exception(error)
        if with_pdb:
            pdb.post_mortem(error.__traceback__)

    return TrialRunner(
        client=connect(settings, Role.WORKER),
        redis_url=resolve_url(settings),
        settings=settings,
        container=ensure_process_initialized(settings, record=record),
        record=record,
        drain_file=str(Path(settings.home) / "drain"),
        on_error=show,
    )


def _await_trial(studies: Studies, study: str) -> RunTrial:
    """The hint of the trial that waits, when it does."""
    leases = studies.leases(study)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not (queued := leases.queued()):
        if time.monotonic() > deadline:
            sys.exit(f"trialfleet: no trial of {study!r} was asked for")
        time.sleep(0.05)
    return RunTrial(study=study, number=min(queued), epoch=leases.epoch)


if __name__ == "__main__":
    main()
