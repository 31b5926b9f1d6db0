"""The file that an objective comes from, and what tells one state of it from another.

Invariant: nothing of it is imported.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path


def find_source(objective: str, search_path: Sequence[str] | None = None) -> Path | None:
    """The file of an objective's module; None for one that is built in, or has none here.

    Args:
        objective: `package.module:function` or `/path/file.py:function`.
        search_path: Where modules are looked for; by default what is imported, then `sys.path`.
    """
    module = objective.rpartition(":")[0]
    if module.endswith(".py"):
        found = Path(module)
    else:
        loaded = None if search_path is not None else sys.modules.get(module)
        origin = getattr(loaded, "__file__", None) or _origin(module, search_path or sys.path)
        if origin is None:
            return None
        found = Path(origin)
    return found if found.is_file() else None


def find_shipped(objective: str, root: Path) -> Path | None:
    """The file of an objective's module in the code that came with its study; None if not there."""
    module, _, function = objective.rpartition(":")
    # a path below the root; anything else would be found, or not, by where this process stands
    name = str(root / module) if module.endswith(".py") else module
    found = find_source(f"{name}:{function}", [str(root)])
    return found if found is not None and found.resolve().is_relative_to(root.resolve()) else None


def is_shipped(objective: str, root: Path) -> bool:
    """Whether an objective's module is in the code that came with its study."""
    return find_shipped(objective, root) is not None


def sha256_of(file: Path) -> str | None:
    """The sum of a file, computed once for each state of it; None if it cannot be read."""
    try:
        status = file.stat()
        return _sha256_of(file, status.st_mtime_ns, status.st_size)
    except OSError:
        return None


@functools.lru_cache(maxsize=64)
def _sha256_of(file: Path, _mtime_ns: int, _size: int) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _origin(module: str, search_path: Sequence[str]) -> str | None:
    """Where a module lies by its dotted name; its packages are not imported."""
    names, locations = module.split("."), list(search_path)
    origin = None
    for depth in range(1, len(names) + 1):
        try:
            spec = PathFinder.find_spec(".".join(names[:depth]), locations)
            if spec is None:
                return None
            origin = spec.origin if spec.has_location else None
            locations = list(spec.submodule_search_locations or [])
        except (ImportError, KeyError, ValueError):  # a package without a file of its own
            return None
    return origin
