"""The GPUs of this host, and those that this process may hand out.

NVML tells them without initialising a CUDA context. `CUDA_VISIBLE_DEVICES` is composed: whatever it
was set to, by index, UUID, abbreviated UUID or MIG instance, is what there is to hand out. Indices
are those of `nvidia-smi`.

Invariant: one GPU, or one MIG instance, has one UUID here, however it was named.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import pynvml

from workers.protocol.errors import InvalidInputError

_VARIABLE: Final = "CUDA_VISIBLE_DEVICES"


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
        InvalidInputError: `CUDA_VISIBLE_DEVICES` names what this host does not have.
    """
    given = environment.get(_VARIABLE)
    if given is not None and not given.strip():
        return ()
    present = _present()
    if given is None:
        return tuple(_whole_or_parts(present))
    found: list[Gpu] = []
    for part in given.split(","):
        entry = part.strip()
        if entry in {"-1", "NoDevFiles", "void", "none"}:
            break  # CUDA hides it and all that follow
        if entry:
            found += [gpu for gpu in _named(entry, present) if gpu not in found]
    return tuple({gpu.uuid: gpu for gpu in reversed(found)}.values())[::-1]


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


def _whole_or_parts(boards: list[_Board]) -> Iterator[Gpu]:
    for index, board in enumerate(boards):
        # CUDA can use the instances of a partitioned GPU alone
        yield from [Gpu(uuid, uuid) for uuid in board.instances] or [Gpu(str(index), board.uuid)]


def _named(entry: str, boards: list[_Board]) -> list[Gpu]:
    """What an entry of `CUDA_VISIBLE_DEVICES` stands for: one GPU, or all instances of one."""
    if not boards:
        return [Gpu(entry, entry)]  # CUDA without NVML
    if entry.isdecimal():
        if int(entry) < len(boards):
            index = int(entry)
            board = boards[index]
            return [Gpu(uuid, uuid) for uuid in board.instances] or [Gpu(entry, board.uuid)]
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
        f"{index} = {' '.join([board.uuid, *board.instances])}"
        for index, board in enumerate(boards)
    )
    return InvalidInputError(
        f"{_VARIABLE} has {entry!r}: {why} on this host, which has {known}; name those that this"
        " worker may use, or unset it for all"
    )


def _present() -> list[_Board]:
    """All GPUs of this host, in the order of their indices; none where there is no driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        return [_board(index) for index in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()


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
