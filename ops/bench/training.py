#!/usr/bin/env python
"""How fast `finetune` trains beside `transformers.Trainer` and the plainest of loops.

On three tasks: which of 20 languages a short text is in; which module of the standard library a
docstring is from; and the next token of the library's source. All sides have the same texts,
tokens, model, threads, batch size, optimizer, schedule and passes, and take turns, each seed
beginning with the next side; each has made some steps before, uncounted:

- `finetune`;
- `trainer`: `transformers.Trainer` by default, and `grouped`, with its `group_by_length`;
- `loop`: a bare PyTorch loop over the very batches of `finetune`, put together before: the ceiling.

Prints one JSON line: of each task and side texts (or tokens) a second, the median over the seeds
and each, without evaluations, the mean of the metric at the end, and the optimizer, dtype and limit
of the gradients' norm that it trained with. All compute in one precision: unless `--precision` says
another, in that which `finetune` takes by itself. On a GPU the line tells how busy each side kept
it, by NVML. With `--clock cpu` the seconds are the process's on the processors: of one thread, they
compare on a machine that has other work, too.

    python ops/bench/training.py --seeds 3 --epochs 2
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, get_args

import psutil
import torch
import transformers
from alone import LoneTraining, managers_of, training
from gpu_busy import GpuBusy
from standard_library import write_docstrings, write_sources
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

from workers.containers import Container
from workers.logs import configure_logging
from workers.managers import MANAGERS
from workers.managers.amp import Precision, PrecisionPolicy
from workers.managers.data import Examples
from workers.processes.registry import ProcessRecord
from workers.protocol.finetune import FinetuneConfig
from workers.settings import Settings
from workers.trials.finetune.needs import Managers
from workers.trials.finetune.optimizer import build_optimizer
from workers.trials.finetune.schedule import Schedule
from workers.trials.finetune.tasks import make_task

BERT: Final = {"architecture": "bert", "hidden_size": 128, "num_hidden_layers": 2}
GPT: Final = {"architecture": "gpt2", "hidden_size": 128, "num_hidden_layers": 2}


@dataclass(frozen=True)
class Case:
    """One task, and what is counted of it."""

    config: FinetuneConfig
    metric: str
    is_tokens: bool = False

    def cut(self, steps: int) -> Case:
        """The same, of so many steps at most."""
        return replace(self, config=self.config.model_copy(update={"max_steps": steps}))

    def units(self, examples: Examples, num_rows: int) -> float:
        """What so many rows come to."""
        return num_rows * (float(examples.train.lengths.mean()) if self.is_tokens else 1.0)


@dataclass(frozen=True)
class Found:
    """What one side did with one seed."""

    per_second: float
    value: float | None
    work: str
    """The optimizer, what the weights are in, how gradients are clipped, and the precision."""
    busy: float | None = None
    """The share of its time in which something ran on the GPU, evaluations included."""


#: Steps that each side makes before any is counted: the first ones load code.
_WARM_STEPS: Final = 10

#: The seconds that are counted, by `--clock`.
_CLOCKS: Final[Mapping[str, Callable[[], float]]] = {
    "wall": time.perf_counter,
    "cpu": time.process_time,
}


def work_of(optimizer: Any, max_norm: float | None, precision: str) -> str:
    """What a step does beside the model, as it was set up."""
    optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate's stands around one
    groups = optimizer.param_groups
    how = "fused" if groups[0].get("fused") else "not fused"
    dtypes = {str(weight.dtype).removeprefix("torch.") for weight in groups[0]["params"]}
    decays = "/".join(f"{group['weight_decay']:g}" for group in groups)
    return (
        f"{type(optimizer).__name__} {how}, decay {decays}, {'/'.join(sorted(dtypes))},"
        f" gradients to {max_norm}, {precision}"
    )


def cases(
    folder: Path,
    epochs: int,
    steps: int | None,
    files: int | None,
    precision: Precision = "auto",
) -> dict[str, Case]:
    """The tasks, by name."""
    length = {"epochs": epochs, "max_steps": steps, "evaluate_every": {"epochs": epochs}}
    common: dict[str, Any] = {**length, "save_model": "none", "tokenizer": {"vocab_size": 4000}}
    common |= {"checkpoint_interval_seconds": 1e9, "precision": precision}
    docstrings = {"source": str(write_docstrings(folder / "docstrings.jsonl", files))}
    source: dict[str, Any] = {"source": str(write_sources(folder / "source.jsonl", files))}
    source |= {"block_size": 128, "across_texts": True}
    made: dict[str, dict[str, Any]] = {
        "language_id": {"data": {"max_length": 32}, "model": BERT},
        "docstrings": {"data": {**docstrings, "max_length": 256}, "model": BERT},
        "source": {"task": "causal_lm", "data": source, "model": GPT, "batch_size": 16},
    }
    metrics = {"source": "loss"}
    return {
        name: Case(
            FinetuneConfig.model_validate({**common, **config}),
            metrics.get(name, "accuracy"),
            is_tokens=name == "source",
        )
        for name, config in made.items()
    }


class Bench:
    """The sides, for one case.

    Args:
        case: The task.
        managers: Of this process.
        folder: Where `Trainer` may write.
        clock: Its seconds are counted.
    """

    def __init__(
        self, case: Case, managers: Managers, folder: Path, clock: Callable[[], float]
    ) -> None:
        self._case = case
        self._clock = clock
        self._managers = managers
        self._folder = folder
        self._task = make_task(case.config)
        self._examples = self._task.examples(managers.data, lambda *_: None)
        #: what all sides compute in
        self._precision = self._policy().name

    def finetune(self, seed: int) -> Found:
        """Ours; the one evaluation at its end is not counted."""
        made = self._training(seed)
        values, seconds = made.run_by(self._clock)
        rate = self._case.units(self._examples, made.num_rows) / seconds
        work = work_of(made.optimizer, self._case.config.max_grad_norm, self._precision)
        return Found(rate, values[self._case.metric], work)

    def loop(self, seed: int) -> Found:
        """The same batches, put together before, and what cannot be left out of a step."""
        config, managers, task = self._case.config, self._managers, self._task
        made = self._training(seed)
        batches = made.batches()
        managers.cuda.seed(seed)
        model = task.build_model(managers.models, self._examples)
        optimizer = build_optimizer(model, config)
        schedule = Schedule(optimizer, config, len(batches), "maximize")
        policy = self._policy()
        inputs = {name for name in batches[0] if name != "labels"}
        inputs &= {"input_ids", "attention_mask", "position_ids"}
        model.train()
        began, rows = self._clock(), 0
        for batch in batches:
            with policy.autocast():
                logits = model(**{name: batch[name] for name in inputs}).logits
                loss = task.loss(logits, batch)
            if policy.is_scaled:  # which no loop can leave out
                policy.backward(loss)
                policy.step(optimizer, model.parameters(), config.max_grad_norm)
            else:
                torch.autograd.backward(loss)
                torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm or 1e9)
                optimizer.step()
                optimizer.zero_grad()
            schedule.stepped()
            rows += len(batch["input_ids"])
        await_device()
        work = work_of(optimizer, config.max_grad_norm, self._precision)
        return Found(self._rate(rows, began), None, work)

    def trainer(self, seed: int) -> Found:
        """`transformers.Trainer` by default."""
        return self._trainer(seed, {})

    def grouped(self, seed: int) -> Found:
        """The same, with texts of similar length in a batch."""
        return self._trainer(seed, {"train_sampling_strategy": "group_by_length"})

    def _policy(self) -> PrecisionPolicy:
        """How steps are computed; sets how float32 is multiplied, for whichever side is next."""
        config = self._case.config
        return self._managers.amp.policy(config.precision, config.float32_matmul_precision)

    def _training(self, seed: int) -> LoneTraining:
        return training(self._case.config, self._managers, metric=self._case.metric, seed=seed)

    def _trainer(self, seed: int, settings: Mapping[str, Any]) -> Found:
        config = self._case.config
        self._policy()
        self._managers.cuda.seed(seed)
        model = self._task.build_model(self._managers.models, self._examples)
        arguments = TrainingArguments(
            output_dir=str(self._folder / "trainer"),
            per_device_train_batch_size=config.batch_size,
            per_device_eval_batch_size=config.eval_batch_size,
            num_train_epochs=config.epochs,
            max_steps=config.max_steps or -1,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            warmup_steps=config.warmup_fraction,
            seed=seed,
            use_cpu=not torch.cuda.is_available(),
            bf16=self._precision == "bf16",
            fp16=self._precision == "fp16",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
            **settings,
        )
        words = self._examples.tokenizer
        blocks = DataCollatorForLanguageModeling(words, mlm=False) if self._case.is_tokens else None
        with redirect_stdout(sys.stderr):
            trainer = Trainer(
                model=model,
                args=arguments,
                train_dataset=rows_of(self._examples.train, is_classes=not self._case.is_tokens),
                eval_dataset=rows_of(
                    self._examples.validation, is_classes=not self._case.is_tokens
                ),
                processing_class=words,
                data_collator=blocks,
                compute_metrics=None if self._case.is_tokens else accuracy,
            )
            began = self._clock()
            trainer.train()
            await_device()
            num_rows = min(
                trainer.state.global_step * config.batch_size,
                config.epochs * len(self._examples.train),
            )
            rate = self._rate(num_rows, began)
            found = trainer.evaluate()
        value = found["eval_loss" if self._case.is_tokens else "eval_accuracy"]
        work = work_of(trainer.optimizer, arguments.max_grad_norm, self._precision)
        return Found(rate, value, work)

    def _rate(self, num_rows: int, began: float) -> float:
        return self._case.units(self._examples, num_rows) / (self._clock() - began)


def await_device() -> None:
    """Wait until a GPU has made the steps that it was told: they are counted, too."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def rows_of(texts: Any, *, is_classes: bool) -> list[dict[str, Any]]:
    """Rows as `Trainer` and its collator take them, in memory."""
    rows = ((row[0].tolist(), row[1]) for row in texts)
    if is_classes:
        return [{"input_ids": ids, "labels": int(label)} for ids, label in rows]
    return [{"input_ids": ids} for ids, _ in rows]


def accuracy(prediction: Any) -> dict[str, float]:
    """The share of texts that are told right."""
    found = prediction.predictions.argmax(-1)
    return {"accuracy": float((found == prediction.label_ids).mean())}


def warm_up(bench: Bench, sides: list[str]) -> None:
    """Have each side make some steps, and an evaluation."""
    for side in sides:
        getattr(bench, side)(0)


def measure(bench: Bench, sides: list[str], seeds: int) -> dict[str, Any]:
    """All sides in turns, and what they are to one another."""
    found: dict[str, list[Found]] = {side: [] for side in sides}
    for seed in range(seeds):
        for side in sides[seed % len(sides) :] + sides[: seed % len(sides)]:
            run: Callable[[int], Found] = getattr(bench, side)
            busy = GpuBusy()
            with busy.watching():
                made = run(seed)
            found[side].append(replace(made, busy=busy.share))
            print(f"{side} {seed}: {found[side][-1]}", file=sys.stderr)
    medians = {
        side: statistics.median(each.per_second for each in all_) for side, all_ in found.items()
    }
    figures: dict[str, Any] = {}
    for side, all_ in found.items():
        values = [each.value for each in all_ if each.value is not None]
        figures[side] = {
            "per_second": round(medians[side], 1),
            "each": [round(each.per_second, 1) for each in all_],
            "value": round(statistics.mean(values), 4) if values else None,
            "work": all_[0].work,
        }
        if all_[0].busy is not None:
            figures[side]["gpu_busy"] = [each.busy for each in all_]
    if "finetune" in medians:
        others = (side for side in sides if side != "finetune")
        figures["finetune_by"] = {
            side: round(medians["finetune"] / medians[side], 2) for side in others
        }
    return figures


def main() -> None:
    """Measure, and print one line."""
    sides = ["finetune", "trainer", "grouped", "loop"]
    tasks = ["language_id", "docstrings", "source"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--steps", type=int, help="at most so many, for a quick look")
    parser.add_argument("--files", type=int, help="of the standard library, for a quick look")
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False))
    parser.add_argument("--sides", default=",".join(sides), help="which, separated by commas")
    parser.add_argument("--tasks", default=",".join(tasks), help="which, separated by commas")
    precisions = get_args(Precision)
    parser.add_argument("--precision", choices=precisions, default="auto", help="of all sides")
    parser.add_argument("--clock", choices=list(_CLOCKS), default="wall", help="what is counted")
    given = parser.parse_args()
    sides = given.sides.split(",")
    os.environ["WANDB_MODE"] = "disabled"
    configure_logging(level=logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    line: dict[str, Any] = {"bench": "training", "seeds": given.seeds, "epochs": given.epochs}
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="trialfleet-") as name:
        folder = Path(name)
        settings = Settings(home=folder / "home", cache=folder / "cache")
        with Container(MANAGERS, [settings, ProcessRecord()]) as container:
            managers = managers_of(container)
            device = str(managers.cuda.device)
            torch.set_num_threads(given.threads)
            known = cases(folder, given.epochs, given.steps, given.files, given.precision)
            for task in given.tasks.split(","):
                case, clock = known[task], _CLOCKS[given.clock]
                warm_up(Bench(case.cut(_WARM_STEPS), managers, folder, clock), sides)
                line[task] = measure(Bench(case, managers, folder, clock), sides, given.seeds)
    packages = ("trialfleet", "torch", "transformers", "accelerate")
    line |= {"device": device, "threads": torch.get_num_threads(), "load_before": round(load, 1)}
    line["clock"] = given.clock
    line["versions"] = {package: version(package) for package in packages}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
