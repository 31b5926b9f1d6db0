"""The managers that a training is given."""

from __future__ import annotations

from dataclasses import dataclass

from workers.managers import (
    AMPManager,
    BatchManager,
    CUDAManager,
    DataManager,
    DirectoryManager,
    MetricsManager,
    ModelManager,
    TensorManager,
    WandbManager,
)


@dataclass(frozen=True, slots=True)
class Managers:
    """The managers that a training uses."""

    data: DataManager
    models: ModelManager
    amp: AMPManager
    batches: BatchManager
    metrics: MetricsManager
    cuda: CUDAManager
    tensors: TensorManager
    directories: DirectoryManager
    wandb: WandbManager
