"""`trialfleet cache`: what lies in this host's cache, and removing it by hand.

Invariant: what a process uses is never removed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer
from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from orchestrator.views.console import open_console
from orchestrator.views.json_output import JsonOption, print_json
from orchestrator.views.ps import printable
from workers.disk.cache_sweep import CachedEntry, CacheLimits, CacheSweep
from workers.protocol.durations import parse_duration
from workers.protocol.errors import InvalidInputError
from workers.settings import Settings

cache_app = typer.Typer(
    help=(
        "Show and clean this host's cache: tokenised data, trained tokenizers and compiled"
        " models.\n\n"
        "It lies in FLEET_CACHE (by default where your caches lie), and is built again by the first"
        " trial that needs it. It cleans itself after each build: what was not used for"
        " FLEET_CACHE_AGE (30d) goes, then the longest unused until the rest fits FLEET_CACHE_SIZE"
        " (50GB)."
    ),
    no_args_is_help=True,
)

#: Units of ages that are shown, the largest first.
_UNITS: Final = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


@cache_app.command("list")
def list_entries(as_json: JsonOption = False) -> None:
    """List what is cached: size, last use, what it was built from; the latest used first.

    The same data, read or tokenised otherwise, are another entry.
    """
    settings = Settings.from_environment()
    entries = _sweep(settings).entries()[::-1]
    if as_json:
        print_json(
            {
                "folder": str(settings.cache),
                "bytes": sum(entry.num_bytes for entry in entries),
                "max_bytes": settings.cache_size,
                "max_age_seconds": settings.cache_age,
                "entries": [_document(entry) for entry in entries],
            }
        )
    else:
        open_console().print(draw_entries(entries, settings))


@cache_app.command()
def clean(
    older_than: Annotated[
        str | None,
        typer.Option("--older-than", metavar="AGE", help="Not used for so long: 12h, 7d."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that no process uses.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove entries that no process uses; without an option, those beyond the settings' limits.

    It is safe while trials run: what they use stays, what they need later is built again.

    Example: trialfleet cache clean --older-than 7d
    """
    settings = Settings.from_environment()
    sweep = _sweep(settings)
    removed = sweep.sweep(_limits(settings, older_than, everything=everything))
    left = sweep.entries()
    freed, kept = (sum(entry.num_bytes for entry in each) for each in (removed, left))
    in_use = sum(entry.is_in_use for entry in left)
    if as_json:
        print_json(
            {
                "folder": str(settings.cache),
                "removed": [_document(entry) for entry in removed],
                "freed_bytes": freed,
                "bytes": kept,
                "in_use": in_use,
            }
        )
    else:
        print(
            f"removed {_count(len(removed))}, {decimal(freed)}; {_count(len(left))} left,"
            f" {decimal(kept)}, {in_use} in use; {settings.cache}"
        )


def draw_entries(entries: Sequence[CachedEntry], settings: Settings) -> RenderableType:
    """A line on each entry, and one on them all."""
    if not entries:
        return Text(f"nothing is cached in {settings.cache}")
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("kind", "size", "last used", "", "what"):
        table.add_column(column, justify="right" if column in {"size", "last used"} else "left")
    now = time.time()
    for entry in entries:
        table.add_row(
            entry.kind,
            decimal(entry.num_bytes),
            f"{_duration(now - entry.used_at)} ago",
            "in use" if entry.is_in_use else "",
            Text(_describe(entry)),
        )
    total = sum(entry.num_bytes for entry in entries)
    return Group(
        table,
        Text(
            f"{_count(len(entries))}, {decimal(total)} of {decimal(settings.cache_size)}"
            f" (FLEET_CACHE_SIZE); unused ones go after {_duration(settings.cache_age)}"
            f" (FLEET_CACHE_AGE); {settings.cache}",
            style="dim",
        ),
    )


def _sweep(settings: Settings) -> CacheSweep:
    return CacheSweep(settings.cache, _own_limits(settings))


def _limits(settings: Settings, older_than: str | None, *, everything: bool) -> CacheLimits:
    if older_than is None:
        return CacheLimits(0, 0.0) if everything else _own_limits(settings)
    if everything:
        raise InvalidInputError("--all and --older-than: give one of them")
    try:
        return CacheLimits(math.inf, parse_duration(older_than))
    except ValueError as error:
        raise InvalidInputError(f"--older-than = {older_than!r}: {error}") from None


def _own_limits(settings: Settings) -> CacheLimits:
    return CacheLimits(settings.cache_size, settings.cache_age)


def _document(entry: CachedEntry) -> dict[str, Any]:
    return {
        "kind": entry.kind,
        "entry": entry.digest,
        "bytes": entry.num_bytes,
        "built_at": entry.built_at,
        "used_at": entry.used_at,
        "in_use": entry.is_in_use,
        "about": entry.about,
    }


def _describe(entry: CachedEntry) -> str:
    facts = (f"{name}={value}" for name, value in entry.about.items() if value is not None)
    return printable("  ".join(facts))


def _count(number: int) -> str:
    return "1 entry" if number == 1 else f"{number} entries"


def _duration(seconds: float) -> str:
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return "0 s"
