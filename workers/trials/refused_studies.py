"""The studies of which this process takes no trial, and why: said once, and shown.

Invariant: what the process's record says is what the process last did with a trial of the study.
"""

from __future__ import annotations

from typing import Final

from workers.coordination.clock import lease_clock
from workers.logs import get_logger
from workers.processes.registry import ProcessRecord
from workers.protocol.spec import StudySpec

log = get_logger(__name__)

#: After so long a worker looks again whether it has what a study takes: a share may be back.
_LOOK_AGAIN_SECONDS: Final = 600.0

#: How long trials wait that no process takes, before one of them is tried again: a file may be
#: there by then. Less than until a trial is announced again.
_WAIT_SECONDS: Final = 30.0


class RefusedStudies:
    """Told of each trial that was offered to this process.

    Args:
        record: This process's entry in the registry.
    """

    def __init__(self, record: ProcessRecord) -> None:
        self._record = record
        self._reasons: dict[str, str] = {}
        #: the studies of whose trials one took more than this worker has: as they were, and when
        self._lacking: dict[str, tuple[StudySpec, float]] = {}
        #: of those, the ones whose trials wait where no other process takes them
        self._waiting: set[str] = set()

    def refuse(self, study: str, reason: str) -> None:
        """Note why a trial of a study is not taken.

        Raises:
            redis.RedisError: Redis is away.
        """
        if study in self._reasons:
            return
        self._reasons[study] = reason
        self._record.update(refuses=dict(self._reasons))
        log.error("study_refused", study=study, reason=reason)

    def refuse_lacking(self, spec: StudySpec, reason: str, *, waits: bool = False) -> None:
        """Note what a study takes that this worker does not have, for 10 minutes at most.

        Args:
            spec: The study.
            reason: What it is, and the way out.
            waits: Whether its trials wait where no other process takes them.

        Raises:
            redis.RedisError: Redis is away.
        """
        self._lacking[spec.name] = spec, lease_clock()
        if waits:
            self._waiting.add(spec.name)
        self.refuse(spec.name, reason)

    def is_lacking(self, spec: StudySpec) -> bool:
        """Whether this worker was found to lack what a study takes, not long ago."""
        found, at = self._lacking.get(spec.name, (None, 0.0))
        return found == spec and lease_clock() < at + _LOOK_AGAIN_SECONDS

    def has_waiting(self, study: str) -> bool:
        """Whether its trials are to wait where no other process takes them."""
        return study in self._waiting

    def may_look_again(self, study: str) -> bool:
        """Whether they have waited for long enough to try one of them again."""
        _, at = self._lacking.get(study, (None, 0.0))
        return lease_clock() >= at + _WAIT_SECONDS

    def accept(self, study: str) -> None:
        """Note that its trials are taken.

        Raises:
            redis.RedisError: Redis is away.
        """
        self._lacking.pop(study, None)
        self._waiting.discard(study)
        if self._reasons.pop(study, None) is not None:
            self._record.update(refuses=dict(self._reasons))
            log.info("study_accepted", study=study)
