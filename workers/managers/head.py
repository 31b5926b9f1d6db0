"""What a model has on top: the kind of its outputs, and what they stand for.

Invariant: a head names everything that decides which class of `transformers` a model is of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import transformers

from workers.protocol.tasks import HeadName


@dataclass(frozen=True, eq=False, slots=True)
class HeadKind:
    """The outputs of a model, as `transformers` has classes for them."""

    name: str
    """As a message names it."""
    auto: Any
    """Makes a model with it of any configuration."""
    mapping: Any
    """The class that has it, by the class of the configuration."""
    examples: str
    """Architectures that have it."""
    shape: Callable[[Any, int, int], tuple[int, ...]]
    """The shape of its logits, of a configuration, rows and their length."""


def _of_each_token(config: Any, rows: int, length: int) -> tuple[int, ...]:
    return rows, length, config.get_text_config().vocab_size


HEAD_KINDS: Final[Mapping[HeadName, HeadKind]] = {
    "sequence_classifier": HeadKind(
        "sequence classifier",
        transformers.AutoModelForSequenceClassification,
        transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        "bert, distilbert, roberta or modernbert",
        lambda config, rows, _: (rows, config.num_labels),
    ),
    "token_classifier": HeadKind(
        "token classifier",
        transformers.AutoModelForTokenClassification,
        transformers.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
        "bert, distilbert, roberta or modernbert",
        lambda config, rows, length: (rows, length, config.num_labels),
    ),
    "causal_lm": HeadKind(
        "causal language model",
        transformers.AutoModelForCausalLM,
        transformers.MODEL_FOR_CAUSAL_LM_MAPPING,
        "gpt2, llama, qwen2 or gpt_neox",
        _of_each_token,
    ),
    "masked_lm": HeadKind(
        "masked language model",
        transformers.AutoModelForMaskedLM,
        transformers.MODEL_FOR_MASKED_LM_MAPPING,
        "bert, roberta, distilbert or modernbert",
        _of_each_token,
    ),
}

SEQUENCE_CLASSIFIER: Final = HEAD_KINDS["sequence_classifier"]
TOKEN_CLASSIFIER: Final = HEAD_KINDS["token_classifier"]
CAUSAL_LM: Final = HEAD_KINDS["causal_lm"]
MASKED_LM: Final = HEAD_KINDS["masked_lm"]


def kind_of(config: Any) -> HeadKind:
    """The kind of head that a model was saved with; a sequence classifier, where nothing tells."""
    names = set(config.architectures or ())
    for kind in HEAD_KINDS.values():
        if getattr(kind.mapping.get(type(config), None), "__name__", None) in names:
            return kind
    return SEQUENCE_CLASSIFIER


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a study's model."""

    kind: HeadKind
    labels: tuple[str, ...] = ()
    """The classes, in the order of their numbers."""
    problem_type: str | None = None
    """What the outputs stand for, as `transformers` calls it, for who loads the model elsewhere."""

    @property
    def fields(self) -> dict[str, Any]:
        """What a configuration says of it."""
        if self.kind in {CAUSAL_LM, MASKED_LM}:
            return {}
        return {
            "id2label": dict(enumerate(self.labels)),
            "label2id": {label: number for number, label in enumerate(self.labels)},
        }
