"""What Optuna's own tools see of a study that is being written; and they change nothing."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import optuna
import pytest
from hand_fleet import Fleet, turn_until
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from postgres import Postgres
from waiting import wait_until

from orchestrator.storage.opening import StudyStorage
from workers.protocol.states import TrialState


class Dashboard:
    """A real `optuna-dashboard`."""

    def __init__(self, storage: str, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self._address = f"http://127.0.0.1:{port}"
        command = Path(sys.executable).with_name("optuna-dashboard")
        self._log = folder / "dashboard.log"
        with self._log.open("wb") as sink:
            self._server = subprocess.Popen(
                [command, storage, "--port", str(port), "--host", "127.0.0.1"],
                stdout=sink,
                stderr=sink,
                cwd=folder,
            )

    def __enter__(self):
        wait_until(self._answers, "it answers")
        return self

    def __exit__(self, *_):
        self._server.terminate()
        self._server.wait(60)

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"{self._address}{path}", timeout=30) as answer:
            return answer.read()

    def trials(self) -> list[str]:
        """The states of all trials, by number, as a browser that was just opened gets them."""
        (study,) = json.loads(self.get("/api/studies"))["study_summaries"]
        found = json.loads(self.get(f"/api/studies/{study['study_id']}?after=0"))
        return [trial["state"] for trial in found["trials"]]

    def look_at_all(self) -> None:
        """Ask for what else its pages ask for."""
        for path in ("/dashboard/studies/0", "/api/meta", "/csv/0", "/csv/1"):
            with suppress(urllib.error.HTTPError):  # a storage counts its studies from 0, or 1
                self.get(path)

    def _answers(self) -> bool:
        assert self._server.poll() is None, self._log.read_text()
        try:
            return bool(self.get("/api/meta"))
        except OSError:
            return False


@pytest.fixture(params=["journal", "sqlite", "postgres"])
def storage(request, tmp_path) -> Iterator[str | None]:
    if request.param == "postgres":
        with Postgres() as started:
            yield started.url
    else:
        yield f"sqlite:///{tmp_path}/studies.db" if request.param == "sqlite" else None


def test_a_dashboard_follows_a_study_that_runs_and_changes_nothing(
    client, settings, tmp_path, storage
):
    settings = settings.model_copy(update={"storage": storage})
    fleet = Fleet(client, settings, tmp_path)
    fleet.submit()
    journal = settings.home / "studies" / "s" / "journal.log"
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 3, "three are in flight")
        with Dashboard(storage or str(journal), tmp_path) as dashboard:
            assert dashboard.trials() == ["Running"] * 3
            before = contents(tmp_path, settings.home)
            for _ in range(3):
                dashboard.trials()
                dashboard.look_at_all()
            assert contents(tmp_path, settings.home) == before, "looking writes nothing"
            fleet.commit(1, 0.5)
            fleet.commit(0, None, TrialState.FAILED)
            turn_until(service, lambda: len(fleet.leases.queued()) == 2, "the next is asked for")
            fleet.commit(2, 0.25)
            fleet.commit(3, 0.75)
            turn_until(service, lambda: service.status("s").is_over, "it is over")
            ended = ["Fail", "Complete", "Complete", "Complete"]
            wait_until(lambda: dashboard.trials() == ended, "it looks again now and then")
    assert [trial.values for trial in fleet.stored()] == [None, [0.5], [0.25], [0.75]]


def contents(*folders: Path) -> dict[str, bytes]:
    """The files that hold results, and what stands beside them."""
    found = [
        path
        for folder in folders
        for path in [*folder.glob("studies.db*"), *folder.glob("studies/s/*")]
        if path.is_file()
    ]
    return {str(path): path.read_bytes() for path in found}


def test_optuna_reads_a_journal_at_whatever_byte_its_writer_is(tmp_path):
    written = tmp_path / "written.log"
    opened = StudyStorage.open(f"journal://{written}")
    study = optuna.create_study(study_name="s", storage=opened.storage)

    def objective(trial):
        trial.report(trial.suggest_float("ü", 0, 1), 1)
        return 0.5

    study.optimize(objective, n_trials=5)
    opened.close()
    whole, growing = written.read_bytes(), tmp_path / "growing.log"
    growing.touch()
    following = JournalStorage(JournalFileBackend(str(growing)))
    with growing.open("ab", buffering=0) as file:
        for start in range(0, len(whole), 37):
            file.write(whole[start : start + 37])
            fresh = JournalStorage(JournalFileBackend(str(growing)))
            assert len(fresh.get_all_studies()) == len(following.get_all_studies())
            for each in fresh.get_all_studies():
                number = each._study_id
                assert fresh.get_all_trials(number) == following.get_all_trials(number)
    assert following.get_all_trials(0) == study.trials
    assert growing.read_bytes() == whole
