"""Where a `transformers.Trainer` is in its training, and where its checkpoints say it was.

Invariant: nothing else knows how the Trainer counts.
"""

from __future__ import annotations

import inspect
import json
import math
from pathlib import Path
from typing import Any, Final

from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler, ExportableState

#: Where `Trainer` keeps what it counts.
_STATE: Final = "trainer_state.json"


def place_of(state: TrainerState, rate: float | None = None) -> str:
    """Where the training is, in words.

    Args:
        state: The Trainer's.
        rate: The learning rate, if that is known.
    """
    place = f"at step {state.global_step} of {state.max_steps}"
    return place if rate is None else f"{place}, at a learning rate of {rate:.3g}"


def ends_epoch(state: TrainerState) -> bool:
    """Whether an epoch's last step was made, and what is due at its end was not done yet."""
    return state.epoch is not None and math.isclose(state.epoch, round(state.epoch), abs_tol=1e-9)


def is_last(state: TrainerState) -> bool:
    """Whether no further step is made."""
    return bool(state.max_steps) and state.global_step >= state.max_steps


def why_not_to_the_bit(args: TrainingArguments, state: TrainerState, loader: Any) -> str | None:
    """Why a training that is resumed here does not end as an undisturbed one; None if it does.

    Args:
        args: The Trainer's.
        state: As the checkpoint has it.
        loader: What is trained on.
    """
    if args.ignore_data_skip:
        return "ignore_data_skip has rows read again"
    if _had_short_epochs(state, loader, args.gradient_accumulation_steps):
        return (
            "the Trainer goes on at another row: epochs before had fewer steps than it takes an"
            " epoch to have, as those of rows without a length"
        )
    return None


def _had_short_epochs(state: TrainerState, loader: Any, accumulation_steps: int) -> bool:
    """Whether the Trainer, which finds its place by the number of steps, takes it for another."""
    try:
        num_steps = math.ceil(len(loader) / accumulation_steps)
    except TypeError:
        num_steps = state.max_steps
    return bool(math.ceil(state.epoch or 0.0) > math.ceil(state.global_step / num_steps))


def restore_callbacks(state: TrainerState) -> None:
    """Have the callbacks of the Trainer that calls count on where the checkpoint has them.

    The Trainer's own `restore_callback_states_from_checkpoint` would make them anew, which fails
    for a constructor that does not take just what `state()["args"]` has.

    Args:
        state: As the checkpoint has it.
    """
    of_class: dict[str, list[TrainerCallback]] = {}
    for callback in _callbacks_of_caller():
        if isinstance(callback, ExportableState):
            of_class.setdefault(type(callback).__name__, []).append(callback)
    for name, callbacks in of_class.items():
        stored = state.stateful_callbacks.get(name, [])
        # of several of a class, the Trainer adds their states to a list at each checkpoint
        newest = stored[-len(callbacks) :] if isinstance(stored, list) else [stored]
        for callback, of_callback in zip(callbacks, newest, strict=False):
            for attribute, value in of_callback.get("attributes", {}).items():
                setattr(callback, attribute, value)


def _callbacks_of_caller() -> list[TrainerCallback]:
    """All callbacks of the Trainer that calls a hook of one.

    A hook is told neither of the Trainer nor of who else is called, and nothing that it is given
    leads there. The stack does, without a patch that each Trainer of the process would run by.
    """
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, CallbackHandler):
            return list(caller.callbacks)
        frame = frame.f_back
    return []


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint was taken at, by its folder's name."""
    return int(checkpoint.name.rpartition("-")[2])


def move_best(checkpoint: Path, folder: Path) -> None:
    """Have the state in a checkpoint name the best one where it lies now.

    Args:
        checkpoint: A folder that the Trainer wrote.
        folder: Where its checkpoints lie.
    """
    path = checkpoint / _STATE
    state = json.loads(path.read_text())
    best = state.get("best_model_checkpoint")
    if best is not None:
        state["best_model_checkpoint"] = str(folder / Path(best).name)
        path.unlink()  # the file is the fleet's, too
        path.write_text(json.dumps(state))
