"""Errors of CUDA and its libraries that leave a process broken, and what each usually means.

Running out of memory is none of them: the process goes on. Nor is an error that a loader process
had, and passed on.

Invariant: an error is judged by its own text and by those that led to it, whatever its type: other
libraries than torch raise their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch

from workers.protocol.plain import describe_error

#: How much of an error's text is looked through.
_LOOKED_AT: Final = 20_000

_MEMORY: Final = re.compile(
    r"out of memory|OUT_OF_MEMORY|ALLOC_FAILED|cudaErrorMemoryAllocation", re.IGNORECASE
)

#: How torch passes on what another process of the objective raised.
_OF_A_LOADER: Final = re.compile(r"Caught \w+ in (DataLoader worker process|pin memory thread)")

_HARDWARE: Final = "the GPU or its driver fails, or a kernel of the objective does"


@dataclass(frozen=True, slots=True)
class CudaTrouble:
    """An error of CUDA's: its kind, and what usually leads to it."""

    kind: str
    cause: str
    is_of_code: bool = False
    """Whether it comes from what the objective computes, and not from a device."""

    @property
    def fingerprint(self) -> str:
        """What two errors of this kind have in common; their tracebacks differ: CUDA tells late."""
        return f"cuda: {self.kind}"


_KINDS: Final = {
    r"device-side assert\b|DEVICE_SIDE_ASSERT|ERROR_ASSERT|cudaErrorAssert": CudaTrouble(
        "device-side assert",
        "an index is out of range, most often a label: labels lie in [0, number of classes), token"
        " ids below the embedding's size; CUDA_LAUNCH_BLOCKING=1, or a run on the CPU, shows where",
        is_of_code=True,
    ),
    r"invalid device ordinal|cudaErrorInvalidDevice\b|ERROR_INVALID_DEVICE\b": CudaTrouble(
        "invalid device ordinal",
        "the objective names a GPU that its process does not have: each has one, cuda:0",
        is_of_code=True,
    ),
    r"CUDA error: invalid (argument|configuration argument)": CudaTrouble(
        "invalid argument", "a kernel was launched with a shape that CUDA refuses", is_of_code=True
    ),
    r"illegal (memory|instruction)|misaligned address|ILLEGAL_ADDRESS|IllegalAddress": (
        CudaTrouble(
            "illegal memory access",
            "a kernel reads or writes where it must not, or the GPU's memory fails:"
            " `compute-sanitizer` tells which",
        )
    ),
    r"unspecified launch failure|LAUNCH_FAILED|LaunchFailure": CudaTrouble(
        "unspecified launch failure", _HARDWARE
    ),
    r"\bECC\b|ECC_UNCORRECTABLE|ECCUncorrectable": CudaTrouble(
        "uncorrectable ECC error", "the GPU's memory fails: nvidia-smi -q -d ECC"
    ),
    r"busy or unavailable|DEVICE_UNAVAILABLE|DevicesUnavailable": CudaTrouble(
        "device busy or unavailable",
        "another process holds the GPU, or its compute mode is exclusive: nvidia-smi -q -d COMPUTE",
    ),
    r"no kernel image is available": CudaTrouble(
        "no kernel image", "this build of torch has no code for this kind of GPU"
    ),
    r"\bNCCL error|ncclSystemError|ncclInternalError|ncclUnhandledCudaError": CudaTrouble(
        "NCCL error", "GPUs do not reach one another: NCCL_DEBUG=INFO tells why"
    ),
    r"CUBLAS_STATUS_|cuBLAS error": CudaTrouble(
        "cuBLAS error", f"memory was short, an index was out of range, or {_HARDWARE}"
    ),
    r"CUDNN_STATUS_(?!NOT_SUPPORTED|BAD_PARAM)\w+": CudaTrouble(
        "cuDNN error", f"memory was short, or {_HARDWARE}"
    ),
    r"CUDA (driver )?error|cuda runtime error|\bcudaError[A-Z]|\bCUDA_ERROR_": CudaTrouble(
        "CUDA error", _HARDWARE
    ),
}

_PATTERNS: Final = [(re.compile(pattern), trouble) for pattern, trouble in _KINDS.items()]

_OF_TORCH: Final = CudaTrouble("CUDA error", _HARDWARE)


def cuda_trouble(error: BaseException) -> CudaTrouble | None:
    """What CUDA did, if that is behind an error; None if the process is as good as before."""
    for each in _chain(error):
        trouble = _trouble_of(each)
        if trouble is not None:
            return trouble
    return None


def _trouble_of(error: BaseException) -> CudaTrouble | None:
    if not isinstance(error, Exception) or isinstance(error, torch.OutOfMemoryError):
        return None
    text = describe_error(error, _LOOKED_AT)
    if _MEMORY.search(text) or _OF_A_LOADER.search(text):
        return None
    found = next((trouble for pattern, trouble in _PATTERNS if pattern.search(text)), None)
    if found is None and isinstance(error, torch.AcceleratorError):
        return _OF_TORCH
    return found


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and all that led to it: what was hidden by `from None`, too, did happen."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        waiting += [each.__context__, each.__cause__]
        if isinstance(each, BaseExceptionGroup):
            waiting += each.exceptions
