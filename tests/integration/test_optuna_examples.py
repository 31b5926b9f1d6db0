"""Objectives of the shapes of optuna-examples, scripts and all: they run in a fleet unchanged.

Each is one file as people write it, which runs a study of its own below its guard.
"""

from __future__ import annotations

import importlib.util
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import optuna
import pytest
from one_process_fleet import OneProcessFleet
from optuna.trial import TrialState

from orchestrator.driving import service as service_module
from orchestrator.storage.attributes import ATTR
from orchestrator.submission.algorithms import make_pruner, make_sampler
from workers.protocol.spec import StudySpec

QUADRATIC = '''
"""Optuna example that optimizes a simple quadratic function."""

import optuna


def objective(trial):
    x = trial.suggest_float("x", -100, 100)
    y = trial.suggest_categorical("y", [-1, 0, 1])
    return x**2 + y


if __name__ == "__main__":
    study = optuna.create_study()
    study.optimize(objective, n_trials=100, timeout=600)
    print("Best value: {} (params: {})\\n".format(study.best_value, study.best_params))
'''

CONSTRAINT = '''
"""Optuna example of multi-objective optimization with constraints: Binh and Korn's function."""

import optuna


def objective(trial):
    x = trial.suggest_float("x", -15, 30)
    y = trial.suggest_float("y", -15, 30)

    # Constraints which are considered feasible if less than or equal to zero.
    c0 = (x - 5) ** 2 + y**2 - 25
    c1 = -((x - 8) ** 2) - (y + 3) ** 2 + 7.7
    trial.set_user_attr("constraint", (c0, c1))
    trial.set_constraint("c0", c0)
    trial.set_constraint("c1", c1)

    v0 = 4 * x**2 + 4 * y**2
    v1 = (x - 5) ** 2 + (y - 5) ** 2
    return v0, v1


if __name__ == "__main__":
    sampler = optuna.samplers.NSGAIISampler()
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    study.optimize(objective, n_trials=32, timeout=600)
    for trial in study.best_trials:
        print(trial.number, trial.values, trial.params, trial.user_attrs["constraint"])
'''

MULTI_OBJECTIVE = '''
"""Optuna example that optimizes size and accuracy of a multi-layer perceptron in PyTorch."""

import optuna
import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.optim as optim

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
IN, CLASSES, BATCHSIZE, EPOCHS = 8, 3, 16, 2


def define_model(trial):
    n_layers = trial.suggest_int("n_layers", 1, 3)
    layers = []
    in_features = IN
    for i in range(n_layers):
        out_features = trial.suggest_int("n_units_l{}".format(i), 4, 16, log=True)
        layers.append(nn.Linear(in_features, out_features))
        layers.append(nn.ReLU())
        p = trial.suggest_float("dropout_{}".format(i), 0.2, 0.5)
        layers.append(nn.Dropout(p))
        in_features = out_features
    layers.append(nn.Linear(in_features, CLASSES))
    layers.append(nn.LogSoftmax(dim=1))
    return nn.Sequential(*layers)


def get_data():
    data = torch.randn(64, IN)
    dataset = torch.utils.data.TensorDataset(data, data[:, :CLASSES].argmax(1))
    return torch.utils.data.DataLoader(dataset, batch_size=BATCHSIZE, shuffle=True)


def objective(trial):
    model = define_model(trial).to(DEVICE)
    optimizer_name = trial.suggest_categorical("optimizer", ["Adam", "RMSprop", "SGD"])
    lr = trial.suggest_float("lr", 1e-5, 1e-1, log=True)
    optimizer = getattr(optim, optimizer_name)(model.parameters(), lr=lr)
    loader = get_data()
    correct = 0
    for epoch in range(EPOCHS):
        model.train()
        for data, target in loader:
            optimizer.zero_grad()
            F.nll_loss(model(data), target).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            correct = sum((model(d).argmax(1) == t).sum() for d, t in loader)
    accuracy = correct / len(loader.dataset)
    return sum(p.numel() for p in model.parameters()), accuracy


if __name__ == "__main__":
    study = optuna.create_study(directions=["minimize", "maximize"])
    study.optimize(objective, n_trials=30, timeout=300)
    print("Number of finished trials: ", len(study.trials))
'''

PRUNING = '''
"""Optuna example that demonstrates pruning: stochastic gradient descent on a linear model."""

import numpy as np
import optuna


def objective(trial):
    rng = np.random.RandomState(0)
    data = rng.normal(size=(64, 4))
    target = (data @ np.array([1.0, -2.0, 3.0, 0.5]) > 0).astype(np.float32)
    alpha = trial.suggest_float("alpha", 1e-5, 1e1, log=True)
    weights = np.zeros(4)

    for step in range(20):
        output = 1 / (1 + np.exp(-np.clip(data @ weights, -30, 30)))
        weights -= alpha * data.T @ (output - target) / len(target)

        # Report intermediate objective value.
        intermediate_value = np.mean((output > 0.5) != target)
        trial.report(intermediate_value, step)

        # Handle pruning based on the intermediate value.
        if trial.should_prune():
            raise optuna.exceptions.TrialPruned()

    return np.mean((output > 0.5) != target)


if __name__ == "__main__":
    study = optuna.create_study(pruner=optuna.pruners.MedianPruner())
    study.optimize(objective, n_trials=20)
    pruned_trials = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.PRUNED])
    print("Number of pruned trials: ", len(pruned_trials))
'''

CHECKPOINT = '''
"""Optuna example that resumes a training from a checkpoint when it is retried."""

import os

import optuna
import torch

CHECKPOINT_DIR = os.path.join(os.path.dirname(os.path.abspath(__file__)), "pytorch_checkpoint")
EPOCHS = 4


def objective(trial):
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=trial.suggest_float("lr", 1e-3, 1e-1))
    trial_path = os.path.join(CHECKPOINT_DIR, str(trial.number))
    checkpoint_path = os.path.join(trial_path, "model.pt")
    epoch_begin = 0
    if os.path.isfile(checkpoint_path):
        checkpoint = torch.load(checkpoint_path)
        epoch_begin = checkpoint["epoch"] + 1
        model.load_state_dict(checkpoint["model_state_dict"])
        optimizer.load_state_dict(checkpoint["optimizer_state_dict"])
    print("Starting at epoch", epoch_begin)
    os.makedirs(trial_path, exist_ok=True)

    for epoch in range(epoch_begin, EPOCHS):
        loss = model(torch.ones(8, 4)).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        trial.report(loss.item(), epoch)
        torch.save(
            {
                "epoch": epoch,
                "model_state_dict": model.state_dict(),
                "optimizer_state_dict": optimizer.state_dict(),
                "loss": loss,
            },
            os.path.join(trial_path, "tmp_model.pt"),
        )
        os.replace(os.path.join(trial_path, "tmp_model.pt"), checkpoint_path)
        if epoch == 1 and epoch_begin == 0:
            raise RuntimeError("the machine was taken away")
        if trial.should_prune():
            raise optuna.exceptions.TrialPruned()
    trial.set_user_attr("epoch_begin", epoch_begin)
    return loss.item()


if __name__ == "__main__":
    storage = optuna.storages.RDBStorage("sqlite:///example.db", heartbeat_interval=1)
    study = optuna.create_study(storage=storage, study_name="pytorch_checkpoint")
    study.optimize(objective, n_trials=10, timeout=600)
'''

ENQUEUE = '''
"""Optuna example that evaluates given parameters, and others around them."""

import optuna


def objective(trial):
    x = trial.suggest_int("x", 0, 10)
    y = trial.suggest_int("y", 0, 10)
    if "memo" in trial.user_attrs:
        print(trial.user_attrs["memo"])
    assert trial.params == {"x": x, "y": y}
    assert trial.datetime_start is not None
    return x**2 + y**2


if __name__ == "__main__":
    study = optuna.create_study()
    study.enqueue_trial({"x": 5, "y": 5})
    study.enqueue_trial({"x": 0}, user_attrs={"memo": "optimal for x"})
    study.optimize(objective, n_trials=10)
    assert objective(optuna.trial.FixedTrial({"x": 1, "y": 1})) == 2
'''

CALLBACK = '''
"""Optuna example with callbacks: of a training, and one that stops the study."""

import optuna
from optuna.study import MaxTrialsCallback
from optuna.trial import TrialState


class PruningCallback:
    def __init__(self, trial, monitor):
        self._trial = trial
        self._monitor = monitor

    def on_epoch_end(self, epoch, logs=None):
        self._trial.report(float(logs[self._monitor]), step=epoch)
        if self._trial.should_prune():
            message = "Trial was pruned at epoch {}.".format(epoch)
            raise optuna.TrialPruned(message)


class StopWhenGoodEnough:
    def __init__(self, threshold):
        self.threshold = threshold

    def __call__(self, study, trial):
        if study.direction == optuna.study.StudyDirection.MINIMIZE:
            if len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) >= 3:
                study.stop()


stop = StopWhenGoodEnough(0.1)


def objective(trial):
    callbacks = [PruningCallback(trial, "loss")]
    x = trial.suggest_float("x", 0, 10)
    for epoch in range(3):
        for callback in callbacks:
            callback.on_epoch_end(epoch, {"loss": (x - 2) ** 2 / (epoch + 1)})
    try:
        print("Best so far:", trial.study.best_value, trial.study.best_trial.params)
    except ValueError:
        print("no trials are completed yet")
    stop(trial.study, trial)
    return (x - 2) ** 2


if __name__ == "__main__":
    study = optuna.create_study()
    study.optimize(
        objective, n_trials=50, callbacks=[stop, MaxTrialsCallback(10, (TrialState.COMPLETE,))]
    )
'''

NESTED = '''
"""Optuna example with an inner study for each trial of the outer one."""

import logging
import sys

import optuna

optuna.logging.get_logger("optuna").addHandler(logging.StreamHandler(sys.stdout))


class Objective:
    def __init__(self, target):
        self.target = target

    def __call__(self, trial):
        x = trial.suggest_float("x", -10, 10)
        inner = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=trial.number))
        inner.optimize(
            lambda t: abs(x - self.target - t.suggest_float("y", -1, 1)), n_trials=3, n_jobs=1
        )
        trial.set_user_attr("inner", inner.best_params)
        return inner.best_value


objective = Objective(3)

if __name__ == "__main__":
    optuna.create_study().optimize(objective, n_trials=5, gc_after_trial=True)
'''

TWO = {"directions": ["minimize", "minimize"]}

#: the script, and what its study has beside six trials of a seeded random sampler
EXAMPLES: dict[str, tuple[str, dict[str, Any]]] = {
    "quadratic_simple": (QUADRATIC, {}),
    "constraint": (CONSTRAINT, TWO),
    "pytorch_multi_objective": (MULTI_OBJECTIVE, {"directions": ["minimize", "maximize"]}),
    "pruning_simple": (PRUNING, {"pruner": {"type": "median", "n_startup_trials": 2}}),
    "pytorch_checkpoint": (CHECKPOINT, {"trials": 2}),
    "enqueue_trial": (ENQUEUE, {}),
    "callback": (CALLBACK, {"trials": 50}),
    "nested": (NESTED, {}),
}


@pytest.fixture
def fleet(client, server, settings, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(service_module, "_BLOCK_MS", 5)
    with ExitStack() as stack:
        allowed = settings.model_copy(update={"objectives": ("*",)})
        yield stack.enter_context(OneProcessFleet(client, server, allowed, tmp_path))


def by_optuna_alone(path: Path, spec: StudySpec) -> optuna.Study:
    """A study of the same file in one process, as the script itself runs it."""
    loader = importlib.util.spec_from_file_location(f"alone_{path.stem}", path)
    module = importlib.util.module_from_spec(loader)
    loader.loader.exec_module(module)
    study = optuna.create_study(
        sampler=make_sampler(spec), pruner=make_pruner(spec), directions=spec.all_directions
    )
    study.optimize(module.objective, n_trials=spec.trials)
    return study


def outcomes(study: optuna.Study) -> list[Any]:
    """What became of each trial, as JSON has it; those that were cancelled are no outcome."""
    found = [
        (
            trial.state.name,
            trial.values,
            trial.params,
            trial.constraints,
            trial.intermediate_values,
            {key: own for key, own in trial.user_attrs.items() if not key.startswith(ATTR)},
        )
        for trial in study.trials
        if trial.state is not TrialState.FAIL
    ]
    return json.loads(json.dumps(found))


def test_scripts_of_the_shapes_of_optunas_examples_run_unchanged(fleet, tmp_path):
    files = {name: tmp_path / f"{name}.py" for name in EXAMPLES}
    specs = {}
    for name, (source, fields) in EXAMPLES.items():
        files[name].write_text(source)
        sampled = {"trials": 6, "sampler": {"type": "random", "seed": 3}}
        specs[name] = StudySpec(name=name, objective=f"{files[name]}:objective", **sampled | fields)
    found = {name: outcomes(study) for name, study in fleet.run_studies(specs.values()).items()}

    resumed = found.pop("pytorch_checkpoint")
    assert [(state, attrs) for state, *_, attrs in resumed] == [
        ("COMPLETE", {"epoch_begin": 2})
    ] * 2
    assert [len(reports) for *_, reports, _ in resumed] == [4, 4], "of both attempts"
    drawn = found.pop("pytorch_multi_objective")
    alone = outcomes(
        by_optuna_alone(files["pytorch_multi_objective"], specs["pytorch_multi_objective"])
    )
    assert [params for _, _, params, *_ in drawn] == [params for _, _, params, *_ in alone]
    for name, outcome in found.items():
        expected = outcomes(by_optuna_alone(files[name], specs[name]))
        assert outcome == expected, name
        assert expected, name
    assert [state for state, *_ in found["pruning_simple"]].count("PRUNED") == 2
