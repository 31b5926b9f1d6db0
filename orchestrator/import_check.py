"""Imports one objective in a process of its own and says, as one line of JSON, how that went.

Run by the preflight, so that the orchestrator itself never imports torch.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from pathlib import Path


def find_problem(name: str) -> str | None:
    """What keeps `module:function` or `file.py:function` from being an objective, if anything."""
    module_name, _, function_name = name.rpartition(":")
    if module_name.endswith(".py"):
        path = Path(module_name)
        if not path.exists():
            return f"there is no file {path}"
        sys.path.insert(0, str(path.parent))
        module_name = path.stem
    try:
        found: object = importlib.import_module(module_name)
    except BaseException as error:  # noqa: BLE001 - a module may even exit
        return f"importing {module_name} raises {type(error).__name__}: {error}"
    for part in function_name.split("."):
        if not hasattr(found, part):
            functions = ", ".join(name for name in dir(found) if not name.startswith("_"))
            return f"{module_name} has no {part!r} (it has {functions})"
        found = getattr(found, part)
    if not callable(found):
        return f"it is a {type(found).__name__}, not a function"
    if not inspect.signature(found).parameters:
        return "it takes no argument, and an objective takes the trial"
    return None


if __name__ == "__main__":
    print(json.dumps({"problem": find_problem(sys.argv[1])}))
