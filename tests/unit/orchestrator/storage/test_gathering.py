from __future__ import annotations

import itertools
import resource
from contextlib import contextmanager, nullcontext

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from orchestrator.storage.journal import JournalFile, JournalReader
from orchestrator.storage.opening import StudyStorage, journal_storage
from workers.protocol.errors import StorageFullError

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

SPACE = {"x": FloatDistribution(0, 1), "c": CategoricalDistribution(["a", None])}
GRID = {"x": [0.0, 0.5, 1.0], "c": ["a", None]}


def opened_at(path):
    return StudyStorage.open(f"journal://{path}")


def study_in(opened, sampler=None):
    return optuna.create_study(
        study_name="s", storage=opened.storage, sampler=sampler, load_if_exists=True
    )


def as_optuna_reads(path):
    return contents(JournalStorage(JournalFileBackend(str(path))))


def contents(storage):
    """All that a storage holds, but for when it was written."""
    times = {"datetime_start", "_datetime_start", "datetime_complete"}
    return [
        [
            study.study_name,
            *(
                {name: value for name, value in vars(trial).items() if name not in times}
                for trial in storage.get_all_trials(study._study_id)
            ),
        ]
        for study in storage.get_all_studies()
    ]


def drive(study, gathering, rounds=3):
    """Trials asked for and told, some of them ordered, in rounds as an orchestrator makes them."""
    for count in range(rounds):
        with gathering():
            study.enqueue_trial({"x": 0.25 * count})
            asked = [study.ask(SPACE) for _ in range(3)]
            asked[0].set_user_attr("facts", {"round": (count, 1)})
        with gathering():
            for trial in asked:
                trial.report(float(trial.number), 1)
                trial.set_constraint("memory", 0.5)
            study.tell(asked[0], 1.0)
            study.tell(asked[1], state=TrialState.PRUNED)


@pytest.mark.parametrize("sampler", [optuna.samplers.RandomSampler, optuna.samplers.TPESampler])
def test_what_was_gathered_is_what_would_have_been_written_one_by_one(tmp_path, sampler):
    found = []
    for name in ("gathered", "one by one"):
        opened = opened_at(tmp_path / name)
        study = study_in(opened, sampler(seed=1))
        drive(study, opened.gathering if name == "gathered" else nullcontext)
        assert as_optuna_reads(tmp_path / name) == contents(opened.storage)
        found.append(contents(opened.storage))
        opened.close()
    assert found[0] == found[1]


def test_a_sampler_finds_what_it_noted_while_it_is_gathered(tmp_path):
    opened = opened_at(tmp_path / "journal.log")
    study = study_in(opened, optuna.samplers.GridSampler(GRID, seed=1))
    with opened.gathering():
        points = {tuple(study.ask(SPACE).params.values()) for _ in range(6)}
    assert points == set(itertools.product(*GRID.values()))
    opened.close()


def test_a_trial_is_one_write_and_a_reader_sees_none_of_it_or_all(tmp_path, monkeypatch):
    opened = opened_at(tmp_path / "journal.log")
    study = study_in(opened)
    following = JournalStorage(JournalFileBackend(str(tmp_path / "journal.log")))
    sizes, write = [], JournalFile.append_lines

    def counted(self, lines, num_read=0):
        sizes.append(len(lines))
        write(self, lines, num_read)

    monkeypatch.setattr(JournalFile, "append_lines", counted)
    with opened.gathering():
        study.ask(SPACE).set_user_attr("k", 1)
        assert sizes == []
        assert following.get_n_trials(0) == 0
    assert sizes == [4]
    (trial,) = following.get_all_trials(0)
    assert (trial.params.keys(), trial.user_attrs) == (SPACE.keys(), {"k": 1})
    opened.close()


def test_a_suggestion_is_on_disk_after_a_sync_in_the_midst_of_it(tmp_path):
    opened = opened_at(tmp_path / "journal.log")
    study = study_in(opened)
    with opened.gathering():
        study.ask(SPACE)
        opened.sync()
        assert as_optuna_reads(tmp_path / "journal.log") == contents(opened.storage)
        study.ask(SPACE)
    assert as_optuna_reads(tmp_path / "journal.log") == contents(opened.storage)
    opened.close()


def test_what_was_gathered_until_something_failed_is_written(tmp_path):
    opened = opened_at(tmp_path / "journal.log")
    study = study_in(opened)
    with pytest.raises(ValueError, match="Cannot tell"), opened.gathering():
        study.tell(study.ask(SPACE).number + 1, 1.0)
    with pytest.raises(KeyError), opened.gathering():  # the storage refuses it, and goes on
        opened.storage.set_trial_user_attr(7, "k", 1)
    with opened.gathering():
        study.ask(SPACE)
    assert len(opened.storage.get_all_trials(0)) == 2
    assert as_optuna_reads(tmp_path / "journal.log") == contents(opened.storage)
    opened.close()


def test_wherever_a_kill_tears_a_write_the_journal_is_read_and_goes_on(tmp_path):
    path = tmp_path / "journal.log"
    opened = opened_at(path)
    study = study_in(opened, optuna.samplers.RandomSampler(seed=1))
    before = path.stat().st_size
    drive(study, opened.gathering, rounds=1)
    opened.close()
    whole = path.read_bytes()
    for size in range(before, len(whole), 61):
        path.write_bytes(whole[:size])
        again = opened_at(path)
        drive(study_in(again, optuna.samplers.RandomSampler(seed=1)), again.gathering, rounds=1)
        assert as_optuna_reads(path) == contents(again.storage)
        again.close()


@contextmanager
def no_room_beyond(size):
    """A limit on the size of files stands in for a full disk, at the very byte."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_a_full_disk_refused_is_kept_and_comes_before_all_else(tmp_path):
    path = tmp_path / "journal.log"
    opened = opened_at(path)
    study = study_in(opened)
    size = path.stat().st_size
    with no_room_beyond(size + 20):
        with pytest.raises(StorageFullError, match="make room"), opened.gathering():
            trial = study.ask(SPACE)
        for write in (opened.sync, lambda: study.set_user_attr("k", 1), study.ask):
            with pytest.raises(StorageFullError, match="make room"):
                write()
        with pytest.raises(StorageFullError, match="make room"), opened.gathering():
            pytest.fail("more is gathered")
    assert path.stat().st_size == size
    assert (len(study.trials), study.user_attrs) == (1, {})
    study.tell(trial, 1.0)
    assert as_optuna_reads(path) == contents(opened.storage)
    assert study.trials[0].value == 1.0
    opened.close()


@pytest.mark.parametrize("goes_on", [True, False], ids=["who goes on", "whom another follows"])
def test_nothing_that_readers_saw_of_a_turn_which_a_full_disk_cut_is_taken_back(
    tmp_path, monkeypatch, goes_on
):
    path = tmp_path / "journal.log"
    opened = opened_at(path)
    study = study_in(opened)
    readers = [
        JournalStorage(JournalFileBackend(str(path))),
        journal_storage(JournalReader(path)),
    ]
    write = JournalFile._write

    def write_and_be_read(self, text):
        written = write(self, text)
        for reader in readers:
            reader.get_all_trials(0)
        return written

    monkeypatch.setattr(JournalFile, "_write", write_and_be_read)
    for room in range(0, 2400, 150):
        with (
            no_room_beyond(path.stat().st_size + room),
            pytest.raises(StorageFullError),
        ):
            drive(study, opened.gathering, rounds=1)
        if not goes_on:
            opened.close()
            opened = opened_at(path)
            study = study_in(opened, optuna.samplers.RandomSampler(seed=room))
        drive(study, opened.gathering, rounds=1)
        for reader in readers:
            assert contents(reader) == as_optuna_reads(path) == contents(opened.storage)
    opened.close()


def test_what_a_full_disk_refused_is_dropped_with_who_held_it(tmp_path):
    path = tmp_path / "journal.log"
    opened = opened_at(path)
    study = study_in(opened)
    with (
        no_room_beyond(path.stat().st_size),
        pytest.raises(StorageFullError, match="make room"),
        opened.gathering(),
    ):
        study.ask(SPACE)
    opened.close()
    again = opened_at(path)
    assert study_in(again).trials == []
    again.close()
