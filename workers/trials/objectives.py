"""Objectives: from a study's `objective` to a callable, with managers passed in by type."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, get_type_hints

from workers.containers import Container
from workers.protocol.errors import ObjectiveError
from workers.protocol.spec import FINETUNE
from workers.trials.finetune import finetune
from workers.trials.handle import FleetTrial

Objective = Callable[..., Any]


def load_objective(name: str, allowed: Collection[str]) -> Objective:
    """Import an objective: `finetune`, `package.module:function` or `/path/file.py:function`.

    Args:
        name: As the study names it.
        allowed: Modules (or packages, or files) that this worker may import objectives from.

    Raises:
        ObjectiveError: It is not allowed here, or does not import, or is no callable.
    """
    if name == FINETUNE:
        return finetune
    module_name, _, function_name = name.rpartition(":")
    if not _is_allowed(module_name, allowed):
        raise ObjectiveError(
            f"objective {name!r}: this worker may import objectives only from"
            f" {', '.join(allowed) or 'nowhere'}; start it with FLEET_OBJECTIVES={module_name}"
        )
    try:
        found: Any = import_objective_module(module_name)
        for part in function_name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise ObjectiveError(f"objective {name!r} does not import: {error}") from error
    if not callable(found):
        raise ObjectiveError(f"objective {name!r} is a {type(found).__name__}, not a function")
    objective: Objective = found
    return objective


def import_objective_module(name: str) -> Any:
    """Import a module by dotted name, or a file by its path under its own stem."""
    if not name.endswith(".py"):
        return importlib.import_module(name)
    path = Path(name)
    # by name on the path, so that loader processes can import it too
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    return importlib.import_module(path.stem)


def call_objective(objective: Objective, trial: FleetTrial, container: Container) -> Any:
    """Call an objective with the trial and the managers that its annotations name.

    Raises:
        ObjectiveError: It asks for something that is no manager.
    """
    parameters = list(inspect.signature(objective).parameters.values())[1:]
    hints = get_type_hints(objective) if parameters else {}
    arguments: dict[str, Any] = {}
    for parameter in parameters:
        wanted = hints.get(parameter.name)
        if isinstance(wanted, type) and container.provides(wanted):
            arguments[parameter.name] = container.get(wanted)
        elif parameter.default is inspect.Parameter.empty:
            raise ObjectiveError(
                f"objective parameter {parameter.name!r} is annotated {wanted!r}; after the trial,"
                " an objective takes managers by type, such as `models: ModelManager`"
            )
    return objective(trial, **arguments)


def _is_allowed(module: str, allowed: Collection[str]) -> bool:
    return any(entry in {"*", module} or module.startswith(f"{entry}.") for entry in allowed)
