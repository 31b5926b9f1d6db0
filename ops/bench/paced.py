"""An objective that gets its model, and then trains for so many seconds, whatever the machine."""

from __future__ import annotations

import time
from typing import Final

from workers.managers import CUDAManager, ModelManager
from workers.protocol.finetune import ModelConfig
from workers.trials.handle import FleetTrial

#: Between two steps.
_PACE: Final = 0.05


def objective(trial: FleetTrial, models: ModelManager, cuda: CUDAManager) -> float:
    """Hold a model for `config.seconds`, in steps."""
    cuda.seed(trial.seed)
    config = ModelConfig.model_validate(trial.config["model"])
    model = models.sequence_classifier(config, num_labels=20, vocab_size=4000)
    until, step = time.monotonic() + trial.config["seconds"], 0
    while step == 0 or time.monotonic() < until:
        trial.progress(step)
        time.sleep(_PACE)
        step += 1
    return float(model.num_parameters()) * trial.suggest_float("x", 0.0, 1.0)
