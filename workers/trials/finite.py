"""Whether the numbers of a training are finite, and what is said where they are not.

Invariant: a training whose weights, or whose losses as far as they are seen, are NaN or infinite
ends as FAILED: what is measured of it is a number, such as the share of class 0, and means nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import torch

from workers.protocol.errors import ObjectiveError

#: What torch can add up; weights of 8 bits or less are not trained.
_TRAINED: Final = {
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
}

_HALF: Final = {torch.float16, torch.bfloat16}

#: What to do about a training that diverges.
WAY_OUT: Final = (
    "lower the learning rate or clip the gradients; to have such trials count as given up, raise"
    " optuna.TrialPruned in the objective"
)


class FiniteWatch:
    """The numbers that stand for one training, none of which may be NaN or infinite."""

    def __init__(self) -> None:
        self._last: dict[str, str] = {}

    def note(self, name: str, value: float, place: str) -> None:
        """Take note of a number.

        Args:
            name: What it is, such as `the loss`.
            value: The number.
            place: Where training is, such as `at step 3 of 12`.

        Raises:
            ObjectiveError: It is NaN or infinite.
        """
        if not math.isfinite(value):
            before = self._last.get(name, "none")
            raise ObjectiveError(
                f"{name} is {value} {place} (the last finite one: {before}): the training has"
                f" diverged; {WAY_OUT}"
            )
        self._last[name] = f"{value:.6g} {place}"

    def look_at(self, named: Iterable[tuple[str, torch.Tensor]], place: str) -> None:
        """Look at weights; waits for their devices.

        Raises:
            ObjectiveError: One holds NaN or infinity.
        """
        name = first_not_finite(named)
        if name is not None:
            last = "; ".join(f"{what} was {text}" for what, text in self._last.items())
            raise ObjectiveError(
                f"weight {name} is no finite number {place}"
                f" ({last or 'nothing was measured before'}): the training has diverged; {WAY_OUT}"
            )


def first_not_finite(named: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """The name of the first tensor that holds NaN or infinity, or None; waits once a device.

    Sums are looked at: to look at each number takes ten times as long on a CPU.
    """
    found = [
        (name, tensor.detach())
        for name, tensor in named
        if tensor.dtype in _TRAINED and tensor.device.type != "meta"
    ]
    for device in {tensor.device for _, tensor in found}:
        there = [(name, tensor) for name, tensor in found if tensor.device == device]
        sums = torch.stack([_sum(tensor).isfinite() for _, tensor in there])
        for (name, tensor), is_finite in zip(there, sums.tolist(), strict=True):
            # of numbers that are large, the sum alone may be infinite
            if not is_finite and not tensor.isfinite().all():
                return name
    return None


def trained(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """What training changes in a module, by name: its weights, and what its norms have counted."""
    for name, weight in module.named_parameters():
        if weight.requires_grad:
            yield name, weight
    for name, layer in module.named_modules():
        if isinstance(layer, torch.nn.modules.batchnorm._NormBase):
            yield from layer.named_buffers(name, recurse=False)


def best_value(values: Sequence[float], direction: str) -> float:
    """The best of some evaluations, in whatever order they came.

    Raises:
        ObjectiveError: One is NaN: nothing is better or worse than it.
    """
    for number, value in enumerate(values, 1):
        if math.isnan(value):
            raise ObjectiveError(f"the metric is nan in evaluation {number} of {len(values)}")
    return min(values) if direction == "minimize" else max(values)


def _sum(tensor: torch.Tensor) -> torch.Tensor:
    """Of half precision in float32: that of many would leave its range."""
    return tensor.sum(dtype=torch.float32) if tensor.dtype in _HALF else tensor.sum()
