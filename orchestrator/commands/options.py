"""Arguments and options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

StudyArgument = Annotated[
    str,
    typer.Argument(metavar="STUDY", help="A YAML file, or module:objective, or file.py:objective."),
]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The study's name.")]
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
