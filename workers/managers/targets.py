"""From labels to the numbers that a model learns.

Invariant: class numbers follow from the labels alone: they are the same on every host.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from workers.protocol.finetune import DataConfig
from workers.texts.labels import Label, kind_of, names_in


def classes_of(labels: Iterable[Label], config: DataConfig) -> tuple[str, ...]:
    """The classes, in the order of their numbers; of numbers, none."""
    if config.labels is not None:
        return tuple(config.labels)
    return tuple(in_order({name for label in set(labels) for name in names_in(label)}))


def targets_of(
    labels: Sequence[Label], classes: Sequence[str], config: DataConfig
) -> npt.NDArray[Any]:
    """What is learned, a row for each text.

    Returns:
        Of a class its number, int64 [rows]; of a number itself, float32 [rows]; of several classes
        which of them apply, uint8 [rows, classes]; of words the number of each one's class, an
        object [rows] of lists; of nothing, zeros, uint8 [rows].
    """
    if kind_of(config) == "none":
        return np.zeros(len(labels), dtype=np.uint8)
    if kind_of(config) == "number":
        return np.array(labels, dtype=np.float32)
    numbers = {name: number for number, name in enumerate(classes)}
    if kind_of(config) == "class":
        found = (numbers[name] for label in labels for name in names_in(label))
        return np.fromiter(found, dtype=np.int64, count=len(labels))
    if kind_of(config) == "tags":
        tags = np.empty(len(labels), dtype=object)
        for row, label in enumerate(labels):
            tags[row] = [numbers[name] for name in names_in(label)]
        return tags
    applies = np.zeros((len(labels), len(classes)), dtype=np.uint8)
    for row, label in enumerate(labels):
        applies[row, [numbers[name] for name in names_in(label)]] = 1
    return applies


def in_order(labels: set[str]) -> list[str]:
    """Class numbers for labels: the same on every host, and of integers in their order."""
    try:
        return sorted(labels, key=lambda label: (int(label), label))
    except ValueError:
        return sorted(labels)
