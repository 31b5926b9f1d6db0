"""The command line `trialfleet`: from arguments to calls, and from results to text or JSON.

What drives studies is imported by the commands that do: a look, or a shell that completes a name,
does not wait for it.

Exit codes: 0 done; 1 the study ended without a complete trial, or the command failed; 2 bad input.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import BaseModel
from rich.console import Console

from orchestrator.commands.control import control_app
from orchestrator.commands.dashboard import dashboard_app
from orchestrator.commands.deleting import deleting_app
from orchestrator.commands.doctor import doctor_app
from orchestrator.commands.events import events_app
from orchestrator.commands.logs import logs_app
from orchestrator.commands.options import (
    MetricsPortOption,
    NameArgument,
    SetOption,
    StudyArgument,
    TrialsOption,
    with_metrics_port,
)
from orchestrator.commands.reporting import reporting_app
from orchestrator.commands.results import results_app
from orchestrator.commands.trying import trying_app
from orchestrator.driving.turns import studies_at_turns
from orchestrator.fleet import connect, statuses_at_hand
from orchestrator.handle import StudyHandle
from orchestrator.local.cache_commands import cache_app
from orchestrator.status import StudyStatus
from orchestrator.submission.metric_directions import say_direction
from orchestrator.submission.study import import_directory, load_study
from orchestrator.submission.submit import submit as submit_study
from orchestrator.views.complaints import EXIT_FAILED, EXIT_INTERRUPTED, run_command
from orchestrator.views.console import open_console
from orchestrator.views.json_output import JsonOption, print_json
from orchestrator.views.ps import draw_tree, printable
from orchestrator.views.screen import draw
from orchestrator.views.watch import RUN_HINT, draw_studies, open_view, print_summary, with_former
from workers.disk.fleet_home import make_home
from workers.logs import configure_logging, get_logger, guard_tracebacks
from workers.processes.hangup import on_hangup
from workers.protocol.errors import InvalidInputError
from workers.protocol.plain import plain_text
from workers.settings import Settings, mistyped_variables

log = get_logger(__name__)

app = typer.Typer(
    name="trialfleet",
    help="Hyper-parameter studies of PyTorch and transformers models, on a crash-proof fleet.",
    epilog="Start here: trialfleet run ops/studies/language-id.yaml",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _show_version(asked: bool) -> None:
    if asked:
        print(f"trialfleet {version('trialfleet')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="The version, and no more."
        ),
    ] = False,
) -> None:
    pass


app.add_typer(cache_app, name="cache")
app.add_typer(control_app)
app.add_typer(dashboard_app)
app.add_typer(deleting_app)
app.add_typer(doctor_app)
app.add_typer(events_app)
app.add_typer(logs_app)
app.add_typer(results_app)
app.add_typer(reporting_app)
app.add_typer(trying_app)


@app.command()
def run(
    study: StudyArgument,
    slots: Annotated[
        int | None, typer.Option("--slots", help="Trials at once; by default one a GPU, or two.")
    ] = None,
    trials: TrialsOption = None,
    overrides: SetOption = None,
    metrics_port: MetricsPortOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a study on this machine: Redis, a worker, the orchestrator, live progress.

    Ctrl-C drains: running trials save a checkpoint and stop; so does closing the terminal.
    Running it again resumes.

    Example: trialfleet run ops/studies/language-id.yaml --slots 2 --set config.epochs=1
    """
    from orchestrator.local.run import run as run_study

    settings = with_metrics_port(_with_slots(Settings.from_environment(), slots), metrics_port)
    spec = load_study(study, trials=trials, overrides=overrides or ())
    log = settings.home / "logs" / "orchestrator.log"
    make_home(settings.home)
    log.parent.mkdir(exist_ok=True)
    console = open_console(to_stderr=as_json)
    with log.open("a") as sink:
        configure_logging(stream=sink)
        with open_view(console, RUN_HINT) as view:
            status = run_study(spec, import_directory(study), settings, view)
    _end(status, console, as_json=as_json)
    if not status.is_over:
        console.print(f"interrupted; resume with: trialfleet run {study}", highlight=False)
        raise typer.Exit(EXIT_INTERRUPTED)
    if status.best is None:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def serve(metrics_port: MetricsPortOption = None, as_json: JsonOption = False) -> None:
    """Drive all submitted studies until SIGTERM or Ctrl-C.

    Workers run on any machine: FLEET_REDIS_URL=... celery -A workers worker
    """
    from orchestrator.driving.observer import metrics_observer
    from orchestrator.driving.service import Service

    configure_logging()
    for variable, meant in mistyped_variables().items():
        log.warning("variable_not_known", variable=variable, meant=meant)
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    on_hangup(ended.set)
    settings = with_metrics_port(Settings.from_environment(), metrics_port)
    with metrics_observer(settings) as observer, Service(settings, observer=observer) as service:
        while not ended.is_set():
            service.turn()
    if as_json:
        print_json({"served": True})


@app.command()
def submit(
    study: StudyArgument,
    trials: TrialsOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hand a study to a running fleet; submitting it again extends it.

    Example: trialfleet submit study.yaml && trialfleet watch NAME
    """
    spec = load_study(study, trials=trials, overrides=overrides or ())
    handle = submit_study(spec, import_directory=import_directory(study), tell=_note)
    found = handle.status()
    waits_for = found.waits_for
    if as_json:
        given = {"study": handle.name, "trials": spec.trials, "directions": spec.all_directions}
        print_json({**given, "waits_for": waits_for, "stalled": found.stalled})
    else:
        print(
            f"submitted {handle.name!r}, {spec.trials} trials, {say_direction(spec)};"
            f" trialfleet watch {handle.name}"
        )
        for reason in waits_for:
            print(f"waits: {reason}")
        if found.stalled is not None:
            print(f"stalled: {found.stalled}")


@app.command()
def studies(as_json: JsonOption = False) -> None:
    """List the studies of the fleet; without one at hand, those in this machine's results."""
    found = with_former(statuses_at_hand())
    if as_json:
        print_json([_document(status) for status in found])
    else:
        open_console().print(
            draw_studies(found) if found else "no studies yet; trialfleet submit study.yaml"
        )


@app.command()
def status(name: NameArgument, as_json: JsonOption = False) -> None:
    """Show one study now."""
    found = StudyHandle(name).status()
    if as_json:
        print_json(_document(found))
    elif found.is_over:
        print_summary(found, open_console())
    else:
        console = open_console()
        console.print(draw(found))


@app.command()
def watch(name: NameArgument, as_json: JsonOption = False) -> None:
    """Show one study live until it is over; Ctrl-C stops the watching only."""
    handle = StudyHandle(name)
    try:
        found = handle.wait() if as_json else handle.watch()
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    _end(found, open_console(), as_json=as_json)
    if found.best is None:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def ps(as_json: JsonOption = False) -> None:
    """Show the fleet's processes: host, kind, pid, trial, GPU, and what is left of their lease."""
    with connect() as fleet:
        entries, unreadable = fleet.process_records()
    if as_json:
        others = [{"kind": "unreadable", **each._asdict()} for each in unreadable]
        print_json([*map(_entry_document, entries), *others])
    else:
        open_console().print(draw_tree(entries, unreadable))


def main() -> None:
    """The console script: one clear line for what went wrong, and the exit code that says so."""
    _exit(run_command(_run))


def _exit(code: int) -> NoReturn:
    """End this process; a turn that hangs is not joined, nor torn down in its midst."""
    if hung := studies_at_turns():
        with suppress(OSError, ValueError):  # nobody reads it any more
            _note(
                f"left in the midst of a turn that does not end: {', '.join(hung)}; what was"
                " acknowledged is kept, and the next orchestrator goes on from there"
            )
            sys.stdout.flush()
        logging.shutdown()
        os._exit(code)
    sys.exit(code)


def _run() -> Any:
    # what a command has to say is its answer; the long-running ones log more
    configure_logging(level=logging.ERROR)
    guard_tracebacks()
    return app(prog_name="trialfleet", standalone_mode=False)


def _with_slots(settings: Settings, slots: int | None) -> Settings:
    if slots is None:
        return settings
    if slots < 1:
        raise InvalidInputError(f"--slots = {slots}: a worker needs at least 1 slot")
    return settings.model_copy(update={"slots": slots})


def _end(status: StudyStatus, console: Console, *, as_json: bool) -> None:
    if as_json:
        print_json(_document(status))
    else:
        print_summary(status, console)


def _document(status: BaseModel) -> dict[str, Any]:
    return status.model_dump(mode="json")


def _entry_document(entry: Any) -> dict[str, Any]:
    document: dict[str, Any] = entry.model_dump(mode="json")
    document["identity"] = entry.identity._asdict()
    return document


def _note(finding: str) -> None:
    print(f"note: {printable(plain_text(finding))}", file=sys.stderr)


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))
    main()
