"""`transformers.Trainer` as a trial, in this process with a real lease: every way in and out."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_callback import ExportableState

from workers.disk.checkpoints import CheckpointStore
from workers.integrations.transformers import FleetCallback
from workers.protocol.errors import DrainRequested, LeaseLost, ObjectiveError
from workers.trials.training_loop import NOT_TO_THE_BIT

STEPS_AN_EPOCH = 4
EPOCHS = 3


class Killed(BaseException):
    """As if the process had died: nobody catches it."""


class Rows(torch.utils.data.Dataset):
    def __init__(self, count, seed):
        generator = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(0, 30, (count, 6), generator=generator)
        self.labels = (self.ids.sum(1) % 3).long()

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return {"input_ids": self.ids[index], "labels": self.labels[index]}


class Acts(TrainerCallback):
    """Does something at an event of a step."""

    def __init__(self, event, step, act):
        def hook(args, state, control, **_):
            if state.global_step == step:
                act()

        setattr(self, event, hook)


def accuracy(found):
    logits, labels = found
    return {"accuracy": float((logits.argmax(-1) == labels).mean())}


def train(trial, *others, fleet=None, rows=None, held_out=None, **changes):
    """What a user's objective does; the value, and the sum over the weights that came out."""
    torch.manual_seed(3)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=30,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            num_labels=3,
        )
    )
    fleet = fleet or FleetCallback(trial, metric="accuracy")
    given = {
        "per_device_train_batch_size": 8,
        "num_train_epochs": EPOCHS,
        "learning_rate": 1e-2,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
        "metric_for_best_model": "accuracy",
        "logging_steps": 2,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 5,
        **changes,
    }
    trainer = Trainer(
        model,
        TrainingArguments(**given),
        train_dataset=rows or Rows(8 * STEPS_AN_EPOCH, 1),
        eval_dataset=held_out or Rows(24, 2),
        compute_metrics=accuracy,
        callbacks=[fleet, *others],
    )
    trainer.train(resume_from_checkpoint=fleet.resume_from_checkpoint)
    trainer.save_model()
    weights = b"".join(each.numpy().tobytes() for each in model.state_dict().values())
    return fleet.values, hashlib.sha256(weights).hexdigest()


@pytest.fixture
def place(desk, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield desk(objective="user.py:objective", direction="maximize")
    torch.set_num_threads(threads)


#: What undisturbed trainings came to, by their changes.
UNDISTURBED = {}


def undisturbed(place, **changes):
    """Values, weights and reports of a training that nobody disturbs."""
    key = tuple(changes.items())
    if key not in UNDISTURBED:
        found = train(place.claim(99), **changes)
        UNDISTURBED[key] = found, reports_of(place).pop(99)
    return UNDISTURBED[key]


def reports_of(place):
    found = {}
    for entry in place.inbox():
        found.setdefault(entry.number, []).append((entry.subject, entry.payload))
    return found


def files_of(trial):
    """What would be its result, if it ended now."""
    trial.drop_leftovers()
    root = trial.result_directory
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("event", "step"),
    [
        ("on_step_begin", 1),
        ("on_step_begin", STEPS_AN_EPOCH),
        ("on_substep_end", STEPS_AN_EPOCH + 2),
        ("on_step_end", STEPS_AN_EPOCH),
        ("on_step_end", STEPS_AN_EPOCH + 2),
        ("on_prediction_step", STEPS_AN_EPOCH),
        ("on_evaluate", STEPS_AN_EPOCH * 2),
    ],
)
def test_a_training_that_was_drained_ends_as_an_undisturbed_one_to_the_bit(place, event, step):
    changes = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
    whole, reports = undisturbed(place, **changes)
    drained = place.claim(1)
    with pytest.raises(DrainRequested):
        train(drained, Acts(event, step, place.drain.set), **changes)
    assert not files_of(drained), "what is kept lies with the fleet"
    place.drain.clear()
    assert place.leases.release(1, place.held.token)
    assert place.leases.record(1).checkpoint.step in {step, step + 1}

    torch.manual_seed(999)  # whatever ran in between
    resumed = place.hold(1)
    assert resumed.attempt == 2
    assert train(resumed, **changes) == whole
    assert reports_of(place)[1] == reports, "each evaluation is reported once"


@pytest.mark.parametrize(
    ("killed_at", "checkpoint_seconds"),
    [(2, 0.0), (2, 3600.0), (STEPS_AN_EPOCH, 0.0), (STEPS_AN_EPOCH * 2 + 1, 3600.0)],
)
def test_a_training_that_was_killed_ends_as_an_undisturbed_one_to_the_bit(
    place, killed_at, checkpoint_seconds
):
    def kill():
        raise Killed

    def callback(trial):
        return FleetCallback(trial, metric="accuracy", checkpoint_seconds=checkpoint_seconds)

    whole, reports = undisturbed(place)
    killed = place.claim(1)
    with pytest.raises(Killed):
        train(killed, Acts("on_step_end", killed_at, kill), fleet=callback(killed))
    # the cleaner removes what the dead attempt left
    for path in sorted(killed.result_directory.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert place.leases.release(1, place.held.token)
    resumed = place.hold(1)
    assert train(resumed, fleet=callback(resumed)) == whole
    assert reports_of(place)[1] == reports, "each evaluation is reported once"


STRATEGIES = {
    "by steps": {
        "eval_strategy": "steps",
        "eval_steps": 3,
        "save_strategy": "steps",
        "save_steps": 3,
    },
    "none": {"save_strategy": "no", "load_best_model_at_end": False},
    "the best": {"save_strategy": "best"},
    "no evaluation": {
        "eval_strategy": "no",
        "save_strategy": "no",
        "load_best_model_at_end": False,
        "metric_for_best_model": None,
    },
    "by most steps": {"max_steps": 10, "lr_scheduler_type": "cosine"},
    "loaders": {"dataloader_num_workers": 1},
    "one model kept": {"save_total_limit": 1},
    "weights alone": {"save_only_model": True},
    "noise": {"neftune_noise_alpha": 5.0},
}


@pytest.mark.parametrize("changes", STRATEGIES.values(), ids=STRATEGIES)
def test_whatever_the_trainer_saves_by_a_drain_changes_nothing(place, changes):
    def callback(trial):
        metric = None if changes.get("eval_strategy") == "no" else "accuracy"
        return FleetCallback(trial, metric=metric)

    first = place.claim(0)
    whole = train(first, fleet=callback(first), **changes)
    drained = place.claim(1)
    with pytest.raises(DrainRequested):
        train(drained, Acts("on_step_end", 5, place.drain.set), fleet=callback(drained), **changes)
    place.drain.clear()
    assert place.leases.release(1, place.held.token)
    resumed = place.hold(1)
    assert train(resumed, fleet=callback(resumed), **changes) == whole


BY_STEPS = {"save_strategy": "steps", "load_best_model_at_end": False}
CUT_SHORT = {"max_steps": STEPS_AN_EPOCH + 2}


@pytest.mark.parametrize(
    ("changes", "event", "step", "how"),
    [
        (BY_STEPS, "on_prediction_step", STEPS_AN_EPOCH * EPOCHS, "kill"),
        (BY_STEPS, "on_step_begin", STEPS_AN_EPOCH * EPOCHS - 1, "drain"),
        ({**BY_STEPS, "save_steps": STEPS_AN_EPOCH}, "on_prediction_step", STEPS_AN_EPOCH, "drain"),
        ({**BY_STEPS, "save_steps": STEPS_AN_EPOCH}, "on_prediction_step", STEPS_AN_EPOCH, "kill"),
        (CUT_SHORT, "on_train_end", STEPS_AN_EPOCH + 2, "kill"),
        (CUT_SHORT, "on_step_begin", STEPS_AN_EPOCH + 1, "drain"),
        ({"eval_on_start": True}, "on_step_begin", 2, "drain"),
    ],
)
def test_no_evaluation_is_lost_or_added_whenever_a_training_ends_early(
    place, changes, event, step, how
):
    whole, reports = undisturbed(place, **changes)

    def act():
        if how == "kill":
            raise Killed
        place.drain.set()

    first, found = place.claim(1), None
    with suppress(DrainRequested, Killed):  # of a drain in the last step there is no need
        found = train(first, Acts(event, step, act), **changes)
    if found is None:
        place.drain.clear()
        assert place.leases.release(1, place.held.token)
        found = train(place.hold(1), **changes)
    assert found == whole
    assert reports_of(place)[1] == reports


def test_the_best_model_is_found_though_it_was_saved_by_an_attempt_before(place):
    class FirstIsBest(FleetCallback):
        def on_evaluate(self, args, state, control, metrics, **_):
            metrics["eval_accuracy"] = 1.0 / state.global_step
            super().on_evaluate(args, state, control, metrics)

    def run(trial, *others):
        _, weights = train(trial, *others, fleet=FirstIsBest(trial, metric="accuracy"))
        return weights

    whole = run(place.claim(0))
    with pytest.raises(DrainRequested):
        run(place.claim(1), Acts("on_step_end", STEPS_AN_EPOCH * 2 + 1, place.drain.set))
    place.drain.clear()
    assert place.leases.release(1, place.held.token)
    assert run(place.hold(1)) == whole


def test_nothing_but_results_is_left_and_nothing_in_the_working_directory(place):
    trial = place.claim()
    values, _ = train(trial)
    assert len(values) == EPOCHS
    assert {path.name for path in Path.cwd().iterdir()} == {"home"}, "no trainer_output, no runs"
    names = files_of(trial)
    assert "trainer/model.safetensors" in names
    assert not any("checkpoint" in name for name in names)


def test_a_damaged_checkpoint_is_not_used_and_the_one_before_is(place):
    trial = place.claim()
    with pytest.raises(DrainRequested):
        train(trial, Acts("on_step_end", STEPS_AN_EPOCH + 2, place.drain.set))
    place.drain.clear()
    weights = next(Path(place.leases.record(0).checkpoint.uri).rglob("checkpoint-7/*.safetensors"))
    content = weights.read_bytes()
    weights.write_bytes(content[:-8] + bytes(8))
    assert place.leases.release(0, place.held.token)
    found = place.hold(0).load_checkpoint_files()
    assert found is not None
    assert [each.name for each in found.iterdir()] == [f"checkpoint-{STEPS_AN_EPOCH}"]


def test_a_metric_that_no_evaluation_gives_is_named_with_those_that_it_gives(place):
    trial = place.claim()
    with pytest.raises(ObjectiveError, match="'eval_f1': the evaluations give .*eval_accuracy"):
        train(trial, fleet=FleetCallback(trial, metric="f1"))


@pytest.mark.parametrize("ignores", [True, False])
def test_a_resumed_training_that_reads_rows_again_says_that_its_value_is_another(place, ignores):
    with pytest.raises(DrainRequested):
        train(place.claim(), Acts("on_step_end", 2, place.drain.set), ignore_data_skip=ignores)
    place.drain.clear()
    assert place.leases.release(0, place.held.token)
    trial = place.hold(0)
    train(trial, ignore_data_skip=ignores)
    assert (NOT_TO_THE_BIT in trial.user_attrs) is ignores


class Stream(torch.utils.data.IterableDataset):
    """Rows without a length."""

    def __iter__(self):
        rows = Rows(8 * STEPS_AN_EPOCH, 1)
        return (rows[number] for number in range(len(rows)))


@pytest.mark.parametrize("step", range(2, STEPS_AN_EPOCH + 2))
def test_a_stream_that_is_resumed_in_a_later_pass_says_that_its_value_is_another(place, step):
    changes = {"max_steps": STEPS_AN_EPOCH * 2, "rows": Stream()}
    whole, _ = undisturbed(place, **changes)
    with pytest.raises(DrainRequested):
        train(place.claim(), Acts("on_step_end", step, place.drain.set), **changes)
    place.drain.clear()
    assert place.leases.release(0, place.held.token)
    trial = place.hold(0)
    found = train(trial, **changes)
    # what is drained after one step is saved after the next
    assert (found != whole) is (step >= STEPS_AN_EPOCH)
    assert (NOT_TO_THE_BIT in trial.user_attrs) is (found != whole)


@pytest.mark.parametrize("changes", [{}, BY_STEPS], ids=["by epochs", "by steps"])
def test_the_checkpoint_of_a_trainings_last_step_is_kept(place, changes):
    def kill():
        raise Killed

    whole, reports = undisturbed(place, **changes)
    with pytest.raises(Killed):
        train(place.claim(1), Acts("on_train_end", STEPS_AN_EPOCH * EPOCHS, kill), **changes)
    assert place.leases.record(1).checkpoint.step == STEPS_AN_EPOCH * EPOCHS
    assert place.leases.release(1, place.held.token)
    assert train(place.hold(1), **changes) == whole
    assert reports_of(place)[1] == reports


class Patient(EarlyStoppingCallback):
    """Its constructor takes less than what its state has."""

    def __init__(self):
        super().__init__(3)


class Adds(TrainerCallback, ExportableState):
    """Its constructor takes more than what its state has."""

    def __init__(self, summand):
        self.summand, self.total = summand, 0

    def on_step_end(self, args, state, control, **_):
        self.total += self.summand

    def state(self):
        return {"args": {}, "attributes": {"total": self.total}}


@pytest.mark.parametrize("step", [2, STEPS_AN_EPOCH * 2 + 1])
def test_callbacks_that_keep_a_state_count_on_whatever_their_constructors_take(place, step):
    whole, _ = undisturbed(place)
    with pytest.raises(DrainRequested):
        train(place.claim(1), Adds(1), Adds(10), Acts("on_step_end", step, place.drain.set))
    place.drain.clear()
    assert place.leases.release(1, place.held.token)
    adding = Adds(1), Adds(10)
    assert train(place.hold(1), *adding) == whole
    steps = STEPS_AN_EPOCH * EPOCHS
    assert [each.total for each in adding] == [steps, 10 * steps]


@pytest.mark.parametrize("how", ["drain", "kill"])
@pytest.mark.parametrize(("event", "step"), [("on_step_end", 2), ("on_evaluate", 4)])
@pytest.mark.parametrize(
    ("patient", "restores"),
    [
        (lambda: EarlyStoppingCallback(3), False),
        (lambda: EarlyStoppingCallback(3), True),
        (Patient, False),
    ],
    ids=["of transformers", "that the Trainer makes anew", "of a subclass"],
)
def test_a_training_that_stops_early_stops_where_an_undisturbed_one_does(
    place, patient, restores, event, step, how
):
    changes = {
        "restore_callback_states_from_checkpoint": restores,
        "learning_rate": 1e-9,  # nothing gets better after the first
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
    }

    def act():
        if how == "kill":
            raise Killed
        place.drain.set()

    whole = train(place.claim(0), patient(), **changes)
    assert len(whole[0]) == 4
    first, found = place.claim(1), None
    with suppress(DrainRequested, Killed):  # of a drain in the last step there is no need
        found = train(first, patient(), Acts(event, step, act), **changes)
    if found is None:
        place.drain.clear()
        assert place.leases.release(1, place.held.token)
        found = train(place.hold(1), patient(), **changes)
    assert found == whole


@pytest.mark.parametrize("names", [("own", "other"), ("other", "own")])
def test_of_several_data_sets_the_one_that_is_named_is_measured_whatever_follows(place, names):
    trial = place.claim()
    fleet = FleetCallback(trial, metric="own_accuracy")
    held_out = {name: Rows(24, 2) for name in names}
    values, _ = train(trial, fleet=fleet, held_out=held_out, metric_for_best_model="own_accuracy")
    assert len(values) == EPOCHS


def test_a_second_training_of_a_trial_does_not_go_on_from_the_first(place):
    trial = place.claim()
    train(trial)
    with pytest.raises(ObjectiveError, match=r"one training of a trial.*a trial of its own"):
        train(trial)


@pytest.mark.parametrize(
    ("changes", "metric"),
    [
        ({"metric_for_best_model": "loss"}, None),
        ({"greater_is_better": False}, "accuracy"),
        ({"metric_for_best_model": None, "load_best_model_at_end": False}, None),
    ],
)
def test_a_side_that_trainer_and_study_see_differently_is_refused(place, changes, metric):
    trial = place.claim()
    with pytest.raises(ObjectiveError, match="the study is to maximize"):
        train(trial, fleet=FleetCallback(trial, metric=metric), **changes)


def test_a_loss_that_is_no_number_ends_the_trial_with_step_and_rate(place):
    trial = place.claim()
    with pytest.raises(ObjectiveError, match=r"the loss is (nan|inf) at step .* of 12, .*lower"):
        train(trial, learning_rate=1e18, max_grad_norm=1e18)


class Poisons(TrainerCallback):
    """Has one weight be no number after a step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, model, **_):
        if state.global_step == self.step:
            with torch.no_grad():
                next(model.parameters()).view(-1)[0] = torch.nan


#: As `TrainingArguments` has it.
BY_DEFAULT = {"logging_steps": 500, "load_best_model_at_end": False}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, r"^eval_loss is nan at step 4 of 12 .the last finite one: none.: .* diverged; lower"),
        ({"eval_strategy": "no", "save_strategy": "no"}, "^train_loss is nan at step 12 of 12 "),
        ({"logging_steps": 3, "max_grad_norm": 0.0}, "^(the loss|grad_norm) is nan at step 3 of"),
    ],
    ids=["an evaluation", "the end", "a log"],
)
def test_a_training_that_diverged_between_two_logs_has_no_value(place, changes, said):
    trial = place.claim()
    with pytest.raises(ObjectiveError, match=said):
        train(trial, learning_rate=1e30, **{**BY_DEFAULT, **changes})
    assert not place.inbox(), "nothing is reported"
    assert place.leases.record(0).checkpoint is None
    assert not any("checkpoint" in name for name in files_of(trial))


@pytest.mark.parametrize(
    ("step", "changes"),
    [
        (12, {"eval_strategy": "no", "save_strategy": "no"}),
        (6, {"eval_strategy": "no", "save_strategy": "steps", "save_steps": 6}),
    ],
    ids=["at the end", "before a checkpoint"],
)
def test_weights_that_are_no_numbers_come_to_no_value_and_no_checkpoint(place, step, changes):
    trial = place.claim()
    with pytest.raises(ObjectiveError, match=f"^weight bert.* is no .* step {step} "):
        train(trial, Poisons(step), **BY_DEFAULT, **changes)
    assert not place.inbox()
    assert place.leases.record(0).checkpoint is None


def test_the_best_of_values_does_not_hang_on_where_a_nan_stands(place):
    fleet = FleetCallback(place.claim(), metric="accuracy")
    for values in ([0.4, np.nan], [np.nan, 0.4]):
        fleet.values = values
        with pytest.raises(ObjectiveError, match="nan in evaluation"):
            _ = fleet.best_value
    fleet.values = [0.2, 0.4, 0.3]
    assert fleet.best_value == 0.4


def test_a_pruned_training_ends_at_once_and_leaves_no_checkpoints(place, monkeypatch):
    trial = place.claim()
    monkeypatch.setattr(trial, "should_prune", lambda: trial.last_value is not None)
    with pytest.raises(optuna.TrialPruned, match=f"step {STEPS_AN_EPOCH}"):
        train(trial)
    assert not files_of(trial)


@pytest.mark.parametrize("error", [optuna.TrialPruned, MemoryError])
def test_a_training_that_somebody_else_ends_leaves_no_checkpoints(place, error):
    def end():
        raise error

    trial = place.claim()
    with pytest.raises(error):
        train(trial, Acts("on_step_end", STEPS_AN_EPOCH + 2, end))
    assert any(trial.result_directory.rglob("checkpoint-*"))
    assert not files_of(trial)


def test_a_lost_lease_ends_the_training_at_the_next_step(place):
    trial = place.claim()
    steps = []
    with pytest.raises(LeaseLost):
        train(
            trial,
            Acts("on_step_end", 2, place.held.lose),
            Acts("on_step_end", 3, lambda: steps.append(3)),
        )
    assert not steps


def test_a_disk_that_takes_no_checkpoint_does_not_end_the_training(place, monkeypatch):
    trial = place.claim()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(CheckpointStore, "save_files", full)
    values, _ = train(trial)
    assert len(values) == EPOCHS


def test_files_on_another_file_system_are_copied(place, monkeypatch):
    def refused(*_, **__):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refused)
    whole, _ = undisturbed(place)
    with pytest.raises(DrainRequested):
        train(place.claim(1), Acts("on_step_end", 3, place.drain.set))
    place.drain.clear()
    assert place.leases.release(1, place.held.token)
    assert train(place.hold(1)) == whole


def test_values_are_numbers_of_all_attempts(place):
    with pytest.raises(DrainRequested):
        train(place.claim(), Acts("on_step_end", STEPS_AN_EPOCH + 1, place.drain.set))
    place.drain.clear()
    assert place.leases.release(0, place.held.token)
    trial = place.hold(0)
    fleet = FleetCallback(trial, metric="eval_accuracy")
    with pytest.raises(ObjectiveError, match="nothing was evaluated"):
        _ = fleet.best_value
    values, _ = train(trial, fleet=fleet)
    assert len(values) == EPOCHS
    assert fleet.best_value == max(np.array(values).tolist())
