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
from workers.protocol.errors import InvalidInputError
from workers.protocol.guarded_names import names_below_guard


def find_problem(name: str) -> str | None:
    """What keeps `module:function` or `file.py:function` from being an objective, if anything."""
    module_name, _, function_name = name.rpartition(":")
    if module_name.endswith(".py"):
        path = Path(module_name)
        if not path.exists():
            return f"there is no file {path}"
        sys.path.insert(0, str(path.parent))
        module_name = path.stem
    sys.argv[:] = [name.rpartition(":")[0]]
    try:
        with importing(sys.argv[0]):
            located = importlib.util.find_spec(module_name)
            if located is not None and located.has_location:
                sys.argv[:] = [str(located.origin)]
            found: object = importlib.import_module(module_name)
    except InvalidInputError as error:
        return str(error)
    except BaseException as error:  # noqa: BLE001 - a module may even exit
        return f"importing {module_name} raises {describe(error)}"
    for part in function_name.split("."):
        if not hasattr(found, part):
            return f"{module_name} has no {part!r}{_hint(found, part)}"
        found = getattr(found, part)
    if not callable(found):
        return f"it is a {type(found).__name__}, not a function"
    return (
        None if takes_a_trial(found) else "it takes no argument, and an objective takes the trial"
    )


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
    Path(answer).write_text(json.dumps({"problem": find_problem(reference)}))
