"""A model's outputs for a batch, in the training's precision."""

from __future__ import annotations

import inspect
from typing import Any, Final

import torch

from workers.managers.amp import PrecisionPolicy
from workers.managers.compilation import Compilation
from workers.managers.tokenized import Batch

#: Models that see whether two tokens are of one text, and have no embedding of types.
_COMPARE_TYPES: Final = frozenset({"xlnet", "funnel"})


class Forward:
    """Calls a model with what it takes of a batch.

    Args:
        model: A `transformers.PreTrainedModel` with a head.
        precision: What is computed in.
        compiled: Calls it by compiled code, where there is some.
    """

    def __init__(
        self, model: Any, precision: PrecisionPolicy, compiled: Compilation | None = None
    ) -> None:
        self._call = compiled or model
        self._precision = precision
        self._inputs = inputs_of(model)

    def __call__(self, batch: Batch) -> torch.Tensor:
        """The logits of the head, float32, of whatever shape it has."""
        inputs: dict[str, Any] = {
            name: tensor for name, tensor in batch.items() if name in self._inputs
        }
        if "position_ids" in batch:
            # without a mask and kept keys, positions that begin anew keep the texts of a row apart
            del inputs["attention_mask"]
            inputs |= {"position_ids": batch["position_ids"], "use_cache": False}
        with self._precision.autocast():
            output = self._call(**inputs)
        logits: torch.Tensor = output.logits.float()
        return logits


def inputs_of(model: Any) -> frozenset[str]:
    """What of a batch a model takes; token types only if it tells two texts apart."""
    taken = {"input_ids", "attention_mask"}
    knows_types = "token_type_ids" in inspect.signature(model.forward).parameters
    compares = model.config.model_type in _COMPARE_TYPES
    if knows_types and (compares or getattr(model.config, "type_vocab_size", 0) > 1):
        taken.add("token_type_ids")
    return frozenset(taken)
