"""A sampler that suggests nothing before the test opens its gate."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import optuna

from workers.settings import Settings

SAMPLER: Final = {"type": "gated_sampler:Gated"}

#: in the environment of another process: a file that is there once it was asked
ASKED_FILE: Final = "GATED_SAMPLER_ASKED"

gate = threading.Event()

#: the studies that were asked for a suggestion, once each time
asked_of: list[str] = []

#: how long one that is asked waits at most
patience_seconds = 60.0


class Gated(optuna.samplers.RandomSampler):
    """Waits at the gate, then draws at random."""

    def infer_relative_search_space(self, study: optuna.Study, trial: Any) -> dict[str, Any]:
        """Wait."""
        asked_of.append(study.study_name)
        if told := os.environ.get(ASKED_FILE):
            Path(told).touch()
        gate.wait(patience_seconds)
        return {}


def asked() -> bool:
    """Whether one waits, or has waited."""
    return bool(asked_of)


def allowed(settings: Settings) -> Settings:
    """Settings of an orchestrator that takes the sampler."""
    return settings.model_copy(update={"samplers": (__name__,)})


@contextmanager
def closed(patience: float = 60.0) -> Iterator[None]:
    """Close the gate, until it is opened or this ends."""
    global patience_seconds
    patience_seconds = patience
    gate.clear()
    asked_of.clear()
    try:
        yield
    finally:
        gate.set()
