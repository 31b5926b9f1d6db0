"""The modules that objectives come from: imported by name or by file, and anew when that is due.

A process runs trials of many studies. Two of them may have a `train.py` each, and a file may be
edited between two: modules below the folder of the study before are dropped when the study's folder
or one of these files changes, so that none runs the other's code.

Invariant: a module that lies in no study's folder (a library's, the framework's) is never dropped.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from workers.importing import importing
from workers.logs import get_logger
from workers.managers.process_state import Remembered, remember_settings

log = get_logger(__name__)

#: Never a study's, wherever they lie.
_FRAMEWORK: Final = frozenset({"workers", "orchestrator"})


#: Two seconds of a file's time, one of them begun.
_YOUNG_SECONDS: Final = 2.0


class StaleExtensionError(Exception):
    """A C extension of another study, or of an older state of a file, is loaded: it stays."""


@dataclass
class ObjectiveModules:
    """What this process has imported for objectives."""

    _folder: Path | None = None
    #: module -> its file's time and size when it was imported
    _seen: dict[str, tuple[int, int]] = field(default_factory=dict)
    #: dotted name -> the folder that its import was found in
    _roots: dict[str, Path] = field(default_factory=dict)
    #: dotted name -> what importing it set in this process
    _settings: dict[str, list[Remembered]] = field(default_factory=dict)
    #: what was put on the import path here
    _on_path: list[str] = field(default_factory=list)
    _writes_bytecode: bool = field(default_factory=lambda: not sys.dont_write_bytecode)
    """Whether this process writes any at all."""
    #: what was there before the first objective: none of a study's
    _before: frozenset[str] = field(default_factory=lambda: frozenset(sys.modules))
    #: what `_find_own` found last, and in which folder among which modules
    _own_found: dict[str, Path] = field(default_factory=dict)
    _own_found_in: tuple[Any, ...] | None = None

    def load(self, name: str, root: Path | None = None) -> ModuleType:
        """Import a module by dotted name, or a file by its path under its own stem.

        It finds `sys.argv` as if its file had been run, without arguments.

        Args:
            name: The module's.
            root: The folder that all code of the study lies below, where it came with the study.

        Raises:
            StaleExtensionError: A module that must be dropped cannot be; this process must end.
            Exception: Whatever importing it raises.
        """
        if root is not None and name.endswith(".py"):
            name = str(root / name)
        folder = self._enter(name, root)
        sys.argv[:] = [name]
        with importing(name), self._with_its_settings(name):
            if folder is None:
                sys.argv[:] = [_file_of(name)]
            module = importlib.import_module(Path(name).stem if folder is not None else name)
        if root is not None:
            _refuse_others(module, root)
        elif folder is None:
            self._folder = self._roots[name] = _root_of(module)
        self._note()
        return module

    @contextmanager
    def _with_its_settings(self, name: str) -> Iterator[None]:
        """Have what a module sets at its top, such as a default dtype, hold for each of its trials.

        It is put back after the trial, and a module that is loaded does not run again.
        """
        dotted = Path(name).stem if name.endswith(".py") else name
        if dotted in sys.modules:
            yield
            for each in self._settings.get(dotted, []):
                each.restore()
            return
        before = remember_settings()
        yield
        after = remember_settings()
        changed = {each.what for each in before if not each.is_unchanged()}
        self._settings[dotted] = [each for each in after if each.what in changed]

    def note(self) -> None:
        """Take note of what was imported since: an objective may import in its body."""
        self._note()

    def _enter(self, name: str, shipped: Path | None) -> Path | None:
        """Make the folder of a file the first place to import from; None for a dotted name."""
        folder = Path(name).parent if name.endswith(".py") else None
        root = shipped or (self._roots.get(name) if folder is None else folder)
        if root != self._folder or self._has_changed():
            self._drop()
            self._folder = root
        # by name on the path, so that loader processes can import it, too
        places = list(dict.fromkeys(str(each) for each in (folder, shipped) if each is not None))
        if sys.path[: len(places)] != places:
            sys.path[:0] = places
            self._on_path = places
        # what came with a study stays as it came, whoever may write there
        sys.dont_write_bytecode = shipped is not None or not self._writes_bytecode
        if shipped is not None:
            _show_to_programs(places)
        return folder

    def _own(self) -> dict[str, Path]:
        """The modules that lie in the study's folder, and where; looked for if any is new."""
        # what is imported comes last: neither number nor last one are as they were then
        last = next(reversed(sys.modules))
        looked_in = self._folder, len(sys.modules), last, sys.modules.get(last)
        if looked_in != self._own_found_in:
            self._own_found, self._own_found_in = self._find_own(), looked_in
        return self._own_found

    def _find_own(self) -> dict[str, Path]:
        if self._folder is None:
            return {}
        below, found = os.path.join(self._folder, ""), {}  # noqa: PTH118 - with its separator
        # a copy is made in one go: during a list of items, other code may run, and import something
        for name, module in sys.modules.copy().items():
            # first what is quick to tell: thousands were imported before any objective
            if name in self._before or name.partition(".")[0] in _FRAMEWORK:
                continue
            place = _place_of(module)
            if place is None or not place.startswith(below):
                continue
            path = Path(place)
            if "site-packages" not in path.parts:
                found[name] = path
        return found

    def _has_changed(self) -> bool:
        return any(
            self._seen.get(name) not in {None, _state_of(file)}
            for name, file in self._own().items()
        )

    def _note(self) -> None:
        for name, file in self._own().items():
            if name not in self._seen:
                self._seen[name] = _state_of(file)
                _drop_young_bytecode(file)

    def _drop(self) -> None:
        own = self._find_own()
        for name, file in own.items():
            if file.name.endswith(tuple(EXTENSION_SUFFIXES)):
                raise StaleExtensionError(f"{name} ({file}) is a C extension and stays loaded")
        for name, file in own.items():
            del sys.modules[name]
            _drop_young_bytecode(file)
        if own:
            log.info("modules_dropped", folder=str(self._folder), modules=sorted(own))
        self._seen.clear()
        sys.path[:] = [entry for entry in sys.path if entry not in self._on_path]
        self._on_path = []
        importlib.invalidate_caches()


def _show_to_programs(places: list[str]) -> None:
    """Have programs that a trial starts find its study's modules; put back with the environment."""
    given = [place for place in places if os.pathsep not in place]
    before = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([*given, *before]))
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"


def _refuse_others(module: ModuleType, root: Path) -> None:
    """Refuse a module that does not come from where its study's code lies."""
    place = _place_of(module)
    if place is None or not place.startswith(os.path.join(root, "")):  # noqa: PTH118 - with its end
        raise ImportError(
            f"{module.__name__!r} is {place or 'built in'} in this process, and not what the study"
            " ships; rename that"
        )


def _place_of(module: ModuleType) -> str | None:
    """A module's file; of a package without one, its folder."""
    place = getattr(module, "__file__", None)
    if place is None:
        with suppress(KeyError):  # it asks for its parent, which may be gone
            place = next(iter(getattr(module, "__path__", None) or ()), None)
    return place if isinstance(place, str) else None


def _root_of(module: ModuleType) -> Path:
    """The folder that a module's top-level package, or the module itself, lies in."""
    file = Path(module.__file__ or "/nowhere/")
    depth = module.__name__.count(".") + (file.name == "__init__.py")
    return file.parents[min(depth, len(file.parents) - 1)]


def _file_of(name: str) -> str:
    """Where a module lies by its dotted name, whose packages are imported; else the name."""
    found = importlib.util.find_spec(name)
    return found.origin if found is not None and found.has_location and found.origin else name


def _drop_young_bytecode(file: Path) -> None:
    """Remove the bytecode of a file that was edited just now.

    It knows the file's time by the second: an edit of the same length, within that, would not show
    in processes that are started later, a loader's.
    """
    with suppress(OSError, NotImplementedError):
        if time.time() - file.stat().st_mtime < _YOUNG_SECONDS:
            Path(importlib.util.cache_from_source(file)).unlink()


def find_attribute(module: Any, path: str) -> Any:
    """What a dotted name stands for in a module.

    Raises:
        AttributeError: There is nothing of that name.
    """
    found = module
    for part in path.split("."):
        found = getattr(found, part)
    return found


def _state_of(file: Path) -> tuple[int, int]:
    try:
        status = file.stat()
    except OSError:
        return (0, 0)
    # a folder changes with the bytecode in it
    return (status.st_mtime_ns, status.st_size) if stat.S_ISREG(status.st_mode) else (0, 0)
