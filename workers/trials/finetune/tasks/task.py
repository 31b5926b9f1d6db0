"""What a task is: what is learned from which examples, and how it is measured.

A task is asked in this order: `examples`, `build_model`, `meter`, and then, batch by batch,
`collator`, `loss`, `evaluation_loss` and `measured`. It keeps no state of the training.

Invariant: a task draws from torch's generator in `build_model` and in `loss` alone, so that a
resumed training draws what an undisturbed one would have.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch

from workers.disk.cache_entry import Progress
from workers.managers import DataManager, MetricsManager, ModelManager
from workers.managers.data import Examples
from workers.managers.metrics import Meter
from workers.managers.passes import num_rows
from workers.managers.tokenized import Batch, Collate, PaddingCollator
from workers.protocol.finetune import FinetuneConfig


class Task(ABC):
    """What a training learns.

    Args:
        config: The trial's settings.
    """

    #: Whether losses are means over rows; else, over tokens of which rows have more or fewer.
    is_over_rows: ClassVar[bool] = True

    def __init__(self, config: FinetuneConfig) -> None:
        self.config = config

    def examples(self, data: DataManager, progress: Progress) -> Examples:
        """What is trained on, and what is held out; read as `DataConfig.task` says.

        Raises:
            InvalidInputError: The study's data cannot be used.
        """
        config = self.config
        return data.examples(config.data, config.tokenizer, config.model, progress)

    @abstractmethod
    def build_model(self, models: ModelManager, examples: Examples) -> Any:
        """A fresh model with the head that the examples ask for.

        Raises:
            UnfitModelError: The study's model cannot be built, or does not take the examples.
        """

    def collator(self, pad_id: int, multiple: int) -> Collate:
        """What puts rows into one batch; its tensors have the rows as their first dimension.

        Args:
            pad_id: The token that fills up.
            multiple: Lengths are rounded up to it.
        """
        return PaddingCollator(pad_id, multiple)

    def drawn(self, batch: Batch, seed: int, step: int) -> Batch:  # noqa: ARG002
        """A batch of the training, with what is drawn of it anew each time that it is seen.

        Args:
            batch: As the collator made it, on the CPU, in a thread that has none of torch's.
            seed: The training's.
            step: Steps before this one; what is drawn follows from both and the batch alone.
        """
        return batch

    def held_out(self, batch: Batch) -> Batch:
        """A batch of the held-out side: the same at each evaluation, of each trial of a study."""
        return batch

    def weight(self, batch: Batch) -> int | torch.Tensor:
        """What `loss` is the mean over, in number; of a tensor it is not waited for.

        A step's gradient is the same however its batch is cut: its parts weigh as much as this.
        """
        return num_rows(batch)

    @abstractmethod
    def loss(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """What is minimised: the mean over what `weight` counts, a scalar with a graph."""

    @abstractmethod
    def evaluation_loss(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """What is measured as `loss`: a mean like it, without what only regularises."""

    def measured(self, logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """What the metrics are given: predictions, and what they ought to be, equally long.

        Their length is the weight of the batch in the mean of `evaluation_loss`.
        """
        return logits, batch["labels"]

    @abstractmethod
    def meter(self, metrics: MetricsManager, examples: Examples) -> Meter:
        """What measures an evaluation: the metrics that `protocol/tasks.py` names, by name."""
