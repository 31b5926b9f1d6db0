"""The GPUs of this host, and those that this process may hand out.

NVML tells them without initialising a CUDA context. `CUDA_VISIBLE_DEVICES` is composed: whatever it
was set to, by index, UUID, abbreviated UUID or MIG instance, is what there is to hand out. Indices
are those of `nvidia-smi`.

Invariant: one GPU, or one MIG instance, has one UUID here, however it was named. A host whose GPUs
do not answer is refused, and is no host without GPUs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

import pynvml

from workers.logs import get_logger
from workers.protocol.errors import InvalidInputError

log = get_logger(__name__)

_VARIABLE: Final = "CUDA_VISIBLE_DEVICES"

#: Entries at which CUDA hides what they stand for, and all that follow.
_HIDING: Final = frozenset({"-1", "NoDevFiles", "void", "none"})

#: What NVML says on a host without a GPU, or without NVIDIA's driver.
_NO_DRIVER: Final = frozenset(
    {pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED}
)

_WAY_OUT: Final = (
    f"nvidia-smi tells more, and a restart of the host often helps; set {_VARIABLE} empty to run on"
    " the CPU"
)


@dataclass(frozen=True)
class Gpu:
    """A GPU, or an instance of one that is partitioned (MIG)."""

    entry: str
    """What `CUDA_VISIBLE_DEVICES` is set to for it."""
    uuid: str

    def __str__(self) -> str:
        return self.uuid if self.entry == self.uuid else f"{self.entry} ({self.uuid[:12]})"


def visible_gpus(environment: Mapping[str, str] = os.environ) -> tuple[Gpu, ...]:
    """The GPUs that this process may hand out, each once.

    Raises:
        InvalidInputError: `CUDA_VISIBLE_DEVICES` names what this host does not have, or none of the
            GPUs answers.
    """
    given = environment.get(_VARIABLE)
    if given is not None and not given.strip():
        return ()
    present = _present()
    if given is None:
        return tuple(_whole_or_parts(present))
    entries = list(takewhile(lambda entry: entry not in _HIDING, map(str.strip, given.split(","))))
    found = [gpu for entry in filter(None, entries) for gpu in _named(entry, present)]
    if any(entries) and not found:
        raise InvalidInputError(
            f"{_VARIABLE}={given!r} names GPUs alone that do not answer; {_WAY_OUT}"
        )
    once: dict[str, Gpu] = {}
    for gpu in found:
        once.setdefault(gpu.uuid, gpu)
    return tuple(once.values())


def count_gpus() -> int:
    """How many GPUs this process may hand out."""
    return len(visible_gpus())


def gpu_of_slot(slot: int) -> Gpu | None:
    """The GPU of a pool process; slots beyond the GPUs share them in turn."""
    gpus = visible_gpus()
    return gpus[slot % len(gpus)] if gpus else None


def show_only(gpus: tuple[Gpu, ...]) -> None:
    """Let this process, and all that it starts, see some GPUs alone; before torch is imported."""
    os.environ[_VARIABLE] = ",".join(gpu.entry for gpu in gpus)
    # CUDA's own order, the fastest first, is not that of the indices
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"


@dataclass(frozen=True)
class _Board:
    """A GPU as NVML tells it: its UUID, and those of its MIG instances."""

    uuid: str
    instances: tuple[str, ...] = ()
    trouble: str | None = None
    """Why it does not answer; it has no UUID then."""


def _whole_or_parts(boards: list[_Board]) -> Iterator[Gpu]:
    for index in range(len(boards)):
        yield from _at(index, boards)


def _at(index: int, boards: list[_Board]) -> list[Gpu]:
    """The GPU of an index, or its MIG instances; none if it does not answer."""
    board = boards[index]
    if board.trouble is not None:
        return []
    if board.instances:  # CUDA can use the instances of a partitioned GPU alone
        return [Gpu(uuid, uuid) for uuid in board.instances]
    # CUDA may leave out one that does not answer, and count on from there
    is_whole = all(each.trouble is None for each in boards)
    return [Gpu(str(index) if is_whole else board.uuid, board.uuid)]


def _named(entry: str, boards: list[_Board]) -> list[Gpu]:
    """What an entry of `CUDA_VISIBLE_DEVICES` stands for: one GPU, or all instances of one."""
    if not boards:
        return [Gpu(entry, entry)]  # CUDA without NVML
    if entry.isdecimal():
        if int(entry) < len(boards):
            return _at(int(entry), boards)
        raise _unknown(entry, boards, "no such index")
    if entry.startswith("MIG-GPU-") and "/" in entry:
        return [Gpu(entry, entry)]  # how drivers before R470 name an instance
    known = [uuid for board in boards for uuid in (board.uuid, *board.instances)]
    matching = [uuid for uuid in known if uuid.lower().startswith(entry.lower())]
    if len(matching) != 1 or not entry.lower().startswith(("gpu-", "mig-")):
        raise _unknown(entry, boards, "it stands for several" if matching else "no such UUID")
    board = next(each for each in boards if matching[0] in {each.uuid, *each.instances})
    if matching[0] == board.uuid and board.instances:
        return [Gpu(uuid, uuid) for uuid in board.instances]
    return [Gpu(matching[0], matching[0])]


def _unknown(entry: str, boards: list[_Board], why: str) -> InvalidInputError:
    known = ", ".join(
        f"{index} = {' '.join([board.trouble or board.uuid, *board.instances])}"
        for index, board in enumerate(boards)
    )
    return InvalidInputError(
        f"{_VARIABLE} has {entry!r}: {why} on this host, which has {known}; name those that this"
        " worker may use, or unset it for all"
    )


def _present() -> list[_Board]:
    """All GPUs of this host, in the order of their indices; none where there is no driver.

    Raises:
        InvalidInputError: There is one, and it does not work, or none of the GPUs answers.
    """
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        if error.value in _NO_DRIVER:
            return []
        raise InvalidInputError(
            f"NVIDIA's driver does not work here: {error}; {_WAY_OUT}"
        ) from error
    try:
        boards = [_board_or_trouble(index) for index in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()
    if boards and all(board.trouble is not None for board in boards):
        told = "; ".join(f"GPU {index}: {board.trouble}" for index, board in enumerate(boards))
        raise InvalidInputError(f"no GPU of this host answers: {told}; {_WAY_OUT}")
    return boards


def _board_or_trouble(index: int) -> _Board:
    """A GPU, also one that fell off its bus: the others go on without it."""
    try:
        return _board(index)
    except pynvml.NVMLError as error:
        if index not in _told:
            _told.add(index)
            log.warning("gpu_lost", index=index, error=str(error), hint="the others go on")
        return _Board("", trouble=str(error))


#: The indices of GPUs of which it was said that they do not answer.
_told: Final[set[int]] = set()


def _board(index: int) -> _Board:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    instances = []
    with _unless_unsupported():
        if pynvml.nvmlDeviceGetMigMode(handle)[0]:
            for number in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
                with _unless_unsupported():
                    instance = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
                    instances.append(str(pynvml.nvmlDeviceGetUUID(instance)))
    return _Board(str(pynvml.nvmlDeviceGetUUID(handle)), tuple(instances))


@contextmanager
def _unless_unsupported() -> Iterator[None]:
    """Most GPUs cannot be partitioned, and a partition may be empty."""
    try:
        yield
    except pynvml.NVMLError as error:
        if error.value not in {pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_NOT_FOUND}:
            raise
