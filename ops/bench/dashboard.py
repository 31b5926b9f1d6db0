"""What the web page costs with a study of many trials and many slots: times, memory, bytes.

A study of so many complete trials lies in a journal, a Redis holds its status and the processes of
so many slots; `trialfleet dashboard` serves them, and Debian's Chromium paints the study's page.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import optuna
import psutil
import structlog
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from orchestrator.driving.service import Service
from orchestrator.handle import StudyHandle
from orchestrator.local.servers import EmbeddedRedis
from orchestrator.storage.opening import StudyStorage, storage_url
from workers.coordination.connection import connect
from workers.coordination.rights import Role
from workers.coordination.studies import Studies
from workers.processes.registry import ProcessRecord, ProcessRegistry
from workers.protocol.spec import StudySpec
from workers.protocol.states import ProcessKind
from workers.settings import Settings

_REPORTS: Final = 10
_PARAMS: Final = 5
_MEGABYTE: Final = 1 << 20
_TOKEN: Final = secrets.token_urlsafe()
_UPDATES: Final = 20


def main() -> None:
    """Measure, and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--slots", type=int, default=64)
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    with tempfile.TemporaryDirectory() as folder, EmbeddedRedis(Path(folder)) as server:
        settings = Settings(redis_url=server.url, home=Path(folder), time_scale=20.0)
        print(f"writing {given.trials} trials", file=sys.stderr)
        _fill(settings, given.trials, given.slots)
        with _served(settings) as (address, process):
            found = {**_asked(address), **_updated(settings, address), **_painted(address)}
            found["server_megabytes"] = round(process.memory_info().rss / _MEGABYTE)
    print(json.dumps({"trials": given.trials, "slots": given.slots, **found}))


def _fill(settings: Settings, num_trials: int, slots: int) -> None:
    space = {f"x{at}": {"type": "float", "low": 0.0, "high": 1.0} for at in range(_PARAMS)}
    (settings.home / "objective.py").write_text("def objective(trial):\n    return 0.0\n")
    objective = f"{settings.home}/objective.py:objective"
    spec = StudySpec.model_validate(
        {"name": "long", "objective": objective, "trials": num_trials + slots, "space": space}
    )
    client = connect(settings, Role.USER)
    Studies(client).submit(spec)
    registry = ProcessRegistry(client, settings.times.scaled(100))
    for slot in range(slots):
        fields = {"gpu": str(slot % 8), "study": "long", "trial": num_trials + slot}
        kind = ProcessKind.MAIN if slot % 8 == 0 else ProcessKind.TRIAL
        record = ProcessRecord(registry, kind, fields={**fields, "slots": 8, "queues": ["default"]})
        record.identity = record.identity._replace(host=f"box{slot // 8}", pid=1000 + slot)
        record.register()
    with Service(settings, only="long") as service:  # it makes the study, and one trial of it
        while StudyHandle("long", settings).status().as_of is None:
            service.turn()
    _add_trials(settings, num_trials)
    client.close()


def _add_trials(settings: Settings, num_trials: int) -> None:
    opened = StudyStorage.open(storage_url(settings, "long"))
    study = optuna.load_study(study_name="long", storage=opened.storage)
    pick, distribution = random.Random(1), FloatDistribution(0.0, 1.0)
    for _ in range(num_trials):
        params = {f"x{at}": pick.random() for at in range(_PARAMS)}
        value = sum((each - 0.3) ** 2 for each in params.values())
        study.add_trial(
            create_trial(
                state=TrialState.COMPLETE,
                value=value,
                params=params,
                distributions=dict.fromkeys(params, distribution),
                intermediate_values={step: value + 1 / (step + 1) for step in range(_REPORTS)},
                user_attrs={"trialfleet:attempt": 1, "trialfleet:busy_seconds": 60.0},
            )
        )
    opened.close()


@contextmanager
def _served(settings: Settings) -> Iterator[tuple[str, psutil.Process]]:
    command = [str(Path(sys.executable).with_name("trialfleet")), "dashboard"]
    environment = {**os.environ, **settings.to_environment(), "FLEET_DASHBOARD_TOKEN": _TOKEN}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None  # noqa: S101 - it was asked for above
        address = server.stdout.readline().split()[1].partition("/#")[0]
        try:
            yield address, psutil.Process(server.pid)
        finally:
            server.terminate()


def _get(address: str) -> tuple[float, int]:
    headers = {"accept-encoding": "gzip", "x-trialfleet-token": _TOKEN}
    asked = urllib.request.Request(address, headers=headers)  # noqa: S310
    began = time.perf_counter()
    with urllib.request.urlopen(asked) as answer:  # noqa: S310 - our own server
        size = len(answer.read())
    return time.perf_counter() - began, size


def _asked(address: str) -> dict[str, float]:
    """Documents: the study's, cold; its trials, cold (the journal is read) and again."""
    status, _ = _get(f"{address}/api/studies/long")
    cold, size = _get(f"{address}/api/studies/long/trials")
    again = [_get(f"{address}/api/studies/long/trials")[0] for _ in range(3)]
    fleet, _ = _get(f"{address}/api/fleet")
    return {
        "status_seconds": round(status, 3),
        "trials_cold_seconds": round(cold, 2),
        "trials_seconds": round(min(again), 3),
        "trials_kilobytes": round(size / 1024),
        "fleet_seconds": round(fleet, 3),
    }


def _updated(settings: Settings, address: str) -> dict[str, float]:
    """From a trial's end in the journal to its row in the feed's document, by the server alone."""
    from orchestrator.dashboard.answers import encode
    from orchestrator.dashboard.study_feed import StudyFeed

    del address
    feed = StudyFeed("long", settings)
    feed.look()
    took, sizes = [], []
    for _ in range(_UPDATES):
        _add_trials(settings, 1)
        began, seen = time.perf_counter(), feed.revision
        feed.look()
        sizes.append(len(encode(feed.since(seen))))
        took.append(time.perf_counter() - began)
    return {
        "update_ms": round(1000 * statistics.median(took), 1),
        "update_bytes": round(statistics.median(sizes)),
    }


def _painted(address: str) -> dict[str, Any]:
    """First paint, and when the study's charts are there, in a browser."""
    chromium = shutil.which("chromium")
    if chromium is None:
        return {}
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(f"{address}/studies/long#token={_TOKEN}")
        page.wait_for_selector("#plot-history svg.main-svg")
        marks = page.evaluate(
            "Object.fromEntries(performance.getEntries().map((it) => [it.name, it.startTime]))"
        )
        browser.close()
    return {
        "first_paint_seconds": round(marks["first-contentful-paint"] / 1000, 2),
        "study_painted_seconds": round(marks["painted"] / 1000, 2),
        "trials_there_seconds": round(marks["loaded"] / 1000, 2),
        "history_drawn_seconds": round(marks["drawn-plot-history"] / 1000, 2),
    }


if __name__ == "__main__":
    main()
