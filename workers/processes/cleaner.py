"""The cleaner: removes what dead processes of this host left behind.

What they may leave: a session of processes, results that were not committed, a trial, what that
had printed, files. Each is seen to by itself and says what it could not remove; the dead process's
record goes last, and only when nothing is left.

Invariant: it reaps the dead process's own token and no other, and kills only members of the
session that the dead process led.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import psutil
import redis

from workers.coordination.connection import GENERAL_ERRORS, resolve_url
from workers.coordination.hints import Hints
from workers.coordination.identity import ProcessIdentity
from workers.coordination.setbacks import Setbacks
from workers.coordination.studies import Studies
from workers.coordination.trial_record import TrialRecord
from workers.disk.ended_trials import EndedTrials
from workers.disk.fleet_home import FleetHome
from workers.disk.outbox import Outbox
from workers.disk.output_spool import spools_in
from workers.disk.scratch import is_scratch_of, remove_scratch
from workers.disk.shared_memory import remove_shared_memory
from workers.disk.uploads import Uploads
from workers.logs import get_logger
from workers.processes.cleanup_lease import CleanupLease
from workers.processes.output_keeper import keep_rest
from workers.processes.registry import ProcessEntry, ProcessRegistry
from workers.processes.session import end_session
from workers.protocol.errors import FleetError
from workers.protocol.spec import StudySpec
from workers.protocol.states import TrialState
from workers.settings import Settings
from workers.wandb_run import command_to_end, mode

log = get_logger(__name__)

#: How long the end of a worker waits for the end of a W&B run.
_HELPER_SECONDS: Final = 10.0

#: What ended trials left, as a setback.
_ENDED: Final = "ended trials"

#: What a record, a study or a disk that holds anything makes of reading it.
_OF_ONE_THING: Final = (
    FleetError,
    KeyError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
    psutil.Error,
    redis.RedisError,
)


class Cleaner:
    """Cleans up after pool processes: their session, their results, their trial, their files."""

    def __init__(self, client: redis.Redis, registry: ProcessRegistry, settings: Settings) -> None:
        self._client = client
        self._registry = registry
        self._studies = Studies(client)
        self._hints = Hints(resolve_url(settings), settings.seal)
        self._settings = settings
        self._home = FleetHome(client, settings.home)
        uploads = Uploads(settings.home, has_store=settings.store is not None)
        self._outbox = Outbox(settings.home, uploads)
        self._ended_trials = EndedTrials(client, settings.home, uploads)
        self._setbacks = Setbacks(settings.times.beat)
        self._helpers: list[subprocess.Popen[bytes]] = []
        self._lease = CleanupLease(client, ProcessIdentity.current(), settings.times.lease)

    def clean_up_after(self, identity: ProcessIdentity) -> None:
        """End a dead process's session, requeue its trial, remove what it left on this host."""
        with self._alone(str(identity), "not_cleaned_up"):
            self._clean_up_after(identity)

    def sweep_host(self, *, is_last: bool = False) -> None:
        """Clean up after all registered processes of this host that are gone, and ended trials.

        Their own worker may have been killed with them.

        Args:
            is_last: Try also what failed a moment ago: nobody may come after this worker.
        """
        with self._lease.held() as token:
            if token is None:
                return
            if is_last:
                self._setbacks.forget_others(())
            self._commit_outbox()
            dead = self._registry.dead_here()
            self._setbacks.forget_others({_ENDED, *(str(entry.identity) for entry in dead)})
            for entry in dead:
                if not self._lease.renew(token):
                    return  # it took so long that another one cleans now
                if self._setbacks.is_due(str(entry.identity)):
                    self.clean_up_after(entry.identity)
            if self._setbacks.is_due(_ENDED) and self._home.is_ours():
                with self._alone(_ENDED, "ended_trials_not_removed"):
                    self._ended_trials.remove()
                    self._setbacks.done(_ENDED)

    def setbacks(self) -> list[str]:
        """What could not be cleaned up, and why; it is tried again."""
        return self._setbacks.described() + self._outbox.setbacks()

    @contextmanager
    def _alone(self, name: str, event: str) -> Iterator[None]:
        """What is wrong with one thing is said, tried again later, and holds up no other.

        A bug is let through: the worker stops, since nobody would clean up.
        """
        try:
            yield
        except GENERAL_ERRORS:
            raise
        except _OF_ONE_THING as error:
            self._setbacks.failed(name, event, error)

    def _clean_up_after(self, identity: ProcessIdentity) -> None:
        left = [f"process {pid}" for pid in end_session(identity)]
        self._commit_outbox()
        entry = self._registry.find(identity)
        if entry is None:
            return  # it left by itself, and took its record along
        log.warning("process_died", died=identity.pid, study=entry.study, trial=entry.trial)
        self._free_trial(entry)
        self._keep_output(entry)
        left += _remove_files(entry)
        if left:
            # its record names them: a later sweep tries again
            self._setbacks.failed(str(identity), "left_behind", left)
        else:
            self._setbacks.done(str(identity))
            self._registry.gone(identity)

    def _keep_output(self, entry: ProcessEntry) -> None:
        """Keep what a dead process's trial had printed, as far as that can be done."""
        own = [folder for folder in entry.scratch if is_scratch_of(folder, entry.identity)]
        for spool in (path for folder in own for path in spools_in(folder)):
            try:
                keep_rest(self._client, self._settings, spool)
            except OSError as error:
                log.warning("output_not_kept", spool=str(spool), error=str(error))

    def close(self) -> None:
        """Give the connections to the broker back, and wait for what was started."""
        self._hints.close()
        for helper in self._helpers:
            with suppress(subprocess.TimeoutExpired):
                helper.wait(_HELPER_SECONDS)

    def _commit_outbox(self) -> None:
        """Commit the results that dead processes of this host left."""
        if self._home.is_ours():
            self._outbox.commit_abandoned(self._studies.leases, self._settings.times.lease)

    def _free_trial(self, entry: ProcessEntry) -> None:
        """Reap the trial that a dead process held, so that another one may run it."""
        study, trial = entry.study, entry.trial
        if study is None or trial is None or not self._studies.exists(study):
            return
        spec = self._studies.spec(study)
        leases = self._studies.leases(study)
        died = f"process {entry.identity.pid} on {entry.identity.host}"
        ended = leases.reap(
            trial,
            f"{died}: {entry.last_word}" if entry.last_word else f"{died} died",
            most=spec.limit(entry.charge),
            charge=entry.charge,
            backoff_seconds=self._settings.times.backoff,
            dead_token=entry.token,
        )
        log.info("reaped", study=study, trial=trial, ended=ended)
        if ended == "REQUEUED":
            pause = leases.pause_seconds(trial)
            self._hints.send(study, trial, leases.epoch, spec.resources.queue, pause)
        else:
            self._end_wandb_run(spec, entry, leases.record(trial))

    def _end_wandb_run(
        self, spec: StudySpec, entry: ProcessEntry, record: TrialRecord | None
    ) -> None:
        """End the run that a process left open, unless another attempt has it; takes some seconds.

        The trial has ended, by this process's last word or for its death; or it was given back by
        force, in a study that stands still.
        """
        if record is None or record.token != entry.token or record.state is TrialState.RUNNING:
            return
        self._helpers = [helper for helper in self._helpers if helper.poll() is None]
        if mode(spec.wandb) == "disabled" or entry.trial is None:
            return
        is_good = record.state in {TrialState.COMPLETE, TrialState.PRUNED}
        command = command_to_end(
            self._settings.home,
            spec.name,
            entry.trial,
            spec.wandb,
            record.generation,
            exit_code=0 if is_good else 1,
        )
        self._helpers.append(subprocess.Popen(command, stdin=subprocess.DEVNULL))


def _remove_files(entry: ProcessEntry) -> list[str]:
    """Remove a dead process's scratch directories and shared memory; what could not be."""
    left = [str(path) for path in entry.scratch if not remove_scratch(path, entry.identity)]
    return left + [str(path) for path in remove_shared_memory(entry.identity, entry.shared_memory)]
