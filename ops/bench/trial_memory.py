#!/usr/bin/env python
"""What one process holds after hundreds of trials of mixed models, beside what it held after ten.

Text classification, pairs, regression, several classes, words, causal and masked language models
of small BERT, DistilBERT, GPT-2 and T5 encoders, some by LoRA, some that diverge; each trial of
other sizes and lengths than the one before, all through the runner of a pool process.

Prints one JSON line: memory, files, threads and maps after the tenth trial and after the last, the
memory of each tenth trial, by how much it grew, and which objects there are more of. Memory is
looked at twice: right behind a trial, when some that was freed may wait to go back to the system,
and when the process has idled for as long as that takes.

    python ops/bench/trial_memory.py --trials 300
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import math
import os
import sys
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import psutil
import redis
import torch
import transformers
from held import Held
from mixed_trials import KINDS, MixedTrials, mixed_trials

from orchestrator.local.servers import EmbeddedRedis
from workers.containers import Container
from workers.logs import configure_logging
from workers.managers import MANAGERS, TensorManager
from workers.processes.registry import ProcessRecord
from workers.settings import Settings

#: After so many trials, one of each kind, a process has imported what it imports.
WARM: Final = len(KINDS)


def measure(trials: MixedTrials, count: int, tensors: TensorManager) -> dict[str, Any]:
    """Run trials, and say what the process holds after the tenth and after the last."""
    ends: Counter[str] = Counter()
    seen: list[Held] = []
    at_once: list[int] = []
    began = time.monotonic()
    for number in range(count):
        ends[trials.run(number)] += 1
        if (number + 1) % WARM == 0:
            at_once.append(psutil.Process().memory_info().rss)
            _idle(tensors)
            seen.append(Held.now())
            print(f"{number + 1}: {seen[-1].figures()}", file=sys.stderr, flush=True)
    first, last = seen[0], seen[-1]
    return {
        "ended": dict(ends),
        "seconds_a_trial": round((time.monotonic() - began) / count, 2),
        "after_tenth": first.figures(),
        "after_last": last.figures(),
        "rss_grew_percent": round(100 * (last.rss / first.rss - 1), 1),
        "rss_mb": [round(each.rss / 2**20) for each in seen],
        "rss_grew_percent_at_once": round(100 * (at_once[-1] / at_once[0] - 1), 1),
        "rss_mb_at_once": [round(rss / 2**20) for rss in at_once],
        "grew": last.grown_since(first),
    }


def _idle(tensors: TensorManager) -> None:
    """Give freed memory back when it may, as a process does to which no trial comes."""
    while (seconds := tensors.seconds_to_wait()) < math.inf:
        time.sleep(seconds)
        tensors.give_freed_back()


def main() -> None:
    """Measure, and print one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=300, help="a multiple of ten")
    parser.add_argument("--scale", type=int, default=4, help="how much larger the largest are")
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False))
    given = parser.parse_args()
    if given.trials < WARM or given.trials % WARM:
        parser.error(f"--trials {given.trials}: give a multiple of {WARM}, one of each kind")
    os.environ["WANDB_MODE"] = "disabled"
    configure_logging(level=logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    line: dict[str, Any] = {"bench": "trial_memory", "trials": given.trials, "scale": given.scale}
    with tempfile.TemporaryDirectory(prefix="trialfleet-") as name:
        folder = Path(name)
        with EmbeddedRedis(folder / "home") as server:
            client = redis.Redis.from_url(server.url, decode_responses=True)
            settings = Settings(redis_url=server.url, home=folder / "home", cache=folder / "cache")
            with Container(MANAGERS, [settings, ProcessRecord()]) as container:
                torch.set_num_threads(given.threads)
                with mixed_trials(client, settings, container, folder, scale=given.scale) as trials:
                    gc.freeze()  # as a pool process does
                    line |= measure(trials, given.trials, container.get(TensorManager))
            client.close()
    line["versions"] = {name: version(name) for name in ("trialfleet", "torch", "transformers")}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
