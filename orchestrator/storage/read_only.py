"""Results that can be read and not written: the orchestrator is the only writer.

Invariant: no method of an Optuna storage that changes something reaches what is below.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from optuna.storages import BaseStorage, RDBStorage

from workers.protocol.errors import FleetError


def _refused(name: str) -> Callable[..., NoReturn]:
    def refuse(self: object, *_: Any, **__: Any) -> NoReturn:
        del self
        raise FleetError(
            f"this study is open for reading only: the orchestrator is its only writer, and"
            f" {name} was refused; submit the study again to change it, or work on a copy"
            " (`optuna.copy_study`)"
        )

    return refuse


class _Refusing:
    """The methods of an Optuna storage that write, each of which refuses."""

    create_new_study = _refused("create_new_study")
    delete_study = _refused("delete_study")
    set_study_user_attr = _refused("set_study_user_attr")
    set_study_system_attr = _refused("set_study_system_attr")
    create_new_trial = _refused("create_new_trial")
    set_trial_param = _refused("set_trial_param")
    set_trial_state_values = _refused("set_trial_state_values")
    set_trial_intermediate_value = _refused("set_trial_intermediate_value")
    set_trial_user_attr = _refused("set_trial_user_attr")
    set_trial_system_attr = _refused("set_trial_system_attr")
    record_heartbeat = _refused("record_heartbeat")


class ReadOnlyStorage(_Refusing, BaseStorage):
    """The base of storages that are only read.

    Raises:
        FleetError: By each method that would write.
    """


class ReadOnlyDatabase(_Refusing, RDBStorage):
    """An Optuna database whose writing methods refuse.

    Raises:
        FleetError: By each method that would write.
    """

    # of Optuna's cache before a database
    _create_new_trial = _refused("create_new_trial")
    _set_trial_param = _refused("set_trial_param")
