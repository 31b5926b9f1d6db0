"""The objective itself: a trial's settings and managers, put together to one training."""

from __future__ import annotations

from pydantic import ValidationError

from workers.managers import (
    AMPManager,
    BatchManager,
    CUDAManager,
    DataManager,
    DirectoryManager,
    MetricsManager,
    ModelManager,
    TensorManager,
    WandbManager,
)
from workers.protocol.errors import ObjectiveError
from workers.protocol.finetune import FinetuneConfig
from workers.protocol.learning_rates import find_rate_problem
from workers.trials.finetune.loop import Training
from workers.trials.finetune.needs import Managers
from workers.trials.finetune.tasks import make_task
from workers.trials.handle import FleetTrial


def finetune(
    trial: FleetTrial,
    data: DataManager,
    models: ModelManager,
    amp: AMPManager,
    batches: BatchManager,
    metrics: MetricsManager,
    cuda: CUDAManager,
    tensors: TensorManager,
    directories: DirectoryManager,
    wandb: WandbManager,
) -> dict[str, float]:
    """Train and evaluate one model on the study's task.

    Reports the study's metric after each evaluation, with the evaluation's number, from 1, as the
    step; leaves `metrics.json` and, as `save_model` says, the model.

    Returns:
        The task's metrics on the held-out texts at the end of the training.

    Raises:
        ObjectiveError, InvalidInputError: The trial's settings cannot be trained.
        optuna.TrialPruned: The pruner gave the trial up.
        TrialInterrupt: The trial was ended from outside; on a drain, a checkpoint was saved.
    """
    managers = Managers(data, models, amp, batches, metrics, cuda, tensors, directories, wandb)
    config = read_config(trial)
    return Training(trial, config, make_task(config), managers).run()


def read_config(trial: FleetTrial) -> FinetuneConfig:
    """The trial's settings: the study's, with its parameters over them.

    Raises:
        ObjectiveError: A setting is unknown or out of range, or its learning rate cannot be.
    """
    try:
        config = FinetuneConfig.model_validate(trial.config)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(["config", *(str(part) for part in first["loc"])])
        value = f" = {first['input']!r}" if first["loc"] else ""
        message = first["msg"].removeprefix("Value error, ")
        raise ObjectiveError(f"{name}{value}: {message}") from error
    if problem := find_rate_problem(config, config.max_steps):
        raise ObjectiveError(f"config: {problem}")
    return config
