"""What a training begins with: its examples, and the state before its first step.

Invariant: what is drawn for it is drawn in `state` alone, from torch's generator as it stands.
"""

from __future__ import annotations

from typing import Any

from workers.managers import toolchain, trainable
from workers.managers.compilation import Compilation
from workers.managers.data import Examples
from workers.protocol.errors import (
    InvalidInputError,
    UnfitModelError,
    UnfitStudyError,
    WorkerLacksError,
)
from workers.protocol.finetune import DECIDES_THE_MODEL, FinetuneConfig
from workers.texts.held_out import HeldOut
from workers.trials.divergence import LossWatch
from workers.trials.finetune.footprint import footprint
from workers.trials.finetune.needs import Managers
from workers.trials.finetune.optimizer import build_optimizer
from workers.trials.finetune.schedule import Schedule
from workers.trials.finetune.state import FinetuneState
from workers.trials.finetune.tasks import Task
from workers.trials.handle import FleetTrial


class Beginning:
    """Makes what one training of one trial begins with.

    Args:
        trial: Whose training it is.
        config: The trial's settings.
        task: What is learned.
        managers: What it is learned with.
    """

    def __init__(
        self, trial: FleetTrial, config: FinetuneConfig, task: Task, managers: Managers
    ) -> None:
        self._trial = trial
        self._config = config
        self._task = task
        self._managers = managers

    def examples(self) -> Examples:
        """What is trained on, and what is held out.

        Raises:
            UnfitStudyError: The held-out labels leave one of the study's metrics undefined, and
                would in every other trial, too.
            InvalidInputError: They do with this trial's data.
            WorkerLacksError: The data, or the tokenizer, are not on this worker's host.
        """
        try:
            data = self._task.examples(self._managers.data, self._trial.preparing)
        except WorkerLacksError as error:
            error.is_of_study = not self._is_searched("data.", *DECIDES_THE_MODEL)
            raise
        held_out = HeldOut.of_targets(data.validation.labels, data.classes)
        problem = held_out.problem(self._trial.spec.metrics, self._config.task)
        if problem is None:
            return data
        is_searched = self._is_searched("data.")
        raise InvalidInputError(problem) if is_searched else UnfitStudyError(problem)

    def state(self, data: Examples, num_steps: int) -> FinetuneState:
        """The state before the first of so many steps.

        Raises:
            UnfitStudyError, UnfitModelError: The model cannot be built, or takes other texts.
            WorkerLacksError: The model cannot be built, or compiled, on this worker.
        """
        config, managers = self._config, self._managers
        direction = self._trial.spec.all_directions[0]
        model = self._model(data)
        optimizer = build_optimizer(model, config)
        schedule = Schedule(optimizer, config, num_steps, direction)
        precision = managers.amp.policy(config.precision, config.float32_matmul_precision)
        losses = LossWatch(
            managers.cuda.device,
            config.max_divergences if config.on_divergence == "skip" else 0,
            is_scaled=precision.is_scaled,
        )
        like = footprint(model, config, precision.name)
        return FinetuneState(
            model,
            optimizer,
            schedule,
            precision,
            losses,
            managers.metrics.best(direction),
            managers.cuda,
            managers.batches.accumulator(config.rows_a_pass, like),
            managers.batches.passes(like),
        )

    def compilation(self, state: FinetuneState) -> Compilation | None:
        """What calls the model by compiled code, where the study wants that."""
        config, mode = self._config, self._config.compile_mode
        if mode is None:
            return None
        return Compilation(
            state.model,
            mode,
            state.precision.name,
            self._managers.cuda,
            self._managers.directories,
            self._trial.preparing,
            is_row_by_row=1 in {config.rows_a_pass, config.batch_size},
        )

    def _model(self, data: Examples) -> Any:
        """The trial's model.

        Raises:
            UnfitStudyError: It would be wrong in every other trial, too.
            UnfitModelError: It is wrong with this trial's parameters.
            WorkerLacksError: It cannot be built on this worker.
        """
        is_searched = self._is_searched(*DECIDES_THE_MODEL)
        try:
            if self._config.compile_mode is not None:
                toolchain.refuse_if_lacking(self._managers.cuda)
            model = self._task.build_model(self._managers.models, data)
            trainable.prepare(model, self._config)
            return model
        except WorkerLacksError as error:
            error.is_of_study = not is_searched
            raise
        except UnfitModelError as error:
            if is_searched:
                raise
            raise UnfitStudyError(str(error)) from error

    def _is_searched(self, *prefixes: str) -> bool:
        """Whether the study varies a setting whose name begins so."""
        return any(name.startswith(prefixes) for name in self._trial.params)
