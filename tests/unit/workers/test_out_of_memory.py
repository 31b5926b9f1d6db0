from __future__ import annotations

import errno

import numpy as np
import pytest
import torch

from workers.trials.out_of_memory import ran_out_of_memory


def raised(raise_it):
    try:
        raise_it()
    except Exception as error:  # noqa: BLE001 - whichever it is
        return error
    raise AssertionError("nothing was raised")


def hidden():
    try:
        bytearray(2**62)
    except MemoryError:
        raise ValueError("smaller, please") from None


def while_dealing_with_it():
    try:
        torch.empty(2**52)
    except RuntimeError:
        raise KeyError("batch_size")  # noqa: B904 - what an objective may do


@pytest.mark.parametrize(
    ("error", "is_of_memory"),
    [
        (MemoryError(), True),
        (raised(lambda: np.ones(2**62, dtype=np.uint8)), True),
        (raised(lambda: torch.empty(2**52)), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (torch.AcceleratorError("CUDA error: out of memory"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("Caught MemoryError in DataLoader worker process 0.\nout of memory"), True),
        (RuntimeError("std::bad_alloc"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (raised(while_dealing_with_it), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (ValueError("the table is out of memory cards"), False),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (raised(hidden), False),
        (RecursionError("maximum recursion depth exceeded"), False),
    ],
)
def test_running_out_of_memory_is_told_from_other_errors(error, is_of_memory):
    assert ran_out_of_memory(error) is is_of_memory
