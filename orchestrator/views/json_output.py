"""The option `--json` of every command: one document on stdout, and nothing else there.

Of a command that tells events, it is one document a line.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from workers.passwords import hide_in
from workers.protocol.plain import strict_json

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document, nothing else.")]


#: Whether this process has printed its document.
_printed = False


def print_json(document: Any) -> None:
    """Print a document by JSON's standard, which has no infinity, and without passwords."""
    _print(hide_in(strict_json(document)), indent=2)


def print_json_line(document: Any) -> None:
    """Print a document on one line, for whoever reads it as it comes."""
    print_json_lines([document])


def print_json_lines(documents: Iterable[Any]) -> None:
    """The same of several that came at once."""
    for document in documents:
        _print(hide_in(strict_json(document)), indent=None)
    sys.stdout.flush()


def print_json_in_confidence(document: Any) -> None:
    """Print on one line what is asked for because of the secret in it."""
    _print(strict_json(document), indent=None)
    sys.stdout.flush()


def _print(document: Any, indent: int | None) -> None:
    global _printed
    # an escape of any other encoding is none of JSON's
    is_utf8 = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") == "utf8"
    text = json.dumps(document, indent=indent, ensure_ascii=not is_utf8, allow_nan=False)
    _printed = True
    print(text)


def has_printed() -> bool:
    """Whether this process has printed its document."""
    return _printed
