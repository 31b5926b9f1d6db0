"""Divergence: when a training's loss or gradients are no numbers, told without waiting for the GPU.

Losses stay on the device until they are looked at: on the CPU each one, on a GPU some dozens at a
time, and all of them before anything is reported or saved.

Invariant: when `look` returns, every step so far had a finite loss, or was left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from workers.logs import get_logger

log = get_logger(__name__)

#: Steps whose losses wait on a GPU to be looked at together.
_STEPS_A_LOOK: Final = 32

#: Steps in a row that fp16 may leave out while its scale falls: from 2**16, more are not of it.
_SCALE_STEPS: Final = 40


class Diverged(Exception):  # noqa: N818 - it need not be an error: it may be rolled back
    """The loss is no finite number any more; its text says where that began."""


@dataclass
class LossWatch:
    """The losses of one training, and whether it still is one.

    Args:
        device: Where the losses lie.
        max_left_out: Steps in a row that may be left out; 0 where none is.
        is_scaled: Whether a scaler leaves out steps whose gradients overflow (fp16).
    """

    device: torch.device
    max_left_out: int = 0
    is_scaled: bool = False
    num_left_out: int = 0
    """Steps left out since the training began."""
    _total: float = 0.0
    """The sum of the finite losses since `forget_mean`, each by its share."""
    _count: float = 0
    """The sum of their shares."""
    _in_a_row: int = 0
    _overflows: int = 0
    _last: float | None = None
    _pending: list[tuple[int, float, float, torch.Tensor]] = field(default_factory=list)

    def note(
        self, step: int, rate: float, loss: torch.Tensor, norm: torch.Tensor, share: float = 1
    ) -> None:
        """Take note of a step that was made.

        Args:
            step: Its number, from 1.
            rate: Its learning rate.
            loss: The batch's mean loss, a scalar without a graph.
            norm: The norm of the gradients before clipping, a scalar.
            share: What the loss counts in the mean.

        Raises:
            Diverged: See `look`.
        """
        if self.device.type == "cpu":
            self._judge(step, rate, float(loss), float(norm), share)
            return
        self._pending.append((step, rate, share, torch.stack((loss.float(), norm.float()))))
        if len(self._pending) >= _STEPS_A_LOOK:
            self.look()

    def look(self) -> None:
        """Look at all losses so far.

        Raises:
            Diverged: A loss was not finite, and not left out; or too many in a row were.
        """
        pending, self._pending = self._pending, []
        if not pending:
            return
        values = torch.stack([each for *_, each in pending]).tolist()
        for (step, rate, share, _), (loss, norm) in zip(pending, values, strict=True):
            self._judge(step, rate, loss, norm, share)

    def mean(self) -> float:
        """The mean of the finite losses since `forget_mean`; NaN if there was none."""
        self.look()
        return self._total / self._count if self._count else math.nan

    def forget_mean(self) -> None:
        """Begin the next mean."""
        self._total, self._count = 0.0, 0

    def describe(self, what: str, step: int, rate: float) -> str:
        """What diverged, when, at which rate, and what the loss was before."""
        last = (
            "no loss was finite before" if self._last is None else f"loss before: {self._last:.6g}"
        )
        return f"{what} at step {step} (learning rate {rate:.6g}; {last})"

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training goes on with; to be asked for after a `look`."""
        return {
            "total": self._total,
            "count": self._count,
            "in_a_row": self._in_a_row,
            "overflows": self._overflows,
            "last": self._last,
            "num_left_out": self.num_left_out,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`, or, where that is empty, from now."""
        self._pending.clear()
        self._total, self._count = state.get("total", 0.0), state.get("count", 0)
        self._in_a_row, self._overflows = state.get("in_a_row", 0), state.get("overflows", 0)
        self._last, self.num_left_out = state.get("last"), state.get("num_left_out", 0)

    def _judge(self, step: int, rate: float, loss: float, norm: float, share: float) -> None:
        if self.is_scaled and math.isfinite(loss):
            self._judge_scaled(step, rate, norm)
        elif not math.isfinite(loss) or not math.isfinite(norm):
            self._judge_bad(step, rate, loss, norm)
            return
        self._total += loss * share
        self._count += share
        self._in_a_row = 0
        self._last = loss

    def _judge_scaled(self, step: int, rate: float, norm: float) -> None:
        """Of fp16: gradients overflow now and then, until the scale fits; not for ever."""
        self._overflows = 0 if math.isfinite(norm) else self._overflows + 1
        if self._overflows > _SCALE_STEPS:
            what = f"the gradients overflow fp16 at any scale, {self._overflows} times in a row,"
            raise Diverged(self.describe(what, step, rate))

    def _judge_bad(self, step: int, rate: float, loss: float, norm: float) -> None:
        what = f"the loss is {loss}"
        if math.isfinite(loss):
            what = f"the loss is {loss:.6g}, and the norm of its gradients {norm},"
        self._in_a_row += 1
        if self._in_a_row <= self.max_left_out:
            self.num_left_out += 1
            log.warning("batch_left_out", step=step, loss=loss, gradient_norm=norm)
            return
        if self.max_left_out:
            what = f"{what}, as in the {self.max_left_out} batches before, which were left out,"
        raise Diverged(self.describe(what, step, rate))
