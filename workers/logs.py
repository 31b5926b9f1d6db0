"""Structured logging: coloured lines on a terminal, one JSON object a line anywhere else."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import MutableMapping
from typing import Any, Final, TextIO

import structlog

from workers.protocol.plain import plain_text

#: Characters of a traceback, and of one entry of it, that are logged.
_CHARACTERS: Final = 50_000
_LINE_CHARACTERS: Final = 4_000

_SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


def configure_logging(*, level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """Send structlog and the standard library's logging through one formatter, to stderr."""
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
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*_SHARED, structlog.stdlib.add_logger_name],
            processors=[
                _add_pid,
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)


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
