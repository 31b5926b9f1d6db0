"""What Optuna asks of a journal, held by its own backend and by ours alike."""

from __future__ import annotations

import errno
import resource

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from orchestrator.storage.gathering import GatheringJournal
from orchestrator.storage.journal import JournalFile, JournalReader
from orchestrator.storage.opening import (
    StudyStorage,
    check_same_spec,
    load_readonly,
    stored_identity,
)
from workers.protocol.errors import (
    FleetError,
    InvalidInputError,
    StorageFullError,
    StudyExistsError,
)
from workers.protocol.spec import StudySpec

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


def optunas(path):
    return JournalFileBackend(str(path))


def gathering(path):
    return GatheringJournal(JournalFile(path))


@pytest.fixture(
    params=[optunas, JournalFile, gathering], ids=["optuna", "trialfleet", "trialfleet, gathering"]
)
def backend(request, tmp_path):
    made = request.param(tmp_path / "journal.log")
    yield made
    getattr(made, "close", lambda: None)()


def objective(trial):
    x = trial.suggest_float("x", -1, 1)
    trial.suggest_categorical("c", ["a", None])
    trial.report(x, 1)
    trial.set_user_attr("k", {"a": [1]})
    return x


def run_study(storage, num_trials=5):
    sampler = optuna.samplers.RandomSampler(seed=1)
    study = optuna.create_study(study_name="s", storage=storage, sampler=sampler)
    study.optimize(objective, n_trials=num_trials)
    return study


class TestJournal:
    def test_a_study_reads_back_as_it_was_written(self, backend, tmp_path):
        study = run_study(JournalStorage(backend))
        again = optuna.load_study(
            study_name="s", storage=JournalStorage(optunas(tmp_path / "journal.log"))
        )
        assert again.trials == study.trials
        assert len(again.trials) == 5

    def test_logs_are_read_from_any_number(self, backend):
        backend.append_logs([{"n": 0}, {"n": 1}])
        assert list(backend.read_logs(0)) == [{"n": 0}, {"n": 1}]
        backend.append_logs([{"n": 2}])
        assert list(backend.read_logs(2)) == [{"n": 2}]
        assert list(backend.read_logs(1)) == [{"n": 1}, {"n": 2}]
        assert list(backend.read_logs(3)) == []


def test_a_reader_follows_a_writer_and_waits_for_whole_lines(tmp_path):
    path = tmp_path / "journal.log"
    writer, reader = JournalFile(path), JournalReader(path)
    writer.append_logs([{"n": 0}])
    assert list(reader.read_logs(0)) == [{"n": 0}]
    writer.append_logs([{"n": 1}])
    with path.open("ab") as file:
        file.write(b'{"n"')
    assert list(reader.read_logs(1)) == [{"n": 1}]
    with path.open("ab") as file:
        file.write(b":2}\n")
    assert list(reader.read_logs(2)) == [{"n": 2}]
    writer.close()


def test_what_a_writer_appended_last_it_reads_without_the_file_and_all_else_from_it(
    tmp_path, monkeypatch
):
    journal = JournalFile(tmp_path / "journal.log")
    journal.append_logs([{"n": 0}])
    assert list(journal.read_logs(0)) == [{"n": 0}]
    value = {"list": [1]}
    with monkeypatch.context() as patch:
        patch.setattr(JournalReader, "read_logs", lambda *_: pytest.fail("it reads the file"))
        journal.append_logs([{"n": 1}, value])
        value["list"].append(2)
        assert list(journal.read_logs(1)) == [{"n": 1}, {"list": [1]}], "as it was written"
    journal.append_logs([{"n": 3}, {"n": 4}])
    assert next(journal.read_logs(3)) == {"n": 3}
    assert list(journal.read_logs(4)) == [{"n": 4}], "after one that stopped on the way"
    journal.append_logs([{"n": 5}])
    journal.append_logs([{"n": 6}])
    assert list(journal.read_logs(5)) == [{"n": 5}, {"n": 6}]
    assert list(journal.read_logs(0))[-2:] == [{"n": 5}, {"n": 6}]
    journal.close()


@pytest.mark.parametrize("torn", [b'{"n":', b'{"n":1}', b"x" * 100_000])
def test_a_line_that_a_crash_left_unfinished_is_cut_off(tmp_path, torn):
    path = tmp_path / "journal.log"
    path.write_bytes(b'{"n":0}\n' + torn)
    writer = JournalFile(path)
    writer.append_logs([{"n": 1}])
    writer.close()
    assert path.read_bytes() == b'{"n":0}\n{"n":1}\n'


def test_a_second_writer_is_refused_until_the_first_closes(tmp_path):
    path = tmp_path / "journal.log"
    first = JournalFile(path)
    with pytest.raises(InvalidInputError, match=r"journal\.log is being written by another"):
        JournalFile(path)
    first.close()
    JournalFile(path).close()


def test_a_reader_refuses_to_write(tmp_path):
    (tmp_path / "journal.log").touch()
    with pytest.raises(FleetError, match="only writer"):
        JournalReader(tmp_path / "journal.log").append_logs([{}])


def test_a_handle_reads_while_the_orchestrator_writes(tmp_path):
    url = f"journal://{tmp_path}/journal.log"
    opened = StudyStorage.open(url)
    study = run_study(opened.storage, 3)
    readonly = load_readonly(url, "s")
    assert readonly.best_trial.params == study.best_trial.params
    with pytest.raises(FleetError, match="only writer"):
        readonly.ask()
    assert opened.count_trials("s") == 3
    assert opened.count_trials("other") == 0
    opened.close()


def test_who_looks_again_reads_only_what_was_written_since(tmp_path, monkeypatch):
    path = tmp_path / "journal.log"
    url = f"journal://{path}"
    read, given = JournalReader.read_logs, []

    def counted(self, log_number_from):
        for log in read(self, log_number_from):
            given.append(log)
            yield log

    monkeypatch.setattr(JournalReader, "read_logs", counted)
    for num_trials in (3, 5):  # and again after the study was deleted, and handed in anew
        run_study(JournalStorage(optunas(path)), num_trials)
        given.clear()
        assert len(load_readonly(url, "s").trials) == num_trials
        whole = len(given)
        assert whole == len(path.read_text().splitlines())
        assert stored_identity(url, "s") is None
        assert len(load_readonly(url, "s").trials) == num_trials
        assert len(given) == whole
        path.unlink()
    assert stored_identity(url, "s") is None


def test_a_study_that_is_nowhere_is_named(tmp_path):
    with pytest.raises(InvalidInputError, match="study 'x' is not known"):
        load_readonly(f"journal://{tmp_path}/journal.log", "x")


def test_a_database_that_cannot_be_opened_is_named_without_its_password():
    with pytest.raises(InvalidInputError, match="FLEET_STORAGE") as error:
        StudyStorage.open("nodialect://user:secret@host/db")
    assert "secret" not in str(error.value)


def test_the_first_difference_of_two_studies_is_named():
    known = StudySpec(name="s", config={"model": {"hidden_size": 64}}).identity()
    check_same_spec(StudySpec(name="s", config={"model": {"hidden_size": 64}}, trials=99), known)
    with pytest.raises(StudyExistsError) as error:
        check_same_spec(StudySpec(name="s", config={"model": {"hidden_size": 128}}), known)
    assert str(error.value) == (
        "study 's' exists with config.model.hidden_size = 64, and now it is 128; choose another"
        " `name`, or set it back"
    )


def test_of_what_a_full_disk_cuts_the_whole_lines_stay_and_no_half_of_one(tmp_path):
    """A limit on the size of files stands in for a full disk, at the very byte."""
    path = tmp_path / "journal.log"
    journal = JournalFile(path)
    journal.append_logs([{"n": 0}])
    size = path.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, before[1]))
    try:
        with pytest.raises(StorageFullError, match="make room"):
            journal.append_logs([{"n": 1}, {"text": "x" * 100}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text() == '{"n":0}\n{"n":1}\n'
    assert list(journal.read_logs(1)) == [{"n": 1}]
    journal.append_logs([{"n": 2}])
    assert list(journal.read_logs(0)) == [{"n": 0}, {"n": 1}, {"n": 2}]
    journal.close()


class Uncut:
    """A file on a disk that is so full that it does not even shorten one."""

    def __init__(self, file):
        self._file = file

    def truncate(self, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    def __getattr__(self, name):
        return getattr(self._file, name)


def test_half_a_line_that_cannot_be_cut_off_is_followed_by_nothing(tmp_path, monkeypatch):
    path = tmp_path / "journal.log"
    journal = JournalFile(path)
    journal.append_logs([{"n": 0}])

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, before[1]))
    try:
        with monkeypatch.context() as patched:
            patched.setattr(journal, "_file", Uncut(journal._file))
            with pytest.raises(FleetError, match="half a line"):
                journal.append_logs([{"n": 1}, {"text": "x" * 100}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with pytest.raises(FleetError, match="half a line"):
        journal.append_logs([{"n": 2}])
    journal._file.close()
    again = JournalFile(path)
    again.append_logs([{"n": 2}])
    assert list(again.read_logs(0)) == [{"n": 0}, {"n": 1}, {"n": 2}]
    again.close()
