"""Whether an objective ran out of memory, of its device or of its host.

Invariant: only what the error's own traceback shows counts: an error that an objective dealt with,
and hid by `from None`, does not.
"""

from __future__ import annotations

import torch

from workers.protocol.memory_errors import is_of_memory
from workers.trials.advice import shown_chain


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether that is what an error tells, or one that led to it."""
    return any(
        isinstance(each, torch.OutOfMemoryError) or is_of_memory(each)
        for each in shown_chain(error)
    )
