"""Entities in the classes of words, and how many of them a model finds.

As seqeval's default mode and conlleval do (Tjong Kim Sang and De Meulder, 2003): an entity is right
where its class, its first and its last word are. Classes are read as IOB, IOBES or BILOU: `B-PER`,
`I-PER`, `O`; or, where entities have no class, `B`, `I`, `O` alone. Where none of a study's classes
is so, as in parts of speech, each word is an entity of its class, whatever letter that is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

import torch
from torchmetrics import Metric

from workers.protocol.tasks import OUTSIDE

_TAG: Final = re.compile(r"([BIOESLU])(?:-(.*))?")

#: BILOU's names for what IOBES has, too.
_SAME: Final = {"L": "E", "U": "S"}

#: An entity's class, its first word and its last one.
Entity = tuple[str, int, int]


def are_parts_of_entities(classes: Iterable[str]) -> bool:
    """Whether classes say where in an entity a word is: `B-PER`, or `B`, `I`, `O` alone."""
    read = [_TAG.fullmatch(each) for each in classes]
    if any(each is not None and each[1] != "O" and each[2] for each in read):
        return True
    return None not in read and {"I", "O"} <= {each[0] for each in read if each is not None}


def entities(tags: Sequence[str], *, are_parts: bool = True) -> set[Entity]:
    """The entities of a text, of the classes of its words.

    Args:
        tags: The classes.
        are_parts: Whether they say where in an entity a word is.
    """
    found: set[Entity] = set()
    begin, before = 0, ("O", "")
    parts = [_parts(tag) if are_parts or tag == "O" else ("S", tag) for tag in tags]
    for place, tag in enumerate([*parts, ("O", "")]):
        if _ends(before, tag):
            found.add((before[1], begin, place - 1))
        if _begins(before, tag):
            begin = place
        before = tag
    return found


def _parts(tag: str) -> tuple[str, str]:
    """Where in an entity a word is, and the entity's class."""
    read = _TAG.fullmatch(tag)
    if read is None or (tag[0] == "O" and len(tag) > 1):
        return "S", tag
    return _SAME.get(read[1], read[1]), read[2] or ""


def _ends(before: tuple[str, str], tag: tuple[str, str]) -> bool:
    """Whether an entity ends with the word before."""
    if before[0] == "O":
        return False
    return before[0] in "ES" or tag[0] in "BSO" or before[1] != tag[1]


def _begins(before: tuple[str, str], tag: tuple[str, str]) -> bool:
    """Whether an entity begins with a word."""
    if tag[0] == "O":
        return False
    return tag[0] in "BS" or before[0] in "ESO" or before[1] != tag[1]


def scores(
    pairs: Iterable[tuple[Sequence[str], Sequence[str]]], *, are_parts: bool = True
) -> dict[str, float]:
    """Micro precision, recall and F1 of all entities; 0 where there are none to be right about.

    Args:
        pairs: Of each text the classes that were found, and those that it has.
        are_parts: Whether the classes say where in an entity a word is.
    """
    right = num_found = num_wanted = 0
    for found, wanted in pairs:
        one, other = (entities(each, are_parts=are_parts) for each in (found, wanted))
        right += len(one & other)
        num_found += len(one)
        num_wanted += len(other)
    return {
        "precision": right / num_found if num_found else 0.0,
        "recall": right / num_wanted if num_wanted else 0.0,
        "f1": 2 * right / (num_found + num_wanted) if num_found + num_wanted else 0.0,
    }


class EntityScores(Metric):
    """`f1`, `precision` and `recall` of entities, and the share of words that are right.

    Args:
        classes: Their names, in the order of their numbers.
    """

    full_state_update = False

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__()
        self._classes = list(classes)
        self._are_parts = are_parts_of_entities(classes)
        self.found: list[torch.Tensor]
        self.wanted: list[torch.Tensor]
        self.add_state("found", default=[], dist_reduce_fx="cat")
        self.add_state("wanted", default=[], dist_reduce_fx="cat")

    def update(self, predictions: torch.Tensor, labels: torch.Tensor) -> None:
        """Add words.

        Args:
            predictions: Logits, [words, classes].
            labels: Class numbers, int64 [words]; of a text's first word, with the number of classes
                added.
        """
        self.found.append(predictions.argmax(-1))
        self.wanted.append(labels)

    def compute(self) -> dict[str, Any]:
        """The scores by their names; where no word is of an entity, the words' alone."""
        count = len(self._classes)
        found, marked = (torch.cat(each).tolist() for each in (self.found, self.wanted))
        wanted = [number % count for number in marked]
        starts = [place for place, number in enumerate(marked) if number >= count]
        pairs = [
            (self._named(found[start:end]), self._named(wanted[start:end]))
            for start, end in zip(starts, [*starts[1:], len(marked)], strict=True)
        ]
        hits = sum(one == other for one, other in zip(found, wanted, strict=True))
        values = {"accuracy": hits / len(wanted)}
        if any(self._classes[number] != OUTSIDE for number in wanted):
            values |= scores(pairs, are_parts=self._are_parts)
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}

    def _named(self, numbers: Iterable[int]) -> list[str]:
        return [self._classes[number] for number in numbers]
