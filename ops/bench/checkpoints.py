#!/usr/bin/env python
"""What checkpoints cost a training: of BERT-base's shape with Adam's state, 1.3 GB, random weights.

The same steps (products of matrices, and a weight of the state changed in place) run without
checkpoints, with checkpoints that training waits for, as it did before they were written beside
it, and with those that are. Then a drain is asked for, and timed from the step after it until the
trial could be given back. The trial is real, and so are its lease, Redis and disk.

Prints one JSON line: for each side the share of the training thread's wall time that it waited for
its checkpoints, and by how much the steps became fewer in all. `scale` divides the interval and
the length of the training alike: at 1, checkpoints are 30 s apart. `load` is the machine's, which
has to be free otherwise.

    python ops/bench/checkpoints.py --scale 2
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any, Final

import redis
import torch

from orchestrator.local.servers import EmbeddedRedis
from workers.coordination.clock import lease_clock
from workers.coordination.grants import Grant
from workers.coordination.studies import Studies, ensure_epoch
from workers.disk.checkpoints import CheckpointStore
from workers.protocol.errors import DrainRequested
from workers.protocol.spec import StudySpec
from workers.times import Times
from workers.trials.handle import FleetTrial
from workers.trials.held_lease import HeldLease
from workers.trials.lease_keeper import LeaseKeeper

#: Between two checkpoints, and how many of them a training has.
EVERY_SECONDS: Final = 30.0
NUM_CHECKPOINTS: Final = 3

#: BERT-base: vocabulary, positions, types, width, layers, inner width.
VOCABULARY, POSITIONS, TYPES, WIDTH, LAYERS, INNER = 30522, 512, 2, 768, 12, 3072


def shapes() -> list[tuple[int, ...]]:
    """The parameters of BERT-base with a head of two classes."""
    square = [(WIDTH, WIDTH), (WIDTH,)]
    norm = [(WIDTH,), (WIDTH,)]
    layer = [*square * 4, *norm, (INNER, WIDTH), (INNER,), (WIDTH, INNER), (WIDTH,), *norm]
    embeddings = [(VOCABULARY, WIDTH), (POSITIONS, WIDTH), (TYPES, WIDTH), *norm]
    return [*embeddings, *layer * LAYERS, *square, (2, WIDTH), (2,)]


def made_state() -> dict[str, Any]:
    """Weights and Adam's two moments, as their `state_dict`s nest them."""
    names = {f"weight.{index}": shape for index, shape in enumerate(shapes())}
    return {
        "model": {name: torch.randn(shape) for name, shape in names.items()},
        "optimizer": {
            index: {"step": 1.0, "exp_avg": torch.randn(shape), "exp_avg_sq": torch.rand(shape)}
            for index, shape in enumerate(names.values())
        },
    }


class Bench:
    """One Redis, one disk, one state."""

    def __init__(self, client: redis.Redis, home: Path, scale: float, keeper: LeaseKeeper) -> None:
        self._keeper = keeper
        self._studies = Studies(client)
        self._store = CheckpointStore(home / "checkpoints")
        self._home = home
        self._spec = StudySpec(name="bench", objective="bench:none")
        self._studies.submit(self._spec)
        self._state = made_state()
        self._every = EVERY_SECONDS / scale
        self._matrix = torch.randn(768, 768)
        self._number = 0
        self._drain = threading.Event()

    def held(self) -> HeldLease:
        """The lease of a further trial."""
        self._number += 1
        leases = self._studies.leases(self._spec.name)
        leases.enqueue(self._number, {})
        times, sent_at = Times(), lease_clock()
        grant = leases.claim(self._number, "bench", times.lease)
        assert isinstance(grant, Grant)  # noqa: S101 - it was enqueued for this
        return HeldLease(
            leases,
            self._number,
            grant,
            sent_at=sent_at,
            times=times,
            keeper=self._keeper,
            is_draining=self._drain.is_set,
        )

    def step(self) -> None:
        """A step that keeps torch's threads busy, and changes the state in place."""
        for _ in range(20):
            self._matrix = torch.nn.functional.normalize(self._matrix @ self._matrix)
        self._state["model"]["weight.0"].mul_(1.0 + 1e-7)

    def train(self, saves: str) -> dict[str, float]:
        """Train for as long as `NUM_CHECKPOINTS` take; steps a second, and the share waited."""
        self._drain.clear()
        with self.held() as held:
            trial = FleetTrial(
                self._spec, held, self._studies, self._store, self._home / "none", 1.0
            )
            save = partial(self._save, trial, saves)
            num_steps, waited = 0, []
            begun = saved_at = time.perf_counter()
            until = begun + self._every * (NUM_CHECKPOINTS + 0.5)
            while (now := time.perf_counter()) < until:
                trial.progress(num_steps)
                if saves != "none" and now - saved_at >= self._every:
                    waited.append(save(num_steps))
                    saved_at = now
                self.step()
                num_steps += 1
            seconds = time.perf_counter() - begun
            drained = self._drained(trial, num_steps) if saves != "none" else 0.0
        self._store.remove(self._spec.name, None, held.number)
        return {
            "steps_per_second": round(num_steps / seconds, 2),
            "waited_share": round(sum(waited) / seconds, 4),
            "longest_wait_seconds": round(max(waited, default=0.0), 3),
            "drain_seconds": round(drained, 3),
        }

    def _save(self, trial: FleetTrial, saves: str, step: int) -> float:
        begun = time.perf_counter()
        trial.save_checkpoint(step, self._state)
        if saves == "waiting":
            trial.await_checkpoint()
        return time.perf_counter() - begun

    def _drained(self, trial: FleetTrial, step: int) -> float:
        self._drain.set()
        begun = time.perf_counter()
        try:
            trial.progress(step)
        except DrainRequested:
            trial.save_checkpoint(step, self._state)
            trial.await_checkpoint()
        return time.perf_counter() - begun


def main() -> None:
    """Run all sides, one after the other, and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="divides the interval of 30 s")
    parser.add_argument("--home", type=Path, help="the disk to write to")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(dir=options.home) as folder,
        EmbeddedRedis(Path(folder)) as server,
        LeaseKeeper() as keeper,
    ):
        client = redis.Redis.from_url(server.url, decode_responses=True)
        ensure_epoch(client)
        bench = Bench(client, Path(folder), options.scale, keeper)
        sides = {saves: bench.train(saves) for saves in ("none", "waiting", "beside")}
        free = sides["none"]["steps_per_second"]
        for side in sides.values():
            side["slowdown"] = round(1.0 - side["steps_per_second"] / free, 4)
        facts = {
            "state_bytes": 3 * 4 * sum(torch.Size(shape).numel() for shape in shapes()),
            "every_seconds": EVERY_SECONDS / options.scale,
            "scale": options.scale,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "load": round(os.getloadavg()[0], 1),
        }
        print(json.dumps({**facts, **sides}))


if __name__ == "__main__":
    main()
