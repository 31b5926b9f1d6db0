"""Which worker of a host has which GPU: a lock by the GPU's UUID, held by the kernel.

Workers of any user and any fleet meet in one directory of the host. A worker's main process holds
`<uuid>.worker` while it lives, and each of its pool processes a share of `<uuid>.use`: a GPU is
free again when nobody of the worker before is there any more, however it ended.

Invariant: no two workers of a host hand out one GPU.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Final

from workers.coordination.identity import ProcessIdentity
from workers.logs import get_logger
from workers.processes.gpus import Gpu, gpu_of_slot, show_only, visible_gpus
from workers.protocol.errors import InvalidInputError

log = get_logger(__name__)

#: Names another directory than the host's own, for containers that share one by a mount.
_DIRECTORY_VARIABLE: Final = "FLEET_GPU_LOCKS"

_DIRECTORY: Final = "/tmp/trialfleet-gpus"  # noqa: S108 - of all users, who lock and write nothing

#: The locks that this process holds until it ends.
_held: Final[list[int]] = []


def take_gpus(slots: int, patience_seconds: float) -> tuple[Gpu, ...]:
    """As a worker's main process, take one GPU a slot, of those that no other worker has.

    Its pool processes see these alone; slots beyond them share them in turn.

    Args:
        slots: The worker's pool processes.
        patience_seconds: How long to wait for the last processes of a worker that was killed.

    Raises:
        InvalidInputError: Other workers have all of them.
    """
    visible = visible_gpus()
    if not visible:
        return ()
    deadline = time.monotonic() + patience_seconds
    while not (taken := _take_free(visible, slots)):
        if time.monotonic() > deadline:
            raise InvalidInputError(
                f"all GPUs of this host that CUDA_VISIBLE_DEVICES leaves are another worker's:"
                f" {', '.join(map(str, visible))} (locks in {_directory()}); end that worker, name"
                " other GPUs in CUDA_VISIBLE_DEVICES, or set it empty to run on the CPU"
            )
        time.sleep(0.1)
    if len(taken) < min(slots, len(visible)):
        log.warning("gpus_of_other_workers", taken=[str(gpu) for gpu in taken], slots=slots)
    show_only(taken)
    return taken


def count_free_gpus() -> int:
    """How many GPUs a worker would get now; one where it will be told why it gets none."""
    try:
        visible = visible_gpus()
        return max(sum(map(_is_free, visible)), min(1, len(visible)))
    except InvalidInputError:
        return 1


def device_name(gpu: Gpu | None, slot: int = 0) -> str:
    """By what name marks against a device are kept: a GPU's, or those of a worker's CPU slot."""
    host = ProcessIdentity.current().host
    return f"{host}/{os.getppid()}/cpu-{slot}" if gpu is None else f"{host}/{gpu.uuid}"


def take_gpu(slot: int) -> Gpu | None:
    """Let this pool process see its GPU alone; to be called before torch is imported.

    Returns:
        The GPU, or None on a box without one.
    """
    gpu = gpu_of_slot(slot)
    if gpu is not None:
        _held.append(_lock(gpu, "use", fcntl.LOCK_SH))
        show_only((gpu,))
    return gpu


def _take_free(visible: tuple[Gpu, ...], slots: int) -> tuple[Gpu, ...]:
    taken: list[Gpu] = []
    for gpu in visible:
        lock = _try_take(gpu) if len(taken) < slots else None
        if lock is not None:
            _held.append(lock)
            taken.append(gpu)
    return tuple(taken)


def _try_take(gpu: Gpu) -> int | None:
    """The worker's lock on a GPU, if no worker has it and no process of an earlier one uses it."""
    try:
        worker = _lock(gpu, "worker", fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    try:
        _close(_lock(gpu, "use", fcntl.LOCK_EX | fcntl.LOCK_NB))
    except BlockingIOError:
        _close(worker)
        return None
    return worker


def _is_free(gpu: Gpu) -> bool:
    lock = _try_take(gpu)
    _close(lock)
    return lock is not None


def _lock(gpu: Gpu, what: str, how: int) -> int:
    """Lock a file that any user of the host may lock.

    Raises:
        BlockingIOError: Another process holds it.
        InvalidInputError: The directory takes no locks.
    """
    name = "".join(sign if sign.isalnum() or sign == "-" else "_" for sign in gpu.uuid)
    path = _directory() / f"{name}.{what}"
    try:
        descriptor = _open(path)
    except OSError as error:
        raise InvalidInputError(
            f"{path}: {error.strerror}; the workers of a host keep off one another's GPUs by locks"
            f" there: make its folder one for all users, or set {_DIRECTORY_VARIABLE} to another"
        ) from error
    try:
        fcntl.flock(descriptor, how)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _open(path: Path) -> int:
    path.parent.mkdir(mode=0o1777, exist_ok=True)
    if path.parent.stat().st_uid == os.getuid():
        path.parent.chmod(0o1777)  # whatever the umask
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        # as its owner only may one open a file there with O_CREAT (fs.protected_regular)
        return os.open(path, flags)
    except FileNotFoundError:
        pass
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return os.open(path, flags)
    os.fchmod(descriptor, 0o644)
    return descriptor


def _directory() -> Path:
    return Path(os.environ.get(_DIRECTORY_VARIABLE) or _DIRECTORY)


def _close(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)
