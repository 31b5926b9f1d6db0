"""A real fleet to be broken: its own Redis, orchestrators and workers, all killed by tests."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import faulty
import optuna
import psutil
import redis
from remains import ends_in_journal, files_of, keys_of, processes_of
from waiting import wait_until

from orchestrator.handle import StudyHandle
from orchestrator.local.servers import EmbeddedRedis, LocalWorker, start_process, stop_process
from orchestrator.submission.study import build_spec
from workers.coordination.identity import ProcessIdentity
from workers.coordination.leases import TrialLeases
from workers.coordination.studies import Studies, ensure_epoch
from workers.coordination.trial_record import CheckpointRef, TrialRecord
from workers.processes.registry import ProcessEntry, ProcessRecord, ProcessRegistry
from workers.protocol.states import ProcessKind
from workers.settings import Settings

#: Leases of 4.5 s, beats of 1 s: quick, and slow enough for a busy machine.
TIME_SCALE = 0.1


class Note(NamedTuple):
    """A line of what the objective wrote down."""

    study: str
    number: int
    attempt: int
    pid: int
    what: str
    step: int


class FaultFleet:
    """Starts members, breaks them, and looks from outside at what became of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.redis = EmbeddedRedis(folder / "home")
        self.settings = Settings(
            redis_url=self.redis.url,
            home=folder / "home",
            objectives=(str(folder / "faulty.py"),),
            time_scale=TIME_SCALE,
        )
        # of its own, and short: sockets are made there
        self.temporary = Path(tempfile.mkdtemp(prefix="faults-"))
        shutil.copy(Path(__file__).with_name("faulty.py"), folder)
        self.workers: list[LocalWorker] = []
        self.orchestrators: list[subprocess.Popen[bytes]] = []
        self.study = ""
        self._studies = folder

    def start(self) -> None:
        """Start the server."""
        self.redis.start()
        self.client = redis.Redis.from_url(self.redis.url, decode_responses=True)
        ensure_epoch(self.client)

    def rescale(self, time_scale: float) -> None:
        """Run the clocks of all that is started from now on at another speed."""
        self.settings = self.settings.model_copy(update={"time_scale": time_scale})

    def pretend_slots(self, count: int) -> None:
        """Have the orchestrator believe in a worker that is not there, for twenty leases."""
        registry = ProcessRegistry(self.client, self.settings.times.scaled(20))
        fields = {"slots": count, "queues": ["default"]}
        record = ProcessRecord(registry, ProcessKind.MAIN, fields=fields)
        record.identity = record.identity._replace(host="elsewhere")
        record.register()

    def serve(self, program: str | None = None, **variables: str) -> subprocess.Popen[bytes]:
        """Start one more orchestrator, or a program in its place."""
        what = ["-m", "orchestrator.cli", "serve"] if program is None else ["-c", program]
        log = self.settings.home / "logs" / f"orchestrator-{len(self.orchestrators)}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as sink:
            process = start_process(
                [sys.executable, *what],
                env={**self.environment(), **variables},
                stdin=subprocess.DEVNULL,
                output=sink,
            )
        self.orchestrators.append(process)
        return process

    def worker(self, slots: int = 1, queue: str = "default", **variables: str) -> LocalWorker:
        """Start one more worker, of some queues with commas between."""
        environment = {**self.environment(), "FLEET_SLOTS": str(slots), **variables}
        log = self.settings.home / "logs" / f"worker-{len(self.workers)}.log"
        made = LocalWorker(environment, log, queue).start()
        self.workers.append(made)
        return made

    def environment(self) -> dict[str, str]:
        foreign = ("FLEET_", "WANDB_")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
        # W&B is off, whoever runs the tests
        own = {"FLEET_LOG_LEVEL": "debug", "NETRC": os.devnull, "TMPDIR": str(self.temporary)}
        return {**inherited, **self.settings.to_environment(), **own}

    def submit(self, trials: int = 1, objective: str = "train", **fields: Any) -> None:
        """Hand a study in; its objective is known to import."""
        given = {
            "name": "fault",
            "objective": f"{self.folder}/faulty.py:{objective}",
            "trials": trials,
            **fields,
        }
        spec = build_spec(given, "test", base=self.folder)
        self.study = spec.name
        Studies(self.client).submit(spec)

    def use_studies(self, folder: Path) -> None:
        """Have workers that are started from now on take the objectives of a folder, too."""
        allowed = (*self.settings.objectives, *map(str, sorted(folder.glob("*.py"))))
        self.settings = self.settings.model_copy(update={"objectives": allowed})
        self._studies = folder

    def hand_in(self, given: Mapping[str, Any]) -> None:
        """Hand a study in whose objective lies in the folder of `use_studies`."""
        spec = build_spec(given, "test", base=self._studies)
        self.study = spec.name
        Studies(self.client).submit(spec)

    def order(
        self,
        what: str,
        number: int = 0,
        attempt: int | str = 1,
        step: int = 4,
        *,
        study: str = "*",
    ) -> None:
        """Have the objective do something at a step, by its name in `faulty.ORDERS`."""
        path = self.folder / "orders.json"
        orders = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**orders, f"{study}/{number}/{attempt}/{step}": what}))

    def go(self) -> None:
        """Let those that wait for it go on."""
        (self.folder / "go").touch()

    def halt(self) -> None:
        """Let those that come next wait again."""
        (self.folder / "go").unlink()

    def notes(self, what: str | None = None, number: int | None = None) -> list[Note]:
        """What the objective wrote down."""
        path = self.folder / "notes"
        found = []
        for line in path.read_text().splitlines() if path.exists() else []:
            study, trial, attempt, pid, *words, step = line.split()
            found.append(
                Note(study, int(trial), int(attempt), int(pid), " ".join(words), int(step))
            )
        return [
            note for note in found if what in {None, note.what} and number in {None, note.number}
        ]

    def await_note(self, what: str, number: int = 0, attempt: int = 1, seconds: float = 90) -> Note:
        """The first note of a kind, when it is there."""

        def find() -> Note | None:
            found = [note for note in self.notes(what, number) if note.attempt == attempt]
            return found[0] if found else None

        return wait_until(find, f"trial {number}, attempt {attempt}: {what}", seconds)

    def await_checkpoint(self, step: int, number: int = 0) -> CheckpointRef:
        """A trial's checkpoint of a step, when Redis knows of it."""

        def find() -> CheckpointRef | None:
            found = self.record(number).checkpoint
            return found if found is not None and found.step == step else None

        return wait_until(find, f"there is a checkpoint of step {step}")

    def await_over(self, seconds: float = 150, *, study: str = "") -> None:
        """Wait until a study, by default the one that was handed in last, is over."""
        name = study or self.study
        # each look connects anew, as a command does: at more of them, half a core is the test's
        wait_until(lambda: self._is_over(name), f"{name} is over", seconds, every_seconds=0.3)

    def _is_over(self, study: str) -> bool:
        with suppress(redis.RedisError):
            return StudyHandle(study, self.settings).status().is_over
        return False

    @property
    def leases(self) -> TrialLeases:
        return Studies(self.client).leases(self.study)

    def record(self, number: int = 0) -> TrialRecord:
        found = self.leases.record(number)
        assert found is not None
        return found

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        return StudyHandle(self.study, self.settings).study.trials

    def processes(self, kind: str) -> list[ProcessEntry]:
        """The registered processes of a kind."""
        registry = ProcessRegistry(self.client, self.settings.times)
        return [entry for entry in registry.entries() if entry.kind == kind]

    def events(self, name: str) -> list[dict[str, Any]]:
        """What all logs tell under a name."""
        lines = [
            line
            for path in sorted((self.settings.home / "logs").glob("*.log"))
            for line in path.read_text().splitlines()
            if line.startswith("{") and f'"{name}"' in line
        ]
        return [event for event in map(json.loads, lines) if event["event"] == name]

    def assert_sound(self, trials: int = 1, *, attempts: dict[int, int] | None = None) -> None:
        """All trials ended once, with the value of an undisturbed training; nothing is left."""
        expected = undisturbed_loss()
        stored = self.trials()
        assert [trial.state.name for trial in stored] == ["COMPLETE"] * trials
        assert [trial.value for trial in stored] == [expected] * trials
        assert ends_in_journal(self.settings.home, self.study) == dict.fromkeys(range(trials), 1)
        for number, wanted in (attempts or {}).items():
            assert stored[number].user_attrs["trialfleet:attempt"] == wanted
        wait_until(lambda: not keys_of(self.client, self.study), "no key is left")

    def told(self) -> list[tuple[str, str]]:
        """The end of what each member told, by the names of their logs, and what was noted."""
        paths = [*sorted(self.settings.home.glob("logs/*.log")), self.folder / "notes"]
        return [
            (path.name, path.read_text(errors="replace")[-6000:]) for path in paths if path.exists()
        ]

    def stop(self) -> None:
        """Stop what still runs, and hold what is left against what may be."""
        for worker in self.workers:
            worker.stop(60.0)
        for process in self.orchestrators:
            stop_process(process, signal.SIGTERM, 60.0)
        self.client.close()
        self.redis.stop()
        home = self.settings.home
        wait_until(lambda: not processes_of(home), f"{processes_of(home)} end")

    def assert_nothing_told(self) -> None:
        """No log shows the server's password, whatever was broken."""
        password = urlsplit(self.redis.url).password
        for log in self.settings.home.glob("logs/*.log"):
            assert str(password) not in log.read_text(errors="replace"), log

    def assert_nothing_left(self) -> None:
        """No directory of an ended trial or process is left."""
        left = files_of(self.settings.home, self.temporary)
        assert not left, left
        shutil.rmtree(self.temporary, ignore_errors=True)


@contextmanager
def broken_fleet(folder: Path) -> Iterator[FaultFleet]:
    """A fleet to be broken, with its server up; it must have come clean in the end."""
    made = FaultFleet(folder)
    made.start()
    try:
        yield made
    finally:
        made.stop()
    made.assert_nothing_told()
    made.assert_nothing_left()


@functools.cache
def undisturbed_loss() -> float:
    """What the training of `faulty.train` comes to when nothing happens to it."""
    training = faulty.Training(faulty.Afresh())  # type: ignore[arg-type]
    for _ in range(faulty.STEPS):
        training.make_step()
    return training.loss


def tree_of(pid: int) -> list[psutil.Process]:
    """A process and all below it."""
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def signal_all(processes: list[psutil.Process], number: int) -> None:
    """Signal processes, those that have ended excepted."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def is_gone(pid: int) -> Callable[[], bool]:
    """Whether the process that has a pid now has ended."""
    try:
        identity = ProcessIdentity.of(pid)
    except ProcessLookupError:
        return lambda: True
    return identity.is_dead
