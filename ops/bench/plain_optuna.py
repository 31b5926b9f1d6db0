"""One process of plain Optuna on a Redis journal, or a database, that others write, too."""

from __future__ import annotations

import json
import sys
import time
import warnings

import optuna
from nothing import PARAMETERS
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalRedisBackend


def main() -> None:
    """Optimize for some seconds; how many trials this process ended."""
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    url = sys.argv[1]
    is_redis = url.startswith("redis")
    storage = JournalStorage(JournalRedisBackend(url)) if is_redis else RDBStorage(url)
    study = optuna.create_study(
        study_name="plain",
        storage=storage,
        load_if_exists=True,
        sampler=optuna.samplers.RandomSampler(),
    )
    count = 0

    def objective(trial: optuna.Trial) -> float:
        nonlocal count
        count += 1
        return sum(trial.suggest_float(name, 0.0, 1.0) for name in PARAMETERS)

    start = time.monotonic()
    study.optimize(objective, timeout=float(sys.argv[2]))
    print(json.dumps({"trials": count, "seconds": time.monotonic() - start}))


if __name__ == "__main__":
    main()
