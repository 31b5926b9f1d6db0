"""ModelManager: models by hub id, path or architecture; pretrained weights are read once a process.

Invariant: every model handed out is fresh and in float32: pristine pretrained weights, and what is
drawn beside them from torch's generator, whatever this process built before.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import transformers
from transformers import AutoConfig

from workers.disk import durable
from workers.managers import weights
from workers.managers.base import BaseProcessManager
from workers.managers.cuda import CUDAManager
from workers.managers.run_directories import DirectoryManager
from workers.protocol.errors import InvalidInputError, nearest
from workers.protocol.finetune import ModelConfig

#: The size of an attention head where only the width of a model is given, as in BERT.
_HEAD_SIZE: Final = 64

#: Fields of every configuration that say what `transformers` itself handles.
_ALWAYS: Final = frozenset({"num_labels", "id2label", "label2id", "problem_type"})


class ModelManager(BaseProcessManager):
    """Builds, saves and loads models on the device of this process."""

    def __init__(self, directories: DirectoryManager, cuda: CUDAManager) -> None:
        super().__init__()
        self._directories = directories
        self._cuda = cuda
        self._checkpoints = weights.KeptCheckpoints()

    def open(self) -> None:
        """Keep the library from drawing progress bars into the worker's log."""
        transformers.utils.logging.disable_progress_bar()

    def sequence_classifier(
        self,
        config: ModelConfig,
        *,
        num_labels: int,
        vocab_size: int,
        pad_token_id: int | None = None,
        max_length: int = 0,
        dropout: float | None = None,
    ) -> Any:
        """A fresh model with a classification head, in training mode, on the device.

        What is not pretrained is drawn from torch's generator on the CPU: seed it first.

        Args:
            config: A pretrained model, or an architecture.
            num_labels: Classes.
            vocab_size: Entries of the tokenizer; an architecture gets as many embeddings.
            pad_token_id: The tokenizer's padding token.
            max_length: Tokens of the longest text; an architecture gets as many positions.
            dropout: Sets every dropout probability of the configuration, if given.

        Returns:
            A `transformers.PreTrainedModel`, in float32 whatever the checkpoint's dtype.

        Raises:
            InvalidInputError: No such model or architecture, or fields that it cannot have.
        """
        settings: dict[str, Any] = {"num_labels": num_labels, **config.overrides}
        if pad_token_id is not None:
            settings["pad_token_id"] = pad_token_id
        if config.id is not None:
            model = self._pretrained(config.id, settings, dropout)
        else:
            model = _from_nothing(
                str(config.architecture), settings, vocab_size, max_length, dropout
            )
        return model.to(self._cuda.device).train()

    def save(self, model: Any, folder: Path) -> None:
        """Save a model so that `load` or `from_pretrained` reads it; whole or not at all.

        In the dtype of its weights: float32, as they were trained.
        """
        durable.make_whole(folder, lambda draft: model.save_pretrained(str(draft)))

    def load(self, id_or_path: str | Path) -> Any:
        """A classifier as it was saved, on the device, in float32 and in evaluation mode.

        Raises:
            InvalidInputError: There is none.
        """
        checkpoint = weights.read(str(id_or_path))
        return weights.build(checkpoint.config, checkpoint).to(self._cuda.device)

    def _pretrained(self, model_id: str, settings: Mapping[str, Any], dropout: float | None) -> Any:
        checkpoint = self._checkpoints.get(model_id)
        config = copy.deepcopy(checkpoint.config)
        _apply(config, settings, dropout)
        return weights.build(config, checkpoint)


def _from_nothing(
    architecture: str,
    settings: Mapping[str, Any],
    vocab_size: int,
    max_length: int,
    dropout: float | None,
) -> Any:
    known = [str(name) for name in transformers.CONFIG_MAPPING]
    if architecture not in known:
        raise InvalidInputError(
            f"model.architecture = {architecture!r}: no such architecture in transformers"
            f" {transformers.__version__}{nearest(architecture, known)}"
        )
    config = AutoConfig.for_model(architecture)
    if type(config) not in transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise InvalidInputError(
            f"model.architecture = {architecture!r} has no sequence classifier in transformers;"
            " take one such as bert, distilbert, roberta or modernbert"
        )
    settings = {"vocab_size": vocab_size, **settings}
    _apply(config, _proportions(config, settings, max_length), dropout)
    try:
        return weights.build(config)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InvalidInputError(
            f"model.architecture = {architecture!r} cannot be built so: {error}"
        ) from error


def _proportions(config: Any, settings: Mapping[str, Any], max_length: int) -> dict[str, Any]:
    """Where only the width is given, heads and the inner width follow it, as BERT has them."""
    completed = dict(settings)
    width = settings.get("hidden_size")
    if width is not None and hasattr(config, "num_attention_heads"):
        heads = max(1, width // _HEAD_SIZE)
        completed.setdefault("num_attention_heads", heads if width % heads == 0 else 1)
    if width is not None and hasattr(config, "intermediate_size"):
        completed.setdefault("intermediate_size", 4 * width)
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions < max_length:
        completed.setdefault("max_position_embeddings", max_length)
    return completed


def _apply(config: Any, settings: Mapping[str, Any], dropout: float | None) -> None:
    """Set fields of a configuration that it has, and no others."""
    known = [*config.to_dict(), *config.attribute_map]
    for name, value in settings.items():
        if name not in known and name not in _ALWAYS:
            raise InvalidInputError(
                f"model.{name} = {value!r}: {config.model_type} has no such"
                f" setting{nearest(name, known)}"
            )
        setattr(config, name, value)
    if dropout is not None:
        for name, value in config.to_dict().items():
            if (
                ("dropout" in name or name.endswith("_pdrop"))
                and isinstance(value, (int, float))
                and not isinstance(value, bool)
            ):
                setattr(config, name, dropout)
