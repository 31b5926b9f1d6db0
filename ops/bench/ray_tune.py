"""Trials of some seconds by Ray Tune, in an environment that has it; prints one JSON line.

ENV/bin/python ops/bench/ray_tune.py TRIALS SECONDS SLOTS reuse|fresh
"""

from __future__ import annotations

import json
import sys
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


def main() -> None:
    """Run, and print."""
    trials, seconds, slots = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    ray.init(num_cpus=slots, include_dashboard=False, log_to_driver=False, logging_level="error")
    tuner = tune.Tuner(
        tune.with_resources(Paced, {"cpu": 1}),
        param_space={"seconds": seconds, "x": tune.uniform(0.0, 1.0)},
        tune_config=tune.TuneConfig(
            num_samples=trials, max_concurrent_trials=slots, reuse_actors=sys.argv[4] == "reuse"
        ),
        run_config=tune.RunConfig(verbose=0),
    )
    results = sorted((each.metrics["began"], each.metrics["ended"]) for each in tuner.fit())
    warm = results[slots:]
    window = slots * (max(ended for _, ended in warm) - min(ended for _, ended in results[:slots]))
    share = sum(ended - began for began, ended in warm) / window
    print(json.dumps({"useful_share": round(share, 4), "ray": ray.__version__}))
    ray.shutdown()


if __name__ == "__main__":
    main()
