"""What of a model is trained: which weights stay as they are, and what is computed twice.

A pattern is a run of a weight's dotted name, each part a glob or a range: `embeddings`,
`encoder.layer.0-3`, `layer.*.attention`; or, after `re:`, an expression that is searched for in it.

Invariant: a pattern that means nothing is refused, and so is a model of which nothing is trained.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final

from workers.protocol.errors import UnfitModelError, nearest
from workers.protocol.finetune import FinetuneConfig
from workers.protocol.training_options import REGEX

_RANGE: Final = re.compile(r"(\d+)-(\d+)")


def prepare(model: Any, config: FinetuneConfig) -> None:
    """Have a model train as the study says; one without memory will do.

    Raises:
        UnfitModelError: The model has no such weights, or cannot compute anything twice.
    """
    freeze(model, config.freeze)
    if config.gradient_checkpointing:
        # the name that it has in newer releases of transformers, or in older ones
        enable = getattr(model, "activation_checkpointing_enable", None)
        try:
            (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
        except ValueError as error:
            raise UnfitModelError(
                f"gradient_checkpointing: {type(model).__name__} does not support it; leave it out"
            ) from error


def freeze(model: Any, patterns: Sequence[str]) -> None:
    """Let the weights that patterns name be as they are.

    Raises:
        UnfitModelError: A pattern names no weight, or all of them are named.
    """
    weights = dict(model.named_parameters(remove_duplicate=False))
    for pattern in patterns:
        for name in _named(pattern, weights):
            weights[name].requires_grad = False
    if patterns and not any(weight.requires_grad for weight in weights.values()):
        raise UnfitModelError(f"freeze = {list(patterns)}: nothing is left to train; name less")


def _named(pattern: str, names: Iterable[str]) -> list[str]:
    """The weights that a pattern names."""
    names = list(names)
    found = [name for name in names if _is_named(pattern, name)]
    # the end of a range has to be there, too
    last = _RANGE.sub(lambda match: match[2], pattern)
    if not found or (not pattern.startswith(REGEX) and not any(_is_named(last, n) for n in names)):
        raise UnfitModelError(
            f"freeze: the model has no weights {last!r}{nearest(last, _runs(names))}"
        )
    return found


def _is_named(pattern: str, name: str) -> bool:
    if pattern.startswith(REGEX):
        return re.search(pattern.removeprefix(REGEX), name) is not None
    wanted, parts = pattern.split("."), name.split(".")
    return any(
        all(map(_is_part, wanted, parts[start : start + len(wanted)]))
        for start in range(len(parts) - len(wanted) + 1)
    )


def _is_part(wanted: str, part: str) -> bool:
    if (span := _RANGE.fullmatch(wanted)) is not None:
        return part.isdigit() and int(span[1]) <= int(part) <= int(span[2])
    return fnmatchcase(part, wanted)


def _runs(names: Iterable[str]) -> list[str]:
    """All that a pattern without globs could name."""
    split = [name.split(".") for name in names]
    return sorted(
        {
            ".".join(parts[start:end])
            for parts in split
            for start in range(len(parts))
            for end in range(start + 1, len(parts) + 1)
        }
    )
