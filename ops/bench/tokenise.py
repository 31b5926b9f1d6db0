#!/usr/bin/env python
"""What tokenised data cost: building them with one thread and with all, and opening them.

The texts are made of the built-in data set's. Each figure is of a process of its own, as a pool
process would be; `open` reads the whole entry and compares its sums, `warm` is the second trial of
a process. Beside them, in the same run, the tokenizer alone as transformers calls it.

Prints one JSON line; times in seconds.

    python ops/bench/tokenise.py --texts 200000
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from workers.processes.cores import count_cores

#: Names that are joined into one text.
NAMES: Final = 8

MAX_LENGTH: Final = 128

VOCAB_SIZE: Final = 4000


def write_texts(path: Path, number: int) -> None:
    """Texts of eight names each, by a fixed seed."""
    from workers.managers.cldr import language_id_texts

    names, languages = language_id_texts()
    draw = random.Random(1)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for index in range(number):
            label = languages[index % len(languages)]
            writer.writerow([" ".join(draw.choices(names, k=NAMES)), label])


def measure(folder: Path, what: str) -> dict[str, Any]:
    """One figure, in this process."""
    import structlog

    from workers.containers import Container
    from workers.managers import MANAGERS, DataManager, TokenizerManager
    from workers.processes.registry import ProcessRecord
    from workers.protocol.finetune import DataConfig, ModelConfig, TokenizerConfig
    from workers.settings import Settings

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    settings = Settings(home=folder / "home", cache=folder / "cache")
    config = DataConfig(source=str(folder / "texts.csv"), max_length=MAX_LENGTH)
    tokenizer = TokenizerConfig(id=str(folder / "tokenizer"))
    with Container(MANAGERS, [settings, ProcessRecord()]) as container:
        if what == "train":
            return train_tokenizer(folder, container.get(TokenizerManager))
        if what == "tokenizer":
            return tokenise_alone(folder, container.get(TokenizerManager))
        data = container.get(DataManager)
        container.get(TokenizerManager).load(folder / "tokenizer")
        times = []
        for _ in range(2):
            started_at = time.perf_counter()
            built = data.text_classification(config, tokenizer, ModelConfig(architecture="bert"))
            times.append(time.perf_counter() - started_at)
        entry = built.entry.path
        return {
            "first": round(times[0], 3),
            "warm": round(times[1], 5),
            "tokens": int(built.train.lengths.sum() + built.validation.lengths.sum()),
            "bytes": sum(file.stat().st_size for file in entry.rglob("*") if file.is_file()),
        }


def train_tokenizer(folder: Path, tokenizers: Any) -> dict[str, Any]:
    """Train the tokenizer that all others use."""
    started_at = time.perf_counter()
    entry = tokenizers.train(read_texts(folder), VOCAB_SIZE)
    seconds = time.perf_counter() - started_at
    shutil.copytree(entry.path, folder / "tokenizer")
    return {"first": round(seconds, 3)}


def tokenise_alone(folder: Path, tokenizers: Any) -> dict[str, Any]:
    """The same texts by the tokenizer alone, a thousand at a time, with nothing kept."""
    tokenizer, texts = tokenizers.load(folder / "tokenizer"), read_texts(folder)
    started_at = time.perf_counter()
    for start in range(0, len(texts), 1000):
        tokenizer(texts[start : start + 1000], truncation=True, max_length=MAX_LENGTH)
    return {"first": round(time.perf_counter() - started_at, 3)}


def read_texts(folder: Path) -> list[str]:
    """What `write_texts` wrote."""
    with (folder / "texts.csv").open(newline="") as file:
        return [row[0] for row in csv.reader(file)][1:]


def in_a_process(folder: Path, what: str, threads: int) -> dict[str, Any]:
    """Measure in a process with so many threads to tokenise with."""
    print(f"{what} with {threads} threads", file=sys.stderr)
    command = [sys.executable, __file__, "--folder", str(folder), "--measure", what]
    environment = {**os.environ, "RAYON_NUM_THREADS": str(threads), "WANDB_MODE": "disabled"}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def run(folder: Path, texts: int, threads: int) -> dict[str, Any]:
    """All figures."""
    write_texts(folder / "texts.csv", texts)
    train = in_a_process(folder, "train", threads)
    alone = in_a_process(folder, "tokenizer", threads)
    one = in_a_process(folder, "build", 1)
    shutil.rmtree(folder / "cache" / "data")
    several = in_a_process(folder, "build", threads)
    opened = in_a_process(folder, "build", threads)
    return {
        "texts": texts,
        "tokens": one["tokens"],
        "bytes": one["bytes"],
        "threads": threads,
        "train_tokenizer": train["first"],
        "tokenizer_alone": alone["first"],
        "build_1_thread": one["first"],
        f"build_{threads}_threads": several["first"],
        "open_and_check": opened["first"],
        "warm": opened["warm"],
    }


def main() -> None:
    """Measure, and print one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=200_000)
    parser.add_argument("--threads", type=int, default=count_cores())
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        print(json.dumps(measure(arguments.folder, arguments.measure)))
        return
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(run(Path(folder), arguments.texts, arguments.threads)))


if __name__ == "__main__":
    main()
