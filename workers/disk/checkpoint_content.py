"""What one checkpoint's folder holds: a state or a trainer's files, and the trial's attributes.

Invariant: what is loaded is, to the bit, what was saved: it is summed as it is written, and the sum
compared before it is read. torch is imported by whoever saves or loads a state.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, Final, Generic, NamedTuple, TypeVar, cast

from workers.coordination.trial_record import CheckpointRef
from workers.disk import durable
from workers.disk.state_reading import unpack
from workers.logs import get_logger
from workers.protocol.memory_errors import is_of_memory
from workers.protocol.plain import describe_error

log = get_logger(__name__)

T = TypeVar("T")

_STATE: Final = "state.pt"

_FILES: Final = "files"

_ATTRIBUTES: Final = "attributes.json"


class Kept(NamedTuple, Generic[T]):
    """What a checkpoint holds."""

    content: T
    attributes: dict[str, Any]
    """Of its trial, at its step; empty where there were none."""
    step: int


def write_state(folder: Path, packed: Any) -> str:
    """Write what `state_packing.pack` made of a state; the sum over it."""
    import torch

    # a file of our own: given a path, torch turns a full disk into a RuntimeError
    with (folder / _STATE).open("wb") as file:
        summed = _Summed(file)
        try:
            torch.save(packed, cast("IO[bytes]", summed))
        except RuntimeError:
            # torch's writer closes its archive on the way out, and what that raises hides the disk
            if summed.error is not None:
                raise summed.error from None
            raise
        return summed.sha256


def write_files(folder: Path, linked: Sequence[Path], copied: Sequence[Path]) -> str:
    """Keep files and folders, each under its own name; the sum over all."""
    files = folder / _FILES
    files.mkdir()
    for path in linked:
        durable.link_tree(path, files / path.name)
    for path in copied:
        durable.copy_tree(path, files / path.name)
    return _tree_sha256(files)


def write_attributes(folder: Path, attributes: Mapping[str, Any]) -> None:
    """Keep what the trial's attributes were, as plain JSON."""
    (folder / _ATTRIBUTES).write_text(json.dumps(attributes))


def load_state(ref: CheckpointRef) -> dict[str, Any] | None:
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


def load_files(ref: CheckpointRef) -> Path | None:
    """The folder with a checkpoint's files, to be read only; None if one is not as it was."""
    folder = Path(ref.uri) / _FILES
    return folder if _is_sound(ref, lambda: _tree_sha256(folder)) else None


def why_not_loaded(ref: CheckpointRef, *, is_files: bool) -> str | None:
    """Why a checkpoint holds nothing here to go on from; None if it was asked for the other kind.

    Args:
        ref: The checkpoint.
        is_files: Whether files were asked for, and no state.
    """
    folder = Path(ref.uri)
    if not folder.is_dir():
        return f"the checkpoint of step {ref.step} cannot be reached from here"
    asked, other = (_FILES, _STATE) if is_files else (_STATE, _FILES)
    if (folder / other).exists() and not (folder / asked).exists():
        return None
    return f"the checkpoint of step {ref.step} is not as it was saved"


def with_attributes(ref: CheckpointRef, content: T | None) -> Kept[T] | None:
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
