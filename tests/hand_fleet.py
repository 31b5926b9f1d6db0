"""A fleet with the real orchestrator, and the test in the part of the workers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import optuna
import pytest
from waiting import wait_until

from orchestrator.driving.service import Service
from orchestrator.handle import StudyHandle
from orchestrator.status import StudyStatus
from orchestrator.submission import preflight
from orchestrator.submission.submit import submit
from workers.coordination.grants import Grant
from workers.coordination.studies import Studies
from workers.processes.registry import ProcessRecord, ProcessRegistry
from workers.protocol.messages import Result
from workers.protocol.spec import StudySpec
from workers.protocol.states import ProcessKind, TrialState

SPACE = {"x": {"type": "float", "low": 0.0, "high": 1.0}}


#: These leases are not renewed, and must outlast the test.
UNRENEWED_SECONDS = 600.0


_import_elsewhere = preflight._import_elsewhere

#: What importing the objective came to.
_imported: list[dict[str, str | None]] = []


def _import_once(objective: str, directory: Path) -> dict[str, str | None]:
    """Each fleet writes the same objective: a process imports it for the first one."""
    told = _imported[0] if _imported else _import_elsewhere(objective, directory)
    if not told.get("problem"):  # a machine that was busy once need not be
        _imported[:] = [told]
    return told


class Fleet:
    """Submits one study, and works on it by hand."""

    def __init__(self, client, settings, tmp_path):
        self.client, self.settings = client, settings
        self.statuses: list[StudyStatus] = []
        (tmp_path / "objective_by_hand.py").write_text("def objective(trial):\n    return 0.0\n")
        self.objective = f"{tmp_path}/objective_by_hand.py:objective"
        self.pretend_worker()

    def pretend_worker(self, slots: int = 2, queues: Sequence[str] = ("default",)) -> None:
        """Have the orchestrator believe in a worker."""
        registry = ProcessRegistry(self.client, self.settings.times.scaled(100))
        fields = {"slots": slots, "queues": list(queues)}
        worker = ProcessRecord(registry, ProcessKind.MAIN, fields=fields)
        worker.identity = worker.identity._replace(pid=1)  # this process is the orchestrator
        worker.register()

    def submit(self, **fields) -> StudyHandle:
        given = {"name": "s", "objective": self.objective, "space": SPACE, "trials": 4}
        self.spec = StudySpec(**{**given, **fields})
        self.leases = Studies(self.client).leases("s")
        with pytest.MonkeyPatch.context() as patch:
            if self.spec.objective == self.objective:
                patch.setattr(preflight, "_import_elsewhere", _import_once)
            return submit(self.spec, self.settings)

    def service(self) -> Service:
        return Service(self.settings, only="s", on_status=self.statuses.append)

    def claim(self, number) -> Grant:
        grant = self.leases.claim(number, "hand", UNRENEWED_SECONDS)
        assert isinstance(grant, Grant)
        return grant

    def commit(self, number, value, state=TrialState.COMPLETE) -> None:
        values = None if value is None else [value]
        self.leases.commit(
            number, self.claim(number).token, state, Result(values=values, busy_seconds=60.0)
        )

    def stored(self) -> list[optuna.trial.FrozenTrial]:
        return StudyHandle("s", self.settings).study.trials


def put(fleet, name, **fields) -> None:
    """Submit a study that nobody has checked."""
    given = {"name": name, "objective": fleet.objective, "space": SPACE, "trials": 2}
    Studies(fleet.client).submit(StudySpec(**{**given, **fields}))


def work(fleet, name) -> None:
    """End all that is queued in a study."""
    leases = Studies(fleet.client).leases(name)
    for number in leases.queued():
        grant = leases.claim(number, "hand", 45.0)
        if isinstance(grant, Grant):  # else it waits for a later time
            told = Result(values=[0.5], busy_seconds=60.0)
            leases.commit(number, grant.token, TrialState.COMPLETE, told)


def is_over(fleet, name) -> bool:
    """Whether a study is over, after all that is queued in it was worked on."""
    work(fleet, name)
    return Studies(fleet.client).facts.get(name, "over") is not None


def turn_until(service, condition, what):
    def turned():
        service.turn()
        return condition()

    return wait_until(turned, what)


def look_around(service, seconds=0.5):
    """Turn for a while: nothing more is to happen."""
    until = time.monotonic() + seconds
    turn_until(service, lambda: time.monotonic() > until, "it has looked around")
