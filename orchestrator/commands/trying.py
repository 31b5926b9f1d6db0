"""`trialfleet try`: one trial in the foreground, to debug an objective."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.text import Text

from orchestrator.commands.options import SetOption, StudyArgument
from orchestrator.status import EndedTrial, StudyStatus
from orchestrator.submission.study import import_directory, load_study
from orchestrator.views.console import open_console
from orchestrator.views.json_output import JsonOption, print_json
from orchestrator.views.study_text import ended_line
from workers.protocol.plain import plain_text
from workers.settings import Settings

trying_app = typer.Typer()

_EXIT_FAILED = 1


@trying_app.command("try")
def try_study(
    study: StudyArgument,
    overrides: SetOption = None,
    with_pdb: Annotated[
        bool, typer.Option("--pdb", help="Debug what the objective raises, where it was raised.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run one trial of a study in the foreground, and record nothing.

    The managers, the lease and the sampler are the real ones; breakpoint() stops in this terminal.
    With --json, what the objective prints goes to standard error.

    Example: trialfleet try study.yaml --set config.epochs=1 --pdb
    """
    from orchestrator.local.try_out import try_out

    spec = load_study(study, overrides=overrides or ())
    settings = Settings.from_environment()
    output = sys.stderr if as_json else None
    folder = import_directory(study)
    status = try_out(spec, folder, settings, _note, with_pdb=with_pdb, output=output)
    (trial,) = status.recent
    if as_json:
        print_json(trial.model_dump(mode="json"))
    else:
        open_console().print(_draw(trial, status), soft_wrap=True)
    if trial.state not in {"complete", "pruned"}:
        raise typer.Exit(_EXIT_FAILED)


def _draw(trial: EndedTrial, status: StudyStatus) -> Text:
    return Text(f"{ended_line(trial, status)}  (nothing was recorded)")


def _note(finding: str) -> None:
    print(f"note: {plain_text(finding)}", file=sys.stderr)
