"""Objectives whose rows are slow to read: loader processes do, in each epoch and evaluation."""

from __future__ import annotations

import time
from multiprocessing.context import SpawnContext
from typing import Final

import torch
from torch.utils.data import DataLoader, Dataset

from workers.trials.handle import FleetTrial

ROWS: Final = 64
EPOCHS: Final = 2

#: What a row takes to read, as an image to decode.
_ROW_SECONDS: Final = 0.005


class SlowRows(Dataset[torch.Tensor]):
    """Rows of eight random numbers."""

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(_ROW_SECONDS)
        return torch.rand(8) + index


class PlainSpawn(SpawnContext):
    """`spawn`, which the fleet knows only by its very own class, and has not fork instead."""


def forked(trial: FleetTrial) -> float:
    """Fit a line; loader processes are forked from the server of this process."""
    return _fit(trial, SpawnContext())


def spawned(trial: FleetTrial) -> float:
    """Fit a line; loader processes are spawned."""
    return _fit(trial, PlainSpawn())


def _fit(trial: FleetTrial, context: SpawnContext) -> float:
    torch.manual_seed(trial.seed)
    model = torch.nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=trial.suggest_float("lr", 1e-5, 1e-4))
    loader, held_out = (
        DataLoader(SlowRows(), batch_size=8, num_workers=2, multiprocessing_context=context)
        for _ in range(2)
    )
    loss = torch.zeros(())
    with trial.training({"model": model, "optimizer": optimizer}) as run:
        for _ in run.epochs(EPOCHS):
            for batch in run.steps(loader):
                model(batch).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
            with torch.no_grad():
                loss = sum((model(batch).sum() for batch in run.evaluation(held_out)), loss * 0)
    return float(loss)
