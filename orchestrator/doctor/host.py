"""This host: shared memory, temporary files, limits, processors, memory and GPUs.

Invariant: nothing is changed, and torch is not imported.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import psutil

from orchestrator.doctor.findings import Finding, error, ok, warning
from orchestrator.views.amounts import size
from workers.processes.control_groups import memory_limit
from workers.processes.cores import count_cores
from workers.settings import Settings

_SHARED_MEMORY: Final = "/dev/shm"  # noqa: S108 - the kernel's

#: Less is worth a line: what loaders, temporary files, and a trial with torch take.
_LEAST_SHARED: Final = 512 * 2**20
_LEAST_TEMPORARY: Final = 2**30
_LEAST_MEMORY: Final = 2 * 2**30
_LEAST_FILES: Final = 4096


@dataclass(frozen=True)
class HostFacts:
    """What was seen of a host."""

    #: Bytes free; None where there is no such directory.
    shared_memory_free: int | None = 2**40
    temporary: Path = Path("/tmp")  # noqa: S108 - where a host's lie
    temporary_free: int = 2**40
    is_temporary_writable: bool = True
    #: The hard limit of open files; -1 for none.
    max_files: int = -1
    cores: int = 1
    #: As `FLEET_SLOTS` has it.
    slots: int | None = None
    #: Bytes that trials may take, and whether a control group says so.
    memory: int = 2**40
    is_memory_limited: bool = False
    #: Names of GPUs, as NVML tells them.
    gpus: tuple[str, ...] = ()
    #: Why NVML tells none though the kernel has some.
    gpu_trouble: str | None = None
    #: Of the driver and of torch, such as (13, 0); None where there is none.
    driver_cuda: tuple[int, int] | None = None
    torch_cuda: tuple[int, int] | None = None
    has_torch: bool = True


def look(settings: Settings) -> HostFacts:
    """See how this host is."""
    temporary = Path(tempfile.gettempdir())
    limit, whole = memory_limit(), psutil.virtual_memory().total
    names, driver_cuda, trouble = _gpus()
    return HostFacts(
        shared_memory_free=_free(Path(_SHARED_MEMORY)),
        temporary=temporary,
        temporary_free=_free(temporary) or 0,
        is_temporary_writable=os.access(temporary, os.W_OK | os.X_OK),
        max_files=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        cores=count_cores(),
        slots=settings.slots,
        memory=whole if limit is None else min(limit, whole),
        is_memory_limited=limit is not None and limit < whole,
        gpus=names,
        gpu_trouble=trouble,
        driver_cuda=driver_cuda,
        torch_cuda=_torch_cuda(),
        has_torch=find_spec("torch") is not None,
    )


def shared_memory(facts: HostFacts) -> Finding:
    """Whether DataLoader workers have room to hand tensors over."""
    free = facts.shared_memory_free
    fix = "docker run --shm-size=8g, or mount -o remount,size=8g /dev/shm"
    if free is None:
        return error(_SHARED_MEMORY, "it is not there: DataLoader workers cannot start", fix)
    if free < _LEAST_SHARED:
        told = f"{size(free)} free: DataLoader workers die of it by SIGBUS"
        return warning(_SHARED_MEMORY, told, fix)
    return ok(_SHARED_MEMORY, f"{size(free)} free")


def temporary_files(facts: HostFacts) -> Finding:
    """Whether trials have room for their scratch."""
    name = str(facts.temporary)
    if not facts.is_temporary_writable:
        return error(name, "this user may not write there", f"chmod 1777 {name}, or TMPDIR")
    if facts.temporary_free < _LEAST_TEMPORARY:
        told = f"{size(facts.temporary_free)} free for the scratch of trials"
        return warning(name, told, "make room, or set TMPDIR to another disk")
    return ok(name, f"{size(facts.temporary_free)} free")


def open_files(facts: HostFacts) -> Finding:
    """Whether many studies and loaders can have their files open."""
    if 0 <= facts.max_files < _LEAST_FILES:
        told = f"at most {facts.max_files} open files"
        return warning("file limit", told, "ulimit -Hn 65536, or LimitNOFILE=65536 of the unit")
    shown = "none" if facts.max_files < 0 else str(facts.max_files)
    return ok("file limit", shown)


def processors(facts: HostFacts) -> Finding:
    """Whether each slot has a core."""
    cores = "1 core" if facts.cores == 1 else f"{facts.cores} cores"
    if facts.slots is not None and facts.slots > facts.cores and not facts.gpus:
        told = f"FLEET_SLOTS={facts.slots} on {cores}: trials share them"
        return warning("processors", told, f"FLEET_SLOTS={facts.cores}, or a larger CPU quota")
    return ok("processors", f"{cores} by affinity and quota")


def memory(facts: HostFacts) -> Finding:
    """Whether a trial has room for torch and a model."""
    limited = ", the limit of the control group" if facts.is_memory_limited else ""
    told = f"{size(facts.memory)}{limited}"
    if facts.memory < _LEAST_MEMORY:
        fix = "docker run --memory=8g, MemoryMax= of the unit, or a larger host"
        return warning("memory", f"{told}: a trial with torch takes more than 1 GB", fix)
    return ok("memory", told)


def gpus(facts: HostFacts) -> Finding:
    """Whether torch can use the GPUs that there are."""
    if facts.gpu_trouble is not None:
        fix = "nvidia-smi tells more; load the driver, or restart the host or the container"
        return error("GPUs", f"the kernel has some, and {facts.gpu_trouble}", fix)
    if not facts.gpus:
        return ok("GPUs", "none: trials run on the CPU")
    shown = f"{len(facts.gpus)} x {', '.join(sorted(set(facts.gpus)))}"
    if not facts.has_torch:
        return ok("GPUs", f"{shown}; no torch here, so no trials")
    if facts.torch_cuda is None:
        fix = "pip install torch with CUDA: see pytorch.org/get-started"
        return error("GPUs", f"{shown}, and torch is built for the CPU alone", fix)
    if facts.driver_cuda is not None and facts.driver_cuda[0] < facts.torch_cuda[0]:
        told = f"{shown}: torch is of CUDA {_dotted(facts.torch_cuda)}, the driver of"
        fix = "a newer NVIDIA driver, or a torch of the driver's CUDA"
        return error("GPUs", f"{told} {_dotted(facts.driver_cuda)}", fix)
    return ok("GPUs", f"{shown}, CUDA {_dotted(facts.torch_cuda)}")


CHECKS: Final[tuple[Callable[[HostFacts], Finding], ...]] = (
    shared_memory, temporary_files, open_files, processors, memory, gpus,
)  # fmt: skip


def _free(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def _gpus() -> tuple[tuple[str, ...], tuple[int, int] | None, str | None]:
    """Their names, the driver's CUDA, and why NVML tells none though the kernel has some."""
    devices = list(Path("/dev").glob("nvidia[0-9]*"))
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception as problem:  # noqa: BLE001 - not installed, or what NVML says without a driver
        return (), None, f"NVML does not tell them: {problem}" if devices else None
    try:
        names = tuple(_gpu_names(pynvml))
        version = int(pynvml.nvmlSystemGetCudaDriverVersion())
        return names, (version // 1000, version % 1000 // 10), None
    except Exception as problem:  # noqa: BLE001 - likewise
        return (), None, f"NVML fails: {problem}"
    finally:
        with suppress(Exception):
            pynvml.nvmlShutdown()


def _gpu_names(nvml: Any) -> list[str]:
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    return [str(nvml.nvmlDeviceGetName(handle)) for handle in handles]


def _torch_cuda() -> tuple[int, int] | None:
    """The CUDA that torch is built for, without importing it."""
    found = find_spec("torch")
    if found is None or found.origin is None:
        return None
    with suppress(OSError):
        text = (Path(found.origin).parent / "version.py").read_text()
        match = re.search(r"^cuda\b[^=]*= '(\d+)\.(\d+)", text, re.MULTILINE)
        if match is not None:
            return int(match[1]), int(match[2])
    return None
