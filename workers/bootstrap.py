"""Celery's signals, and what each means here: one container a pool process, or no pool process.

Invariant: a pool process takes tasks only after all its managers are open.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import multiprocessing.process
import os
import signal
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

import billiard.pool
import billiard.process
import redis
from celery import signals

from workers.celery import app
from workers.coordination.connection import GENERAL_ERRORS, await_connection, resolve_url
from workers.coordination.rights import Role
from workers.disk.shared_memory import semaphore_prefix
from workers.logs import configure_logging, get_logger, guard_tracebacks
from workers.processes.cores import share_cores
from workers.processes.gpu_slots import device_name, take_gpu
from workers.processes.hangup import on_hangup
from workers.processes.host_agent import DRAIN_FILE_VARIABLE, HostAgent, failure_file
from workers.processes.output_capture import OutputCapture
from workers.processes.registry import ProcessRecord, ProcessRegistry
from workers.protocol.errors import NotInitializedError
from workers.protocol.states import ProcessKind
from workers.settings import Settings, forget_secret

if TYPE_CHECKING:
    from workers.trials.runner import TrialRunner

#: The exit code of a pool process whose managers could not be built.
EXIT_NO_MANAGERS: Final = 70

log = get_logger(__name__)

_runner: TrialRunner | None = None

#: What this pool process opened; closed in reverse.
_opened = ExitStack()

app.steps["worker"].add(HostAgent)


def trial_runner() -> TrialRunner:
    """The runner of this pool process.

    Raises:
        NotInitializedError: This is no pool process.
    """
    if _runner is None:
        raise NotInitializedError("run_trial runs only in a pool process of `celery -A workers`")
    return _runner


@signals.setup_logging.connect
def _set_up_logging(**_: Any) -> None:
    _log_to(None)
    guard_tracebacks()


def _log_to(stream: TextIO | None) -> None:
    level = Settings.from_environment().log_level
    configure_logging(level=logging.getLevelNamesMapping()[level.upper()], stream=stream)


@signals.worker_init.connect
def _share_slots(sender: Any, **_: Any) -> None:
    # spawned children read their surroundings from the environment
    os.environ["FLEET_SLOTS"] = str(sender.concurrency)
    # Redis tells the members of a fleet of one another; there are no settings for these two.
    # Gossip stays: where an acknowledgement fails with its connection, Celery says so and goes on,
    # and a worker that takes no message just then would never notice but by that subscription
    sender.options.update(
        without_mingle=True, without_heartbeat=not app.conf.worker_send_task_events
    )


@signals.worker_ready.connect
def _end_with_terminal(**_: Any) -> None:
    # off a terminal, Celery takes SIGHUP to restart
    on_hangup(lambda: os.kill(os.getpid(), signal.SIGTERM))


@signals.worker_shutting_down.connect
def _start_draining(**_: Any) -> None:
    # fires at each signal, and Celery itself makes nothing of a second SIGTERM
    if HostAgent.current is not None:
        HostAgent.current.drain()


@signals.worker_shutdown.connect
def _stop_host_agent(sender: Any, **_: Any) -> None:
    # by now the pool has ended, and the agent has seen the last of it
    sender.host_agent.finish()
    sender.exitcode = sender.host_agent.exit_code or sender.exitcode


@signals.worker_process_init.connect
def _build_managers(**_: Any) -> None:
    global _runner
    try:
        os.setsid()  # makes this process and all it starts one session, found and ended as one
        slot = billiard.process.current_process().index
        _allow_children()
        # how often a child that ends looks, 0.1 s apart, whether all it said was read: Celery reads
        # no answer to a message that it had sent to the child and dropped, as a drain has it do
        billiard.pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT = 10
        gpu = take_gpu(slot)
        share_cores(int(os.environ["FLEET_SLOTS"]))
        shown = f"cpu slot {slot}" if gpu is None else str(gpu)
        _runner = _build_runner({"gpu": shown, "device": device_name(gpu, slot)})
    except Exception:
        with suppress(OSError):  # a service manager must not take this for a drain
            failure_file(Path(os.environ[DRAIN_FILE_VARIABLE])).touch()
        log.exception("managers_not_built", hint="the worker stops: it could not run any trial")
        # an exception here is only logged by Celery and the child would take tasks all the same;
        # a bare exit makes Celery start the next one at once, for ever
        os.kill(os.getppid(), signal.SIGTERM)
        sys.exit(EXIT_NO_MANAGERS)
    # objectives are code of their own, and put what they find there into attributes and reports
    forget_secret()
    log.info("managers_ready", slot=slot)


@signals.worker_process_shutdown.connect
def _close_managers(**_: Any) -> None:
    global _runner
    _runner = None
    _opened.close()


def _allow_children() -> None:
    """Let this pool process start DataLoader workers; billiard's are daemons with a foreign key."""
    process: Any = multiprocessing.current_process()
    process._config["daemon"] = False
    # names that the cleaner can tell from those of strangers
    process._config["semprefix"] = semaphore_prefix(os.getpid())
    key: Any = getattr(multiprocessing.process, "AuthenticationString")  # noqa: B009 - not in stubs
    process._config["authkey"] = key(bytes(billiard.process.current_process().authkey))


def _build_runner(device: dict[str, str]) -> TrialRunner:
    """Open the runner, from the beginning again where Redis goes away meanwhile."""
    while True:
        try:
            return _open_runner(device)
        except GENERAL_ERRORS as error:
            log.warning("redis_lost", error=str(error), hint="waiting for it to come back")
            with suppress(*GENERAL_ERRORS):
                _opened.close()


def _open_runner(device: dict[str, str]) -> TrialRunner:
    settings = Settings.from_environment()
    client = await_connection(
        settings, Role.WORKER, Path(os.environ[DRAIN_FILE_VARIABLE]).exists, is_known=True
    )
    if client is None:
        sys.exit(0)  # the worker drains, and nothing was begun here
    _opened.callback(client.close)
    record = ProcessRecord(
        ProcessRegistry(client, settings.times),
        ProcessKind.TRIAL,
        parent=os.getppid(),
        fields=device,
    )
    record.register()
    _opened.callback(record.gone)
    # from here on torch is imported, in this process alone; what that makes all stays, and to look
    # through it again and again for what can go takes an eighth of the time
    gc.disable()
    try:
        from workers.managers import DirectoryManager, cleanup_managers, ensure_process_initialized
        from workers.trials.runner import TrialRunner
    finally:
        gc.enable()
    container = ensure_process_initialized(settings, record=record)
    _opened.callback(cleanup_managers)
    capture = _capture_output(client, settings, container.get(DirectoryManager).scratch())
    runner = TrialRunner(
        client=client,
        redis_url=resolve_url(settings),
        settings=settings,
        container=container,
        record=record,
        drain_file=os.environ[DRAIN_FILE_VARIABLE],
        printing=None if capture is None else capture.of,
    )
    _opened.enter_context(runner)
    # what is alive now stays: the collections between trials need not look at it
    gc.freeze()
    return runner


def _capture_output(
    client: redis.Redis, settings: Settings, directory: Path
) -> OutputCapture | None:
    """Capture what trials print; this worker's own lines go where they went."""
    try:
        capture = _opened.enter_context(OutputCapture(client, settings, directory))
    except OSError as error:
        log.warning("output_not_captured", error=str(error), hint="make room on the disk")
        return None
    _log_to(_opened.enter_context(os.fdopen(os.dup(capture.own_error), "w", buffering=1)))
    capture.hear_objectives()
    _opened.callback(_log_to, None)
    return capture
