from __future__ import annotations

import pytest
import torch

from workers.protocol.errors import ObjectiveError
from workers.trials.cuda_errors import cuda_trouble

HINT = (
    "\nSearch for `cudaError...' in https://docs.nvidia.com/cuda/ for more information."
    "\nCUDA kernel errors might be asynchronously reported at some other API call, so the"
    " stacktrace below might be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1"
    "\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n"
)

BROKEN = {
    f"CUDA error: device-side assert triggered{HINT}": "device-side assert",
    f"CUDA error: an illegal memory access was encountered{HINT}": "illegal memory access",
    f"CUDA error: misaligned address{HINT}": "illegal memory access",
    f"CUDA error: unspecified launch failure{HINT}": "unspecified launch failure",
    "CUDA error: uncorrectable ECC error encountered": "uncorrectable ECC error",
    "CUDA error: CUDA-capable device(s) is/are busy or unavailable": "device busy or unavailable",
    "CUDA error: no kernel image is available for execution on the device": "no kernel image",
    "CUDA error: invalid device ordinal\nGPU device may be out of range": "invalid device ordinal",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`": "cuBLAS error",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED": "cuDNN error",
    "NCCL error in: ProcessGroupNCCL.cpp:2, unhandled system error": "NCCL error",
    "CUDA error: unknown error": "CUDA error",
    "CUDA driver error: device not ready": "CUDA error",
    "cudaErrorIllegalAddress: an illegal memory access was encountered": "illegal memory access",
    "[700] Call to cuMemcpyDtoH results in CUDA_ERROR_ILLEGAL_ADDRESS": "illegal memory access",
    "INTERNAL: CUDA_ERROR_LAUNCH_FAILED: unspecified": "unspecified launch failure",
}


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, torch.AcceleratorError])
@pytest.mark.parametrize("text", BROKEN)
def test_an_error_of_cuda_is_known_by_its_text_whatever_its_type(text, kind):
    trouble = cuda_trouble(kind(text))
    assert trouble is not None
    assert trouble.kind == BROKEN[text]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory"),
        torch.AcceleratorError(f"CUDA error: out of memory{HINT}"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if ..."),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
        AssertionError("Torch not compiled with CUDA enabled"),
        RuntimeError("No CUDA GPUs are available"),
        RuntimeError(
            "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback:\n"
            "RuntimeError: CUDA error: initialization error"
        ),
        KeyboardInterrupt("CUDA error: unknown error"),
    ],
    ids=str,
)
def test_memory_that_ran_out_and_what_is_no_error_of_cuda_leave_the_process_as_it_was(error):
    assert cuda_trouble(error) is None


def raised(raise_it):
    try:
        raise_it()
    except (RuntimeError, ValueError, ObjectiveError, ExceptionGroup) as error:
        return error
    raise AssertionError


def test_what_led_to_an_error_counts_however_it_was_raised():
    def cause():
        raise torch.AcceleratorError(f"CUDA error: device-side assert triggered{HINT}")

    def chained():
        try:
            cause()
        except RuntimeError as error:
            raise ObjectiveError("the training failed") from error

    def hidden():
        try:
            cause()
        except RuntimeError:
            raise ValueError("the training failed") from None

    def grouped():
        raise ExceptionGroup("all of them", [ValueError("x"), raised(chained)])

    for way in (cause, chained, hidden, grouped):
        trouble = cuda_trouble(raised(way))
        assert trouble is not None, way
        assert trouble.is_of_code
        assert "label" in trouble.cause
