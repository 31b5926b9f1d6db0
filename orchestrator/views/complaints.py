"""How a command that went wrong ends: one line on stderr, an exit code, a document with `--json`.

The document is `{"error": {"kind": ..., "message": ..., "exit_code": ...}}`; `kind` is the error's
name, as logs show it, and `message` is the line.

Invariant: no error ends a command by a traceback, and with `--json` each way out prints one
document; the traceback of what nobody foresaw is in `FLEET_HOME/logs/errors.log`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple

import redis
import typer

from orchestrator.storage.opening import is_database_error
from orchestrator.views import json_output
from orchestrator.views.ps import printable
from workers.disk.fleet_home import make_home
from workers.logs import traceback_of
from workers.passwords import hide, learn_environment
from workers.protocol.errors import FleetError, InvalidInputError
from workers.protocol.plain import describe_error, plain_text
from workers.settings import Settings

EXIT_FAILED: Final = 1
EXIT_BAD_INPUT: Final = 2
EXIT_INTERRUPTED: Final = 130

_MAX_LINE: Final = 2000


class Complaint(NamedTuple):
    """What a command that went wrong has to say."""

    kind: str
    message: str
    exit_code: int


def complaint_of(error: BaseException) -> Complaint:
    """What is to be said of an error, in one line."""
    kind = type(error).__name__
    for applies, code, tell in _RULES:
        if applies(error):
            return Complaint(_NAMES.get(tell, kind), tell(error), code)
    told = plain_text(describe_error(error, _MAX_LINE).splitlines()[0])
    where = _keep_traceback(error)
    message = f"{told}; this is a fault of trialfleet: please report it{where}"
    return Complaint(kind, message, EXIT_FAILED)


def run_command(command: Callable[[], Any]) -> int:
    """Run a command and say what went wrong; the exit code.

    Args:
        command: Prints its own answer; what it returns counts if it is an exit code.
    """
    _prepare_streams()
    learn_environment(os.environ)
    try:
        found = command()
        code = found if isinstance(found, int) else 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else EXIT_FAILED
    except BaseException as error:  # noqa: BLE001 - the last line of defence
        code = _complain(complaint_of(error))
    if code != 0 and _wants_json() and not json_output.has_printed():
        said = "interrupted" if code == EXIT_INTERRUPTED else f"it ended with code {code}"
        json_output.print_json(_document(Complaint("Interrupted", said, code)))
    return _flushed(code)


def _complain(complaint: Complaint) -> int:
    complaint = complaint._replace(message=hide(complaint.message))
    with suppress(OSError, ValueError):  # nobody reads it any more
        if _wants_json() and not json_output.has_printed():
            json_output.print_json(_document(complaint))
        told = "\n".join(map(printable, complaint.message.split("\n")))
        sys.stderr.write(f"trialfleet: {told}\n")
    return complaint.exit_code


def _document(complaint: Complaint) -> dict[str, Any]:
    return {"error": complaint._asdict()}


def _wants_json() -> bool:
    return "--json" in sys.argv[1:]


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split("\n")).strip() or type(error).__name__
    return plain_text(text, _MAX_LINE)


def _usage(error: Any) -> str:
    if not error.format_message():  # no command was given: its help is printed by now
        return f"give a command; see `{error.ctx.command_path} --help`"
    message = " ".join(error.format_message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    path = "trialfleet" if context is None else context.command_path
    return plain_text(f"{message}; see `{path} --help`", _MAX_LINE)


def _of_a_system(error: OSError) -> str:
    what = error.strerror or _line(error)
    return plain_text(f"{error.filename}: {what}" if error.filename else what, _MAX_LINE)


def _of_redis(error: BaseException) -> str:
    return f"Redis failed in the middle of it: {_line(error)}; try again"


def _of_a_database(error: BaseException) -> str:
    cause = getattr(error, "orig", None) or error.__cause__ or error
    return f"the database failed: {_line(cause)}; mend it and try again"


def _interrupted(_error: BaseException) -> str:
    return "interrupted"


#: What an error is, how the command ends, and how it is told; the first that applies counts.
_RULES: Final[tuple[tuple[Callable[[Any], bool], int, Callable[[Any], str]], ...]] = (
    (lambda error: isinstance(error, InvalidInputError), EXIT_BAD_INPUT, _line),
    (lambda error: isinstance(error, FleetError), EXIT_FAILED, _line),
    (
        lambda error: isinstance(error, (KeyboardInterrupt, EOFError, typer.Abort)),
        EXIT_INTERRUPTED,
        _interrupted,
    ),
    # the command line's own, of typer or of click
    (lambda error: hasattr(error, "format_message"), EXIT_BAD_INPUT, _usage),
    (lambda error: isinstance(error, redis.RedisError), EXIT_FAILED, _of_redis),
    (lambda error: isinstance(error, OSError), EXIT_FAILED, _of_a_system),
    (is_database_error, EXIT_FAILED, _of_a_database),
)

#: The kinds of errors of which there are several types.
_NAMES: Final = {_interrupted: "Interrupted", _usage: "UsageError"}


def _keep_traceback(error: BaseException) -> str:
    """Write down where an error came from; where that can be read, for the end of a line."""
    with suppress(Exception):
        home = Settings.from_environment().home
        make_home(home)
        path = home / "logs" / "errors.log"
        path.parent.mkdir(exist_ok=True)
        with path.open("a", errors="backslashreplace") as sink:
            sink.write(hide(traceback_of(error)) + "\n")
        return f", with the traceback in {path}"
    return ""


def _prepare_streams() -> None:
    """Let no character and no closed descriptor be an error of its own."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            # opened on the number that is free: no other file is to lie there
            opened = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(opened, "w" if descriptor else "r"))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _flushed(code: int) -> int:
    """Bring what was printed to whoever reads it, here, where an error of it can be told."""
    try:
        sys.stdout.flush()
    except OSError as error:
        # the interpreter flushes again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            with suppress(OSError):
                sys.stderr.write(f"trialfleet: standard output: {error.strerror}\n")
        return code or EXIT_FAILED
    return code
