"""The models that a study keeps: those of its best trials; those of the others are removed.

The orchestrator says which trials are the best, and up to which number it knows how trials ended.

Invariant: a model goes only when its trial is known to have ended and not to be among the best. A
look takes as long as trials have ended since the one before; one that could not be removed is tried
again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Set as AbstractSet
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from pydantic import BaseModel, ConfigDict, NonNegativeInt

from workers.coordination.studies import Studies
from workers.disk import durable
from workers.disk.results import draft_directory, result_directory
from workers.disk.uploads import Errand, Uploads
from workers.logs import get_logger
from workers.protocol.plain import describe_error

log = get_logger(__name__)

#: What an attempt's model is called in its folder.
_PATTERNS: Final = ("model", "model.*")

#: A trial's number, of which a folder is named.
_NUMBER: Final = re.compile(r"[0-9]{1,18}")


class _Looked(NamedTuple):
    """How far a study was looked through."""

    num_known: int
    left: frozenset[int]
    """Numbers below, of trials that may still leave a model, or whose model is still there."""


class _KeptModels(BaseModel):
    """What the orchestrator says of a study."""

    model_config = ConfigDict(strict=True, frozen=True)

    best: list[NonNegativeInt]
    open: list[NonNegativeInt]
    num_known: NonNegativeInt


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
        #: studies of which it was said that what the orchestrator says makes no sense
        self._misread: set[str] = set()

    def remove_others(self) -> list[Path]:
        """Remove what need not be kept any more; what it was."""
        folders = self._home.glob("studies/*")
        names = self._studies.existing([folder.name for folder in folders])
        self._looked = {name: each for name, each in self._looked.items() if name in names}
        return [path for name in names for path in self._remove(name)]

    def _remove(self, study: str) -> list[Path]:
        kept = self._fact(study)
        if kept is None:
            self._looked.pop(study, None)
            return []
        looked = self._looked.get(study, _Looked(0, frozenset()))
        if looked.num_known > kept.num_known:  # another study has the name now
            looked = _Looked(0, frozenset())
        waiting = self._unpublished(study)
        may_leave_one = {*kept.best, *kept.open} | waiting
        candidates = looked.left | {
            number
            for number in may_leave_one | self._lying(study, looked, kept)
            if looked.num_known <= number < kept.num_known
        }
        removed, failed = self._drop(study, candidates - may_leave_one)
        if failed - looked.left:
            hint = "look at the rights on them; it is tried again"
            log.warning("models_not_removed", study=study, trials=sorted(failed)[:10], hint=hint)
        left = frozenset(candidates & may_leave_one | failed)
        self._looked[study] = _Looked(kept.num_known, left)
        return removed

    def _fact(self, study: str) -> _KeptModels | None:
        """What the orchestrator says; None, said once, where it makes no sense."""
        try:
            found = self._studies.facts.get(study, "kept_models")
            kept = None if found is None else _KeptModels.model_validate(found)
        except (ValueError, RecursionError) as error:
            if study not in self._misread:
                log.warning("kept_models_unreadable", study=study, error=describe_error(error, 500))
            self._misread.add(study)
            return None
        self._misread.discard(study)
        return kept

    def _lying(self, study: str, looked: _Looked, kept: _KeptModels) -> set[int]:
        """The trials that left something, if more have ended than at the last look."""
        if looked.num_known == kept.num_known:
            return set()
        folders = result_directory(self._home, study, 0).parents[1].glob("*")
        return {int(folder.name) for folder in folders if _NUMBER.fullmatch(folder.name)}

    def _unpublished(self, study: str) -> set[int]:
        """Those whose result was accepted, maybe, and is not yet where it is to be."""
        drafts = draft_directory(self._home, study, 0, 0).parent
        waiting = (path.name.partition("-")[0] for path in drafts.glob("*-*"))
        return {int(number) for number in waiting if _NUMBER.fullmatch(number)}

    def _note_upload(self, study: str, number: int) -> None:
        """Have the store's copy of what is left become the same."""
        record = self._studies.leases(study).record(number)
        if record is not None and record.result_token is not None:
            token, generation = record.result_token, record.generation or ""
            self._uploads.add(Errand("result", study, number, token, generation=generation))

    def _drop(self, study: str, numbers: AbstractSet[int]) -> tuple[list[Path], set[int]]:
        """Remove models; which they were, and of which trials one is still there."""
        removed, failed = [], set()
        for number in numbers:
            folder = result_directory(self._home, study, number)
            found = [path for pattern in _PATTERNS for path in folder.glob(pattern)]
            for path in found:
                with suppress(OSError):
                    durable.remove(path)
            there = [path for path in found if os.path.lexists(path)]
            removed += [path for path in found if path not in there]
            if there:
                failed.add(number)
            if found:
                self._note_upload(study, number)
        return removed, failed
