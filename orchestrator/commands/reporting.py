"""The verb `report`: a study in one file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias, get_args

import typer

from orchestrator.commands.options import NameArgument, format_option
from orchestrator.reporting.document import StudyAtHand, report_of
from orchestrator.views.json_output import JsonOption, print_json
from workers.disk import durable
from workers.passwords import hide
from workers.protocol.errors import FleetError, InvalidInputError, nearest
from workers.protocol.plain import strict_json
from workers.settings import Settings

reporting_app = typer.Typer()

Format: TypeAlias = Literal["html", "png", "csv", "json"]
_FORMATS: Final[tuple[Format, ...]] = get_args(Format)


@reporting_app.command()
def report(
    name: NameArgument,
    file: Annotated[
        Path | None,
        typer.Option("-o", metavar="FILE", help="By default NAME-report.html, in this folder."),
    ] = None,
    form: Annotated[
        str | None,
        format_option(_FORMATS, otherwise="html"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a study's report: one HTML file that needs nothing else.

    What was asked and what came out, history, what matters, slices, contour, Pareto front, curves,
    where slot time went, failures, versions, the best parameters as a study file. It can be made
    while the study runs, and without a fleet. png (extra `report`) is a picture of it, json all
    that it is made from, csv the table of trials.

    Example: trialfleet report language-id -o language-id.html
    """
    wanted = _format(form, file)
    target = _target(file or Path(f"{name}-report.{wanted}"))
    write = _WRITERS[wanted]()
    found = StudyAtHand.read(name, Settings.from_environment())
    content = write(found)
    try:
        durable.write_named(target.absolute(), content)
    except OSError as error:
        raise InvalidInputError(f"-o {target}: {error}; nothing was written") from error
    if as_json:
        told = {"study": name, "file": str(target.absolute()), "format": wanted}
        print_json({**told, "bytes": len(content), "trials": len(found.trials)})
    else:
        print(f"{target} ({len(content) / 1e6:.1f} MB, {len(found.trials)} trials)")


def _format(form: str | None, file: Path | None) -> Format:
    """The format that was asked for.

    Raises:
        InvalidInputError: There is no such format.
    """
    suffix = "" if file is None else file.suffix.lower().removeprefix(".")
    wanted = (suffix or "html") if form is None else form.lower()
    wanted = "html" if wanted == "htm" else wanted
    for known in _FORMATS:
        if known == wanted:
            return known
    asked = f"-o {file}" if form is None else f"--format {form}"
    raise InvalidInputError(
        f"{asked}: a report is one of {', '.join(_FORMATS)}{nearest(wanted, _FORMATS)}"
    )


def _target(file: Path) -> Path:
    """Where it goes, before anything is read for it.

    Raises:
        InvalidInputError: No file can be there.
    """
    if file.is_dir():
        raise InvalidInputError(f"-o {file}: it is a folder; name a file in it")
    if not file.absolute().parent.is_dir():
        raise InvalidInputError(f"-o {file}: there is no folder {file.parent}; make it first")
    return file


def _html() -> Callable[[StudyAtHand], bytes]:
    from orchestrator.reporting.page import page

    return lambda found: page(report_of(found))


def _png() -> Callable[[StudyAtHand], bytes]:
    try:
        from orchestrator.reporting.picture import picture
    except ModuleNotFoundError as error:
        lacking = (error.name or "").partition(".")[0]
        raise FleetError(
            f"--format png needs {lacking}, which is not installed:"
            " pip install 'trialfleet[report]'"
        ) from error
    return lambda found: picture(report_of(found))


def _json() -> Callable[[StudyAtHand], bytes]:
    return lambda found: _as_json(report_of(found).model_dump(mode="json"))


def _csv() -> Callable[[StudyAtHand], bytes]:
    return lambda found: hide(found.table.write("csv").decode()).encode()


def _as_json(document: object) -> bytes:
    text = json.dumps(strict_json(document), indent=1, ensure_ascii=False, allow_nan=False)  # type: ignore[arg-type]
    return f"{text}\n".encode("utf-8", "backslashreplace")


_WRITERS: Final[dict[Format, Callable[[], Callable[[StudyAtHand], bytes]]]] = {
    "html": _html,
    "png": _png,
    "csv": _csv,
    "json": _json,
}
