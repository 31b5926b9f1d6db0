"""What a study came to, for people and programs: `best`, `export`, `schema`.

Invariant: nothing of a study is changed, and a file is written whole or not at all.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import optuna
import typer
from optuna.trial import FrozenTrial
from rich.console import Group
from rich.text import Text

from orchestrator.commands.options import NameArgument, format_option
from orchestrator.handle import StudyHandle
from orchestrator.local.taking_home import check_target, take_home
from orchestrator.storage.attributes import ATTR, SPEC_ATTR, code_of
from orchestrator.storage.best_trials import best_first, why_no_best
from orchestrator.submission.fixed_study import fixed_fields
from orchestrator.submission.schema import study_schema
from orchestrator.submission.study_file import write_study_file
from orchestrator.views.console import open_console
from orchestrator.views.json_output import JsonOption, print_json
from orchestrator.views.ps import printable
from orchestrator.views.trial_table import FORMATS, Format, TrialTable, value_columns
from workers.disk import durable
from workers.passwords import hide_in
from workers.protocol.errors import FleetError, InvalidInputError, nearest
from workers.protocol.given import given_params
from workers.protocol.plain import plain_text, strict_json
from workers.protocol.spec import FINETUNE, StudySpec

results_app = typer.Typer()

#: Characters of a parameter or an attribute that a terminal is shown.
_MAX_SHOWN: Final = 1000


@dataclass(frozen=True)
class _Found:
    """A study as its storage has it."""

    handle: StudyHandle
    spec: StudySpec
    study: optuna.Study

    @classmethod
    def by_name(cls, name: str) -> _Found:
        handle = StudyHandle(name)
        study = handle.study
        text = study.user_attrs.get(SPEC_ATTR)
        if text is None:
            raise InvalidInputError(f"study {name!r} was not made by trialfleet; read it by Optuna")
        return cls(handle, StudySpec.read(text), study)

    @property
    def trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def trial(self, number: int | None) -> FrozenTrial:
        """A trial by its number; without one, the best.

        Raises:
            FleetError: None is complete, or all violate a constraint.
            InvalidInputError: There is no such trial.
        """
        trials = self.trials
        if number is None:
            found = best_first(trials, self.spec.all_directions)
            if not found:
                name = self.spec.name
                raise FleetError(
                    f"study {name!r} has {why_no_best(trials)} yet; see `trialfleet status {name}`"
                )
            return found[0]
        if not 0 <= number < len(trials):
            raise InvalidInputError(
                f"--trial {number}: study {self.spec.name!r} has {len(trials)} trials, from 0"
            )
        return trials[number]


@results_app.command()
def best(
    name: NameArgument,
    number: Annotated[
        int | None, typer.Option("--trial", help="This trial, and not the best one.")
    ] = None,
    copy_to: Annotated[
        Path | None,
        typer.Option(
            "--copy",
            metavar="DIR",
            help="Take it home: its files, trial.json, and a study.yaml of its parameters.",
        ),
    ] = None,
    as_yaml: Annotated[
        bool,
        typer.Option("--yaml", help="Print a study file with its parameters fixed, ready to run."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the best trial: parameters, metrics, where its model lies; take it home.

    Of a study with several directions, the first of the front by the first value; see --trial.

    Example: trialfleet best NAME --copy best/ && trialfleet run best/study.yaml
    """
    if as_yaml and as_json:
        raise InvalidInputError("--yaml and --json: give one of them")
    if copy_to is not None:
        check_target(copy_to)
    found = _Found.by_name(name)
    trial = found.trial(number)
    handle = found.handle
    folder = (handle.result_folder if copy_to is None else handle.fetched_result)(trial.number)
    about = _describe(found, trial, folder)
    study_file = write_study_file(fixed_fields(found.spec, trial))
    if copy_to is not None:
        _refuse_without_files(found, trial, folder)
        take_home(copy_to, folder, about, study_file)
        about = {**about, "copied_to": str(copy_to.absolute())}
    if as_yaml:
        print(study_file, end="")
    elif as_json:
        print_json(about)
    else:
        open_console().print(_draw(about), soft_wrap=True)


@results_app.command()
def export(
    name: NameArgument,
    form: Annotated[
        str | None,
        format_option(FORMATS, otherwise="csv"),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("-o", metavar="FILE", help="Instead of standard output.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write all trials as a table: values, parameters, attributes, states, attempts, times.

    The columns are those of Optuna's `study.trials_dataframe`, and what the fleet knows beyond.
    With --json and -o, what was written is told as JSON.

    Example: trialfleet export NAME -o trials.parquet
    """
    wanted = _format(form, file, as_json=as_json)
    if wanted == "parquet" and file is None and sys.stdout.isatty():
        raise InvalidInputError("--format parquet is not for a terminal; name a file with -o FILE")
    found = StudyHandle(name).table()
    table = TrialTable(hide_in(found.columns), hide_in(found.rows))
    content = table.write(wanted)
    if file is None:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return
    try:
        durable.write_named(file.absolute(), content)
    except OSError as error:
        raise InvalidInputError(f"-o {file}: {error}; nothing was written") from error
    if as_json:
        told = {"file": str(file.absolute()), "format": wanted, "trials": len(table.rows)}
        print_json({**told, "columns": list(table.columns)})
    else:
        print(f"{len(table.rows)} trials, {len(table.columns)} columns: {file}")


@results_app.command()
def schema(as_json: JsonOption = False) -> None:
    """Print the JSON schema of study files, for editors.

    Example: trialfleet schema > ~/.trialfleet/study.schema.json, and as a file's first line:
    # yaml-language-server: $schema=~/.trialfleet/study.schema.json
    """
    del as_json  # it is JSON either way
    print_json(study_schema())


def _format(form: str | None, file: Path | None, *, as_json: bool) -> Format:
    """The format that was asked for.

    Raises:
        InvalidInputError: There is no such format.
    """
    suffix = "" if file is None else file.suffix.lower().removeprefix(".")
    default = suffix if suffix in FORMATS else "json" if as_json and file is None else "csv"
    wanted = default if form is None else form.lower()
    for known in FORMATS:
        if known == wanted:
            return known
    raise InvalidInputError(
        f"--format {form}: there are {', '.join(FORMATS)}{nearest(wanted, FORMATS)}"
    )


def _refuse_without_files(found: _Found, trial: FrozenTrial, folder: Path | None) -> None:
    """Refuse to take half of a trial home: the built-in objective leaves files for each."""
    if folder is None and found.spec.objective == FINETUNE:
        raise InvalidInputError(
            f"--copy: the files of trial {trial.number} are not on this machine; run it where the"
            " worker's FLEET_HOME is, or set FLEET_HOME to it"
        )


def _describe(found: _Found, trial: FrozenTrial, folder: Path | None) -> dict[str, Any]:
    """What is known of a trial, as strict JSON without passwords: it is shown, and taken home."""
    values = dict(
        zip(
            found.spec.metrics or value_columns([], len(found.spec.all_directions)),
            trial.values or [],
            strict=False,
        )
    )
    own = {name: value for name, value in trial.user_attrs.items() if not name.startswith(ATTR)}
    document: Any = {
        "study": found.spec.name,
        "trial": trial.number,
        "values": values,
        "params": given_params(found.spec, trial.params),
        "user_attrs": own,
        "constraints": trial.constraints,
        "code": code_of(trial.user_attrs, found.study.user_attrs) or None,
        "folder": None if folder is None else str(folder),
        "model": _model_folder(folder),
    }
    described: dict[str, Any] = hide_in(strict_json(document))
    return described


def _model_folder(folder: Path | None) -> str | None:
    model = None if folder is None else folder / "model"
    return str(model) if model is not None and model.is_dir() else None


def _draw(about: dict[str, Any]) -> Group:
    lines = [Text(f"{about['study']}: trial {about['trial']}", style="bold green")]
    for name, value in about["values"].items():
        lines.append(_line(f"  {name}: {value}"))
    for name in ("params", "user_attrs", "constraints"):
        lines += [_line(f"  {key} = {value}") for key, value in about[name].items()]
    lines.append(Text(f"  files: {about['folder'] or 'none on this machine'}"))
    if about["model"]:
        lines.append(Text(f"  model: {about['model']}"))
    if "copied_to" in about:
        lines.append(Text(f"copied to {about['copied_to']}"))
    return Group(*lines)


def _line(text: str) -> Text:
    """One line for a terminal; `--json` has what is cut off."""
    return Text(plain_text(printable(text), _MAX_SHOWN))
