"""The tasks of `finetune` as both sides know them: their names, and what each measures.

Invariant: what is measured here is what the task's meter in `trials/finetune/tasks` computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

TaskName = Literal[
    "text_classification",
    "regression",
    "multi_label",
    "token_classification",
    "causal_lm",
    "masked_lm",
]

#: What a row says of its text: one class, a number, any number of classes, one of each word, or
#: nothing.
LabelKind = Literal["class", "number", "classes", "tags", "none"]

#: What a model has on top, as `managers/head.py` knows it.
HeadName = Literal["sequence_classifier", "token_classifier", "causal_lm", "masked_lm"]

#: What of the held-out labels a metric takes: some that differ, a class at all, or an entity.
Need = Literal["contrast", "presence", "entity"]

#: The class of a word that is part of no entity.
OUTSIDE: Final = "O"

#: Where each text's score in each class is kept, for AUROC, so many are (128 MiB of float32).
MOST_SCORES: Final = 2**25

#: What a study is about that says nothing.
DEFAULT_TASK: Final = "text_classification"


@dataclass(frozen=True, slots=True)
class TaskTraits:
    """What is known of a task without torch."""

    labels: LabelKind
    """What it learns."""
    metrics: Mapping[str, Literal["maximize", "minimize"]]
    """What it measures after each evaluation, and which way is better; the first is the usual
    objective."""
    head: HeadName = "sequence_classifier"
    """What its model has on top."""
    needs: Mapping[str, Need] = field(default_factory=dict)
    """Without which held-out labels a metric is undefined, and not measured."""


TASKS: Final[Mapping[TaskName, TaskTraits]] = {
    "text_classification": TaskTraits(
        labels="class",
        metrics={
            "accuracy": "maximize",
            "f1": "maximize",  # macro, too: its name in release 0.1.0
            "f1_macro": "maximize",
            "f1_micro": "maximize",
            "f1_weighted": "maximize",
            "mcc": "maximize",
            "auroc": "maximize",
            "loss": "minimize",
        },
        needs={"mcc": "contrast", "auroc": "contrast"},
    ),
    "regression": TaskTraits(
        labels="number",
        metrics={
            "pearson": "maximize",
            "spearman": "maximize",
            "r2": "maximize",
            "mse": "minimize",
            "rmse": "minimize",
            "mae": "minimize",
            "loss": "minimize",
        },
        needs=dict.fromkeys(("pearson", "spearman", "r2"), "contrast"),
    ),
    "multi_label": TaskTraits(
        labels="classes",
        metrics={
            "f1_micro": "maximize",
            "f1_macro": "maximize",
            "f1_weighted": "maximize",
            "accuracy": "maximize",
            "auroc": "maximize",
            "loss": "minimize",
        },
        needs={
            **dict.fromkeys(("f1_micro", "f1_macro", "f1_weighted"), "presence"),
            "auroc": "contrast",
        },
    ),
    "token_classification": TaskTraits(
        labels="tags",
        metrics={
            "f1": "maximize",
            "precision": "maximize",
            "recall": "maximize",
            "accuracy": "maximize",
            "loss": "minimize",
        },
        head="token_classifier",
        needs=dict.fromkeys(("f1", "precision", "recall"), "entity"),
    ),
    "causal_lm": TaskTraits(
        labels="none",
        metrics={"perplexity": "minimize", "loss": "minimize"},
        head="causal_lm",
    ),
    "masked_lm": TaskTraits(
        labels="none",
        metrics={"perplexity": "minimize", "loss": "minimize"},
        head="masked_lm",
    ),
}
