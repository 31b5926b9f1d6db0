"""The head of a pretrained classifier, and the classes of a data set: matched by name.

Invariant: a row of a head stands for the class whose name it was trained with, or it is not taken.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch

from workers.logs import get_logger
from workers.managers.head import SEQUENCE_CLASSIFIER, HeadKind
from workers.managers.model_fit import shapes_of
from workers.managers.weights import Checkpoint

log = get_logger(__name__)

#: How `transformers` calls classes that nobody has named.
_UNNAMED: Final = re.compile(r"label_(\d+)")

#: Names that a message quotes.
_QUOTED: Final = 5


def for_classes(checkpoint: Checkpoint, classes: Sequence[str]) -> Checkpoint:
    """A checkpoint whose head has a row for each class, in their order, or none that is trained.

    Where the names fit, its rows are taken, in another order if need be; else they are left out,
    for a head that is drawn.
    """
    per_class = weights_per_class(checkpoint.config, checkpoint.kind) - checkpoint.lacking
    if not per_class:
        log.debug("head_new", model=checkpoint.name, reason="it was saved without one")
        return checkpoint
    names = checkpoint.config.id2label
    rows = rows_of(names, classes)
    weights = dict(checkpoint.weights)
    if rows is None:
        log.warning(
            "head_replaced",
            model=checkpoint.name,
            reason="its classes have other names",
            saved=list(names.values())[:_QUOTED],
            wanted=list(classes)[:_QUOTED],
        )
        lacking = checkpoint.lacking | per_class
        weights = {name: value for name, value in weights.items() if name not in per_class}
        return dataclasses.replace(checkpoint, weights=weights, lacking=lacking)
    if rows == list(range(len(names))):
        return checkpoint
    log.debug("head_kept", model=checkpoint.name, rows=rows, saved=list(names.values())[:_QUOTED])
    order = torch.tensor(rows, device="cpu")
    weights |= {name: weights[name].index_select(0, order) for name in per_class}
    return dataclasses.replace(checkpoint, weights=weights)


def rows_of(names: Mapping[int, str], classes: Sequence[str]) -> list[int] | None:
    """For each class the row of a head that was trained for it; None if one has none.

    Case and surrounding blanks do not count, unless names differ by them alone. Classes that
    nobody has named (`LABEL_2`) stand for their numbers.

    Args:
        names: The head's classes, by row.
        classes: The data set's.
    """
    for key in (_exactly, _loosely):
        found = {key(name): row for row, name in names.items()}
        wanted = [key(name) for name in classes]
        is_clear = len(found) == len(names) and len(set(wanted)) == len(wanted)
        if is_clear and set(wanted) <= set(found):
            return [found[name] for name in wanted]
    return None


def weights_per_class(config: Any, kind: HeadKind = SEQUENCE_CLASSIFIER) -> frozenset[str]:
    """The names of the weights that have a row for each class."""
    wider = copy.deepcopy(config)
    wider.num_labels = config.num_labels + 1
    now, then = shapes_of(config, kind), shapes_of(wider, kind)
    return frozenset(name for name, shape in now.items() if shape != then[name])


def _exactly(name: object) -> str:
    return str(name)


def _loosely(name: object) -> str:
    folded = str(name).strip().casefold()
    unnamed = _UNNAMED.fullmatch(folded)
    return unnamed[1] if unnamed else folded
