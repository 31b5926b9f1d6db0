from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from fault_fleet import FaultFleet, broken_fleet
from waiting import wait_until

from orchestrator.fleet import Fleet
from orchestrator.handle import StudyHandle
from orchestrator.status import StudyStatus
from workers.coordination.connection import connect
from workers.coordination.rights import Role
from workers.processes.registry import ProcessEntry
from workers.protocol.errors import RedisUnavailableError
from workers.settings import Settings

BIN = Path(sys.executable).parent

HELD_TRIALS = Path(__file__).parents[1] / "held_trials"

#: A study of real training: small enough for two minutes, big enough to be killed in the middle.
LANGUAGE_ID: dict[str, Any] = {
    "name": "accept",
    "objective": "finetune",
    "direction": "maximize",
    "metric": "accuracy",
    "trials": 4,
    "sampler": {"type": "tpe", "seed": 7},
    "space": {"learning_rate": {"type": "float", "low": 1e-3, "high": 4e-3, "log": True}},
    "config": {
        "data": {"source": "cldr-language-id", "max_length": 32},
        "tokenizer": {"vocab_size": 1000},
        "model": {"architecture": "bert", "hidden_size": 32, "num_hidden_layers": 1},
        "batch_size": 64,
        "epochs": 3,
        "checkpoint_interval_seconds": 0.5,
    },
}

#: A training that asks for nothing but its fleet, where what is trained is not the point.
LOOP = """
def objective(trial):
    rate = trial.suggest_float("rate", 0.1, 0.9)
    with trial.training({"x": 1.0}, checkpoint_seconds=0) as run:
        for epoch in run.epochs(2):
            for _ in run.steps(range(6)):
                run.state["x"] *= rate
            run.report(run.state["x"])
    return run.state["x"]
"""


class Machine:
    """A user's machine: a directory, an environment, and commands that are run for real."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("FLEET_", "WANDB_"))}
        self.environment = {
            **clean,
            "FLEET_HOME": str(self.home),
            "FLEET_LOG_LEVEL": "debug",
            "NETRC": os.devnull,  # W&B is off, whoever runs the tests
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONUNBUFFERED": "1",
        }
        self._started: list[subprocess.Popen[str]] = []

    def write_study(self, **changes: Any) -> Path:
        study = {**LANGUAGE_ID, **changes}
        study["config"] = {**LANGUAGE_ID["config"], **changes.get("config", {})}
        path = self.folder / f"{study['name']}.yaml"
        path.write_text(yaml.safe_dump(study, sort_keys=False))
        return path

    def write_loop(self, **changes: Any) -> Path:
        """A study of a loop that imports nothing, and saves at each of its steps."""
        (self.folder / "loop.py").write_text(LOOP)
        study = {"name": "accept", "objective": "loop.py:objective", **changes}
        path = self.folder / "loop.yaml"
        path.write_text(yaml.safe_dump(study, sort_keys=False))
        return path

    def few_texts(self) -> dict[str, Any]:
        """A configuration of a training that takes a second, and saves at each step."""
        path = self.folder / "texts.csv"
        words = ["red", "green", "blue", "one", "two", "three"]
        rows = [f"{words[i % 6]} {words[i % 5]} {i % 11},{i % 3}" for i in range(480)]
        path.write_text("\n".join(["text,label", *rows]))
        return {
            "data": {"source": str(path), "max_length": 12, "validation_fraction": 0.3},
            "tokenizer": {"vocab_size": 80},
            "epochs": 2,
            "checkpoint_interval_seconds": 0.0,
        }

    def start(self, *command: object, log: str = "command.log") -> subprocess.Popen[str]:
        sink = (self.folder / log).open("a")
        with sink:
            process = subprocess.Popen(
                [str(part) for part in command],
                cwd=self.folder,
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=sink,
                text=True,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def run(self, *command: object, code: int = 0, timeout: float = 400.0) -> str:
        process = self.start("trialfleet", *command)
        output, _ = process.communicate(timeout=timeout)
        errors = (self.folder / "command.log").read_text()[-3000:]
        assert process.returncode == code, f"{output}\n{errors}\n{self.worker_log()[-3000:]}"
        return output

    def json(self, *command: object, **options: Any) -> Any:
        return json.loads(self.run(*command, "--json", **options))

    def errors(self) -> str:
        return (self.folder / "command.log").read_text()

    def worker_log(self) -> str:
        path = self.home / "logs" / "worker.log"
        return path.read_text() if path.exists() else ""

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = [line for line in self.worker_log().splitlines() if line.startswith("{")]
        return [event for event in map(json.loads, lines) if event["event"] == name]

    @property
    def settings(self) -> Settings:
        """What a command is told by the environment."""
        return Settings.from_environment(self.environment)

    def status(self, name: str = "accept") -> StudyStatus:
        return StudyHandle(name, self.settings).status()

    def processes(self, kind: str) -> list[ProcessEntry]:
        try:
            client = connect(self.settings, Role.VIEWER)
        except RedisUnavailableError:
            return []  # the embedded server is not there (yet, or any more)
        with Fleet(self.settings, client) as fleet:
            return [entry for entry in fleet.processes() if entry.kind == kind]

    def hold(self) -> None:
        """Have trials stay where they are once they have a checkpoint, until `let_go`."""
        places = [str(HELD_TRIALS), self.environment.get("PYTHONPATH")]
        self.environment["PYTHONPATH"] = os.pathsep.join(filter(None, places))
        self.environment["HELD_TRIALS"] = str(self.folder)
        (self.folder / "hold").touch()

    def await_held(self, count: int = 1) -> list[ProcessEntry]:
        """The pool processes of so many trials that are held."""

        def held() -> list[ProcessEntry]:
            numbers = {int(path.name.partition("-")[2]) for path in self.folder.glob("held-*")}
            if len(numbers) < count:
                return []
            found = [entry for entry in self.processes("trial") if entry.trial in numbers]
            return found if len(found) == count else []

        return wait_until(held, f"{count} trials have a checkpoint, and stay", 120.0)

    def let_go(self) -> None:
        """Let held trials go on, and hold no further ones."""
        (self.folder / "hold").unlink()

    def checkpoints(self) -> list[Path]:
        return list(self.home.glob("checkpoints/*/*/*/step-*"))

    def stop_all(self) -> None:
        for process in self._started:
            if process.poll() is None:
                members = [psutil.Process(process.pid)]
                members += members[0].children(recursive=True)
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    for member in members:
                        if member.is_running():
                            member.kill()
                    process.wait()
            if process.stdout is not None:
                process.stdout.close()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    made.stop_all()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, Any]:
    """Show what all members of a fleet told, where a test of it fails."""
    report = yield
    for fleet in getattr(item, "funcargs", {}).values():
        if report.failed and isinstance(fleet, FaultFleet):
            report.sections += [(name, text) for name, text in fleet.told()]
    return report


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[FaultFleet]:
    with broken_fleet(tmp_path) as made:
        yield made
