"""What is wrong with a learning rate over a whole training: one that rises, or never peaks.

Invariant: settings in which nothing is found here have a schedule that reaches `learning_rate`, and
falls, if it is one that falls.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from workers.protocol.optimizer_options import OptimizerOptions

#: By schedule, the option that says to what the rate falls, and what it is if it is not given.
LOWEST: Final[Mapping[str, tuple[str, float]]] = {
    "polynomial": ("lr_end", 1e-7),
    "cosine_with_min_lr": ("min_lr", 0.0),
    "cosine_warmup_with_min_lr": ("min_lr", 0.0),
    "reduce_lr_on_plateau": ("min_lr", 0.0),
}


def warmup_steps(options: OptimizerOptions, num_steps: int) -> int:
    """The steps over which the rate rises, of a training of so many."""
    if options.warmup_steps is not None:
        return options.warmup_steps
    return round(num_steps * options.warmup_fraction)


def find_rate_problem(options: OptimizerOptions, num_steps: int | None) -> str | None:
    """What is wrong with the rate of a training, and the way out; None if nothing is.

    Args:
        options: The training's.
        num_steps: How long it is, at most; None if that is not known yet.
    """
    option, usual = LOWEST.get(options.schedule, ("", 0.0))
    lowest = options.schedule_options.get(option, usual)
    if lowest >= options.learning_rate:
        return (
            f"`schedule_options.{option}` = {lowest:g}: {options.schedule} falls to that from"
            f" learning_rate = {options.learning_rate:g}, which is no higher; lower the one or"
            " raise the other"
        )
    return None if num_steps is None else _find_too_long(options, num_steps)


def _find_too_long(options: OptimizerOptions, num_steps: int) -> str | None:
    rising = warmup_steps(options, num_steps)
    if options.warmup_steps and rising >= num_steps:
        return (
            f"`warmup_steps` = {rising}: the training has {num_steps} steps, and would end before"
            " the rate has peaked; take fewer, or warmup_fraction"
        )
    falling = options.schedule_options.get("num_decay_steps", 0)
    if rising + falling > num_steps:
        return (
            f"`schedule_options.num_decay_steps` = {falling}: with {rising} steps of warm-up it is"
            f" more than the training's {num_steps} steps; take fewer"
        )
    return None
