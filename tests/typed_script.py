"""What a user's script writes against the public names, for the type checkers; it is never run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, assert_type

import optuna
import torch

from orchestrator import Fleet, Study, StudyHandle, connect, delete_study, submit
from orchestrator.status import StudyStatus
from workers.integrations.lightning import FleetCallback as LightningCallback
from workers.integrations.transformers import FleetCallback as TransformersCallback
from workers.managers import (
    BatchManager,
    DataManager,
    ModelManager,
    cleanup_managers,
    get_batch_manager,
    get_data_manager,
    get_model_manager,
    get_tensor_manager,
    initialize_factory,
)
from workers.managers.process_init import ensure_process_initialized
from workers.protocol.spec import StudySpec
from workers.settings import Settings
from workers.trials.handle import FleetTrial

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


class Training:
    """Model, optimizer and position."""

    def __init__(self, width: int) -> None:
        self.model = torch.nn.Linear(width, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)


def loop(trial: FleetTrial, loader: Iterable[torch.Tensor]) -> float:
    """A plain PyTorch loop."""
    training = Training(trial.suggest_int("width", 1, 8))
    with trial.training(training, checkpoint_seconds=30.0) as run:
        for epoch in run.epochs(3):
            assert_type(epoch, int)
            for _batch in run.steps(loader):
                training.optimizer.step()
            run.report(0.5)
    best = trial.best_value()
    assert_type(best, float | None)
    return 0.0 if best is None else best


def plain(trial: FleetTrial) -> float:
    """What Optuna's own trials can do, and leases, checkpoints and logs."""
    rate = trial.suggest_float("learning_rate", 1e-5, 1e-1, log=True)
    kind = trial.suggest_categorical("kind", ["a", "b"])
    saved = trial.load_checkpoint() or {"step": 0}
    for step in range(saved["step"], 10):
        trial.progress(step, total=10)
        trial.report(rate, step)
        trial.log({"rate": rate}, step)
        trial.save_checkpoint(step, {"step": step})
        if trial.should_prune():
            raise optuna.TrialPruned
    trial.set_user_attr("kind", kind)
    assert_type(trial.number, int)
    return rate


def managed(trial: FleetTrial, models: ModelManager, data: DataManager) -> float:
    """Asks for managers by type."""
    texts = data.text_classification("reviews.csv", "prajjwal1/bert-tiny", max_length=64)
    model = models.sequence_classifier(
        "prajjwal1/bert-tiny", labels=texts.classes, tokenizer=texts.tokenizer
    )
    batches = get_batch_manager().training_batches(texts.train.lengths, 32, seed=0, epoch=0)
    for batch in data.loader(texts.train, batches, pad_id=texts.tokenizer.pad_token_id):
        model(**batch)
    return float(trial.number)


def trainers(trial: FleetTrial) -> float:
    """Other libraries' trainers."""
    of_transformers = TransformersCallback(trial, metric="accuracy")
    assert_type(of_transformers.resume_from_checkpoint, str | None)
    assert_type(of_transformers.best_value, float)
    return LightningCallback(trial, metric="val_accuracy").best_value


def processes(config: Settings) -> None:
    """Managers in processes of one's own."""
    initialize_factory(config)
    ensure_process_initialized(config)
    assert_type(get_model_manager(), ModelManager)
    assert_type(get_data_manager(), DataManager)
    assert_type(get_batch_manager(), BatchManager)
    get_tensor_manager().clear_memory()
    cleanup_managers()


def studies() -> None:
    """From handing in to what came out."""
    study = Study(plain, name="typed", direction="maximize", trials=10, timeout="2h")
    handle = study.submit()
    assert_type(handle, StudyHandle)
    assert_type(handle.wait(timeout_seconds=60.0), StudyStatus)
    best: FrozenTrial = handle.best_trial
    assert_type(handle.study, optuna.Study)
    assert_type(handle.export("trials.csv"), Path)
    handle.enqueue(best.params)
    handle.extend(trials=20)
    handle.pause(now=True)
    handle.resume()
    spec = StudySpec.model_validate({"name": "s", "objective": "finetune", "trials": 1})
    assert_type(submit(spec, Settings.from_environment()), StudyHandle)
    with connect() as fleet:
        assert_type(fleet, Fleet)
        assert_type(fleet.studies(), list[StudyHandle])
    delete_study("typed")
