"""Where the checkpoint lies that an attempt goes on from: in this home, in the store, or before it.

Invariant: the furthest sound checkpoint is found that is not beyond the one that Redis accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

from workers.coordination.trial_record import CheckpointRef
from workers.disk.manifests import read_manifests
from workers.disk.object_store import ObjectStore, StoreAwayError
from workers.disk.store_layout import (
    checkpoint_folder,
    checkpoint_key,
    checkpoints_of,
    place_of,
    place_of_key,
)
from workers.logs import get_logger
from workers.protocol.errors import TransientError

log = get_logger(__name__)

T = TypeVar("T")


class StoredTrial(NamedTuple):
    """Whose checkpoints are meant, in the store."""

    study: str
    generation: str | None
    number: int


class CheckpointSearch:
    """Finds checkpoints under a root directory, and brings there what only the store has.

    Args:
        root: The directory.
        store: Where checkpoints of other homes are found.
    """

    def __init__(self, root: Path, store: ObjectStore | None = None) -> None:
        self._root = root
        self._store = store

    def last(
        self, trial: StoredTrial, ref: CheckpointRef, load: Callable[[CheckpointRef], T | None]
    ) -> T | None:
        """What `load` makes of `ref`, or of the last before it of which it makes something.

        Raises:
            TransientError: The store has one, maybe, and does not answer.
        """
        found = load(self._brought_here(trial, ref))
        if found is not None:
            return found
        for other in self._before(trial, ref):
            if (found := load(other)) is not None:
                log.warning("checkpoint_before_used", step=other.step, uri=other.uri)
                return found
        return None

    def _brought_here(self, trial: StoredTrial, ref: CheckpointRef) -> CheckpointRef:
        """A checkpoint where it lies in this home, fetched from the store if it is another's."""
        if self._store is None or Path(ref.uri).exists():
            return ref
        step, token = place_of(ref)
        own = checkpoint_folder(self._root, trial.study, trial.number, token, step)
        if not own.exists():
            self._fetch(trial, token, step)
        return ref._replace(uri=str(own))

    def _before(self, trial: StoredTrial, ref: CheckpointRef) -> Iterator[CheckpointRef]:
        """The checkpoints before one, the furthest first: those here, then those in the store.

        A store that is away is no reason to leave what lies here; what is further there was not
        good here, or is of the attempt whose checkpoint was lost, and is at most one save ahead.
        """
        here = {
            place_of(other): other
            for other in read_manifests(self._root / trial.study / str(trial.number))
        }
        for place in self._places_before(here, ref):
            yield here[place]
        if self._store is None:
            return
        with _away_for_now():
            known = set(map(place_of_key, self._store.keys(checkpoints_of(*trial))))
        for step, token in self._places_before(known - set(here), ref):
            self._fetch(trial, token, step)
            own = checkpoint_folder(self._root, trial.study, trial.number, token, step)
            yield from (found for found in read_manifests(own.parents[1]) if found.uri == str(own))

    def _places_before(
        self, places: Iterable[tuple[int, int]], ref: CheckpointRef
    ) -> list[tuple[int, int]]:
        last = place_of(ref)
        return sorted(each for each in places if each[0] <= ref.step and each != last)[::-1]

    def _fetch(self, trial: StoredTrial, token: int, step: int) -> None:
        if self._store is None:
            return
        key = checkpoint_key(*trial, token, step)
        own = checkpoint_folder(self._root, trial.study, trial.number, token, step)
        with _away_for_now():
            is_there = self._store.get(key, own)
        log.info("checkpoint_fetched" if is_there else "checkpoint_not_in_store", key=key)


@contextmanager
def _away_for_now() -> Iterator[None]:
    """Have a trial whose checkpoint the store may have given back, uncounted, while it is away."""
    try:
        yield
    except StoreAwayError as error:
        raise TransientError(f"the trial's checkpoint is in the store: {error}") from error
