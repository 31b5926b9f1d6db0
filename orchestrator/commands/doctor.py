"""`trialfleet doctor`: what is wrong, and what to do about it.

Exit codes: 0 all is fine; 1 there are findings; 2 there is nothing to look at.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer

from orchestrator.commands.completion import complete_study
from orchestrator.handle import StudyHandle
from orchestrator.views.console import open_console
from orchestrator.views.json_output import JsonOption, print_json
from workers.settings import Settings

doctor_app = typer.Typer()

_EXIT_ERRORS = 1
_EXIT_WARNINGS = 3


@doctor_app.command()
def doctor(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[STUDY]",
            help="A study of the fleet, to see what it waits for.",
            autocompletion=complete_study,
        ),
    ] = None,
    with_trial: Annotated[
        bool | None,
        typer.Option(
            "--trial/--no-trial",
            help="Run a trial through the fleet that trains nothing; by default, where one runs.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Look at the installation, this host, its disks, Redis, and the fleet; name each fix.

    Exit code 0: all is fine; 1: there are errors; 2: nothing could be looked at; 3: warnings alone.

    Example: trialfleet doctor language-id --json
    """
    from orchestrator.doctor.drawing import draw_group, summary
    from orchestrator.doctor.examination import Examination, worst
    from orchestrator.doctor.findings import Level

    if name is not None:
        StudyHandle(name)  # refuses what can be no study's name
    examination = Examination(Settings.from_environment(), name, with_trial)
    console, found = open_console(), []
    with _interruptible():
        for group in examination.groups():
            found.append(group)
            if not as_json:
                console.print(draw_group(group))
    level = worst(found)
    if as_json:
        groups = [group.model_dump(mode="json") for group in found]
        print_json({"level": level.value, "groups": groups})
    else:
        console.print(summary(found))
    if level is not Level.OK:
        raise typer.Exit(_EXIT_ERRORS if level is Level.ERROR else _EXIT_WARNINGS)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Have SIGTERM and a closed terminal end this as Ctrl-C does: after it has cleaned up."""

    def interrupt(*_: Any) -> NoReturn:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
