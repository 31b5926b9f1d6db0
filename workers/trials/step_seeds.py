"""What a training draws follows from its seed, the epoch and the step, and from nothing before.

The generators of Python, NumPy and torch (on its devices, too) are seeded anew for each batch that
is read and for each step, so that no state of theirs has to be kept, and a batch that was skipped
has drawn nothing that is missed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

_BITS = (1 << 64) - 1


@dataclass(frozen=True)
class StepSeeds:
    """The seeds of one training."""

    seed: int

    @classmethod
    def drawn(cls) -> StepSeeds:
        """Seeds that follow from torch's generator: of a seeded study, the same in each attempt."""
        return cls(int(torch.randint(2**62, (), device="cpu").item()))

    def of(self, what: str, *numbers: int) -> int:
        """The seed of one thing, in [0, 2**64); those of two things have nothing in common."""
        mixed = _scramble(self.seed ^ int.from_bytes(what.encode()))
        for number in numbers:
            mixed = _scramble(mixed ^ _scramble(number))
        return mixed

    def sow(self, what: str, *numbers: int) -> None:
        """Seed the generators of this process for one thing."""
        seed_generators(self.of(what, *numbers))


@dataclass(frozen=True)
class Sown:
    """The index of a batch on its way to a loader process, which is seeded where it arrives."""

    seed: int
    index: Any

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrive, (self.seed, self.index)


def seed_generators(seed: int) -> None:
    """Seed the generators of Python, NumPy and torch in this process.

    Args:
        seed: In [0, 2**64).
    """
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    # torch.manual_seed would do so for devices that may come, and keep a traceback of each call
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed(seed)
    elif torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


def _arrive(seed: int, index: Any) -> Any:
    """Take the index of the batch that a loader process reads next."""
    seed_generators(seed)
    return index


def _scramble(number: int) -> int:
    """Mix the bits of a number (splitmix64; Steele et al., 2014)."""
    number = (number + 0x9E3779B97F4A7C15) & _BITS
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & _BITS
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & _BITS
    return number ^ (number >> 31)
