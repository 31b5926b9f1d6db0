"""Fixtures of tests that run trials in their own process."""

from __future__ import annotations

import gc
import logging
import sys
import warnings

import pytest
from desk import Desk

from workers.containers import Container
from workers.managers import MANAGERS, compilation
from workers.processes.registry import ProcessRecord
from workers.protocol.spec import StudySpec


def freeze_heap():
    """What tests before imported stays, as what a pool process has before its first trial.

    Each trial ends with a collection, which need not look at it.
    """
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        gc.collect()  # what they left open is closed here, and is no fault of the next
    gc.freeze()


@pytest.fixture(autouse=True)
def as_in_a_process_of_its_own(tmp_path):
    """What a trial imports and sets for its process is none of the next test's."""
    freeze_heap()
    yield
    place = str(tmp_path)
    for name, module in sys.modules.copy().items():
        if str(getattr(module, "__file__", None)).startswith(place):
            del sys.modules[name]
    sys.path[:] = [entry for entry in sys.path if not entry.startswith(place)]
    if state := sys.modules.get("accelerate.state"):
        state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def container(settings, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with Container(MANAGERS, [settings, ProcessRecord()]) as opened:
        yield opened


@pytest.fixture
def desk(client, settings, container):
    def make(**fields):
        return Desk(client, settings, container, StudySpec(name="s", **fields))

    return make


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.csv"
    words = ["red", "green", "blue", "one", "two", "three"]
    lines = [f"{words[i % 6]} {words[i % 5]} {i % 11},{i % 3}" for i in range(160)]
    path.write_text("\n".join(["text,label", *lines]))
    return path


@pytest.fixture
def compile_by(monkeypatch):
    """Has models compiled by another backend; `eager` computes what torch traced as it stands."""

    def choose(backend):
        monkeypatch.setattr(compilation, "BACKEND", backend)
        # pytest listens to all loggers, so that torch would write its whole trace down
        untraced = logging.Logger("untraced")  # noqa: LOG001 - is of nobody else
        monkeypatch.setattr("torch._logging._internal.trace_log", untraced)

    return choose
