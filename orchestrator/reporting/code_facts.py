"""The code that trials ran, fact by fact, and where it was not the same for all: pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from optuna.trial import FrozenTrial
from pydantic import BaseModel

from orchestrator.storage.attributes import code_of

#: Facts that people look for first; others follow by name.
_FIRST: Final = ("file", "git_commit", "git_dirty", "sha256", "package")

#: In these, values differ without harm.
_OF_PLACES: Final = frozenset({"host", "gpu"})

#: Values of one fact that are told.
_MAX_VALUES: Final = 20


class CodeFact(BaseModel):
    """One fact about the code, such as the version of a package."""

    name: str
    values: list[tuple[str, int]]
    """Each value with the number of trials, the most frequent first."""

    @property
    def differs(self) -> bool:
        """Whether trials ran different code by it."""
        return len(self.values) > 1 and self.name not in _OF_PLACES


def code_facts(trials: Iterable[FrozenTrial], study_attrs: Mapping[str, Any]) -> list[CodeFact]:
    """What was recorded of the code; empty where nothing was."""
    counts: dict[str, Counter[str]] = {}
    for trial in trials:
        for name, value in code_of(trial.user_attrs, study_attrs).items():
            if value is not None:
                counts.setdefault(name, Counter())[_said(value)] += 1
    return [
        CodeFact(name=name, values=counts[name].most_common(_MAX_VALUES))
        for name in sorted(counts, key=_place)
    ]


def _place(name: str) -> tuple[int, str]:
    return (_FIRST.index(name) if name in _FIRST else len(_FIRST), name)


def _said(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
