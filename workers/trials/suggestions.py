"""The parameters of one attempt: those that it has, those drawn before it began, and what it asks.

What the orchestrator drew before the objective asked travels with the trial's record, and costs no
question. It is told when it is used, for the storage and for other trials' sampler: with the end
of an attempt that is young then, else at once. A later attempt tells at once, too: the one before
may have died of it.

Invariant: what an objective never asks for is never told, and what it was given is told before the
trial's end is, or with it; every attempt is given the same.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any, Final

import redis
from optuna import distributions
from optuna._warnings import optuna_warn
from optuna.distributions import BaseDistribution, CategoricalDistribution

from workers.coordination.clock import lease_clock
from workers.logs import get_logger
from workers.protocol.errors import ObjectiveError, UnsuitableValueError
from workers.protocol.messages import Drawn
from workers.protocol.plain import plain_text
from workers.trials.held_lease import YOUNG_SECONDS, HeldLease

log = get_logger(__name__)

_NOT_DRAWN: Final = object()


class Suggestions:
    """The parameters of one attempt.

    Args:
        lease: The attempt's.
        ask: Asks the orchestrator for a parameter, from a distribution.
    """

    def __init__(self, lease: HeldLease, ask: Callable[[str, BaseDistribution], Any]) -> None:
        self._lease = lease
        self._ask = ask
        self._drawn = lease.grant.record.drawn
        self.stored: dict[str, Any] = dict(lease.grant.record.params)
        """The parameters known so far, as they are stored."""
        self._distributions: dict[str, BaseDistribution] = {}
        #: parameters as the objective's own objects
        self._values: dict[str, Any] = {}
        self._untold: dict[str, Drawn] = {}
        self._telling = threading.Lock()
        self._ripe_at = lease_clock() + (YOUNG_SECONDS if lease.grant.attempt == 1 else 0.0)
        lease.ripen(self.tell)

    @property
    def values(self) -> dict[str, Any]:
        """The parameters known so far, as the objective sees them."""
        return {**self.stored, **self._values}

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """What this objective has asked from."""
        return dict(self._distributions)

    @property
    def untold(self) -> dict[str, Drawn]:
        """What was drawn before, is used, and was not told yet."""
        with self._telling:
            return dict(self._untold)

    def suggest(
        self,
        name: str,
        distribution: BaseDistribution,
        read: Callable[[Any], Any] = lambda value: value,
    ) -> Any:
        """The trial's value of a parameter, asked for where it has none yet.

        Args:
            name: The parameter.
            distribution: What to suggest from.
            read: From the value as it is stored to the objective's own.
        """
        if not isinstance(name, str) or plain_text(name) != name:
            raise UnsuitableValueError(f"parameter {name!r:.80}: give its name as plain text")
        known = self._distributions.get(name)
        if known is not None:
            return self._suggested_before(name, known, distribution)
        if name not in self.stored:
            self.stored[name] = self._find(name, distribution)
        stored = self.stored[name]
        try:
            value = read(stored)
        except ValueError as error:
            raise _disagreement(name, stored, distribution) from error
        if not isinstance(distribution, CategoricalDistribution) and not _contains(
            distribution, value
        ):
            raise _disagreement(name, stored, distribution)
        self._distributions[name] = distribution
        self._values[name] = value
        return value

    def tell(self) -> None:
        """Tell what is used and was not told; again later if Redis is away."""
        with self._telling:
            lease = self._lease
            if not self._untold or lease.is_lost:
                return
            try:
                lease.leases.take(lease.number, lease.token, self._untold)
            except redis.RedisError as error:
                log.warning("params_not_told", error=str(error))
            else:
                self._untold = {}

    def _suggested_before(
        self, name: str, known: BaseDistribution, distribution: BaseDistribution
    ) -> Any:
        """The value that the trial has, as in Optuna: whatever is asked for now.

        Raises:
            ValueError: It was of another kind, or had other choices.
        """
        distributions.check_distribution_compatibility(known, distribution)
        if known != distribution:
            optuna_warn(
                f"parameter {name!r} was suggested from {known}, and now from {distribution}; it"
                f" stays {self._values[name]!r}"
            )
        return self._values[name]

    def _find(self, name: str, distribution: BaseDistribution) -> Any:
        """A value that the trial has not used yet: drawn before, or asked for."""
        drawn = self._drawn.get(name)
        value = _NOT_DRAWN if drawn is None else _suits(drawn, distribution)
        if value is _NOT_DRAWN:
            self.tell()  # the sampler draws by what the trial has
            return self._ask(name, distribution)
        self._lease.check()
        text = distributions.distribution_to_json(distribution)
        with self._telling:
            self._untold[name] = Drawn(distribution=text, value=value)
        if lease_clock() >= self._ripe_at:
            self.tell()
        return value


def _suits(drawn: Drawn, distribution: BaseDistribution) -> Any:
    """A drawn value, if Optuna would take it for what is asked from now.

    What was drawn together with others stands in any distribution that holds it.
    """
    if distributions.distribution_to_json(distribution) == drawn.distribution:
        return drawn.value
    if not drawn.is_joint:
        return _NOT_DRAWN
    known = distributions.json_to_distribution(drawn.distribution)
    try:
        distributions.check_distribution_compatibility(known, distribution)
    except ValueError:  # the orchestrator says so
        return _NOT_DRAWN
    return drawn.value if _contains(distribution, drawn.value) else _NOT_DRAWN


def _disagreement(name: str, value: Any, distribution: BaseDistribution) -> ObjectiveError:
    return ObjectiveError(
        f"{name}: this trial has {value!r}, which the objective's {distribution} does not hold;"
        " let the study's space and the objective agree"
    )


def _contains(distribution: BaseDistribution, value: Any) -> bool:
    try:
        internal = distribution.to_internal_repr(value)
    except ValueError:
        return False
    return not math.isnan(internal) and distribution._contains(internal)
