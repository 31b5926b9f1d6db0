"""What people have handed in, as Redis has it: looked at in one round trip, and read once.

Invariant: a study costs more than its part of that round trip only when something of it changed.
"""

from __future__ import annotations

from typing import NamedTuple

from workers.coordination.studies import Handed, Studies, Submitted


class _Read(NamedTuple):
    """A study's fields, and what they say."""

    handed: Handed
    submitted: Submitted
    digest: str


class Catalogue:
    """The studies of a Redis."""

    def __init__(self, studies: Studies) -> None:
        self._studies = studies
        self._handed: dict[str, Handed] = {}
        self._read: dict[str, _Read] = {}

    def look(self, only: str | None = None) -> None:
        """See what there is now; `only` one study by default all."""
        self._handed = self._studies.handed([only] if only else self._studies.names())
        self._read = {name: read for name, read in self._read.items() if name in self._handed}

    def look_again(self, name: str) -> None:
        """See how one study stands now."""
        self._handed |= self._studies.handed([name])

    def names(self) -> list[str]:
        """All studies, in alphabetical order."""
        return list(self._handed)

    def submitted(self, name: str) -> Submitted:
        """A study as it was handed in.

        Raises:
            InvalidInputError: There is no such study, or what lies there is no specification.
            redis.ResponseError: Its key holds something else.
        """
        return self._entry(name).submitted

    def waits_for_service(self, name: str) -> bool:
        """Whether an orchestrator of all studies is asked to drive one.

        Not one that `trialfleet run` alone is to go on with, nor one that is over and that nobody
        extended since.
        """
        entry = self._entry(name)
        is_over = entry.handed.is_over(entry.digest, entry.handed.digest)
        is_over = is_over and not entry.submitted.has_orders
        return not (entry.submitted.is_by_run or is_over)

    def _entry(self, name: str) -> _Read:
        handed = self._handed.get(name)
        if handed is None or handed.error is not None:
            submitted = self._studies.submitted(name)  # or the error that says what is wrong
            return _Read(self._studies.handed([name])[name], submitted, submitted.spec.digest())
        read = self._read.get(name)
        if read is None or read.handed.fields != handed.fields:
            submitted = self._studies.read(name, handed)
            read = _Read(handed, submitted, submitted.spec.digest())
        self._read[name] = read = read._replace(handed=handed)
        return read
