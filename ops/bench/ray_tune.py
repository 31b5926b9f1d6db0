"""Trials of some seconds, or none, by Ray Tune in an environment that has it; prints one JSON line.

ENV/bin/python ops/bench/ray_tune.py TRIALS SECONDS SLOTS reuse|fresh
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from typing import Any

import ray
from ray import tune


class Paced(tune.Trainable):
    """Trains for so many seconds; a class, so that its actor can be used again."""

    def setup(self, config: dict[str, Any]) -> None:
        """Note how long."""
        self.seconds = config["seconds"]

    def step(self) -> dict[str, Any]:
        """All of it."""
        began = time.time()
        time.sleep(self.seconds)
        return {"score": 1.0, "done": True, "began": began, "ended": time.time()}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Go on with another trial."""
        self.seconds = new_config["seconds"]
        return True


def run(trials: int, seconds: float, slots: int, folder: str, *, reuse: bool) -> list[Any]:
    """The results of all trials; their files go into `folder`."""
    tuner = tune.Tuner(
        tune.with_resources(Paced, {"cpu": 1}),
        param_space={"seconds": seconds, "x": tune.uniform(0.0, 1.0)},
        tune_config=tune.TuneConfig(
            num_samples=trials, max_concurrent_trials=slots, reuse_actors=reuse
        ),
        run_config=tune.RunConfig(
            verbose=0,
            storage_path=folder,
            # a class saves one at its end, where nothing is said, and this one has nothing to save
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    results = tuner.fit()
    if results.errors:
        sys.exit(f"{results.num_errors} of {trials} trials failed: {results.errors[0]}")
    return list(results)


def main() -> None:
    """Run, and print."""
    trials, seconds, slots = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    ray.init(num_cpus=slots, include_dashboard=False, log_to_driver=False, logging_level="error")
    with tempfile.TemporaryDirectory() as folder:
        results = run(trials, seconds, slots, folder, reuse=sys.argv[4] == "reuse")
    times = sorted((each.metrics["began"], each.metrics["ended"]) for each in results)
    warm = times[slots:]
    window = slots * (max(ended for _, ended in warm) - min(ended for _, ended in times[:slots]))
    share = sum(ended - began for began, ended in warm) / window
    after_first = max(ended for _, ended in times) - times[0][1]
    found = {
        "useful_share": round(share, 4),
        "trials_per_second": round((trials - 1) / after_first, 2),
    }
    print(json.dumps({**found, "ray": ray.__version__}))
    ray.shutdown()


if __name__ == "__main__":
    main()
