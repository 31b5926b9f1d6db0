"""The studies of which this process takes no trial, and why: said once, and shown.

Invariant: what the process's record says is what the process last did with a trial of the study.
"""

from __future__ import annotations

from workers.logs import get_logger
from workers.processes.registry import ProcessRecord

log = get_logger(__name__)


class RefusedStudies:
    """Told of each trial that was offered to this process.

    Args:
        record: This process's entry in the registry.
    """

    def __init__(self, record: ProcessRecord) -> None:
        self._record = record
        self._reasons: dict[str, str] = {}

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

    def accept(self, study: str) -> None:
        """Note that its trials are taken.

        Raises:
            redis.RedisError: Redis is away.
        """
        if self._reasons.pop(study, None) is not None:
            self._record.update(refuses=dict(self._reasons))
            log.info("study_accepted", study=study)
