"""The uploader: brings a home's checkpoints, results and outputs to the store, beside all else.

One thread of a worker's main process, so that it outlives pool processes that are killed; what is
to be done lies on disk, so that a worker that is started again goes on with it.

Invariant: it uploads only what the trial's record points to; what a store does not take stays on
disk, is said, is tried again, and holds up nothing else, unless the store does not answer at all.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import Final, Self

import redis

from workers.coordination.setbacks import Setbacks
from workers.coordination.studies import Studies
from workers.disk.file_locks import lock_file
from workers.disk.manifests import checkpoint_root
from workers.disk.object_store import ObjectStore, StoreAwayError
from workers.disk.output_files import output_folder
from workers.disk.results import result_directory
from workers.disk.store_layout import (
    CHECKPOINTS,
    OUTPUTS,
    RESULTS,
    checkpoint_folder,
    checkpoint_key,
    checkpoints_of,
    generation_folder,
    last_before,
    output_key,
    place_of,
    place_of_key,
    result_key,
)
from workers.disk.uploads import Errand, Uploads
from workers.logs import get_logger
from workers.protocol.errors import FleetError
from workers.protocol.plain import describe_error
from workers.settings import Settings

log = get_logger(__name__)

#: The store, as a setback: one that is away is away for all.
_STORE: Final = "store"


class Uploader:
    """Does a home's errands in the store while it is open.

    Args:
        client: The fleet's Redis.
        settings: This worker's.
    """

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self._studies = Studies(client)
        self._home = settings.home
        self._uploads = Uploads(settings.home, has_store=settings.store is not None)
        self._store = ObjectStore.of(settings)
        self._pause_seconds = settings.times.beat / 10
        self._setbacks = Setbacks(self._pause_seconds)
        #: errands, by kind, and whether they were `done` or `failed`
        self.counted: Counter[tuple[str, str]] = Counter()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="uploader", daemon=True)

    def __enter__(self) -> Self:
        if self._store is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop; what is being uploaded is broken off with the process, and begun anew later."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(self._pause_seconds)

    def setbacks(self) -> list[str]:
        """What is wrong with the store, if anything is."""
        return self._setbacks.described()

    def num_waiting(self) -> int:
        """How many errands this home has, those of all its workers."""
        return len(self._uploads.waiting())

    def check_store(self) -> None:
        """Return if the store is there; one that does not answer now is waited for later.

        Raises:
            InvalidInputError: There is no such store.
        """
        if self._store is not None:
            try:
                self._store.check()
            except StoreAwayError as error:
                self._note_away(error)

    def turn(self) -> None:
        """Do what is to be done now, unless the store was away a moment ago."""
        if self._store is None or not self._setbacks.is_due(_STORE):
            return
        waiting = self._uploads.waiting()
        if not waiting:
            return
        lock = lock_file(self._uploads.folder / "lock", create=True)
        if lock is None:
            return  # another worker of this home is at it
        with lock:
            for errand in waiting:
                if self._ended.is_set():
                    return
                if self._setbacks.is_due(errand.name) and not self._do(self._store, errand):
                    return
            self._setbacks.forget_others({errand.name for errand in self._uploads.waiting()})
            self._uploads.note_away(is_away=False)

    def _run(self) -> None:
        while not self._ended.wait(self._pause_seconds):
            try:
                self.turn()
            except redis.RedisError:
                continue  # whoever watches this host says so
            except Exception as error:  # noqa: BLE001 - uploads are no reason to end a worker
                self._setbacks.failed(_STORE, "store_failed", error)

    def _do(self, store: ObjectStore, errand: Errand) -> bool:
        """Do one errand; False if the store is away."""
        try:
            if errand.kind == "checkpoint":
                self._upload_checkpoint(store, errand)
            elif errand.kind == "result":
                self._upload_result(store, errand)
            elif errand.kind == "output":
                self._upload_output(store, errand)
            elif errand.kind == "forget":
                self._forget(store, errand)
            else:
                self._delete(store, errand.study)
        except FileNotFoundError:
            log.debug("upload_is_gone", errand=errand.name)  # outdated, or removed
        except redis.RedisError:
            raise
        except Exception as error:  # noqa: BLE001 - what is wrong with one holds up no other
            if isinstance(error, StoreAwayError) and not self._answers(store):
                return False
            self.counted[errand.kind, "failed"] += 1
            self._setbacks.failed(errand.name, "not_uploaded", error)
            self._uploads.failed(errand, describe_error(error, 500))
            return True
        self.counted[errand.kind, "done"] += 1
        self._uploads.done(errand)
        return True

    def _answers(self, store: ObjectStore) -> bool:
        """Whether the store is there at all; it is noted if it is not."""
        try:
            store.check()
        except FleetError as error:
            self._note_away(error)
            return False
        return True

    def _note_away(self, error: FleetError) -> None:
        self._setbacks.failed(_STORE, "store_away", error)
        self._uploads.note_away(is_away=True)

    def _upload_checkpoint(self, store: ObjectStore, errand: Errand) -> None:
        kind, study, number, token, step, generation = errand
        if not self._is_accepted(errand):
            return  # another attempt, or a later checkpoint, has taken its place
        folder = checkpoint_folder(checkpoint_root(self._home), study, number, token, step)
        store.put(checkpoint_key(study, generation, number, token, step), folder)
        log.debug("uploaded", kind=kind, study=study, trial=number, step=step)
        known = store.keys(checkpoints_of(study, generation, number))
        if not self._is_accepted(errand):
            return  # what was accepted since may be among them
        stays = last_before(known, (step, token), place_of_key)
        for old in known:
            if old not in stays:
                store.remove(f"{old}/")

    def _is_accepted(self, errand: Errand) -> bool:
        """Whether a trial goes on, and from the checkpoint that an errand names."""
        record = self._studies.leases(errand.study).record(errand.number)
        if record is None or record.state.is_terminal or record.checkpoint is None:
            return False
        is_of_study = (record.generation or "") == errand.generation
        return is_of_study and place_of(record.checkpoint) == (errand.step, errand.token)

    def _upload_result(self, store: ObjectStore, errand: Errand) -> None:
        _, study, number, token, _, generation = errand
        folder = result_directory(self._home, study, number)
        store.put(result_key(study, generation, number, token), folder)
        log.debug("uploaded", kind="result", study=study, trial=number)

    def _upload_output(self, store: ObjectStore, errand: Errand) -> None:
        _, study, number, token, attempt, generation = errand
        folder = output_folder(self._home, study, number, attempt, token, generation)
        store.put(output_key(study, generation, number, attempt, token), folder)
        log.debug("uploaded", kind="output", study=study, trial=number)

    def _forget(self, store: ObjectStore, errand: Errand) -> None:
        _, study, number, _, _, generation = errand
        record = self._studies.leases(study).record(number)
        is_another = record is not None and (record.generation or "") != generation
        if record is None or is_another or record.state.is_terminal:
            store.remove(checkpoints_of(study, generation, number))

    def _delete(self, store: ObjectStore, study: str) -> None:
        """Remove what is left of a study that was deleted, and nothing of a new one of its name."""
        prefixes = [f"{kind}/{study}/" for kind in (CHECKPOINTS, RESULTS, OUTPUTS)]
        found = [f"{prefix}{name}/" for prefix in prefixes for name in store.names(prefix)]
        # looked up when it is known what lies there: what a study leaves that begins now does not
        if self._studies.exists(study):
            generation = self._studies.origin(study).generation
            if generation is None:
                return  # it has not begun: which is its own is not known
            own = f"/{generation_folder(generation)}/"
            found = [each for each in found if not each.endswith(own)]
        for each in found:
            store.remove(each)
