"""Whether an objective ran out of memory, of its device or of its host.

Invariant: only what the error's own traceback shows counts: an error that an objective dealt with,
and hid by `from None`, does not.
"""

from __future__ import annotations

import errno
import re
from typing import Final

import torch

from workers.protocol.plain import describe_error
from workers.trials.advice import shown_chain

#: How much of an error's text is looked through.
_LOOKED_AT: Final = 20_000

#: What CUDA and its libraries, torch's allocator on the CPU, XLA and C++ say; loaders pass it on.
_MEMORY: Final = re.compile(
    r"out of memory|OUT_OF_MEMORY|ALLOC_FAILED|cudaErrorMemoryAllocation|RESOURCE_EXHAUSTED"
    r"|can't allocate memory|not enough memory: you tried to allocate|std::bad_alloc",
    re.IGNORECASE,
)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether that is what an error tells, or one that led to it."""
    return any(map(_is_of_memory, shown_chain(error)))


def _is_of_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # other libraries' own errors are of this type, as torch's are
    return isinstance(error, RuntimeError) and bool(
        _MEMORY.search(describe_error(error, _LOOKED_AT))
    )
