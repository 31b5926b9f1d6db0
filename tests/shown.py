"""The objective of the web page's test and pictures: curves that rise, and some trials that fail.

Imported by workers; it trains nothing, and takes as long as a page needs to be looked at.
"""

from __future__ import annotations

import math
import random
import time

import optuna

from workers.trials.handle import FleetTrial

STEPS = 20
STEP_SECONDS = 0.1

#: A name and an error as somebody malicious or unlucky might have them.
TRICK = "<img src=x onerror=\"document.title='tricked'\">"


def curve(trial: FleetTrial) -> float:
    """Rise towards a value that the parameters decide, step by step, with a checkpoint each."""
    rate = trial.suggest_float("learning_rate", 1e-5, 1e-1, log=True)
    layers = trial.suggest_int("layers", 1, 6)
    kind = trial.suggest_categorical("optimizer", ["adamw", "sgd", "lion"])
    dropout = trial.suggest_float("dropout", 0.0, 0.5)
    reached = 0.93 * math.exp(-((math.log10(rate) + 3) ** 2) / 6) * (1 - abs(layers - 4) / 12)
    reached *= {"adamw": 1.0, "sgd": 0.9, "lion": 0.96}[kind] * (1 - dropout / 5)
    if rate > 0.06:
        raise ValueError(f"the loss is not a number at learning_rate={rate:.3g}")
    saved = trial.load_checkpoint() or {"step": 0}
    noise, value = random.Random(trial.number), 0.0
    for step in range(saved["step"], STEPS):
        trial.progress(step)
        value = reached * (1 - math.exp(-(step + 1) / 6)) + noise.gauss(0, 0.006)
        time.sleep(STEP_SECONDS)
        trial.report(value, step)
        trial.save_checkpoint(step + 1, {"step": step + 1})
        if trial.should_prune():
            raise optuna.TrialPruned
    return value


def trick(trial: FleetTrial) -> tuple[float, float]:
    """Two values at once, and names that are no names."""
    found = trial.suggest_float(TRICK, 0.0, 1.0)
    kind = trial.suggest_categorical("kind", [TRICK, "b"])
    if trial.number == 3:
        raise ValueError(TRICK)
    return found, (1 - found) * (1.5 if kind == "b" else 1.0)
