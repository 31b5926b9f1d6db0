"""Orders in a storage: trials that wait there with the parameters that people gave.

Invariant: an order is carried out once, by its id, which its trial keeps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from orchestrator.storage.attributes import ORDER_ATTR, RETRIES_ATTR
from orchestrator.storage.opening import StudyStorage
from orchestrator.storage.retriable import retriable
from workers.logs import get_logger
from workers.protocol.orders import Given, Order, Retry

log = get_logger(__name__)


def order_at_rest(url: str, name: str, orders: Iterable[Order]) -> int:
    """Carry orders out in the storage of a study that no fleet has; how many are new.

    Raises:
        InvalidInputError: An orchestrator has the study after all.
    """
    storage = StudyStorage.open(url)
    try:
        study = optuna.load_study(study_name=name, storage=storage.storage)
        count = carry_out(study, orders, carried_out(study))
        storage.sync()
        return count
    finally:
        storage.close()


def carried_out(study: optuna.Study) -> set[str]:
    """The ids of the orders that have their trials."""
    attrs = (trial.user_attrs.get(ORDER_ATTR) for trial in study.get_trials(deepcopy=False))
    return {str(each) for each in attrs if each is not None}


def carry_out(study: optuna.Study, orders: Iterable[Order], done: set[str]) -> int:
    """Have a study hold a waiting trial for each order; how many are new.

    Args:
        study: Open for writing.
        orders: By the time at which they were given.
        done: The ids of those that are carried out; the new ones are added.
    """
    count = 0
    for order in orders:
        for order_id, params, attrs in _trials_of(study, order):
            if order_id not in done:
                study.enqueue_trial(dict(params), user_attrs={ORDER_ATTR: order_id, **attrs})
                done.add(order_id)
                log.info("ordered", study=study.study_name, order=order_id, params=params)
                count += 1
    return count


def _trials_of(
    study: optuna.Study, order: Given | Retry
) -> Iterable[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """The id, the parameters and the attributes of each trial that an order asks for."""
    if isinstance(order, Given):
        return [(order.id, order.params, {})]
    failed = retriable(study.get_trials(deepcopy=False), order.numbers)
    return [
        (f"retry:{trial.number}", _params_of(trial), {RETRIES_ATTR: trial.number})
        for trial in failed
    ]


def _params_of(trial: FrozenTrial) -> dict[str, Any]:
    """What a trial ran with, or was to: one that was withdrawn may not have been asked for yet."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}
