"""What people have handed in, as Redis has it: looked at in one round trip, and read once.

Invariant: a study costs more than its part of that round trip only when something of it changed,
and one that is over costs nothing.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from workers.coordination.studies import Studies
from workers.coordination.submitted import Handed, Submitted

#: How many of the studies that are over are looked at each time: an earlier release may have had
#: some go on.
_ENDED_AT_A_TIME: Final = 50


class _Read(NamedTuple):
    """A study's fields, and what they say."""

    handed: Handed
    submitted: Submitted
    digest: str
    is_over: bool


def _read(handed: Handed, submitted: Submitted) -> _Read:
    digest = submitted.spec.digest()
    is_over = handed.is_over(digest, handed.digest) and not submitted.has_orders
    return _Read(handed, submitted, digest, is_over)


class Catalogue:
    """The studies of a Redis."""

    def __init__(self, studies: Studies) -> None:
        self._studies = studies
        self._handed: dict[str, Handed] = {}
        self._read: dict[str, _Read] = {}
        self._cursor = 0

    def look(self, only: str | None = None) -> None:
        """See what there is to do now: `only` one study, by default all that are not over."""
        names = [only] if only else self._studies.unfinished()
        if not only:
            self._cursor = self._studies.look_through_ended(self._cursor, _ENDED_AT_A_TIME)
        self._handed = self._studies.handed(names)
        self._read = {name: read for name, read in self._read.items() if name in self._handed}
        if not only:
            self._note_ended()

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
        return not (entry.submitted.is_by_run or entry.is_over)

    def _note_ended(self) -> None:
        """Have those that an earlier release knew to be over be known as such."""
        for name, read in self._read.items():
            if read.is_over and read.handed == self._handed[name]:
                self._studies.facts.publish_end(name, {}, read.digest, read.submitted.revision)

    def _entry(self, name: str) -> _Read:
        handed = self._handed.get(name)
        if handed is None or handed.error is not None:
            submitted = self._studies.submitted(name)  # or the error that says what is wrong
            return _read(self._studies.handed([name])[name], submitted)
        read = self._read.get(name)
        if read is None or read.handed != handed:
            is_same = read is not None and read.handed.fields == handed.fields
            submitted = read.submitted if read and is_same else self._studies.read(name, handed)
            self._read[name] = read = _read(handed, submitted)
        return read
