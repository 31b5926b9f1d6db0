"""Structured logging: coloured lines on a terminal, one JSON object a line anywhere else."""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
from collections.abc import MutableMapping
from types import TracebackType
from typing import Any, Final, TextIO

import structlog

from workers.passwords import hide
from workers.protocol.plain import plain_text

#: Characters of a traceback, and of one entry of it, that are logged.
_CHARACTERS: Final = 50_000
_LINE_CHARACTERS: Final = 4_000

_SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


#: The packages whose events are ours, at whatever level is asked for.
_OURS: Final = ("workers", "orchestrator")

#: What tells something of each message, beside what a worker tells of each trial.
_OF_EACH_MESSAGE: Final = ("celery.worker.strategy", "celery.app.trace")


def configure_logging(*, level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """Send structlog and the standard library's logging through one formatter, to stderr.

    Args:
        level: From which on events are told; of libraries never more than from INFO on.
        stream: By default stderr.
    """
    stream = stream or sys.stderr
    renderer: Any = (
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        if stream.isatty()
        else structlog.processors.JSONRenderer(sort_keys=False)
    )
    structlog.configure(
        processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = _Lines(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*_SHARED, structlog.stdlib.add_logger_name],
            processors=[
                _add_pid,
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                _hide_passwords,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(level, logging.INFO))
    for name in _OURS:
        logging.getLogger(name).setLevel(level)
    for name in _OF_EACH_MESSAGE:
        logging.getLogger(name).setLevel(logging.WARNING if level >= logging.INFO else logging.INFO)


class _Lines(logging.StreamHandler[TextIO]):
    """Writes events, those that can be written: a disk may be full for a while."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        """Drop an event that the system does not take; what is wrong with another one is told."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def guard_tracebacks() -> None:
    """Have the tracebacks of errors that nobody caught printed without passwords."""

    def print_hidden(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        sys.stderr.write(hide("".join(traceback.format_exception(kind, error, trace))))

    def print_of_thread(arguments: threading.ExceptHookArgs) -> None:
        if arguments.exc_value is not None:
            print_hidden(arguments.exc_type, arguments.exc_value, arguments.exc_traceback)

    sys.excepthook = print_hidden
    threading.excepthook = print_of_thread


def traceback_of(error: BaseException) -> str:
    """An error's traceback as text of bounded length, for the field `exception`.

    An error's own text may be of any size; what draws tracebacks takes minutes for a megabyte.
    """
    lines = traceback.format_exception(error)
    return plain_text("".join(plain_text(line, _LINE_CHARACTERS) for line in lines), _CHARACTERS)


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger whose events carry what `structlog.contextvars` has bound."""
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(name)
    return logger


def _add_pid(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    event.setdefault("pid", os.getpid())
    return event


def _hide_passwords(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    return {name: _without_passwords(value) for name, value in event.items()}


def _without_passwords(value: Any) -> Any:
    """The same value, or its text where that would show a password."""
    match value:
        case str():
            return hide(value)
        case None | bool() | int() | float():
            return value
        case dict():
            return {name: _without_passwords(each) for name, each in value.items()}
        case list() | tuple():
            return [_without_passwords(each) for each in value]
    shown = repr(value)
    hidden = hide(shown)
    return value if hidden == shown else hidden
