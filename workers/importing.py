"""A module that is being imported for its objective, here or at submission: it runs no study.

A script without a guard would hand itself in again, or optimise on its own, in each process that
imports it.

Invariant: outside `importing`, Optuna's studies do what they always do.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import optuna

from workers.protocol.errors import InvalidInputError

#: Names the module; in the environment, so that processes that it starts know, too.
IMPORTING: Final = "FLEET_IMPORTING"


@contextmanager
def importing(module: str) -> Iterator[None]:
    """Refuse studies while the code of this block imports a module."""
    before, optimize = os.environ.get(IMPORTING), optuna.Study.optimize

    @functools.wraps(optimize)
    def optimize_later(*arguments: Any, **options: Any) -> None:
        refuse_while_importing("runs a study with `study.optimize`")
        optimize(*arguments, **options)  # by whoever kept the function until then

    os.environ[IMPORTING] = module
    optuna.Study.optimize = optimize_later  # type: ignore[method-assign]
    try:
        yield
    finally:
        optuna.Study.optimize = optimize  # type: ignore[method-assign]
        if before is None:
            os.environ.pop(IMPORTING, None)
        else:
            os.environ[IMPORTING] = before


def refuse_while_importing(what: str) -> None:
    """Refuse what a module does at its top.

    Args:
        what: Such as `hands in a study`.

    Raises:
        InvalidInputError: A module is being imported; the message names it and the way out.
    """
    module = os.environ.get(IMPORTING)
    if module is not None:
        raise InvalidInputError(
            f"{module} {what} while it is imported for its objective; put that below"
            ' `if __name__ == "__main__":`'
        )
