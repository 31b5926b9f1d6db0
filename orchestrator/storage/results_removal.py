"""Removing a study's results for good: its journal or its rows, and what its trials left here.

Invariant: it may be done again at any point: what is gone is not missed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from orchestrator.storage.opening import StudyStorage
from orchestrator.storage.place import locate
from workers.coordination.submitted import Origin
from workers.disk.study_folders import remove_study
from workers.settings import Settings

_JOURNAL: Final = "journal://"


def remove_results(
    settings: Settings, name: str, origin: Origin, check: Callable[[], None] = lambda: None
) -> None:
    """Remove the results of a study.

    Args:
        settings: Those of the orchestrator that keeps them.
        name: The study.
        origin: What Redis knows of where its results were begun.
        check: Raises, before each step, if they may be another study's of the name by now.

    Raises:
        InvalidInputError: They are kept elsewhere.
    """
    url = locate(settings, name, origin)
    if url.startswith(_JOURNAL):
        # home/studies/NAME/journal.log
        check()
        remove_study(Path(url.removeprefix(_JOURNAL)).parents[2], name)
    else:
        _remove_rows(url, name, check)
    check()
    remove_study(settings.home, name)


def _remove_rows(url: str, name: str, check: Callable[[], None]) -> None:
    """Remove a study from a database, and those that stand beside it (`NAME@...`)."""
    opened = StudyStorage.open(url)
    try:
        for study in opened.storage.get_all_studies():
            if study.study_name.partition("@")[0] == name:
                check()
                opened.storage.delete_study(study._study_id)
    finally:
        opened.close()
