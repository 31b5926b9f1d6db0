"""What trials that ended left on this machine's disk: checkpoints, and drafts of their results.

A worker takes them along itself; this is for those whose process died between commit and clean-up.

Invariant: what a trial that may still run needs is left, and so is a result that was accepted. A
look takes as long as there is something to look at, not as long as there are trials that ended.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import redis

from workers.coordination.deletions import Deletions
from workers.coordination.studies import Studies
from workers.coordination.trial_record import TrialRecord
from workers.disk.kept_models import KeptModels
from workers.disk.manifests import checkpoint_root, remove_checkpoints
from workers.disk.results import Draft, drafts, earlier_drafts
from workers.disk.study_folders import is_put_back, remove_study, studies_in
from workers.disk.uploads import Errand, Uploads
from workers.logs import get_logger
from workers.protocol.states import TrialState

log = get_logger(__name__)


class EndedTrials:
    """Removes what ended trials left under a home."""

    def __init__(self, client: redis.Redis, home: Path, uploads: Uploads | None = None) -> None:
        self._studies = Studies(client)
        self._deletions = Deletions(client)
        self._home = home
        self._uploads = uploads or Uploads(home, has_store=False)
        self._models = KeptModels(self._studies, home, self._uploads)
        self._is_first = True

    def remove(self) -> list[Path]:
        """Remove what is left now; what it was."""
        self._remove_deleted()
        removed = self._remove_checkpoints() + self._remove_drafts(drafts(self._home))
        if self._is_first:  # an earlier release may have run here, and runs no more
            removed += self._remove_drafts(earlier_drafts(self._home))
            self._is_first = False
        removed += self._models.remove_others()
        if removed:
            log.info("ended_trials_cleaned", paths=len(removed))
        return removed

    def _remove_deleted(self) -> None:
        """Remove what lies here of studies that were deleted, maybe on another host."""
        for study in studies_in(self._home, self._deletions.done()):
            if is_put_back(self._home, study):
                continue
            self._uploads.add(Errand("delete", study))  # first: what is gone reminds nobody
            remove_study(self._home, study)
            log.info("deleted_study_removed", study=study)

    def _remove_checkpoints(self) -> list[Path]:
        removed = []
        for path in checkpoint_root(self._home).glob("*/*"):
            study, number = path.parent.name, path.name
            if number.isdecimal() and (ended := self._ended(study, int(number))):
                generation = ended.generation or ""
                self._uploads.add(Errand("forget", study, int(number), generation=generation))
                remove_checkpoints(self._home, study, int(number))
                removed.append(path)
        return removed

    def _remove_drafts(self, found: Iterable[Draft]) -> list[Path]:
        removed = []
        for draft in found:
            ended = self._ended(draft.study, draft.number)
            if ended is None:
                continue
            # one that was accepted is about to be published
            if draft.token != ended.result_token or ended.state is TrialState.DEAD:
                shutil.rmtree(draft.path, ignore_errors=True)
                removed.append(draft.path)
        return removed

    def _ended(self, study: str, number: int) -> TrialRecord | None:
        """The record of a trial that Redis knows to have ended."""
        if not self._studies.exists(study):
            return None
        record = self._studies.leases(study).record(number)
        return record if record is not None and record.state.is_terminal else None
