"""The models that a study keeps: those of its best trials; those of the others are removed.

The orchestrator says which trials are the best, and up to which number it knows how trials ended.

Invariant: a model goes only when its trial is known to have ended and not to be among the best. A
look takes as long as trials have ended since the one before.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Final, NamedTuple

from workers.coordination.studies import Studies
from workers.disk import durable
from workers.disk.results import draft_directory, result_directory
from workers.disk.uploads import Errand, Uploads

#: What an attempt's model is called in its folder.
_PATTERNS: Final = ("model", "model.*")


class _Looked(NamedTuple):
    """How far a study was looked through."""

    num_known: int
    left: frozenset[int]
    """Numbers below, of trials that may still leave a model, or whose model was kept."""


class KeptModels:
    """Removes the models of trials that are not among their study's best.

    Args:
        studies: The fleet's.
        home: Where results lie.
        uploads: Where it is noted that the store's copy is to be what is left.
    """

    def __init__(self, studies: Studies, home: Path, uploads: Uploads) -> None:
        self._uploads = uploads
        self._studies = studies
        self._home = home
        self._looked: dict[str, _Looked] = {}

    def remove_others(self) -> list[Path]:
        """Remove what need not be kept any more; what it was."""
        folders = self._home.glob("studies/*")
        names = self._studies.existing([folder.name for folder in folders])
        self._looked = {name: each for name, each in self._looked.items() if name in names}
        return [path for name in names for path in self._remove(name)]

    def _remove(self, study: str) -> list[Path]:
        kept = self._studies.fact(study, "kept_models")
        if kept is None:
            self._looked.pop(study, None)
            return []
        looked = self._looked.get(study, _Looked(0, frozenset()))
        if looked.num_known > kept["num_known"]:  # another study has the name now
            looked = _Looked(0, frozenset())
        candidates = looked.left | set(range(looked.num_known, kept["num_known"]))
        to_stay = {*kept["best"], *kept["open"]} | set(self._unpublished(study, candidates))
        self._looked[study] = _Looked(kept["num_known"], frozenset(candidates & to_stay))
        return [path for number in candidates - to_stay for path in self._drop(study, number)]

    def _unpublished(self, study: str, numbers: AbstractSet[int]) -> list[int]:
        """Those whose result was accepted, maybe, and is not yet where it is to be."""
        drafts = draft_directory(self._home, study, 0, 0).parent
        waiting = {path.name.partition("-")[0] for path in drafts.glob("*-*")}
        return [number for number in numbers if str(number) in waiting]

    def _drop(self, study: str, number: int) -> list[Path]:
        folder = result_directory(self._home, study, number)
        found = [path for pattern in _PATTERNS for path in folder.glob(pattern)]
        for path in found:
            durable.remove(path)
        if found:
            self._uploads.add(Errand("result", study, number))
        return found
