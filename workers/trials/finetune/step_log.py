"""What a training says of its steps: their mean loss and gradients, the rate, and tokens a second.

Invariant: sums lie on the device, which is waited for only where a line is written; a loss or a
norm that is no finite number is in none of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

from workers.logs import get_logger

log = get_logger(__name__)


class StepLog:
    """Writes a line every so many steps, to the log and to the trial's W&B run.

    The first line of a resumed training is of the steps since.

    Args:
        every: Steps a line; None writes none.
        device: Where losses lie.
        publish: Takes the values of a line, and the step.
        clock: Seconds of training, monotonic; it may stand still over what is none.
    """

    def __init__(
        self,
        every: int | None,
        device: torch.device,
        publish: Callable[[Mapping[str, float], int], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._every = every
        self._device = device
        self._publish = publish
        self._clock = clock
        self.begin()

    def note(
        self,
        step: int,
        rate: float,
        loss: torch.Tensor,
        norm: torch.Tensor,
        tokens: int,
        share: float = 1,
    ) -> None:
        """Take note of a step that was made.

        Args:
            step: Its number, from 1.
            rate: Its learning rate.
            loss: The batch's mean loss, a scalar without a graph.
            norm: The norm of the gradients before clipping, a scalar.
            tokens: Tokens of the batch, without padding.
            share: What the loss counts in the mean.
        """
        if self._every is None:
            return
        numbers = torch.stack((loss.float(), norm.float()))
        # not so of a batch that is left out: to ask whether it is one would be to wait
        is_finite = numbers.isfinite()
        of_step = torch.stack((torch.where(is_finite, numbers, 0.0), is_finite.float()))
        of_step[:, 0] *= share
        self._sums += of_step
        self._num_steps += 1
        self._num_tokens += tokens
        if step % self._every == 0:
            self._write(step, rate)
            self.begin()

    def begin(self) -> None:
        """Begin a line anew, at a step that may be one of before."""
        #: of losses and of norms: their sums, and of how much those are
        self._sums = torch.zeros(2, 2, device=self._device)
        self._num_steps = self._num_tokens = 0
        self._since = self._clock()

    @contextmanager
    def apart(self) -> Iterator[None]:
        """What takes time, and is no training."""
        began = self._clock()
        try:
            yield
        finally:
            self._since += self._clock() - began

    def _write(self, step: int, rate: float) -> None:
        means, (_, num_norms) = self._sums[0] / self._sums[1], self._sums[1]
        loss, norm, num_made = torch.stack((*means, num_norms)).tolist()
        seconds = max(self._clock() - self._since, 1e-9)
        values = {
            "train/loss": loss,
            "train/gradient_norm": norm,
            "train/learning_rate": rate,
            "train/tokens_per_second": round(self._num_tokens / seconds, 1),
        }
        if num_made < self._num_steps:
            values["train/batches_left_out"] = self._num_steps - int(num_made)
        self._publish(values, step)
        log.info("steps", step=step, **{name.partition("/")[2]: v for name, v in values.items()})
