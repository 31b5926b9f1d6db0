"""The tasks of `finetune`, one a file; what submission checks of them is in `protocol/tasks.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from workers.protocol.finetune import FinetuneConfig
from workers.protocol.tasks import TaskName
from workers.trials.finetune.tasks.causal_lm import CausalLm
from workers.trials.finetune.tasks.masked_lm import MaskedLm
from workers.trials.finetune.tasks.multi_label import MultiLabel
from workers.trials.finetune.tasks.regression import Regression
from workers.trials.finetune.tasks.task import Task
from workers.trials.finetune.tasks.text_classification import TextClassification
from workers.trials.finetune.tasks.token_classification import TokenClassification

__all__ = ["Task", "make_task"]

_TASKS: Final[Mapping[TaskName, type[Task]]] = {
    "text_classification": TextClassification,
    "regression": Regression,
    "multi_label": MultiLabel,
    "token_classification": TokenClassification,
    "causal_lm": CausalLm,
    "masked_lm": MaskedLm,
}


def make_task(config: FinetuneConfig) -> Task:
    """The task of a study."""
    return _TASKS[config.task](config)
