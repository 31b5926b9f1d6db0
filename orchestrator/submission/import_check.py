"""Imports one objective in a process of its own and writes down, as JSON, how that went.

Run by the preflight, so that the orchestrator itself never imports torch. What the module prints,
at import or at exit, goes where nobody looks for the answer.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import sys
from pathlib import Path

from workers.importing import importing
from workers.installed import missing
from workers.protocol.errors import InvalidInputError
from workers.protocol.guarded_names import names_below_guard


class Absent(Exception):  # noqa: N818 - it is no error where no trial runs
    """A package that the objective imports is not on this host; the name of it."""


def find_problem(name: str) -> str | None:
    """What keeps `module:function` or `file.py:function` from being an objective, if anything.

    Raises:
        Absent: This host runs no trials, and lacks a package that the objective imports.
    """
    module_name, _, function_name = name.rpartition(":")
    if module_name.endswith(".py"):
        path = Path(module_name)
        if not path.exists():
            return f"there is no file {path}"
        sys.path.insert(0, str(path.parent))
        module_name = path.stem
    try:
        found = _imported(name.rpartition(":")[0], module_name)
    except Absent:
        raise
    except InvalidInputError as error:
        return str(error)
    except BaseException as error:  # noqa: BLE001 - a module may even exit
        return f"importing {module_name} raises {describe(error)}"
    return _find_problem_of(found, module_name, function_name)


def _imported(shown: str, module_name: str) -> object:
    """A module, imported as a worker does.

    Raises:
        Absent: This host runs no trials, and lacks a package that the module imports.
        BaseException: Whatever importing it raises.
    """
    sys.argv[:] = [shown]
    try:
        with importing(shown):
            located = importlib.util.find_spec(module_name)
            if located is not None and located.has_location:
                sys.argv[:] = [str(located.origin)]
            return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if missing() and error.name is not None and _is_elsewhere(error.name, module_name):
            raise Absent(error.name) from error
        raise


def _find_problem_of(found: object, module_name: str, function_name: str) -> str | None:
    """What keeps a name of a module from being an objective, if anything."""
    for part in function_name.split("."):
        if not hasattr(found, part):
            return f"{module_name} has no {part!r}{_hint(found, part)}"
        found = getattr(found, part)
    if not callable(found):
        return f"it is a {type(found).__name__}, not a function"
    return (
        None if takes_a_trial(found) else "it takes no argument, and an objective takes the trial"
    )


def _is_elsewhere(name: str, module_name: str) -> bool:
    """Whether a module that is not found is another package's than the objective's own."""
    return name.partition(".")[0] != module_name.partition(".")[0]


def _hint(found: object, name: str) -> str:
    """Why a module has no such name, or which it has."""
    if name in names_below_guard(getattr(found, "__file__", None) or ""):
        return ': it is set below `if __name__ == "__main__":`, which a worker does not run'
    functions = ", ".join(name for name in dir(found) if not name.startswith("_"))
    return f" (it has {functions})"


def takes_a_trial(found: object) -> bool:
    """Whether a callable takes one argument by position; of one in C, nobody can tell."""
    try:
        parameters = inspect.signature(found).parameters.values()  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return True
    kinds = {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD}
    return any(parameter.kind not in kinds for parameter in parameters)


def describe(error: BaseException) -> str:
    """An error in one line, whatever its own text does."""
    try:
        text = str(error)
    except BaseException:  # noqa: BLE001 - its text is its author's code
        text = "(its text cannot be had)"
    return f"{type(error).__name__}: {text}".encode("utf-8", "backslashreplace").decode()[:2000]


if __name__ == "__main__":
    reference, answer = sys.argv[1:]
    try:
        told = {"problem": find_problem(reference)}
    except Absent as absent:
        told = {"problem": None, "absent": str(absent)}
    Path(answer).write_text(json.dumps(told))
