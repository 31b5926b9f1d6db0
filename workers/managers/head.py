"""What a model has on top: the kind of its outputs, and what they stand for.

Invariant: a head names everything that decides which class of `transformers` a model is of.
"""

from __future__ import annotations

from collections.abc import Mapping
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


HEAD_KINDS: Final[Mapping[HeadName, HeadKind]] = {
    "sequence_classifier": HeadKind(
        "sequence classifier",
        transformers.AutoModelForSequenceClassification,
        transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        "bert, distilbert, roberta or modernbert",
    ),
}

SEQUENCE_CLASSIFIER: Final = HEAD_KINDS["sequence_classifier"]


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
        return {
            "id2label": dict(enumerate(self.labels)),
            "label2id": {label: number for number, label in enumerate(self.labels)},
        }
