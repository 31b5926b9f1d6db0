"""Ray Tune on trials that do nothing, two at a time; run by an environment of its own.

Ray is no package of this project's; `throughput.py` makes the environment.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
from typing import Any

import ray
from ray import tune

#: The parameters of the fleet's objective; `nothing.py` imports what this environment lacks.
PARAMETERS = ("a", "b", "c", "d", "e")


class Nothing(tune.Trainable):  # type: ignore[misc]
    """One step: the sum of the parameters."""

    def setup(self, config: dict[str, Any]) -> None:
        """Take the parameters."""
        self.parameters = config

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take those of the next trial: the actor is reused."""
        self.parameters = new_config
        return True

    def step(self) -> dict[str, Any]:
        """Do nothing, once."""
        return {"value": sum(self.parameters.values()), "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing is kept."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing was kept."""


def main() -> None:
    """Run trials for some seconds; how many a second ended, the start of Ray left out."""
    seconds, reuse = float(sys.argv[1]), sys.argv[2] == "reuse"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="bench-ray-") as folder:
        tuner = tune.Tuner(
            Nothing,
            param_space={name: tune.uniform(0.0, 1.0) for name in PARAMETERS},
            tune_config=tune.TuneConfig(
                num_samples=-1,
                time_budget_s=seconds,
                max_concurrent_trials=2,
                reuse_actors=reuse,
                metric="value",
                mode="min",
            ),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        )
        start = time.monotonic()
        results = tuner.fit()
        wall = time.monotonic() - start
    ended = sum(result.metrics is not None and "value" in result.metrics for result in results)
    rate = round(ended / wall, 1)
    print(json.dumps({"trials_per_second": rate, "trials": ended, "ray": ray.__version__}))


if __name__ == "__main__":
    main()
