"""The `Trial` that an objective sees: Optuna's interface, spoken to the orchestrator by message."""

from __future__ import annotations

import datetime as dt
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from optuna import distributions
from optuna._warnings import optuna_warn
from optuna.distributions import BaseDistribution
from optuna.trial import BaseTrial

from workers.coordination.studies import Studies
from workers.disk.checkpoint_content import Kept
from workers.disk.checkpoints import CheckpointStore
from workers.logs import get_logger
from workers.managers import WandbManager
from workers.protocol.choices import Choices
from workers.protocol.errors import (
    LeaseLost,
    ObjectiveError,
    TransientError,
    TrialInterrupt,
    UnsealedError,
    UnsuitableValueError,
)
from workers.protocol.messages import Drawn
from workers.protocol.plain import as_finite, as_key, as_number, as_plain, as_step
from workers.protocol.spec import StudySpec, merge_params
from workers.trials.checkpointing import Checkpointing
from workers.trials.held_lease import HeldLease
from workers.trials.next_rung import NextRung
from workers.trials.preparation import Preparation
from workers.trials.study_view import StudyView
from workers.trials.suggestions import Suggestions
from workers.trials.training_loop import TrainingLoop

log = get_logger(__name__)

T = TypeVar("T")

#: After which a suggestion is asked for again: the orchestrator may have been restarted.
_ASK_AGAIN_SECONDS: Final = 5.0

#: Bytes of JSON that a trial's user attributes may take together.
MAX_ATTRS_BYTES: Final = 4 * 2**20

#: How long one blocking read lasts, between looks at the lease.
_READ_SECONDS: Final = 0.5


class FleetTrial(BaseTrial):
    """One attempt at a trial.

    Reports, suggestions and verdicts travel through the study's inbox to the orchestrator, which
    alone writes the Optuna storage; all of them carry the attempt's fencing token.
    """

    def __init__(
        self,
        spec: StudySpec,
        lease: HeldLease,
        studies: Studies,
        checkpoints: CheckpointStore,
        result_directory: Path,
        verdict_seconds: float,
        on_first_step: Callable[[], None] = lambda: None,
        preparation: Preparation | None = None,
        storage_url: str = "",
        wandb: WandbManager | None = None,
        num_slots: int = 1,
    ) -> None:
        self.spec = spec
        self._storage_url = storage_url
        self._wandb = wandb
        self.study_name = spec.name
        self.attempt = lease.grant.attempt
        #: Seeds this trial, the same in each attempt; in [0, 2**31).
        self.seed = spec.trial_seed(lease.number)
        #: Where this attempt may leave files; kept if the attempt's result is accepted.
        self.result_directory = result_directory
        self._lease = lease
        self._studies = studies
        self._checkpointing = Checkpointing(spec.name, lease, checkpoints, num_slots)
        self._verdict_seconds = verdict_seconds
        self._on_first_step: Callable[[], None] | None = on_first_step
        self._preparation = preparation or Preparation()
        self._suggestions = Suggestions(lease, self._ask)
        self._user_attrs: dict[str, Any] = {}
        self._attr_sizes: dict[str, int] = {}
        self._constraints: dict[str, float] = {}
        #: those of the step that it goes on from
        self._constraints_before: dict[str, float] = {}
        self._unjudged_step: int | None = None
        self._is_trained = False
        #: Reports that found the inbox full, since no orchestrator reads it.
        self.num_reports_left_out = 0
        #: The value of the highest reported step, which stands for a pruned trial.
        self.last_value = lease.grant.record.reported_value
        #: The highest step that any attempt has reported; None before the first report.
        self.last_step = lease.grant.record.reported_step
        #: Where it is paused, in a study that promotes.
        self.next_rung = NextRung(spec, lease.grant.record)
        #: whether the objective has shown that it can go on where it stopped
        self._resumes = False
        #: whether it was told to end
        self._is_interrupted = False

    @property
    def study(self) -> StudyView:
        """The study, to look at and to stop."""
        return StudyView(self.spec, self._studies, self._storage_url)

    @property
    def relative_params(self) -> dict[str, Any]:
        """The parameters that were drawn together, before the objective began."""
        record = self._lease.grant.record
        joint = {name: each.value for name, each in record.drawn.items() if each.is_joint}
        return {**joint, **record.params}

    @property
    def number(self) -> int:
        """The trial's number in its study, from 0."""
        return self._lease.number

    @property
    def config(self) -> dict[str, Any]:
        """The study's `config`, with this trial's parameters laid over it by dotted name."""
        return merge_params(self.spec.config, self._suggestions.stored)

    @property
    def params(self) -> dict[str, Any]:
        """The parameters known so far."""
        return self._suggestions.values

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The distributions that this objective has asked for."""
        return self._suggestions.distributions

    @property
    def untold_params(self) -> dict[str, Drawn]:
        """What the objective asked for of what was drawn before, and was not told yet."""
        return self._suggestions.untold

    @property
    def user_attrs(self) -> dict[str, Any]:
        """What `set_user_attr` has set; stored with the trial's result."""
        return dict(self._user_attrs)

    @property
    def datetime_start(self) -> dt.datetime | None:
        """When this attempt was claimed, on the server's clock."""
        claimed_ms = self._lease.grant.record.claimed_at_ms
        return dt.datetime.fromtimestamp(claimed_ms / 1000).astimezone()

    @property
    def constraints(self) -> dict[str, float]:
        """What `set_constraint` has set."""
        return {**self._constraints_before, **self._constraints}

    def progress(self, step: int) -> None:
        """Say that training is about to make step `step`; call it before each.

        From the first call on, a training that makes no progress for the study's
        `progress_timeout` is ended and tried again; `report` and `save_checkpoint` are progress,
        too.

        Raises:
            DrainRequested: Save a checkpoint and let this pass.
            LeaseLost, TrialCancelled: Let this pass.
        """
        self._resumes = True
        self._check()
        self._lease.note_progress(step if type(step) is int else as_step(step))
        self._preparation.end()
        self._note_first_step()

    def preparing(self, what: str, done: int = 0, total: int = 0) -> None:
        """Say how far something has come that goes on before or between steps; often, if you like.

        It is progress, so that no `progress_timeout` ends it; it is shown by `ps` and `watch`, and
        logged now and then. Managers that build something take it to tell their progress:
        `data.text_classification(..., progress=trial.preparing)`.

        Args:
            what: What is counted, such as `rows read`.
            done: How much of it.
            total: Of how much; 0 if that is not known.

        Raises:
            DrainRequested, LeaseLost, TrialCancelled: Let this pass.
        """
        self._lease.check()
        self._lease.note_sign_of_life()
        self._preparation.tell(what, done, total)

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """Suggest a real number in [low, high].

        Raises:
            UnsuitableValueError: A bound is no finite number.
        """
        low, high = _bounds(name, low, high)
        distribution = distributions.FloatDistribution(low, high, bool(log), step)
        return float(self._suggestions.suggest(name, distribution))

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        """Suggest an integer in [low, high].

        Raises:
            UnsuitableValueError: A bound is no finite number.
        """
        _bounds(name, low, high)
        distribution = distributions.IntDistribution(low, high, bool(log), step)
        return int(self._suggestions.suggest(name, distribution))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Suggest one of `choices`: the very object that was given.

        Args:
            name: The parameter.
            choices: Text, numbers, booleans, None, and lists, tuples and mappings of them.

        Raises:
            UnsuitableValueError: A choice is none of these.
        """
        named = Choices.of(choices, name)
        distribution = distributions.CategoricalDistribution(named.names)
        return self._suggestions.suggest(name, distribution, named.value_of)

    def suggest_uniform(self, name: str, low: float, high: float) -> float:
        """Optuna's deprecated spelling of `suggest_float`."""
        return self.suggest_float(name, low, high)

    def suggest_loguniform(self, name: str, low: float, high: float) -> float:
        """Optuna's deprecated spelling of `suggest_float(..., log=True)`."""
        return self.suggest_float(name, low, high, log=True)

    def suggest_discrete_uniform(self, name: str, low: float, high: float, q: float) -> float:
        """Optuna's deprecated spelling of `suggest_float(..., step=q)`."""
        return self.suggest_float(name, low, high, step=q)

    def report(self, value: float, step: int) -> None:
        """Report an intermediate value, in any order of steps; the first one of a step counts.

        Args:
            value: A Python, NumPy or torch number; NaN and infinity are left to the pruner.
            step: Not negative.

        Raises:
            UnsuitableValueError: The value is no number, or the step no whole one; a `TypeError`.
            NotImplementedError: The study has several objectives; they cannot be pruned.
            LeaseLost: Somebody else may run the trial now.
            DrainRequested: The rung that the report before had reached is where it is paused.
        """
        if len(self.spec.all_directions) > 1:
            raise NotImplementedError("report is not supported with several directions")
        number = as_number(value, f"report(step={step!r:.80})")
        whole = as_step(step)
        self._check()
        self._note_first_step()
        self._lease.note_sign_of_life()
        leases, token = self._lease.leases, self._lease.token
        status = self._lease.patiently(lambda: leases.report(self.number, token, whole, number))
        if status == "LOST":
            self._give_up()
        if status == "FULL":
            self._leave_out(whole)
        if self.last_step is None or whole > self.last_step:
            self.last_step, self.last_value = whole, number
        self.next_rung.note(whole, number)
        if status != "OLD":  # of which the verdict was asked before
            self._unjudged_step = whole if status == "OK" else None

    def _leave_out(self, step: int) -> None:
        if not self.num_reports_left_out:
            log.warning("report_left_out", step=step, hint="no orchestrator reads the inbox")
        self.num_reports_left_out += 1

    def should_prune(self) -> bool:
        """Whether the pruner, knowing all reports so far, gives this trial up.

        Waits for the orchestrator's verdict on the last report, so that equal runs prune equally;
        if none comes within some seconds, training goes on.

        Raises:
            DrainRequested: Of a study that promotes: the trial has reached its rung, and has shown
                no sign that it could go on from a checkpoint. False there in all other cases.
        """
        if not self._resumes:
            self.next_rung.check()
        if not self.spec.pruner.prunes or self._unjudged_step is None:
            return False
        request, self._unjudged_step = f"report:{self._unjudged_step}", None
        verdict = self._await_reply(request, self._verdict_seconds)
        return verdict is not None and bool(verdict["prune"])

    def set_user_attr(self, key: str, value: Any) -> None:
        """Attach a fact to the trial; stored with its result, as plain JSON.

        Args:
            key: Up to 512 characters; `trialfleet:` is the fleet's own.
            value: What `workers.protocol.plain` has a rule for.

        Raises:
            UnsuitableValueError: The value has no plain form, or all of them are over 4 MiB.
        """
        name = as_key(key)
        plain = as_plain(value, f"user attribute {name!r}")
        size = len(json.dumps({name: plain}, ensure_ascii=False).encode())
        total = size + sum(other for known, other in self._attr_sizes.items() if known != name)
        if total > MAX_ATTRS_BYTES:
            raise UnsuitableValueError(
                f"user attribute {name!r}: with it the trial's attributes take {total} bytes, and"
                f" {MAX_ATTRS_BYTES} are the most; leave what is large in `trial.result_directory`"
            )
        self._attr_sizes[name] = size
        self._user_attrs[name] = plain

    def set_constraint(self, key: str, value: float) -> None:
        """Set a constraint; above 0 it is violated.

        Raises:
            UnsuitableValueError: The value is no finite number.
        """
        name = as_key(key)
        number = as_finite(value, f"constraint {name!r}")
        if name in self._constraints:
            optuna_warn(f"constraint {name!r} is set already; {number} is ignored")
        else:
            self._constraints[name] = number

    def save_checkpoint(self, step: int, state: dict[str, Any]) -> None:
        """Save what the next attempt needs to go on from `step`.

        The state is copied, and written while training goes on; what becomes of the objective's
        own afterwards does not matter. The next call, and the trial's end however it comes, wait
        for it, and what went wrong is raised there. A disk that takes no more is logged, and
        training goes on: the checkpoint before stands.

        Args:
            step: More than that of the checkpoint before; of one that this attempt saves again,
                what it saved first stays.
            state: Nested containers of tensors, arrays, numbers, text and generators; all that
                `workers.disk.state_packing` has a rule for. `load_checkpoint` gives it back equal.

        Raises:
            UnsuitableValueError: Something in it is no data; the message names its place.
            LeaseLost: Somebody else may run the trial now.
            DrainRequested: It is saved, and the trial has reached its rung; let this pass.
        """
        if self._lease.is_lost:
            self._give_up()
        # nothing is trained any more while what an objective saves on its way out is written
        at_once = self._is_interrupted or self.next_rung.is_reached
        attributes = self._attributes()
        is_saved = self._checkpointing.save(as_step(step), state, attributes, at_once=at_once)
        self._note_saved(is_saved)

    def save_checkpoint_files(
        self, step: int, *paths: str | Path, changing: Iterable[str | Path] = ()
    ) -> None:
        """Keep files and folders that a trainer wrote as what the next attempt goes on from.

        They are on disk when this returns. Those in `paths` are linked where that is possible: the
        trainer may replace and remove them, and is not to change them in place. A disk that takes
        no more is logged, and training goes on: the checkpoint before stands.

        Args:
            step: Never less than that of the checkpoint before.
            paths: Each is kept under its own name; `load_checkpoint_files` gives them back.
            changing: More of them, which the trainer appends to or writes anew in place: copied.

        Raises:
            FileNotFoundError: There is no such file.
            LeaseLost: Somebody else may run the trial now.
        """
        linked, copied = _present(paths), _present(changing)
        if self._lease.is_lost:
            self._give_up()
        attributes = self._attributes()
        is_saved = self._checkpointing.save_files(as_step(step), linked, copied, attributes)
        self._note_saved(is_saved)

    def _attributes(self) -> dict[str, Any]:
        """What belongs to the step that is saved, and comes back with it."""
        found = {"user_attrs": self.user_attrs, "constraints": self.constraints}
        return {name: dict(each) for name, each in found.items() if each}

    def _take_back(self, kept: Kept[T] | None) -> T | None:
        """Have the attributes that this attempt has not set be the checkpoint's; what it holds."""
        if kept is None:
            return None
        for name, value in kept.attributes.get("user_attrs", {}).items():
            if name not in self._user_attrs:
                self.set_user_attr(name, value)
        self._constraints_before = dict(kept.attributes.get("constraints", {}))
        return kept.content

    def _note_saved(self, is_saved: bool) -> None:  # noqa: FBT001 - of one meaning
        # one that was interrupted saves this on its way out
        if is_saved and not self._is_interrupted:
            self.next_rung.check()

    def await_checkpoint(self) -> None:
        """Wait until what `save_checkpoint` was given is on disk, and the next attempt's.

        Raises:
            LeaseLost: Somebody else may run the trial now.
            Exception: What else went wrong with it.
        """
        self._checkpointing.wait()

    def await_upload(self, seconds: float) -> None:
        """Wait, at most so long, until another host would find the last checkpoint, too."""
        self._checkpointing.await_upload(seconds)

    def settle_checkpoint(self, timeout_seconds: float) -> None:
        """Wait for the same at most so long, from whatever thread; raises nothing."""
        self._checkpointing.settle(timeout_seconds)

    @property
    def has_checkpoint(self) -> bool:
        """Whether another attempt could go on from what this or any before has saved."""
        return self._checkpointing.is_there

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The state that the last accepted checkpoint of this or any attempt holds, or None.

        The trial's attributes and constraints are those that it had at that step, too, but for
        those that this attempt has set by itself.
        """
        self._resumes = True
        return self._take_back(self._checkpointing.load())

    def load_checkpoint_files(self) -> Path | None:
        """The folder with the files of the last accepted checkpoint of any attempt, or None.

        They are to be read, or copied, and not to be changed. The trial's attributes and
        constraints are those that it had at that step, too, but for those that this attempt has
        set by itself.
        """
        self._resumes = True
        return self._take_back(self._checkpointing.load_files())

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add points to the curves of the trial's W&B run, where it has one; never waits.

        Args:
            values: By name.
            step: Of the training.
        """
        if self._wandb is not None:
            self._wandb.log(values, step)

    def wandb_run(self) -> Any:
        """The trial's `wandb.Run`, begun by now; None where the trial has none.

        It is finished when the trial ends. It may take as long to begin as W&B takes to answer.
        """
        return None if self._wandb is None else self._wandb.begin()

    def training(self, state: Any, *, checkpoint_seconds: float = 60.0) -> TrainingLoop:
        """A training loop that resumes where it was: `with trial.training(state) as run:`.

        Args:
            state: What has `state_dict` and `load_state_dict` (modules, optimizers, schedulers,
                scalers, an `Accelerator`), or a mapping of such things, generators and data.
            checkpoint_seconds: Between two checkpoints; a drain saves one at the next step.

        Raises:
            ObjectiveError: It is the trial's second one, or the state could not be put back.
            UnsuitableValueError: Something in the state cannot be saved.
        """
        if self._is_trained:
            raise ObjectiveError(
                "trial.training() once a trial: a resumed attempt would not know which one it was"
                " in; count the epochs of both in one loop"
            )
        self._is_trained = True
        return TrainingLoop(self, self._lease, state, checkpoint_seconds)

    def defer_drain(self, *, is_deferred: bool) -> None:
        """Have a drain wait, or no longer, for a point at which training can be resumed.

        For trainers: between such points `progress` and `report` do not raise `DrainRequested`.
        """
        self._lease.defers_drain = is_deferred

    def best_value(self) -> float | None:
        """The study's best value so far, of its first objective."""
        value: float | None = self._studies.fact(self.study_name, "best_value")
        return value

    def _check(self) -> None:
        """Return if training may go on.

        Raises:
            TrialInterrupt: What is asked of it, or that it has reached its rung.
        """
        try:
            self._lease.check()
            self._checkpointing.check()
            if not self._lease.defers_drain:
                self.next_rung.check()
        except TrialInterrupt:
            self._is_interrupted = True
            raise

    def _note_first_step(self) -> None:
        callback, self._on_first_step = self._on_first_step, None
        if callback is not None:
            callback()

    def _ask(self, name: str, distribution: BaseDistribution) -> Any:
        text = distributions.distribution_to_json(distribution)
        while True:
            self._lease.check()
            status, *rest = self._lease.patiently(
                lambda: self._lease.leases.suggest(self.number, self._lease.token, name, text)
            )
            if status == "LOST":
                self._give_up()
            if status == "VALUE":
                return self._answered(name, *rest)
            reply = self._await_reply(f"suggest:{name}", _ASK_AGAIN_SECONDS)
            if reply is not None and "error" in reply:
                raise ObjectiveError(f"{name}: {reply['error']}")
            if reply is not None:
                return self._answered(name, json.dumps(reply["value"]), reply.get("seal"))

    def _answered(self, name: str, value: str, seal: str | None) -> Any:
        """A parameter that the orchestrator answered with, in JSON.

        Raises:
            TransientError: It is signed by no secret of this worker's.
        """
        try:
            self._lease.leases.check_answer(self.number, name, value, seal)
        except UnsealedError as error:
            raise TransientError(str(error)) from error
        return json.loads(value)

    def _await_reply(self, request: str, timeout_seconds: float) -> dict[str, Any] | None:
        deadline = time.monotonic() + timeout_seconds
        while (left := deadline - time.monotonic()) > 0:
            if self._lease.is_lost:
                self._give_up()
            wait_seconds = min(left, _READ_SECONDS)
            reply = self._lease.patiently(
                partial(
                    self._lease.leases.await_reply, self.number, self._lease.token, wait_seconds
                )
            )
            # answers to requests that were given up may still lie in the list
            if reply is not None and reply["request"] == request:
                return reply
        return None

    def _give_up(self) -> None:
        self._lease.lose()
        raise LeaseLost(f"trial {self.number}: token {self._lease.token} is no longer valid")


def _present(paths: Iterable[str | Path]) -> list[Path]:
    """Where files and folders are, each under the name that it was given by.

    Raises:
        FileNotFoundError: There is no such file.
    """
    found = [Path(os.path.abspath(path)) for path in paths]  # noqa: PTH100 - absolute() keeps '..'
    for path in found:
        path.resolve(strict=True)
    return found


def _bounds(name: str, low: Any, high: Any) -> tuple[float, float]:
    """Both bounds of a range, which a sampler can draw from only if it is finite."""
    bounds = as_finite(low, f"{name}: low"), as_finite(high, f"{name}: high")
    as_finite(bounds[1] - bounds[0], f"{name}: high - low")
    return bounds
