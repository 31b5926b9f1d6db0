"""Whether one error says that memory ran out, by its type and its text; no torch is needed for it.

Invariant: only that error counts; those that led to it are `workers.trials.out_of_memory`'s.
"""

from __future__ import annotations

import errno
import re
from typing import Final

from workers.protocol.plain import describe_error

#: How much of an error's text is looked through.
_LOOKED_AT: Final = 20_000

#: What CUDA and its libraries, torch's allocator on the CPU, XLA and C++ say; loaders pass it on.
_MEMORY: Final = re.compile(
    r"out of memory|OUT_OF_MEMORY|ALLOC_FAILED|cudaErrorMemoryAllocation|RESOURCE_EXHAUSTED"
    r"|can't allocate memory|not enough memory: you tried to allocate|std::bad_alloc",
    re.IGNORECASE,
)


def is_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, of a device or of the host."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # other libraries' own errors are of this type, as torch's are
    return isinstance(error, RuntimeError) and bool(
        _MEMORY.search(describe_error(error, _LOOKED_AT))
    )
