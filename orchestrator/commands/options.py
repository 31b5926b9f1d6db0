"""Arguments and options that several commands have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import typer

from orchestrator.commands.completion import complete_study
from workers.settings import Settings

StudyArgument = Annotated[
    str,
    typer.Argument(metavar="STUDY", help="A YAML file, or module:objective, or file.py:objective."),
]
NameArgument = Annotated[
    str,
    typer.Argument(metavar="NAME", help="The study's name.", autocompletion=complete_study),
]
TrialsOption = Annotated[
    int | None, typer.Option("--trials", help="Trials in all, instead of the study's own number.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="A setting instead of the study's own, typed as in YAML; may be given again.",
    ),
]
MetricsPortOption = Annotated[
    int | None,
    typer.Option(
        "--metrics-port",
        min=0,
        max=65535,
        help="Where to tell Prometheus how it gets on; 0 for any port that is free.",
    ),
]


def format_option(formats: Iterable[str], *, otherwise: str) -> Any:
    """`--format`, of what is written to the file that `-o` names.

    Args:
        formats: Those that there are.
        otherwise: The one of a file whose name tells none.
    """
    return typer.Option(
        "--format",
        metavar="|".join(formats),
        help=f"By default what FILE ends with, else {otherwise}.",
    )


def with_metrics_port(settings: Settings, port: int | None) -> Settings:
    """The settings with the port that a command line gave, if it gave one."""
    return settings if port is None else settings.model_copy(update={"metrics_port": port})
