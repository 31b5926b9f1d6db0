"""Waiting for a condition with a deadline: the only way in which a test may pass time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(
    condition: Callable[[], T],
    what: str,
    timeout_seconds: float = 60.0,
    *,
    every_seconds: float = 0.05,
) -> T:
    """Ask until the answer is true; the answer.

    Args:
        condition: What is asked.
        what: What is waited for, in words.
        timeout_seconds: For how long.
        every_seconds: The pause between two questions; longer for one that costs much, and whose
            answer stays true.
    """
    deadline = time.monotonic() + timeout_seconds
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_seconds} s: {what}")
        time.sleep(every_seconds)
    return answer
