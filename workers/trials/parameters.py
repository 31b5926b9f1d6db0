"""A trial's parameters as Optuna's interface has them: `suggest_*`, and what was suggested.

Invariant: what is asked for is checked here, and found or asked for by `Suggestions`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from optuna import distributions
from optuna.distributions import BaseDistribution
from optuna.trial import BaseTrial

from workers.protocol.choices import Choices
from workers.protocol.messages import Drawn
from workers.protocol.plain import as_finite
from workers.trials.held_lease import HeldLease
from workers.trials.suggestions import Suggestions


class ParametersOfTrial(BaseTrial):
    """The part of a trial that has to do with its parameters.

    Args:
        lease: The attempt's.
        ask: Asks the orchestrator for a parameter, from a distribution.
    """

    def __init__(self, lease: HeldLease, ask: Callable[[str, BaseDistribution], Any]) -> None:
        self._lease = lease
        self._suggestions = Suggestions(lease, ask)

    @property
    def relative_params(self) -> dict[str, Any]:
        """The parameters that were drawn together, before the objective began."""
        record = self._lease.grant.record
        joint = {name: each.value for name, each in record.drawn.items() if each.is_joint}
        return {**joint, **record.params}

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


def _bounds(name: str, low: Any, high: Any) -> tuple[float, float]:
    """Both bounds of a range, which a sampler can draw from only if it is finite."""
    bounds = as_finite(low, f"{name}: low"), as_finite(high, f"{name}: high")
    as_finite(bounds[1] - bounds[0], f"{name}: high - low")
    return bounds
