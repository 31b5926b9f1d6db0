"""What the memory that a training takes follows from, beside the texts of a pass and their length.

Invariant: trainings with equal footprints run out of memory of the same batches.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from workers.protocol.finetune import FinetuneConfig

#: Fields of a model's configuration that change activations and not weights.
_OF_ACTIVATIONS = (
    "num_attention_heads",
    "num_key_value_heads",
    "_attn_implementation",
    "use_cache",
)


def footprint(model: Any, config: FinetuneConfig, precision: str) -> Hashable:
    """What tells a training's model, its precision and its optimizer from others.

    Args:
        model: A `transformers.PreTrainedModel`, whose weights are frozen and replaced as they are
            to be.
        config: The trial's settings.
        precision: What is computed in.
    """
    weights = hash(tuple((tuple(each.shape), each.requires_grad) for each in model.parameters()))
    activations = tuple(repr(getattr(model.config, name, None)) for name in _OF_ACTIVATIONS)
    has_dropout = config.dropout != 0.0
    settings = (
        config.task,
        config.optimizer,
        config.gradient_checkpointing,
        config.compile_mode,
        has_dropout,
    )
    return (type(model).__name__, weights, activations, precision, *settings)
