"""The tasks of `finetune` as both sides know them: their names, and what each measures.

Invariant: what is measured here is what the task's meter in `trials/finetune/tasks` computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

TaskName = Literal["text_classification", "regression", "multi_label"]

#: What a row says of its text: one class, a number, or any number of classes.
LabelKind = Literal["class", "number", "classes"]

#: What a model has on top, as `managers/head.py` knows it.
HeadName = Literal["sequence_classifier"]

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


TASKS: Final[Mapping[TaskName, TaskTraits]] = {
    "text_classification": TaskTraits(
        labels="class",
        metrics={"accuracy": "maximize", "f1": "maximize", "loss": "minimize"},
    ),
    "regression": TaskTraits(
        labels="number",
        metrics={
            "pearson": "maximize",
            "spearman": "maximize",
            "mse": "minimize",
            "mae": "minimize",
            "loss": "minimize",
        },
    ),
    "multi_label": TaskTraits(
        labels="classes",
        metrics={
            "f1_micro": "maximize",
            "f1_macro": "maximize",
            "auroc": "maximize",
            "loss": "minimize",
        },
    ),
}
