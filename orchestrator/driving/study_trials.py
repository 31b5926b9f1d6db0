"""One study's trials in its storage: asked for, told, and summed up while they come and end.

Invariant: what is summed up is what the storage has, or is counted anew from it (`recount`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import json_to_distribution
from optuna.storages import BaseStorage
from optuna.study._tell import _tell_with_warning
from optuna.trial import FrozenTrial

from orchestrator.driving.foresight import Foresight, take
from orchestrator.driving.halving import Halving, Place
from orchestrator.storage.attributes import CODE_ATTR, RUNG_ATTR, code_id
from orchestrator.storage.ordered_trials import carry_out
from orchestrator.storage.tally import Tally
from workers.protocol.messages import Drawn
from workers.protocol.orders import Order
from workers.protocol.spec import StudySpec


class StudyTrials:
    """The trials of one study, open for writing.

    Args:
        study: As Optuna has it open.
        storage: What has it.
        spec: Says how its trials are sampled, pruned and compared.
    """

    def __init__(self, study: optuna.Study, storage: BaseStorage, spec: StudySpec) -> None:
        self._study = study
        self._storage = storage
        self._spec = spec
        trials = study.get_trials(deepcopy=False)
        #: All of them, summed up.
        self.tally = Tally(spec.all_directions, trials)
        is_seeded = spec.sampler.seed is not None
        self._foresight = Foresight(study, is_seeded=is_seeded, trials=trials)
        self._halving = Halving(spec, trials)
        self._asked: dict[int, optuna.Trial] = {}
        self._study_id = storage.get_study_id_from_name(spec.name)
        #: the code that is known with the study
        attrs = study.user_attrs
        self._codes = {name.removeprefix(CODE_ATTR) for name in attrs if name.startswith(CODE_ATTR)}

    def recount(self) -> None:
        """Sum the trials up anew: the storage may have taken what it gave no answer to."""
        trials = self._study.get_trials(deepcopy=False)
        self.tally.recount(trials)
        self._halving = Halving(self._spec, trials)

    def stored(self, number: int) -> FrozenTrial:
        """A trial as the storage has it.

        Raises:
            KeyError: The storage has no such trial.
        """
        return self._storage.get_trial(self._trial_id(number))

    def is_given(self, number: int) -> bool:
        """Whether people gave a trial's parameters."""
        return "fixed_params" in self.stored(number).system_attrs

    def ask(self) -> optuna.Trial:
        """A new trial."""
        trial = self._study.ask()
        self._asked[trial.number] = trial
        self.tally.add([self.stored(trial.number)])
        return trial

    def carry_out(self, orders: Sequence[Order], done: set[str]) -> None:
        """Have the trials that people ordered be the next that are asked for."""
        if carry_out(self._study, orders, done):
            waiting = (optuna.trial.TrialState.WAITING,)
            self.tally.add(self._study.get_trials(deepcopy=False, states=waiting))

    def asked(self, number: int) -> optuna.Trial:
        """A trial that suggestions can be asked of."""
        # Optuna keeps what a thread saw of the trials until that thread asks for a new one: here
        # turns are run by several
        self._study._thread_local.cached_all_trials = None
        if number not in self._asked:
            self._asked[number] = optuna.Trial(self._study, self._trial_id(number))
        return self._asked[number]

    def draw(self, number: int) -> Mapping[str, Drawn]:
        """What a trial that was just asked for may ask for, drawn now."""
        return self._foresight.draw(self.asked(number))

    def drawn(self, number: int) -> Mapping[str, Drawn]:
        """What was drawn for a trial, and is not its own yet."""
        has = self.asked(number).params
        return {
            name: each for name, each in self._foresight.drawn(number).items() if name not in has
        }

    def take(self, number: int, params: Mapping[str, Drawn]) -> None:
        """Have a trial hold what was drawn for it, and what its objective has asked for.

        Raises:
            ValueError: Trials have such a parameter from another kind of distribution.
        """
        for name, each in params.items():
            take(self.asked(number), name, json_to_distribution(each.distribution), each.value)

    def set_attr(self, number: int, key: str, value: Any) -> None:
        """Attach a fact to a trial."""
        self._storage.set_trial_user_attr(self._trial_id(number), key, value)

    def code_id(self, facts: dict[str, Any]) -> str | None:
        """The name under which facts about code lie with the study: once, however many trials."""
        if not facts:
            return None
        name = code_id(facts)
        if name not in self._codes:
            self._study.set_user_attr(f"{CODE_ATTR}{name}", facts)
            self._codes.add(name)
        return name

    def report(self, number: int, step: int, value: float) -> None:
        """Store an intermediate value."""
        self._storage.set_trial_intermediate_value(self._trial_id(number), step, value)
        if self._spec.pruner.promote:
            self._halving.note(self.stored(number))

    def place(self, number: int) -> Place:
        """The rung that a trial is on its way to, or paused at."""
        return Place.of(self.stored(number))

    def put(self, number: int, place: Place) -> None:
        """Keep with a trial where it stands."""
        self.set_attr(number, RUNG_ATTR, place.stored())
        stored = self.stored(number)
        self.tally.add([stored])
        self._halving.note(stored)

    def has_reached(self, number: int, rung: int) -> bool:
        """Whether a trial has reported at a rung, or beyond."""
        return self._halving.has_reached(number, rung)

    def promotable(self, *, has_more: bool) -> list[int]:
        """The paused trials that are to go on, in the order in which they are.

        Args:
            has_more: Whether there are trials yet to be asked for.
        """
        if not self.tally.paused:
            return []
        found = self._halving.promotable()
        if found or has_more or not self.is_at_rest:
            return found
        return self._halving.last_call(has_complete=self.tally.num_complete > 0)

    @property
    def is_at_rest(self) -> bool:
        """Whether all its trials have ended or are paused."""
        return len(self.tally.open) == len(self.tally.paused)

    def should_prune(self, number: int) -> bool:
        """Whether the pruner gives a trial up, by what is stored now."""
        return bool(self._study.pruner.prune(self._study, self.stored(number)))

    def tell(
        self, number: int, state: optuna.trial.TrialState, values: Sequence[float] | None
    ) -> FrozenTrial:
        """End a trial; as the storage has it then."""
        if number in self.tally.waiting:  # Optuna ends none that nobody has asked for
            running = optuna.trial.TrialState.RUNNING
            self._storage.set_trial_state_values(self._trial_id(number), running)
        # not `study.tell`, which copies the trial, and all that it reported, for its caller
        _tell_with_warning(self._study, number, values, state)
        self._asked.pop(number, None)
        told = self.stored(number)
        self.tally.add([told])
        self._halving.note(told)
        self._foresight.note(told)
        return told

    def _trial_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)
