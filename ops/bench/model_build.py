#!/usr/bin/env python
"""What a trial waits for its model: BERT-base's shape, saved in bfloat16, with a new head.

Two ways, alternating in one process. `fill`, as `ModelManager` does it: built without memory,
filled with copies of what is kept, and the head alone drawn. `redraw`: built as from nothing, with
all weights drawn, which the kept ones then replace. Cold is the first trial of a process, which
reads the file; warm are those after it. `scratch` is a model without a checkpoint.

Prints one JSON line: [wall seconds, processor seconds], of warm ones the medians.

    python ops/bench/model_build.py --rounds 5
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForSequenceClassification

from workers.managers import weights

CLASSES = 20


def seconds(call: Callable[[], Any]) -> tuple[float, float]:
    """How long a call takes, and how long its threads compute; what it returns is dropped."""
    start, busy = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start, time.process_time() - busy


def median(times: list[tuple[float, float]]) -> list[float]:
    """The medians of the times and of the processor's."""
    return [round(statistics.median(each), 3) for each in zip(*times, strict=True)]


def redraw(config: Any, kept: weights.Checkpoint) -> Any:
    """A model whose weights are all drawn, and then replaced by the kept ones."""
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    model.load_state_dict(kept.weights, strict=False)
    return model


def measure(folder: str, rounds: int) -> dict[str, Any]:
    """Both ways to build, cold and warm."""
    kept, redrawn = weights.KeptCheckpoints(), weights.KeptCheckpoints()
    config = AutoConfig.from_pretrained(folder, num_labels=CLASSES)
    ways: dict[str, Callable[[], Any]] = {
        "fill": lambda: weights.build(config, kept.get(folder)),
        "redraw": lambda: redraw(config, redrawn.get(folder)),
        "scratch": lambda: weights.build(config),
    }
    figures = {f"{way}_cold": median([seconds(call)]) for way, call in ways.items()}
    warm: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, call in ways.items():
            warm[way].append(seconds(call))
    return figures | {f"{way}_warm": median(times) for way, times in warm.items()}


def main() -> None:
    """Measure, and print one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        base = AutoModelForSequenceClassification.from_config(AutoConfig.for_model("bert")).bert
        base.to(torch.bfloat16).save_pretrained(folder)
        versions = {
            "parameters": base.num_parameters(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "threads": torch.get_num_threads(),
        }
        del base
        print(json.dumps(measure(folder, arguments.rounds) | versions))


if __name__ == "__main__":
    main()
