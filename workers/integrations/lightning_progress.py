"""Where Lightning's Trainer is in its training, and what its own checkpoints leave out of that.

Invariant: nothing else knows how the Trainer counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def batches_so_far(trainer: Any) -> int:
    """Names a point to go on from: between two batches there is one."""
    count: int = trainer.fit_loop.epoch_loop.batch_progress.total.ready
    return count


def begin_as_ever(fit_loop: Any) -> None:
    """Have the Trainer take what follows as any other epoch, once it is where it was.

    Where an epoch begins, it would look for a validation before the first batch is trained; at the
    epoch's end, it would not step a `ReduceLROnPlateau`, whose metrics its checkpoints lack.
    """
    fit_loop._restarting = False
    fit_loop.epoch_loop.restarting = False


def count_epoch(fit_loop: Any) -> None:
    """Count the epoch that begins as one that is ready.

    Where Lightning resumes in this hook, it counts it so in `total` alone. By a checkpoint of the
    hook of a later epoch, it would then take that one for over, and count it twice.
    """
    current = fit_loop.epoch_progress.current
    current.ready = current.started + 1


def count_anew(epoch_loop: Any) -> None:
    """Count the batches of an epoch from 0, which Lightning does only after this hook.

    With a checkpoint that has the counts of the epoch before, it would take this one for done.
    """
    epoch_loop.batch_progress.reset_on_run()
    epoch_loop.scheduler_progress.reset_on_run()
    epoch_loop.automatic_optimization.optim_progress.reset_on_run()
    epoch_loop.val_loop.batch_progress.total.reset()


def begin_epoch_again(trainer: Any, pl_module: Any) -> list[str]:
    """Tell the user's own code that an epoch begins, where one is resumed within.

    Lightning tells nobody, and what such a hook sets is in no checkpoint: by it, a module has its
    lists emptied, or something follow from the epoch. Callbacks that have a state are resumed.

    Returns:
        Who was told.
    """
    told = [each for each in trainer.callbacks if _is_own(each) and not each.state_dict()]
    told = [each for each in [*told, pl_module] if _hears_of_epochs(each)]
    for each in told:
        each.on_train_epoch_start(*(() if each is pl_module else (trainer, pl_module)))
    return [type(each).__name__ for each in told]


def _is_own(callback: Any) -> bool:
    """Whether a callback is neither Lightning's nor the fleet's."""
    package = type(callback).__module__.partition(".")[0]
    return package not in {"lightning", "pytorch_lightning", "workers"}


def _hears_of_epochs(listener: Any) -> bool:
    """Whether a module or a callback has a hook of its own where epochs begin."""
    giver = next(each for each in type(listener).__mro__ if "on_train_epoch_start" in vars(each))
    return giver.__module__.partition(".")[0] not in {"lightning", "pytorch_lightning"}


def steps_on_plateaus(trainer: Any) -> bool:
    """Whether a scheduler looks at a metric when the hooks after this batch are done."""
    count = trainer.fit_loop.epoch_loop.batch_idx + 1
    return trainer.lightning_module.automatic_optimization and any(
        config.reduce_on_plateau and config.interval == "step" and count % config.frequency == 0
        for config in trainer.lr_scheduler_configs
    )


def gradients_of(pl_module: Any) -> dict[str, Any]:
    """The gradients that a later batch may add to, by parameter."""
    named = pl_module.named_parameters()
    return {name: weight.grad for name, weight in named if weight.grad is not None}


def put_gradients(pl_module: Any, gradients: Mapping[str, Any]) -> None:
    """Put back what `gradients_of` found."""
    for name, weight in pl_module.named_parameters():
        if name in gradients:
            weight.grad = gradients[name].to(weight.device)
