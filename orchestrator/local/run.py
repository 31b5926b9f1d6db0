"""`trialfleet run`: a whole fleet on this machine, for one study, that leaves nothing behind.

Invariant: on every way out the worker ends first, then the orchestrator writes down what it did,
then Redis ends; running the same study again resumes it.
"""

from __future__ import annotations

import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Final

import redis

from orchestrator.driving.observer import metrics_observer
from orchestrator.driving.service import Service
from orchestrator.local.log_files import keep_short
from orchestrator.local.servers import EmbeddedRedis, LocalWorker
from orchestrator.status import StudyStatus
from orchestrator.status_building import stored_status
from orchestrator.storage.attributes import SPEC_ATTR, told_end
from orchestrator.storage.event_history import EventHistory
from orchestrator.storage.opening import load_readonly, storage_url, stored_identity
from orchestrator.storage.retriable import withdrawn
from orchestrator.submission.metric_directions import say_direction
from orchestrator.submission.preflight import import_path
from orchestrator.submission.submit import hand_in, prepared
from orchestrator.views.obstacles import refusals
from orchestrator.views.watch import View
from orchestrator.views.ways_on import begins_more, say_over
from workers.coordination.connection import connect
from workers.coordination.rights import Role
from workers.coordination.studies import Studies
from workers.disk.fleet_home import make_home
from workers.importing import refuse_while_importing
from workers.installed import refuse_if_missing
from workers.processes.hangup import on_hangup
from workers.processes.registry import ProcessRegistry
from workers.protocol.errors import FleetError, InvalidInputError, RedisUnavailableError
from workers.protocol.spec import FINETUNE, StudySpec
from workers.protocol.states import Wish
from workers.settings import Settings, write_list

#: How long a drained worker may take to save and end before it is killed.
_DRAIN_SECONDS: Final = 60.0

#: How often it is looked whether workers take the study's trials.
_LOOK_SECONDS: Final = 2.0


def run(spec: StudySpec, import_directory: Path, settings: Settings, view: View) -> StudyStatus:
    """Run a study on this machine to its end, or until Ctrl-C or a closed terminal.

    Args:
        spec: The study.
        import_directory: Put on the import path of every process that is started.
        settings: Slots, home, and Redis where it is not to be embedded.
        view: Shows how it goes.

    Returns:
        The last status; its state is `running` if the run was interrupted.

    Raises:
        InvalidInputError: The study cannot run; nothing was enqueued.
        FleetError: The worker ended by itself.
    """
    refuse_while_importing("runs a study")
    refuse_if_missing("local", ", or `trialfleet submit` to a fleet")
    checked = prepared(spec, settings, import_directory=import_directory, tell=view.say)
    spec = checked.spec
    view.say(say_direction(spec))
    over = _over_before(spec, settings)
    if over is not None:
        status, told = over
        view.say(told)
        return status
    with ExitStack() as stack:
        stack.enter_context(exclusive(settings.home))
        embedded, settings = _with_redis(settings, stack)
        if spec.on_end is not None:  # whoever runs it has written it
            settings = settings.model_copy(update={"on_end": (*settings.on_end, spec.on_end)})
        hand_in(checked, settings, by_run=True, tell=view.say)
        observer = stack.enter_context(metrics_observer(settings, view.say))
        service = stack.enter_context(
            Service(settings, only=spec.name, on_status=view.update, observer=observer)
        )
        client = stack.enter_context(connect(settings, Role.VIEWER))
        registry = ProcessRegistry(client, settings.times)
        view.measure(EventHistory.of_study(client, settings.home, spec.name))
        worker = LocalWorker(
            worker_environment(spec, import_directory, settings),
            settings.home / "logs" / "worker.log",
            spec.resources.queue,
        )
        stack.callback(worker.stop, _DRAIN_SECONDS)
        interrupted = stack.enter_context(_interruptible(worker, view))
        refusals, trouble = _Refusals(spec, registry, view), _Trouble(view)
        fleet = _Fleet(embedded, worker.start(), view, refusals, trouble)
        return _drive(spec.name, service, fleet, interrupted)


def _with_redis(settings: Settings, stack: ExitStack) -> tuple[EmbeddedRedis | None, Settings]:
    """A Redis of this run's own where none is given, and the settings that name the one it uses."""
    if settings.redis_url is not None:
        return None, settings
    embedded = stack.enter_context(EmbeddedRedis(settings.home))
    return embedded, settings.model_copy(update={"redis_url": embedded.url})


@dataclass
class _Refusals:
    """Says why workers take no trial of the study, once for each reason."""

    spec: StudySpec
    registry: ProcessRegistry
    view: View
    _told: set[str] = field(default_factory=set)
    _looked_at: float = 0.0

    def look(self) -> None:
        """Say what is new, now and then."""
        if time.monotonic() - self._looked_at < _LOOK_SECONDS:
            return
        self._looked_at = time.monotonic()
        with suppress(redis.RedisError):
            for reason in refusals(self.spec, list(self.registry.entries())):
                if reason not in self._told:
                    self._told.add(reason)
                    self.view.say(f"waits: {reason}")


@dataclass
class _Trouble:
    """Says what is wrong with Redis where that lasts, once for each reason."""

    view: View
    clock: Callable[[], float] = time.monotonic
    _told: str | None = None
    _since: float | None = None

    def look(self, reason: str | None) -> None:
        """Say what is new; a server that was killed is back by then."""
        if reason is None:
            self._told = self._since = None
            return
        if self._since is None:
            self._since = self.clock()
        if reason != self._told and self.clock() - self._since > _LOOK_SECONDS:
            self._told = reason
            self.view.say(f"waits: {reason}")


@dataclass(frozen=True)
class _Fleet:
    """What this run has started, and starts again when somebody kills it."""

    redis: EmbeddedRedis | None
    worker: LocalWorker
    view: View
    refusals: _Refusals
    trouble: _Trouble

    def revive(self, *, is_draining: bool) -> None:
        """Start again what was killed."""
        if self.redis is not None and self.redis.revive():
            self.view.say("the embedded Redis was killed; started it again")
        if not is_draining and self.worker.revive():
            self.view.say("the worker was killed; started it again")


def _drive(name: str, service: Service, fleet: _Fleet, interrupted: threading.Event) -> StudyStatus:
    """Turn the orchestrator's loop until the study is over, or the worker has drained."""
    worker = fleet.worker
    while True:
        fleet.revive(is_draining=interrupted.is_set())
        has_ended = worker.poll() is not None
        service.is_draining = interrupted.is_set()
        service.turn()
        fleet.refusals.look()
        fleet.trouble.look(service.trouble)
        keep_short(service.settings.home)
        status = service.status(name)
        if status is not None and service.is_done(name):
            return status
        if has_ended and interrupted.is_set():
            if status is None:
                raise FleetError(f"study {name!r} was interrupted before it began")
            return status
        if has_ended:
            tail = "\n".join(worker.log.read_text(errors="replace").splitlines()[-10:])
            raise FleetError(
                f"the worker ended with code {worker.poll()}; the end of {worker.log}:\n{tail}"
            )


def _over_before(spec: StudySpec, settings: Settings) -> tuple[StudyStatus, str] | None:
    """The status of a study of which nothing would begin, and what can be done; None to run it."""
    url = storage_url(settings, spec.name)
    if stored_identity(url, spec.name) is None:
        return None
    status, study = stored_status(spec.name, settings), load_readonly(url, spec.name)
    attrs = study.user_attrs
    if spec.on_end is not None and told_end(attrs, sum(status.trials.values())) is None:
        return None
    known = StudySpec.read(attrs[SPEC_ATTR])
    if begins_more(status, known, spec, withdrawn(study.get_trials(deepcopy=False))):
        return None
    if settings.redis_url is None:  # of what was stopped, there is nothing to revoke
        return status, say_over(status.model_copy(update={"wish": Wish.RUN}))
    return None if _are_ordered(spec.name, settings) else (status, say_over(status))


def _are_ordered(name: str, settings: Settings) -> bool:
    """Whether trials of a study wait in the fleet's Redis, where that answers."""
    with suppress(RedisUnavailableError), connect(settings, Role.USER) as client:
        return bool(Studies(client).orders.waiting(name))
    return False


def worker_environment(
    spec: StudySpec, import_directory: Path, settings: Settings
) -> dict[str, str]:
    """What the worker and all its processes see."""
    port = settings.metrics_port
    if port:  # the orchestrator's; of none that follows, any
        settings = settings.model_copy(update={"metrics_port": (port + 1) % 2**16})
    environment = {**os.environ, **settings.to_environment()}
    if spec.code.package is not None:
        accepted = [*settings.accept_code, spec.code.package]
        environment["FLEET_ACCEPT_CODE"] = write_list(accepted)
    elif spec.objective != FINETUNE:
        module = spec.objective.rpartition(":")[0]
        environment["FLEET_OBJECTIVES"] = write_list([*settings.objectives, module])
        environment["PYTHONPATH"] = import_path(import_directory)
    return environment


@contextmanager
def exclusive(home: Path) -> Iterator[None]:
    """Hold the one lock of a home: two fleets in one would share queue and Redis."""
    make_home(home)
    with (home / "run.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InvalidInputError(
                f"another `trialfleet run` uses FLEET_HOME={home}; wait for it, or set FLEET_HOME"
                " to another directory"
            ) from error
        yield


@contextmanager
def _interruptible(worker: LocalWorker, view: View) -> Iterator[threading.Event]:
    """Make Ctrl-C, SIGTERM and a terminal that closes drain the worker.

    A second Ctrl-C or SIGTERM ends it at once, and is still safe.
    """
    interrupted = threading.Event()

    def drain() -> None:
        if not interrupted.is_set():
            interrupted.set()
            worker.drain()
            view.say("draining: trials save a checkpoint and stop; again to end at once")

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        if interrupted.is_set():
            worker.end()
            view.say("ending at once; run again to resume")
        drain()

    before: dict[int, Any] = {
        number: signal.getsignal(number)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)
    on_hangup(drain)
    try:
        yield interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
