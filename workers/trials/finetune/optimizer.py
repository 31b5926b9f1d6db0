"""The optimizer of a training, and which weights decay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import torch
from transformers import Adafactor

from workers.protocol.optimizer_options import OptimizerOptions

_CLASSES: Final[Mapping[str, Callable[..., torch.optim.Optimizer]]] = {
    "adamw": partial(torch.optim.AdamW, fused=True),
    "adam": partial(torch.optim.Adam, fused=True),
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "adamax": torch.optim.Adamax,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
    # its rate is the study's, as in transformers' Trainer, and not one of its own
    "adafactor": partial(Adafactor, scale_parameter=False, relative_step=False),
}


def build_optimizer(model: torch.nn.Module, config: OptimizerOptions) -> torch.optim.Optimizer:
    """The study's optimizer, by default AdamW; biases and norms do not decay.

    AdamW is of Loshchilov and Hutter (2019, arXiv:1711.05101).
    """
    matrices = [weight for weight in model.parameters() if weight.requires_grad and weight.ndim > 1]
    vectors = [weight for weight in model.parameters() if weight.requires_grad and weight.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    make = _CLASSES[config.optimizer]
    return make(groups, lr=config.learning_rate, **config.optimizer_options)
