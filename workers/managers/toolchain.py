"""What it takes on this host to compile models, and what the compiled code is for.

Invariant: code of one toolchain and processor is told from that of others.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sysconfig
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import torch

from workers.managers.cuda import CUDAManager
from workers.protocol.errors import WorkerLacksError

#: The C compilers that Triton looks for.
_C_COMPILERS: Final = ("clang", "gcc", "cc")


def refuse_if_lacking(cuda: CUDAManager) -> None:
    """Refuse to compile where what it takes is not installed.

    Raises:
        WorkerLacksError: What is missing, and the way out.
    """
    problem = _gpu_problem() if cuda.is_cuda else _cpu_problem()
    if problem is not None:
        raise WorkerLacksError(f"compile: {problem}, or leave `compile` out")


def _cpu_problem() -> str | None:
    # the one that torch takes
    compiler = os.environ.get("CXX", "g++")
    try:
        subprocess.run([compiler, "--version"], capture_output=True, check=True)
    except (OSError, subprocess.SubprocessError):
        return (
            f"it takes a C++ compiler, and {compiler!r} does not run on this worker; install g++,"
            " or name another in CXX"
        )
    return _headers_problem()


def _headers_problem() -> str | None:
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "it takes Python's headers (Python.h), which this worker lacks; install python3-dev"
    return None


def _gpu_problem() -> str | None:
    from torch.utils._triton import has_triton

    if not has_triton():
        return "it takes Triton, which this worker lacks, or whose GPU is too old for it"
    named = os.environ.get("CC")
    if not any(map(shutil.which, [named] if named else _C_COMPILERS)):
        return "it takes a C compiler, which this worker lacks; install gcc, or name one in CC"
    return _headers_problem()  # for Triton's own launcher


def describe_machine(cuda: CUDAManager) -> dict[str, Any]:
    """What code is made by and for, as JSON takes it: it may not run on another processor."""
    facts = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "processor": _processor(),
    }
    if cuda.is_cuda:
        facts["gpu"] = torch.cuda.get_device_name(cuda.device)
    return facts


def _version(name: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(name)
    return None


def _processor() -> str:
    """The processor's name and instructions, summed up."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    told = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
    digest = hashlib.sha256("\n".join(sorted(told)).encode()).hexdigest()
    return f"{platform.machine()} {digest[:16]}"
