"""Which metrics the labels of a held-out side leave undefined, before anything is trained.

Invariant: what is said of labels that are read and of those that are stored is the same, and what
is not named here is measured in each evaluation.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from workers.protocol.tasks import MOST_SCORES, OUTSIDE, TASKS, Need, TaskName
from workers.texts.labels import Label, names_in


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The labels of a held-out side, as far as they decide what can be measured."""

    num_rows: int
    num_classes: int
    """Classes that are learned; of numbers, none."""
    num_present: int
    """Classes that a row has; of numbers, the different ones."""
    has_contrast: bool
    """Whether a class applies to some rows and not to others, or two numbers differ."""
    has_entity: bool = True
    """Of words with classes: whether one is part of an entity."""

    @classmethod
    def of_labels(cls, labels: Mapping[Label, int], num_classes: int) -> Self:
        """Of labels as they are read, each with the number of rows that have it."""
        num_rows = sum(labels.values())
        counts = Counter[str]()
        for label, count in labels.items():
            counts.update(dict.fromkeys(names_in(label), count))
        if num_classes:
            contrast = any(count < num_rows for count in counts.values())
            return cls(num_rows, num_classes, len(counts), contrast, _has_entity(counts))
        return cls(num_rows, 0, len(labels), len(labels) > 1)

    @classmethod
    def of_targets(cls, targets: npt.NDArray[Any], classes: Sequence[str]) -> Self:
        """Of labels as they are stored.

        Args:
            targets: Classes or numbers [rows], flags [rows, classes], or of words their classes
                at their first tokens [tokens], others being negative.
            classes: Their names; of numbers, none.
        """
        if targets.ndim > 1:
            counts = targets.sum(0)
            present = np.flatnonzero(counts).tolist()
            contrast = bool(((counts > 0) & (counts < len(targets))).any())
        else:
            present = np.unique(targets).tolist()
            contrast = len(present) > 1
        names = [classes[number] for number in present if number >= 0] if classes else []
        num_present = len(names) if classes else len(present)
        has_entity = _has_entity(names) or not classes
        return cls(len(targets), len(classes), num_present, contrast, has_entity)

    def undefined(self, task: TaskName) -> dict[str, str]:
        """The metrics of a task that are not measured on it, each with the reason."""
        found = {
            metric: reason
            for metric, need in TASKS[task].needs.items()
            if (reason := self._lack(need)) is not None
        }
        if self.num_rows * self.num_classes > MOST_SCORES:
            reason = f"{self.num_rows} held-out texts of {self.num_classes} classes are too many"
            found |= {metric: reason for metric in TASKS[task].metrics if metric == "auroc"}
        return found

    def problem(self, metrics: Sequence[str], task: TaskName) -> str | None:
        """What to tell of a study whose metrics these are, if one of them cannot be measured."""
        undefined = self.undefined(task)
        for metric in metrics:
            if metric in undefined:
                others = ", ".join(each for each in TASKS[task].metrics if each not in undefined)
                return (
                    f"metric = {metric!r} cannot be measured: {undefined[metric]}; hold out others,"
                    f" or take one of {others}"
                )
        return None

    def findings(self, task: TaskName) -> list[str]:
        """What there is to say of metrics that are not measured."""
        by_reason = defaultdict[str, list[str]](list)
        for metric, reason in self.undefined(task).items():
            by_reason[reason].append(metric)
        return [
            f"{reason}: {', '.join(metrics)} cannot be measured; hold out others"
            for reason, metrics in by_reason.items()
        ]

    def _lack(self, need: Need) -> str | None:
        if need == "presence":
            return None if self.num_present else "no held-out text has a class"
        if need == "entity":
            return None if self.has_entity else "no held-out word is of an entity"
        if self.has_contrast:
            return None
        if self.num_classes:
            return "all held-out texts have the same classes"
        return "all held-out texts have one number"


def _has_entity(names: Iterable[str]) -> bool:
    """Whether one of the classes of some words is that of an entity."""
    return any(name != OUTSIDE for name in names)
