"""The option `--json` of every command: one document on stdout, and nothing else there."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from workers.protocol.plain import strict_json

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document, nothing else.")]


def print_json(document: Any) -> None:
    """Print a document by JSON's standard, which has no infinity, and many readers refuse it."""
    print(json.dumps(strict_json(document), indent=2, ensure_ascii=False, allow_nan=False))
