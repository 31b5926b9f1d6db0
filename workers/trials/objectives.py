"""Objectives: from a study's `objective` to a callable, and its call with managers by type.

Whatever can be called with a trial alone is an objective, as in Optuna; further parameters that are
annotated with a manager get it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Final, get_type_hints

from workers.containers import Container
from workers.objective_source import is_shipped
from workers.protocol.errors import ObjectiveError, ObjectiveNotLoadedError
from workers.protocol.plain import describe_error
from workers.protocol.spec import FINETUNE, SELF_CHECK
from workers.trials.advice import advice_on
from workers.trials.handle import FleetTrial
from workers.trials.objective_modules import (
    ObjectiveModules,
    StaleExtensionError,
    find_attribute,
)

Objective = Callable[..., Any]

#: How much of an error's text is quoted.
_QUOTED: Final = 500


def load_objective(
    name: str,
    allowed: Collection[str],
    modules: ObjectiveModules | None = None,
    root: Path | None = None,
) -> Objective:
    """Import an objective: `finetune`, `package.module:function` or `/path/file.py:function`.

    Args:
        name: As the study names it.
        allowed: Modules (or packages, or files) that this worker may import objectives from.
        modules: What this process has imported before.
        root: Where the code lies that came with the study: of that, all is allowed, and it has the
            objective.

    Raises:
        ObjectiveNotLoadedError: It is not allowed here, or does not import.
        ObjectiveError: It is no callable.
        StaleExtensionError: This process cannot import it: another one must.
    """
    if name == FINETUNE:
        # with torchmetrics, it takes a process half as long to import as torch
        from workers.trials.finetune import finetune

        return finetune
    if name == SELF_CHECK:
        return self_check
    module_name, _, function_name = name.rpartition(":")
    _refuse_foreign(name, allowed, root)
    try:
        found: Any = find_attribute(
            (modules or ObjectiveModules()).load(module_name, root), function_name
        )
    except StaleExtensionError:
        raise
    except (Exception, SystemExit) as error:
        raise ObjectiveNotLoadedError(
            f"objective {name!r} does not import: {describe_error(error, _QUOTED)}"
            f"{advice_on(error)}"
        ) from error
    if not callable(found):
        raise ObjectiveError(f"objective {name!r} is a {type(found).__name__}, not a function")
    objective: Objective = found
    return objective


def _refuse_foreign(name: str, allowed: Collection[str], root: Path | None) -> None:
    """Refuse an objective from where this worker imports none for its study.

    Raises:
        ObjectiveNotLoadedError: It is of neither the study's files nor the allowed modules.
    """
    module_name = name.rpartition(":")[0]
    if root is not None and not is_shipped(name, root):
        raise ObjectiveNotLoadedError(
            f"objective {name!r}: its module is not among the files that the study ships; name its"
            " file in `code.ship`"
        )
    if root is None and not _is_allowed(module_name, allowed):
        raise ObjectiveNotLoadedError(
            f"objective {name!r}: this worker may import objectives only from"
            f" {', '.join(allowed) or 'nowhere'}; start it with FLEET_OBJECTIVES={module_name}"
        )


def self_check(trial: FleetTrial) -> float:
    """Ask, report and return, as a trial does that trains."""
    value = trial.suggest_float("x", 0.0, 1.0)
    trial.report(value, step=0)
    return value


def call_objective(objective: Objective, trial: FleetTrial, container: Container) -> Any:
    """Call an objective with the trial and the managers that its annotations name.

    Raises:
        ObjectiveError: It asks for something that is no manager.
    """
    return objective(trial, **_managers(objective, container))


def _managers(objective: Objective, container: Container) -> dict[str, Any]:
    """What an objective's parameters after the trial are to be."""
    arguments: dict[str, Any] = {}
    parameters = _parameters(objective)[1:]
    wanted = _annotations(objective) if parameters else {}
    for parameter in parameters:
        if parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}:
            continue
        annotation = wanted.get(parameter.name, parameter.annotation)
        manager = _manager(annotation, container)
        if manager is not None and parameter.kind is not parameter.POSITIONAL_ONLY:
            arguments[parameter.name] = manager
        elif parameter.default is parameter.empty:
            shown = (
                "not annotated" if annotation is parameter.empty else f"annotated {annotation!r}"
            )
            raise ObjectiveError(
                f"objective parameter {parameter.name!r} is {shown}; after the trial,"
                " an objective takes managers by type, such as `models: ModelManager`"
            )
    return arguments


def _parameters(objective: Objective) -> list[inspect.Parameter]:
    """The parameters of a callable; of one that does not tell them (in C), the trial alone."""
    try:
        found = list(inspect.signature(objective).parameters.values())
    except (TypeError, ValueError):
        return []
    # `*args` takes the trial and leaves what is after it
    return [found[0], *found] if found and found[0].kind is found[0].VAR_POSITIONAL else found


def _annotations(objective: Objective) -> dict[str, Any]:
    """The annotations, where all of them can be resolved; those of a type checker alone cannot."""
    target: Any = inspect.unwrap(getattr(objective, "func", objective))
    if not (inspect.isfunction(target) or inspect.ismethod(target)):
        target = type(target).__call__
    try:
        return get_type_hints(target)
    except Exception:  # noqa: BLE001 - annotations are code of the user's
        return {}


def _manager(annotation: Any, container: Container) -> Any:
    if isinstance(annotation, type):
        return container.get(annotation) if container.provides(annotation) else None
    if isinstance(annotation, str):
        return container.named(annotation.rpartition(".")[2])
    return None


def _is_allowed(module: str, allowed: Collection[str]) -> bool:
    return any(entry in {"*", module} or module.startswith(f"{entry}.") for entry in allowed)
