"""A training whose learning curve is known: small, real, and with checkpoints, for `halving.py`."""

from __future__ import annotations

import time
from typing import Final

import optuna
import torch

from workers.protocol.errors import DrainRequested
from workers.trials.handle import FleetTrial

#: How long it trains, in steps of a rung.
EPOCHS: Final = 27

#: What an epoch takes at least: a slot is held by more than the arithmetic of a small model.
_EPOCH_SECONDS: Final = 0.1

_BATCHES: Final = 8


def objective(trial: FleetTrial) -> float:
    """Fit a noisy curve with a small network; the loss on held-out points, reported each epoch."""
    training = _Training(trial)
    try:
        while training.epoch < EPOCHS:
            trial.progress(training.epoch)
            trial.report(training.run_epoch(), training.epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
    except DrainRequested:
        trial.save_checkpoint(training.epoch, training.state())
        raise
    return training.loss


class _Training:
    """Model, optimizer and position."""

    def __init__(self, trial: FleetTrial) -> None:
        torch.manual_seed(0)  # the same data, and the same model of one width, in each trial
        width = trial.suggest_int("width", 4, 64, log=True)
        self._inputs = torch.linspace(-1, 1, 512).unsqueeze(1)
        noise = 0.1 * torch.randn(512, 1)
        self._targets = torch.sin(6 * self._inputs) + noise
        self._is_held_out = torch.arange(512) % 4 == 0
        self._model = torch.nn.Sequential(
            torch.nn.Linear(1, width), torch.nn.Tanh(), torch.nn.Linear(width, 1)
        )
        self._optimizer = torch.optim.SGD(
            self._model.parameters(),
            lr=trial.suggest_float("learning_rate", 1e-4, 1.0, log=True),
            momentum=trial.suggest_float("momentum", 0.0, 0.95),
        )
        self.epoch, self.loss = 0, 0.0
        saved = trial.load_checkpoint()
        if saved is not None:
            self.epoch, self.loss = saved["epoch"], saved["loss"]
            self._model.load_state_dict(saved["model"])
            self._optimizer.load_state_dict(saved["optimizer"])

    def run_epoch(self) -> float:
        """Train for one epoch; the loss on the points that were held out."""
        until = time.monotonic() + _EPOCH_SECONDS
        mine = ~self._is_held_out
        for _ in range(_BATCHES):
            loss = self._loss(mine)
            self._optimizer.zero_grad()
            torch.autograd.backward(loss)
            self._optimizer.step()
        with torch.no_grad():
            self.loss = float(self._loss(self._is_held_out))
        self.epoch += 1
        time.sleep(max(0.0, until - time.monotonic()))
        return self.loss

    def state(self) -> dict[str, object]:
        """All that another attempt needs."""
        return {
            "epoch": self.epoch,
            "loss": self.loss,
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }

    def _loss(self, mask: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.mse_loss(self._model(self._inputs[mask]), self._targets[mask])
