"""`trialfleet delete`: a study and all that it left, for good."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from orchestrator.commands.options import NameArgument
from orchestrator.storage.known_studies import kept_beside
from orchestrator.views.json_output import JsonOption, print_json
from workers.protocol.errors import InvalidInputError
from workers.settings import Settings

deleting_app = typer.Typer()


@deleting_app.command()
def delete(
    name: NameArgument,
    is_sure: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    cancels: Annotated[
        bool, typer.Option("--cancel", help="End trials that run, and delete then.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete a study for good: results, models, checkpoints, and what the fleet knows of it.

    Its name is free then. Runs at W&B stay where they are.

    Example: trialfleet delete language-id --yes
    """
    from orchestrator.local.delete_study import delete_study

    if not is_sure:
        if as_json or not sys.stdin.isatty():
            raise InvalidInputError(f"delete {name}: nobody can be asked here; give --yes")
        kept = kept_beside(Settings.from_environment(), name)
        beside = f", and {', '.join(kept)}, which holds its trials as they were" if kept else ""
        typer.confirm(f"Delete study {name!r} with all its results and models{beside}?", abort=True)
    delete_study(name, Settings.from_environment(), cancels=cancels)
    if as_json:
        print_json({"deleted": name})
    else:
        print(f"deleted {name!r}")
