"""A trial in this process, with a real lease: objectives, checkpoints, every way out."""

from __future__ import annotations

import json
import resource
import threading
import time

import optuna
import pytest
import torch
from desk import StepTrial, resumed_after, run, study_of
from waiting import wait_until

from workers.containers import Container
from workers.coordination.clock import lease_clock
from workers.disk.checkpoint_content import load_state
from workers.disk.checkpoints import CheckpointStore
from workers.disk.outbox import Outbox
from workers.managers import MANAGERS, DataManager, DirectoryManager, ModelManager
from workers.processes.registry import ProcessRecord
from workers.protocol.errors import (
    LeaseLost,
    ObjectiveError,
    TrialCancelled,
    UnsuitableValueError,
)
from workers.protocol.finetune import FinetuneConfig
from workers.protocol.messages import Result, RunTrial
from workers.protocol.spec import StudySpec
from workers.protocol.states import Command, TrialState
from workers.trials import held_lease
from workers.trials.objectives import call_objective, load_objective
from workers.trials.outcomes import Outcome
from workers.trials.preparation import Preparation
from workers.trials.returned import read_values
from workers.trials.runner import TrialRunner


@pytest.mark.parametrize("drained_at", [1, 5, 11, 12])
def test_a_resumed_trial_ends_bit_equal_to_an_undisturbed_one(desk, container, texts, drained_at):
    place = desk(**study_of(texts))
    whole = run(container, place.claim(0))
    resumed = resumed_after(place, drained_at)
    assert place.leases.record(1).checkpoint.step == drained_at
    assert resumed.attempt == 2
    assert run(container, resumed) == whole
    reports = {n: [] for n in (0, 1)}
    for entry in place.inbox():
        reports[entry.number].append((entry.subject, entry.payload))
    assert reports[0] == reports[1], "each evaluation is reported once"


def test_a_checkpoint_is_taken_as_often_as_asked_and_a_damaged_one_is_not_used(
    desk, container, texts
):
    place = desk(**study_of(texts, checkpoint_interval_seconds=0.0))
    trial = place.claim(0)
    with pytest.raises(LeaseLost):
        run(container, StepTrial(trial, 8, place.held.lose))
    ref = place.leases.record(0).checkpoint
    assert ref.step == 8
    assert load_state(ref)["step"] == 8
    folders = sorted(container.get(DirectoryManager).checkpoints.glob("s/0/*/*"))
    assert [folder.name for folder in folders] == ["step-000000007", "step-000000008"]
    state = folders[-1] / "state.pt"
    state.write_bytes(state.read_bytes()[:-10])
    assert load_state(ref) is None


def test_the_model_is_left_by_trials_that_beat_the_study(desk, container, texts):
    place = desk(**study_of(texts))
    trial = place.claim(0)
    values = run(container, trial)
    written = json.loads((trial.result_directory / "metrics.json").read_text())
    assert [entry["step"] for entry in written["evaluations"]] == [3, 7, 10, 14, 17, 21]
    assert written["evaluations"][-1]["accuracy"] == values["accuracy"]
    model = container.get(ModelManager).load(trial.result_directory / "model")
    assert model.config.id2label == {0: "0", 1: "1", 2: "2"}
    place.studies.facts.publish("s", {"best_value": 1.0})
    second = place.claim(1)
    run(container, second)
    assert not (second.result_directory / "model").exists()


def test_values_count_where_the_disk_takes_no_result(desk, container, texts):
    trial = desk(**study_of(texts)).claim(0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_disk():  # a limit on the size of files stands in; the model's is over it
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))

    try:
        values = run(container, StepTrial(trial, 21, fill_disk))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert 0.0 <= values["accuracy"] <= 1.0
    assert "large" in trial.user_attrs["result_error"]


def test_a_setting_out_of_range_is_the_objectives_fault(desk, container, texts):
    place = desk(**study_of(texts))
    trial = place.claim(0, {"learning_rate": -1.0})
    with pytest.raises(ObjectiveError, match=r"config\.learning_rate = -1\.0"):
        run(container, trial)


def test_training_stops_when_the_study_is_cancelled(desk, container, texts):
    place = desk(**study_of(texts))
    trial = place.claim(0)

    def cancel():
        place.held.command = Command.CANCEL

    with pytest.raises(TrialCancelled):
        run(container, StepTrial(trial, 3, cancel))


def test_suggestions_come_from_the_trials_parameters_and_must_fit(desk):
    trial = desk().claim(0, {"x": 0.5, "n": 3, "c": None})
    assert trial.suggest_float("x", 0, 1) == 0.5
    assert trial.suggest_int("n", 1, 4) == 3
    assert trial.suggest_categorical("c", ["a", None]) is None
    assert trial.params == {"x": 0.5, "n": 3, "c": None}
    assert set(trial.distributions) == {"x", "n", "c"}
    with pytest.raises(ValueError, match="Cannot set different distribution"):
        trial.suggest_int("x", 0, 1)
    other = desk().claim(1, {"x": 5.0})
    with pytest.raises(ObjectiveError, match=r"x: this trial has 5\.0"):
        other.suggest_float("x", 0, 1)


def test_a_verdict_is_waited_for_and_its_absence_lets_training_go_on(desk):
    place = desk(pruner="median")
    trial = place.claim(0)
    assert not trial.should_prune(), "nothing was reported"
    trial.report(0.5, 1)
    place.leases.reply(0, place.held.token, {"request": "report:0", "prune": True})
    place.leases.reply(0, place.held.token, {"request": "report:1", "prune": True})
    assert trial.should_prune(), "the answer to another report is passed over"
    trial.report(0.6, 2)
    assert not trial.should_prune(), "nobody answers"
    with pytest.raises(TypeError, match="no number"):
        trial.report("high", 3)


@pytest.mark.parametrize(
    ("returned", "fields", "values"),
    [
        (1, {}, [1.0]),
        (torch.tensor(0.5), {}, [0.5]),
        ({"f1": 0.5, "loss": 2}, {"metric": "loss"}, [2.0]),
        ((1, 2), {"directions": ["minimize", "maximize"]}, [1.0, 2.0]),
    ],
)
def test_what_an_objective_returns_becomes_values(returned, fields, values):
    assert read_values(returned, StudySpec(name="s", **fields)) == values


@pytest.mark.parametrize(
    ("returned", "fields", "message"),
    [
        (None, {}, "returned None, which is no number"),
        (float("nan"), {}, "the objective's value is nan, which cannot be compared"),
        ({"f1": float("nan")}, {"metric": "f1"}, "the objective's metric 'f1' is nan"),
        (
            (1, float("nan")),
            {"directions": ["minimize", "maximize"]},
            "the objective's value 2 of 2 is nan",
        ),
        ((1, 2), {}, "returned 2 values and the study has 1 directions"),
        ({"f1": 0.5}, {}, "name the one to optimise with `metric:`"),
        ({"f1": 0.5}, {"metric": "loss"}, "metric 'loss' is not among .* f1"),
    ],
)
def test_what_cannot_become_values_says_why(returned, fields, message):
    with pytest.raises(ObjectiveError, match=message):
        read_values(returned, StudySpec(name="s", **fields))


def test_only_allowed_objectives_are_imported():
    assert load_objective("json:dumps", ["json"]) is json.dumps
    assert load_objective("json.decoder:JSONDecoder.decode", ["json"])
    with pytest.raises(ObjectiveError, match="only from nowhere; start it with FLEET_OBJECTIVES="):
        load_objective("os:system", [])
    with pytest.raises(ObjectiveError, match="only from json"):
        load_objective("jsonx:f", ["json"])
    with pytest.raises(ObjectiveError, match="does not import"):
        load_objective("json:nope", ["*"])


def takes_managers(trial, models: ModelManager, extra: int = 3):
    return type(models).__name__, extra


def takes_a_stranger(trial, something: dict):
    return 0.0


def test_managers_are_passed_by_type(container):
    assert call_objective(takes_managers, None, container) == ("ModelManager", 3)
    with pytest.raises(ObjectiveError, match="'something' is annotated .*dict"):
        call_objective(takes_a_stranger, None, container)


OBJECTIVES = """
import contextlib, os, sys, threading, time
from pathlib import Path
import optuna
import torch
from workers.managers import MetricsManager
from workers.protocol.errors import TransientError, TrialTimedOut
from workers.protocol.states import Command

def tells_its_limit(trial):
    return trial.config["limit"]

def good(trial):
    trial.set_user_attr("k", [1])
    trial.set_constraint("c", 0.5)
    return {"value": 2.0}

def outlives_its_end(trial):
    def end():
        with contextlib.suppress(RuntimeError):
            trial._lease.end_in_place(Command.CANCEL)

    thread = threading.Thread(target=end)
    thread.start()
    thread.join()
    return {"value": 2.0}

def prunes(trial):
    trial.report(0.25, 1)
    raise optuna.TrialPruned()

def raises(trial):
    raise ValueError("boom")

def raises_another_each_time(trial):
    raise ValueError(f"attempt {trial.attempt}")

class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError("no")

def raises_the_unspeakable(trial):
    raise Unspeakable

def says_it_is_done(trial):
    sys.exit(0)

def interrupts(trial):
    raise KeyboardInterrupt

async def is_a_coroutine(trial):
    return 1.0

def is_a_generator(trial):
    yield 1.0

def returns_a_tuple_of_one(trial):
    return (1.0,)

def exits(trial):
    sys.exit(3)

def exhausts(trial):
    raise MemoryError("no more")

def exhausts_the_device(trial):
    trial.report(0.5, 1)
    try:
        raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {trial.attempt} GiB.")
    except RuntimeError as error:
        raise ValueError("training failed") from error

def prunes_what_exhausts(trial):
    try:
        raise MemoryError
    except MemoryError:
        raise optuna.TrialPruned

def deals_with_memory(trial):
    try:
        raise MemoryError
    except MemoryError:
        pass
    raise ValueError("boom")

def goes_on_and_on(trial):
    for step in range(10**9):
        trial.progress(step)
        time.sleep(0.01)

def ends_in_time(trial):
    try:
        goes_on_and_on(trial)
    except TrialTimedOut:
        return 0.5

def returns_nothing(trial):
    return None

def lacks_something(trial):
    raise TransientError("the hub does not answer")

def measures_no_numbers(trial, metrics: MetricsManager):
    meter = metrics.classification(3)
    logits = torch.full((4, 3), torch.nan)
    meter.update(logits, torch.zeros(4, dtype=torch.long), torch.tensor(0.5))
    return {"value": meter.compute()["accuracy"]}

def cannot_save(trial):
    Path(trial.config["drain"]).touch()
    try:
        trial.progress(1)
    except BaseException:
        trial.save_checkpoint(1, {"model": print})

def loses_a_loader(trial):
    Path(trial.config["drain"]).touch()
    raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated.")
"""


@pytest.fixture
def runner(client, settings, container, server, tmp_path):
    (tmp_path / "runner_objectives.py").write_text(OBJECTIVES)
    allowed = settings.model_copy(update={"objectives": (str(tmp_path / "runner_objectives.py"),)})
    with TrialRunner(
        client=client,
        redis_url=server.url,
        settings=allowed,
        container=container,
        record=ProcessRecord(),
        drain_file=str(tmp_path / "drain"),
    ) as opened:
        yield opened


@pytest.mark.parametrize(
    ("objective", "ends", "error"),
    [
        ("good", ["COMPLETE"], None),
        ("prunes", ["PRUNED"], None),
        ("raises", ["FAILED"], "ValueError: boom"),
        ("raises_another_each_time", ["DEAD"], "ValueError: attempt 2"),
        ("exits", ["DEAD"], "SystemExit: 3"),
        ("says_it_is_done", ["FAILED"], "SystemExit: 0"),
        ("interrupts", ["DEAD"], "KeyboardInterrupt"),
        ("exhausts", ["PRUNED"], "out of memory: MemoryError: no more"),
        ("exhausts_the_device", ["PRUNED"], "out of memory: ValueError: training failed"),
        ("prunes_what_exhausts", ["PRUNED"], None),
        ("deals_with_memory", ["FAILED"], "ValueError: boom"),
        ("returns_nothing", ["FAILED"], "returned None, which is no number"),
        ("measures_no_numbers", ["FAILED"], "metric 'value' is nan, which cannot be compared"),
        ("is_a_coroutine", ["FAILED"], "returned a coroutine, which never ran"),
        ("is_a_generator", ["FAILED"], "returned a generator, which never ran"),
        ("returns_a_tuple_of_one", ["COMPLETE"], None),
        ("raises_the_unspeakable", ["FAILED"], "its text cannot be had"),
    ],
)
def test_every_way_out_of_an_objective_is_one_end(
    desk, runner, tmp_path, client, objective, ends, error
):
    path = f"{tmp_path}/runner_objectives.py:{objective}"
    place = desk(objective=path, metric="value", max_failures=2)
    place.leases.enqueue(0, {})
    hint = RunTrial(study="s", number=0, epoch=place.leases.epoch)
    for _ in range(2):
        client.hset("fleet:{s}:trial:0", "not_before", 0)
        assert runner.run(hint) is Outcome.ENDED
    entries = [entry for entry in place.inbox() if entry.kind == "terminal"]
    assert [entry.subject for entry in entries] == ends
    result = Result.model_validate(entries[0].payload)
    assert (result.error is None) == (error is None)
    assert error is None or error in result.error
    if objective == "good":
        assert (result.values, result.user_attrs, result.constraints) == (
            [2.0], {"k": [1]}, {"c": 0.5},
        )  # fmt: skip
    if objective == "prunes":
        assert result.values == [0.25]
    ran_out = {"exhausts", "exhausts_the_device", "prunes_what_exhausts"}
    assert (result.constraints == {"oom": 1.0}) == (objective in ran_out)
    if objective == "exhausts_the_device":
        assert result.values == [0.5]
    if objective == "raises":
        last, *_ = reversed(result.traceback.splitlines())
        assert (last, result.traceback.count("File ")) == ("ValueError: boom", 1)


@pytest.mark.parametrize(
    ("objective", "end"), [("goes_on_and_on", "FAILED"), ("ends_in_time", "COMPLETE")]
)
def test_a_trial_ends_when_its_attempts_have_held_slots_for_so_long(
    desk, runner, settings, tmp_path, objective, end
):
    path = f"{tmp_path}/runner_objectives.py:{objective}"
    place = desk(objective=path, trial_timeout=2.0 / settings.time_scale)
    place.leases.enqueue(0, {})
    first = place.leases.claim(0, "another", 45.0)
    wait_until(lambda: time.time() * 1000 > first.record.claimed_at_ms + 400, "it holds it")
    place.leases.release(0, first.token)
    assert runner.run(RunTrial(study="s", number=0, epoch=place.leases.epoch)) is Outcome.ENDED
    (entry,) = place.inbox()
    assert entry.subject == end
    assert entry.held_ms / 1000 >= 1.9
    result = Result.model_validate(entry.payload)
    if end == "FAILED":
        assert result.error.startswith("trial_timeout: it held slots for ")
        assert "in 2 attempts, and did not end" in result.error


def test_a_trial_whose_time_is_up_is_not_begun_again(desk, runner, settings, tmp_path):
    place = desk(
        objective=f"{tmp_path}/runner_objectives.py:good", trial_timeout=0.1 / settings.time_scale
    )
    place.leases.enqueue(0, {})
    first = place.leases.claim(0, "another", 45.0)
    wait_until(lambda: time.time() * 1000 > first.record.claimed_at_ms + 100, "it holds it")
    place.leases.release(0, first.token)
    runner.run(RunTrial(study="s", number=0, epoch=place.leases.epoch))
    (entry,) = place.inbox()
    assert entry.subject == "FAILED"


def test_each_trial_runs_under_its_studys_specification_as_it_is_then(desk, runner, tmp_path):
    path = f"{tmp_path}/runner_objectives.py:tells_its_limit"
    place = desk(objective=path, config={"limit": 1.0})
    for number, limit in enumerate([1.0, 1.0, 2.0]):
        place.studies.change_spec(
            "s", lambda spec, limit=limit: spec.model_copy(update={"config": {"limit": limit}})
        )
        place.leases.enqueue(number, {})
        hint = RunTrial(study="s", number=number, epoch=place.leases.epoch)
        assert runner.run(hint) is Outcome.ENDED
    values = [Result.model_validate(entry.payload).values for entry in place.inbox()]
    assert values == [[1.0], [1.0], [2.0]]


def test_a_hint_that_grants_nothing_ends_quietly(desk, runner, client):
    place = desk()
    stranger = RunTrial(study="other", number=0, epoch=place.leases.epoch)
    assert runner.run(stranger) is Outcome.ENDED
    assert runner.run(RunTrial(study="s", number=9, epoch=place.leases.epoch)) is Outcome.ENDED
    place.claim(0)
    assert runner.run(RunTrial(study="s", number=0, epoch=place.leases.epoch)) is Outcome.ENDED
    assert place.leases.record(0).state is TrialState.RUNNING


def test_in_a_stopped_study_what_has_begun_goes_on_and_nothing_else(desk, runner, tmp_path):
    place = desk(objective=f"{tmp_path}/runner_objectives.py:good", metric="value")
    for number in (0, 1):
        place.leases.enqueue(number, {})
    place.leases.release(0, place.leases.claim(0, "killed", 45.0).token)
    place.studies.ask_to_stop("s")
    for number in (0, 1):
        hint = RunTrial(study="s", number=number, epoch=place.leases.epoch)
        assert runner.run(hint) is Outcome.ENDED
    states = [place.leases.record(number).state for number in (0, 1)]
    assert states == [TrialState.COMPLETE, TrialState.QUEUED]


def test_a_draining_worker_gives_its_hints_back(desk, runner, tmp_path):
    place = desk()
    place.leases.enqueue(0, {})
    (tmp_path / "drain").touch()
    hint = RunTrial(study="s", number=0, epoch=place.leases.epoch)
    assert runner.run(hint) is Outcome.GOES_BACK
    assert place.leases.record(0).state is TrialState.QUEUED


def test_reports_and_checkpoints_are_progress_and_a_hang_tells_what_to_change(desk, monkeypatch):
    trial = desk().claim(0)
    lease, words, codes, ahead = trial._lease, [], [], [0.0]
    lease.progress_timeout = 2.0
    lease._leave_word = words.append
    monkeypatch.setattr(held_lease, "lease_clock", lambda: lease_clock() + ahead[0])
    monkeypatch.setattr(held_lease.os, "_exit", codes.append)

    def pass_seconds(seconds):
        ahead[0] += seconds
        lease._end_if_hung()

    trial.report(0.5, 1)
    pass_seconds(5.0)
    assert codes == [], "an objective that tells no steps is not watched"
    trial.progress(7)
    for act in (
        lambda: trial.report(0.5, 2),
        lambda: trial.save_checkpoint(7, {"a": 1}),
        lambda: trial.preparing("rows read", 3, 9),
    ):
        pass_seconds(1.5)
        act()
    pass_seconds(1.5)
    assert codes == []
    pass_seconds(1.0)
    assert codes == [held_lease.EXIT_HUNG]
    assert "since step 7" in words[0]
    assert "raise `progress_timeout` (now 2 s)" in words[0]


@pytest.mark.parametrize("name", ["step", "total", "examples"])
def test_progress_that_no_record_can_hold_is_refused_where_it_is_told(desk, name):
    trial = desk().claim(0)
    trial.progress(1, total=2, examples=3)
    for value in (10**18, 2**53, -1, float("nan"), 10**400, "seven"):
        with pytest.raises(UnsuitableValueError, match=rf"^progress\({name}\)"):
            trial.progress(**{"step": 2, "total": 2, "examples": 3, name: value})
    lease = trial._lease
    assert (lease.step, lease.total_steps, lease.num_examples) == (1, 2, 3)
    lease._renew()
    assert lease.leases.record(0).step == 1


def test_a_lease_whose_care_went_wrong_runs_out_and_ends_the_process_as_any_other(
    desk, monkeypatch
):
    lease, codes, ahead = desk().claim(0)._lease, [], [0.0]
    monkeypatch.setattr(held_lease, "lease_clock", lambda: lease_clock() + ahead[0])
    monkeypatch.setattr(held_lease.os, "_exit", codes.append)
    lease.ripen(lambda: 1 / 0)
    rounds = lease._rounds()
    assert next(rounds) == held_lease.YOUNG_SECONDS
    while not lease.is_lost:
        ahead[0] += (pause := next(rounds))
        assert 0.0 < pause <= lease._times.holder
    assert codes == [], "an objective that asks is told, and may end by itself"
    assert next(rounds) == lease._times.grace
    assert list(rounds) == []
    assert codes == [held_lease.EXIT_LEASE_LOST]


def test_a_trial_that_could_not_be_ended_in_place_of_its_objective_is_ended_by_it(
    desk, runner, tmp_path, monkeypatch
):
    write, failed = Outbox.write, []

    def fail_once(outbox, entry):
        if not failed:
            failed.append(entry.state)
            raise RuntimeError("as a bug would have it")
        return write(outbox, entry)

    monkeypatch.setattr(Outbox, "write", fail_once)
    place = desk(objective=f"{tmp_path}/runner_objectives.py:outlives_its_end", metric="value")
    place.leases.enqueue(0, {})
    assert runner.run(RunTrial(study="s", number=0, epoch=place.leases.epoch)) is Outcome.ENDED
    assert failed == [TrialState.CANCELLED]
    assert place.leases.record(0).state is TrialState.COMPLETE


@pytest.mark.parametrize("another_builds", [False, True])
def test_a_trial_whose_data_are_being_built_is_drained_at_once(
    desk, runner, settings, texts, tmp_path, monkeypatch, another_builds
):
    """The drain comes while it builds, or while it waits for another that never gets done."""
    place = desk(**study_of(texts))
    place.leases.enqueue(0, {})
    config = FinetuneConfig.model_validate(place.spec.config)
    told, builds, is_over = [], threading.Event(), threading.Event()
    expected = "seconds waited for another process" if another_builds else "rows read of texts.csv"

    def drain(_preparation, what, done, total):
        told.append(what)
        if what.startswith(expected):
            (tmp_path / "drain").touch()

    def hold(what, done, total):
        if what.startswith("rows read"):
            builds.set()
            is_over.wait()

    def build():
        with Container(MANAGERS, [settings, ProcessRecord()]) as other:
            data = other.get(DataManager)
            data.text_classification(config.data, config.tokenizer, config.model, hold)

    monkeypatch.setattr(Preparation, "tell", drain)
    other = threading.Thread(target=build)
    if another_builds:
        other.start()
        builds.wait()
    hint = RunTrial(study="s", number=0, epoch=place.leases.epoch)
    assert runner.run(hint) is Outcome.GOES_BACK
    is_over.set()
    if another_builds:
        other.join()
    assert told[-1].startswith(expected)
    assert [what.startswith(expected) for what in told].count(True) == 1, "it ended at once"
    record = place.leases.record(0)
    assert (record.state, record.failures) == (TrialState.QUEUED, 0)


def test_a_holder_that_was_suspended_past_its_lease_finds_it_lost_and_writes_nothing(
    desk, monkeypatch, tmp_path
):
    place = desk()
    trial = place.claim(0)
    trial.report(0.5, 1)
    told = len(place.inbox())

    def after_a_suspend():
        return time.clock_gettime(time.CLOCK_BOOTTIME) + place.held._times.lease

    monkeypatch.setattr(held_lease, "lease_clock", after_a_suspend)
    for write in (
        lambda: trial.progress(2),
        lambda: trial.report(0.6, 2),
        lambda: trial.suggest_float("x", 0, 1),
        lambda: trial.save_checkpoint(2, {}),
    ):
        with pytest.raises(LeaseLost):
            write()
    assert len(place.inbox()) == told, "the first one was not acknowledged, and no other came"
    assert place.leases.record(0).checkpoint is None
    assert not list(tmp_path.glob("home/checkpoints/*/*/*/step-*"))


def test_optuna_takes_the_handle_for_a_trial(desk):
    assert isinstance(desk().claim(0), optuna.trial.BaseTrial)


def test_a_tidying_that_outlasts_the_lease_is_no_objective_that_goes_on(
    desk, runner, tmp_path, monkeypatch
):
    ended = []
    monkeypatch.setattr(held_lease.os, "_exit", ended.append)
    times = runner._settings.times
    patience = times.beat + 2 * held_lease._RETRY_SECONDS + 2 * times.grace
    tidied = threading.Event()

    def remove_slowly(*_):
        assert not tidied.wait(patience), "long enough to be noticed"
        tidied.set()

    monkeypatch.setattr(CheckpointStore, "remove", remove_slowly)
    place = desk(objective=f"{tmp_path}/runner_objectives.py:prunes", metric="value")
    place.leases.enqueue(0, {})
    hint = RunTrial(study="s", number=0, epoch=place.leases.epoch)
    assert runner.run(hint) is Outcome.ENDED
    assert tidied.is_set()
    assert ended == []


@pytest.mark.parametrize("objective", ["cannot_save", "loses_a_loader"])
def test_what_goes_wrong_in_a_drain_is_no_failure(desk, runner, tmp_path, objective):
    place = desk(
        objective=f"{tmp_path}/runner_objectives.py:{objective}",
        max_failures=1,
        config={"drain": str(tmp_path / "drain")},
    )
    place.leases.enqueue(0, {})
    hint = RunTrial(study="s", number=0, epoch=place.leases.epoch)
    assert runner.run(hint) is Outcome.GOES_BACK
    record = place.leases.record(0)
    assert (record.state, record.failures) == (TrialState.QUEUED, 0)


def test_what_is_not_there_for_now_is_waited_for_and_counted_nowhere(
    desk, runner, tmp_path, client
):
    place = desk(objective=f"{tmp_path}/runner_objectives.py:lacks_something", max_failures=1)
    place.leases.enqueue(0, {})
    hint = RunTrial(study="s", number=0, epoch=place.leases.epoch)
    for _ in range(3):
        assert runner.run(hint) is Outcome.ENDED
        assert place.leases.record(0).not_before_ms > 0, "not at once"
        client.hset("fleet:{s}:trial:0", "not_before", 0)
    record = place.leases.record(0)
    assert (record.state, record.failures, record.losses) == (TrialState.QUEUED, 0, 0)
    assert client.llen("fleet:celery:default") == 3, "it is announced again each time"


@pytest.mark.parametrize("objective", ["not_allowed_here:f", "{}/runner_objectives.py:missing"])
def test_an_objective_that_a_worker_lacks_costs_no_trial_and_is_waited_for(
    desk, runner, tmp_path, client, monkeypatch, objective
):
    place = desk(objective=objective.format(tmp_path), max_failures=1)
    for number in range(3):
        place.leases.enqueue(number, {})
    hints = [RunTrial(study="s", number=number, epoch=place.leases.epoch) for number in range(3)]
    for hint in hints * 2:
        assert runner.run(hint) is Outcome.ENDED
    records = [place.leases.record(number) for number in range(3)]
    assert {record.state for record in records} == {TrialState.QUEUED}
    assert [(record.failures, record.losses) for record in records] == [(0, 0)] * 3
    assert [record.attempt for record in records] == [1, 0, 0], "it is looked at once"
    assert not place.inbox()
    assert client.llen("fleet:celery:default") == 1, "one that was tried is announced to others"
    # a file may be there later
    monkeypatch.setattr("workers.trials.refused_studies._WAIT_SECONDS", 0.0)
    with (tmp_path / "runner_objectives.py").open("a") as file:
        file.write("def missing(trial):\n    return 1.0\n")
    assert runner.run(hints[1]) is Outcome.ENDED
    state = place.leases.record(1).state
    is_allowed = objective.startswith("{}")
    assert state is (TrialState.COMPLETE if is_allowed else TrialState.QUEUED)


def test_twenty_drains_leave_two_checkpoints(desk, tmp_path, settings):
    place = desk()
    place.leases.enqueue(0, {})
    folder = settings.home / "checkpoints" / "s" / "0"
    for attempt in range(1, 21):
        trial = place.hold(0)
        assert (trial.load_checkpoint() or {"step": 0})["step"] == 2 * (attempt - 1)
        for step in (2 * attempt - 1, 2 * attempt):
            trial.save_checkpoint(step, {"step": step})
        trial.await_checkpoint()
        (folder / str(place.held.token) / ".step-9.aaaaaaaa.draft").mkdir()
        assert len(list(folder.glob("*/step-*"))) <= 2
        assert place.leases.release(0, place.held.token)
    assert len(list(folder.iterdir())) == 1
    later = folder / str(place.held.token + 1) / "step-000000001"
    later.mkdir(parents=True)
    CheckpointStore(settings.home / "checkpoints").prune(
        "s", 0, place.held.token, place.leases.record(0).checkpoint
    )
    assert later.exists(), "a later attempt's is its own"


@pytest.mark.parametrize("num_left", [0, 1])
def test_an_attempt_that_goes_on_from_before_the_last_checkpoint_is_gone_on_from(
    desk, settings, num_left
):
    """What was saved last is lost, on this host or for good; and what is saved next counts."""
    place = desk()
    trial = place.claim(0)
    for step in (500, 1000):
        trial.save_checkpoint(step, {"step": step})
    trial.await_checkpoint()
    home = settings.home / "checkpoints" / "s" / "0"
    for path in sorted(home.glob("*/step-*"))[num_left:]:
        (path / "state.pt").write_bytes(b"damaged")
    assert place.leases.release(0, place.held.token)
    begins = [500 * num_left, 610, 630]
    for begin, steps in zip(begins, [(600, 610), (620, 630), ()], strict=True):
        attempt = place.hold(0)
        assert (attempt.load_checkpoint() or {"step": 0})["step"] == begin
        for step in steps:
            attempt.save_checkpoint(step, {"step": step})
            attempt.await_checkpoint()
            assert place.leases.record(0).checkpoint.step == step
        assert place.leases.release(0, place.held.token)


def test_a_step_that_is_saved_twice_leaves_a_checkpoint_to_go_on_from(desk):
    place = desk()
    place.leases.enqueue(0, {})
    trial = place.hold(0)
    for step, text in ((4, "before"), (5, "A"), (5, "B")):
        trial.save_checkpoint(step, {"is": text})
    assert trial.load_checkpoint() == {"is": "A"}
    assert place.leases.release(0, place.held.token)
    again = place.hold(0)
    assert again.load_checkpoint() == {"is": "A"}
    again.save_checkpoint(6, {"is": "C"})
    assert again.load_checkpoint() == {"is": "C"}
