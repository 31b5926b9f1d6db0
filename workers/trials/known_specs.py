"""The specifications that this process has read, each once for as long as the study has it.

Invariant: no trial is claimed under one that its study has no more; the claim itself compares.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from workers.coordination.studies import Studies
from workers.protocol.spec import StudySpec

#: Of how many studies the specification is kept.
_MOST: Final = 64


class KnownSpec(NamedTuple):
    """A specification, and the sum of its text."""

    spec: StudySpec
    sha1: str


class KnownSpecs:
    """Reads specifications, and keeps the last ones."""

    def __init__(self, studies: Studies) -> None:
        self._studies = studies
        self._known: dict[str, KnownSpec] = {}

    def get(self, study: str) -> KnownSpec | None:
        """What was read last of a study; it may have another one by now."""
        return self._known.get(study)

    def forget(self, study: str) -> None:
        """Drop what was read of a study: it has another one by now."""
        self._known.pop(study, None)

    def read(self, study: str) -> KnownSpec:
        """A study's specification as it is now.

        Raises:
            InvalidInputError: There is no such study, or what lies there is no specification.
            redis.RedisError: Redis is away.
        """
        self.forget(study)
        known = self._known[study] = KnownSpec(*self._studies.spec_and_sha1(study))
        if len(self._known) > _MOST:
            del self._known[next(iter(self._known))]
        return known
