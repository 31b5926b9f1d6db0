"""Results: what an attempt leaves for people, as a draft while it runs, and where it is published.

Layout: `<home>/studies/<study>/attempts/<number>-<token>/` becomes `<home>/studies/<study>/trials/
<number>/result/`. Drafts lie apart from the results, so that looking for drafts takes as long as
there are trials that run, however many have ended.

Invariant: a result is whole or absent, and comes from the attempt that was accepted.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

_NAME: Final = re.compile(r"(\d+)-(\d+)")


class Draft(NamedTuple):
    """What an attempt left, or still leaves."""

    study: str
    number: int
    token: int
    path: Path


def draft_directory(home: Path, study: str, number: int, token: int) -> Path:
    """Where an attempt leaves its files; not made by this call."""
    return home / "studies" / study / "attempts" / f"{number}-{token}"


def earlier_draft_directory(home: Path, study: str, number: int, token: int) -> Path:
    """Where release 0.1.0 left them, among the results."""
    return _trial_directory(home, study, number) / f"attempt-{token}"


def drafts(home: Path) -> Iterator[Draft]:
    """All drafts under a home."""
    for path in home.glob("studies/*/attempts/*"):
        if found := _NAME.fullmatch(path.name):
            yield Draft(path.parents[1].name, int(found[1]), int(found[2]), path)


def earlier_drafts(home: Path) -> Iterator[Draft]:
    """Those of release 0.1.0; takes as long as there are trials that ever ran."""
    for path in home.glob("studies/*/trials/*/attempt-*"):
        number, token = path.parent.name, path.name.removeprefix("attempt-")
        if number.isdecimal() and token.isdecimal():
            yield Draft(path.parents[2].name, int(number), int(token), path)


def has_drafts(home: Path, study: str) -> bool:
    """Whether any attempt at a trial of a study may have left something: most studies make none."""
    return draft_directory(home, study, 0, 0).parent.exists()


def publish(home: Path, study: str, number: int, draft: Path) -> None:
    """Move what an accepted attempt left to where people look, and drop other attempts' drafts."""
    if draft.exists():
        final = result_directory(home, study, number)
        shutil.rmtree(final, ignore_errors=True)
        final.parent.mkdir(parents=True, exist_ok=True)
        draft.rename(final)
    for other in draft_directory(home, study, number, 0).parent.glob(f"{number}-*"):
        shutil.rmtree(other, ignore_errors=True)


def result_directory(home: Path, study: str, number: int) -> Path:
    """Where people find what the accepted attempt left."""
    return _trial_directory(home, study, number) / "result"


def _trial_directory(home: Path, study: str, number: int) -> Path:
    return home / "studies" / study / "trials" / str(number)
