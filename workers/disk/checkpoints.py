"""Checkpoints on disk: one directory a token, complete or absent, never touched by another token.

Layout: `<root>/<study>/<number>/<token>/step-<step>/`, with `manifest.json`, what the trial's
attributes were at that step if it had some (`attributes.json`), and either `state.pt` or, of a
trainer that writes files of its own, `files/`. It is written under another name, flushed to disk,
then renamed. torch is imported by whoever saves or loads a state.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, Final, Generic, NamedTuple, TypeVar, cast

from workers.coordination.leases import CheckpointRef
from workers.disk import durable
from workers.disk.manifests import MANIFEST, read_manifests
from workers.disk.object_store import ObjectStore, StoreAwayError
from workers.disk.state_reading import unpack
from workers.disk.store_layout import (
    KEPT,
    checkpoint_folder,
    checkpoint_key,
    checkpoints_of,
    last_before,
    place_of,
    place_of_key,
)
from workers.disk.uploads import Errand, Uploads
from workers.logs import get_logger
from workers.protocol.errors import TransientError
from workers.protocol.memory_errors import is_of_memory
from workers.protocol.plain import describe_error

log = get_logger(__name__)

T = TypeVar("T")

_STATE: Final = "state.pt"

_FILES: Final = "files"

_ATTRIBUTES: Final = "attributes.json"
#: Between two looks at whether the store has something.
_LOOK_SECONDS: Final = 0.1


class Kept(NamedTuple, Generic[T]):
    """What a checkpoint holds."""

    content: T
    attributes: dict[str, Any]
    """Of its trial, at its step; empty where there were none."""
    step: int


class CheckpointStore:
    """Saves and loads the checkpoints of all trials under one root directory.

    Args:
        root: The directory.
        uploads: Where it is noted what the store is to get and to lose.
        store: Where checkpoints of other homes are found.
    """

    def __init__(
        self, root: Path, uploads: Uploads | None = None, store: ObjectStore | None = None
    ) -> None:
        self._root = root
        self._uploads = uploads
        self._store = store

    def save(
        self,
        study: str,
        number: int,
        token: int,
        step: int,
        packed: Any,
        attributes: Mapping[str, Any] | None = None,
    ) -> CheckpointRef:
        """Write a checkpoint that is on disk, whole, when this returns.

        Args:
            study: The study's name.
            number: The trial's number.
            token: The attempt's fencing token.
            step: The step after which the state was taken.
            packed: What `state_packing.pack` made of it.
            attributes: The trial's, as plain JSON.

        Raises:
            OSError: The disk takes no more; what was there before still is.
        """
        return self._publish(
            study,
            number,
            token,
            step,
            lambda draft: _write_state(draft / _STATE, packed),
            attributes,
        )

    def save_files(
        self,
        study: str,
        number: int,
        token: int,
        step: int,
        paths: Sequence[Path],
        changing: Sequence[Path] = (),
        attributes: Mapping[str, Any] | None = None,
    ) -> CheckpointRef:
        """Keep files and folders as a checkpoint that is on disk, whole, when this returns.

        Those in `paths` are linked where the file system can, and copied where not: whoever wrote
        them may replace or remove them, and is not to change them in place.

        Args:
            study: The study's name.
            number: The trial's number.
            token: The attempt's fencing token.
            step: The step after which they were written.
            paths: Each is kept under its own name.
            changing: More of them, which may be changed in place, and so are copied.
            attributes: The trial's, as plain JSON.

        Raises:
            OSError: One is not there, or the disk takes no more; what was there before still is.
        """

        def fill(draft: Path) -> str:
            (draft / _FILES).mkdir()
            for path in paths:
                durable.link_tree(path, draft / _FILES / path.name)
            for path in changing:
                durable.copy_tree(path, draft / _FILES / path.name)
            return _tree_sha256(draft / _FILES)

        return self._publish(study, number, token, step, fill, attributes)

    def _publish(
        self,
        study: str,
        number: int,
        token: int,
        step: int,
        write: Callable[[Path], str],
        attributes: Mapping[str, Any] | None,
    ) -> CheckpointRef:
        """Put a checkpoint in its place, and drop those of this attempt that it outdates.

        Of a step that the attempt has saved before, what it saved first stays.

        Args:
            study: The study's name.
            number: The trial's number.
            token: The attempt's fencing token.
            step: The step that it holds.
            write: Fills the new directory; the sum over what it wrote.
            attributes: The trial's.
        """
        final = checkpoint_folder(self._root, study, number, token, step)
        own = final.parent
        for saved in read_manifests(own.parent):
            if saved.uri == str(final):
                # Redis may point to it, by its sum: replaced, it would be taken for damaged
                log.warning("checkpoint_kept", step=step, hint="a step is saved once an attempt")
                return saved
        sha256 = ""

        def fill(draft: Path) -> None:
            nonlocal sha256
            draft.mkdir()
            sha256 = write(draft)
            if attributes:
                (draft / _ATTRIBUTES).write_text(json.dumps(attributes))
            (draft / MANIFEST).write_text(json.dumps({"step": step, "sha256": sha256}))

        durable.make_whole(final, fill)
        older = sorted(path for path in own.glob("step-*") if path != final)
        for old in older[: 1 - KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        return CheckpointRef(step, str(final), sha256)

    def prune(self, study: str, number: int, token: int, accepted: CheckpointRef) -> None:
        """Keep two checkpoints of a trial, of this attempt and of those before it.

        To be called when Redis has accepted a checkpoint of this attempt: until the next is, nobody
        else holds the trial. What later attempts have is theirs.

        Args:
            study: The study's name.
            number: The trial's number.
            token: The attempt's fencing token.
            accepted: What Redis has accepted: it stays, with the furthest before it. What is
                further could not be loaded, or is from before Redis lost its data.
        """
        folder = self._root / study / str(number)
        own = [ref for ref in read_manifests(folder) if _token_of(ref) <= token]
        stays = last_before(own, place_of(accepted), place_of)
        for ref in own:
            if ref not in stays:
                shutil.rmtree(ref.uri, ignore_errors=True)
        kept = {_token_of(ref) for ref in stays}
        for path in folder.iterdir():
            # an attempt before, of which at most a draft is left
            if path.name.isdecimal() and int(path.name) < token and int(path.name) not in kept:
                shutil.rmtree(path, ignore_errors=True)

    def offer(self, study: str, generation: str | None, number: int, ref: CheckpointRef) -> None:
        """Have a checkpoint that Redis has accepted brought to the store, if there is one."""
        if self._uploads is not None:
            step, token = place_of(ref)
            self._uploads.add(Errand("checkpoint", study, number, token, step, generation or ""))

    def await_upload(self, study: str, number: int, seconds: float) -> None:
        """Wait, at most so long, until the store has a trial's last checkpoint, or is away."""
        until = time.monotonic() + seconds
        while self._uploads is not None and self._uploads.is_waiting(study, number):
            if time.monotonic() > until:
                log.warning("upload_not_awaited", hint="the store is slow; it goes on")
                return
            time.sleep(_LOOK_SECONDS)

    def load(self, ref: CheckpointRef) -> dict[str, Any] | None:
        """The state of a checkpoint, on the CPU; None if it is missing, damaged or unreadable.

        Raises:
            MemoryError, RuntimeError, OSError: There is no memory for it now, which says nothing
                of the checkpoint.
        """
        path = Path(ref.uri) / _STATE
        if not _is_sound(ref, lambda: _sha256(path)):
            return None
        try:
            state: dict[str, Any] = _read(path)
        except Exception as error:  # torch, and what a file holds, may raise anything
            if is_of_memory(error):
                raise
            log.warning("checkpoint_unreadable", uri=ref.uri, error=describe_error(error, 500))
            return None
        return state

    def load_files(self, ref: CheckpointRef) -> Path | None:
        """The folder with a checkpoint's files, to be read only; None if one is not as it was."""
        folder = Path(ref.uri) / _FILES
        return folder if _is_sound(ref, lambda: _tree_sha256(folder)) else None

    def load_last(
        self, study: str, generation: str | None, number: int, ref: CheckpointRef
    ) -> Kept[dict[str, Any]] | None:
        """The state of `ref`, or, where it is not whole, of the last good one before it.

        Raises:
            TransientError: The store has one, maybe, and does not answer.
        """
        trial = _Trial(study, generation, number)
        return self._last(trial, ref, lambda found: _kept(found, self.load(found)))

    def load_last_files(
        self, study: str, generation: str | None, number: int, ref: CheckpointRef
    ) -> Kept[Path] | None:
        """The files of `ref`, or, where they are not whole, of the last good one before it.

        Raises:
            TransientError: The store has one, maybe, and does not answer.
        """
        trial = _Trial(study, generation, number)
        return self._last(trial, ref, lambda found: _kept(found, self.load_files(found)))

    def _last(
        self, trial: _Trial, ref: CheckpointRef, load: Callable[[CheckpointRef], T | None]
    ) -> T | None:
        found = load(self._brought_here(trial, ref))
        if found is not None:
            return found
        for other in self._before(trial, ref):
            if (found := load(other)) is not None:
                log.warning("checkpoint_before_used", step=other.step, uri=other.uri)
                return found
        return None

    def _brought_here(self, trial: _Trial, ref: CheckpointRef) -> CheckpointRef:
        """A checkpoint where it lies in this home, fetched from the store if it is another's."""
        if self._store is None or Path(ref.uri).exists():
            return ref
        step, token = place_of(ref)
        own = checkpoint_folder(self._root, trial.study, trial.number, token, step)
        if not own.exists():
            self._fetch(trial, token, step)
        return ref._replace(uri=str(own))

    def _before(self, trial: _Trial, ref: CheckpointRef) -> Iterator[CheckpointRef]:
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

    def _fetch(self, trial: _Trial, token: int, step: int) -> None:
        if self._store is None:
            return
        key = checkpoint_key(*trial, token, step)
        own = checkpoint_folder(self._root, trial.study, trial.number, token, step)
        with _away_for_now():
            is_there = self._store.get(key, own)
        log.info("checkpoint_fetched" if is_there else "checkpoint_not_in_store", key=key)

    def remove(self, study: str, generation: str | None, number: int) -> None:
        """Drop all checkpoints of a trial that has ended."""
        if self._uploads is not None:  # first: what is not here any more reminds nobody
            self._uploads.add(Errand("forget", study, number, generation=generation or ""))
        shutil.rmtree(self._root / study / str(number), ignore_errors=True)


class _Trial(NamedTuple):
    """Whose checkpoints are meant, in the store."""

    study: str
    generation: str | None
    number: int


@contextmanager
def _away_for_now() -> Iterator[None]:
    """Have a trial whose checkpoint the store may have given back, uncounted, while it is away."""
    try:
        yield
    except StoreAwayError as error:
        raise TransientError(f"the trial's checkpoint is in the store: {error}") from error


def _token_of(ref: CheckpointRef) -> int:
    """The attempt that saved a checkpoint; by the layout of the files."""
    return place_of(ref)[1]


def _kept(ref: CheckpointRef, content: T | None) -> Kept[T] | None:
    """What a checkpoint holds, with the attributes that lie beside it; None without a content."""
    if content is None:
        return None
    try:
        attributes = json.loads((Path(ref.uri) / _ATTRIBUTES).read_text())
    except FileNotFoundError:
        attributes = {}
    except (OSError, ValueError) as error:
        log.warning("attributes_unreadable", uri=ref.uri, error=describe_error(error, 500))
        attributes = {}
    return Kept(content, attributes if isinstance(attributes, dict) else {}, ref.step)


def _read(path: Path) -> Any:
    import torch

    # weights_only: a checkpoint is data, never code
    with torch.device("cpu"):  # sparse tensors would be made on the default device
        return unpack(torch.load(path, map_location="cpu", weights_only=True))


def _write_state(path: Path, packed: Any) -> str:
    """Write a state; the sum over the file, taken as it is written."""
    import torch

    # a file of our own: given a path, torch turns a full disk into a RuntimeError
    with path.open("wb") as file:
        summed = _Summed(file)
        try:
            torch.save(packed, cast("IO[bytes]", summed))
        except RuntimeError:
            # torch's writer closes its archive on the way out, and what that raises hides the disk
            if summed.error is not None:
                raise summed.error from None
            raise
        return summed.sha256


class _Summed:
    """A file that is written from beginning to end, and summed on the way."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sum = hashlib.sha256()
        #: why the disk took no more
        self.error: OSError | None = None

    @property
    def sha256(self) -> str:
        return self._sum.hexdigest()

    def write(self, content: bytes | memoryview) -> int:
        self._sum.update(content)
        with self._noted():
            return self._file.write(content)

    def flush(self) -> None:
        with self._noted():
            self._file.flush()

    @contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error
            raise


def _is_sound(ref: CheckpointRef, measure: Callable[[], str]) -> bool:
    """Whether what a checkpoint holds is what was saved; where not, it is said."""
    try:
        found = measure()
    except OSError as error:
        if is_of_memory(error):
            raise
        log.warning("checkpoint_unreadable", uri=ref.uri, error=str(error))
        return False
    if found != ref.sha256:
        log.warning("checkpoint_corrupt", uri=ref.uri, expected=ref.sha256, found=found)
    return found == ref.sha256


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tree_sha256(folder: Path) -> str:
    """The sum over the names and the sums of all files in a folder.

    Raises:
        OSError: There is no such folder, or one cannot be read.
    """
    folder.stat()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{path.relative_to(folder).as_posix()}\0{_sha256(path)}" for path in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
