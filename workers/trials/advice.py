"""What an objective's error may mean where it was raised: in a worker, not by `python file.py`.

Invariant: advice follows an error's own text, and is empty where the place has no part in it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from workers.protocol.guarded_names import names_below_guard


def advice_on(error: BaseException) -> str:
    """The way out of an error, to follow its text; empty where there is none to tell."""
    for each in shown_chain(error):
        advice = _on_file(each) or _on_name(each) or _on_module(each)
        if advice:
            return f" ({advice})"
    return ""


def shown_chain(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that led to it, as a traceback shows them."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        before = None if current.__suppress_context__ else current.__context__
        current = current.__cause__ or before


def _on_file(error: BaseException) -> str:
    """On a file that is not there: relative paths depend on where a worker was started."""
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return ""
    with suppress(TypeError):  # its author may have given it anything for a name
        if error.filename is not None and Path(os.fsdecode(error.filename)).is_absolute():
            return ""
    return (
        f"the working directory of this worker is {_working_directory()}; name files from"
        " `Path(__file__).parent`, or start the worker where they are"
    )


def _working_directory() -> str:
    try:
        return str(Path.cwd())
    except OSError:
        return "removed"


def _on_name(error: BaseException) -> str:
    """On a global that only a script sets: a worker imports the module and runs no `__main__`."""
    if not isinstance(error, NameError) or error.__traceback__ is None:
        return ""
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    if error.name not in names_below_guard(trace.tb_frame.f_code.co_filename):
        return ""
    other = ", or use `trial.study`" if error.name == "study" else ""
    return (
        f'{error.name} is set below `if __name__ == "__main__":`, which a worker does not run;'
        f" set it at the top of the module{other}"
    )


def _on_module(error: BaseException) -> str:
    """On a module that is not there: it is imported where the worker runs."""
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        return ""
    return (
        f"this worker does not find {error.name}: install it there, or put its folder on the"
        " PYTHONPATH that the worker is started with"
    )
