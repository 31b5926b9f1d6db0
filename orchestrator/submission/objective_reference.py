"""From an objective that a script holds to the text by which a worker imports the same one.

Objectives travel by name, never as code: `module:name` or `/path/file.py:name`, where the name may
have dots.

Invariant: importing what a reference names, in the process that made it, gives the very objective.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Final

from workers.protocol.errors import InvalidInputError
from workers.protocol.guarded_names import names_below_guard
from workers.protocol.plain import plain_text

_MAIN: Final = "__main__"

#: How much of an objective's own text is shown.
_SHOWN: Final = 80


def reference_to(objective: Callable[..., Any]) -> str:
    """The text by which a worker finds a function, a method, an instance or a partial.

    Raises:
        InvalidInputError: It cannot be called, or no module has a name for it.
    """
    if not callable(objective):
        raise InvalidInputError(
            f"objective = {_shown(objective)}: give a function, or the text `module:function`"
        )
    if _is_typed(objective):
        raise _typed(_shown(objective))
    problem = InvalidInputError(
        f"objective {_shown(objective)}{_place(objective)}: a worker imports an objective by a name"
        " of its module, and this one has none; define it with `def` at the top of a module, or"
        " give it a name there (`objective = Model().fit`) and hand in that"
    )
    for module, name in _candidates(objective):
        if _is_found(module, name, objective):
            try:
                return f"{_module_reference(module, name)}:{name}"
            except InvalidInputError as error:  # another module may have it, too
                problem = error
    raise problem


def _candidates(objective: Callable[..., Any]) -> Iterator[tuple[ModuleType, str]]:
    """Modules with the names that may stand for an objective in them, the most natural first."""
    own = sys.modules.get(getattr(objective, "__module__", None) or "")
    name = getattr(objective, "__qualname__", None)
    if own is not None and isinstance(name, str):
        yield own, name
    yield from _names_of(objective)
    owner = getattr(objective, "__self__", None)
    if owner is not None and isinstance(name, str):
        method = getattr(objective, "__name__", name)
        yield from ((module, f"{each}.{method}") for module, each in _names_of(owner))


def _names_of(thing: object) -> Iterator[tuple[ModuleType, str]]:
    """The names that modules have for a thing: the script's, then its type's, then any other's."""
    kind = type(thing).__module__
    first = [sys.modules[name] for name in (_MAIN, kind) if name in sys.modules]
    for module in [*first, *list(sys.modules.values())]:
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is thing:
                yield module, name


def _is_found(module: ModuleType, path: str, objective: Callable[..., Any]) -> bool:
    """Whether a dotted name stands for an objective in a module."""
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part, None) if part.isidentifier() else None
    are_methods = inspect.ismethod(found) and inspect.ismethod(objective)
    return found is objective or (are_methods and found == objective)


def _module_reference(module: ModuleType, name: str) -> str:
    """How a worker imports a module for a name: by its own, or a script by its file.

    Raises:
        InvalidInputError: Imported, the script does not have the name, or there is no file of it.
    """
    if module.__name__ != _MAIN:
        return module.__name__
    file = _file_of_main()
    if file is None:
        raise _typed(name)
    if name.partition(".")[0] in names_below_guard(file):
        raise InvalidInputError(
            f'objective {name!r} is set below `if __name__ == "__main__":`, which a worker does'
            f" not run; set it at the top of {file.name}"
        )
    # `python -m package.module`: by its file, its package could not be imported
    started_as = getattr(getattr(module, "__spec__", None), "name", "")
    return started_as if "." in started_as else str(file)


def _typed(name: str) -> InvalidInputError:
    return InvalidInputError(
        f"objective {name!r} was typed into an interactive session or a notebook, and workers"
        " import objectives; put it into a file, and hand in what that has, or the text"
        " `that_file.py:function`"
    )


def _code_of(objective: object) -> CodeType | None:
    """What a function, or that of a method or a partial, was compiled to."""
    function = inspect.unwrap(getattr(objective, "func", objective))  # type: ignore[arg-type]
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    return code if isinstance(code, CodeType) else None


def _is_typed(objective: object) -> bool:
    """Whether it is a function of the main program's that no file holds: a cell, a console line."""
    code = _code_of(objective)
    own = getattr(objective, "__module__", _MAIN)
    return code is not None and own == _MAIN and not Path(code.co_filename).is_file()


def _place(objective: object) -> str:
    """The file and the line of a function, for a message: of anonymous ones there are many."""
    code = _code_of(objective)
    return "" if code is None else f" ({Path(code.co_filename).name}:{code.co_firstlineno})"


def _file_of_main() -> Path | None:
    """The file of the script that this process runs; None in an interactive session."""
    file = getattr(sys.modules[_MAIN], "__file__", None)
    path = None if file is None else Path(file).absolute()
    return path if path is not None and path.exists() else None


def _shown(objective: object) -> str:
    """An objective's name, else its own text, else its type: that text is its author's code."""
    name = getattr(objective, "__qualname__", None)
    if isinstance(name, str):
        return name
    try:
        return plain_text(repr(objective), _SHOWN)
    except Exception:  # noqa: BLE001 - whatever it does
        return f"of type {type(objective).__qualname__}"
