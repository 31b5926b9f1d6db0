"""The tasks of `finetune` as both sides know them: their names, and what each measures.

Invariant: what is measured here is what the task's meter in `trials/finetune/tasks` computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

TaskName = Literal["text_classification"]

#: What a study is about that says nothing.
DEFAULT_TASK: Final = "text_classification"


@dataclass(frozen=True, slots=True)
class TaskTraits:
    """What is known of a task without torch."""

    metrics: Mapping[str, Literal["maximize", "minimize"]]
    """What it measures after each evaluation, and which way is better; the first is the usual
    objective."""


TASKS: Final[Mapping[TaskName, TaskTraits]] = {
    "text_classification": TaskTraits(
        metrics={"accuracy": "maximize", "f1": "maximize", "loss": "minimize"}
    ),
}
