"""A rehearsal: some rounds of a study's own sampler and pruner, on a study in memory.

Options that only fail when they are used are so found before anything is enqueued.

Invariant: nothing of a rehearsal is kept, and nobody's objective is called.
"""

from __future__ import annotations

import logging
import random
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from orchestrator.submission.algorithms import num_points
from orchestrator.submission.space import suggest_all
from workers.protocol.errors import InvalidInputError
from workers.protocol.plain import describe_error
from workers.protocol.spec import StudySpec

#: Beyond the ten random trials that most samplers begin with.
_ROUNDS: Final = 13

#: A sampler that is slow has shown by then that it works.
_SECONDS: Final = 5.0

_STEPS: Final = 3

#: What stands for the parameters of an objective without a `space`: two, since samplers that draw
#: jointly take no single one.
_STAND_INS: Final = ("x", "y")


def rehearse(spec: StudySpec, sampler: BaseSampler, pruner: BasePruner) -> None:
    """Run some rounds of a sampler and a pruner.

    Raises:
        InvalidInputError: One of them fails; which, with which options, and how.
    """
    with _quiet():
        study = optuna.create_study(
            directions=list(spec.all_directions), sampler=sampler, pruner=pruner
        )
        study.stop = lambda: None  # type: ignore[method-assign]
        deadline = time.monotonic() + _SECONDS
        for _ in range(int(min(_ROUNDS, spec.trials, num_points(spec)))):
            _play(study, spec)
            if time.monotonic() > deadline:
                return


def _play(study: optuna.Study, spec: StudySpec) -> None:
    values = [random.random() for _ in spec.all_directions]
    with _refusing(f"sampler = {spec.sampler.model_dump(exclude_none=True)}"):
        trial = study.ask()
        suggest_all(trial, spec)
        for name in _STAND_INS if _takes_any_parameter(spec) else ():
            trial.suggest_float(name, 0.0, 1.0)
    if spec.pruner.prunes:
        with _refusing(f"pruner = {spec.pruner.model_dump()}"):
            for step in range(1, _STEPS + 1):
                trial.report(values[0], step)
                trial.should_prune()
    with _refusing(f"sampler = {spec.sampler.model_dump(exclude_none=True)}"):
        study.tell(trial, values)


def _takes_any_parameter(spec: StudySpec) -> bool:
    """Whether a sampler whose study has no `space` would draw whatever an objective asks for.

    Not one that has to do with parameters of certain names, or is a class of somebody's own.
    """
    kind = spec.sampler.type.lower().replace("_", "")
    if spec.space or ":" in kind or kind.startswith(("grid", "brute")):
        return False
    options = (spec.sampler.model_extra or {}).values()
    return not any(isinstance(each, (dict, list)) or ":" in str(each) for each in options)


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        first = describe_error(error, 300).splitlines()[0]
        raise InvalidInputError(
            f"{what} does not work with this study: {first}; mend the option, or leave it out"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """What Optuna warns of, it says again when the study runs."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(level)
