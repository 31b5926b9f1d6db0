"""Container: builds managers in the order their constructors ask for, closes them in reverse.

All at once, or each when it is first asked for, with what it needs.

Invariant: a container serves and closes only in the process that opened it. A forked child that
inherits one can neither use it nor run its parent's teardown.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from graphlib import CycleError, TopologicalSorter
from typing import Any, Self, TypeVar, get_type_hints

from workers.protocol.errors import ContainerError, ForeignProcessError, NotInitializedError

T = TypeVar("T")

_WAY_OUT = "call workers.managers.process_init.ensure_process_initialized(config) first"


def needs(provider: type[Any]) -> dict[str, type[Any]]:
    """The constructor's parameters and the classes they are annotated with."""
    if provider.__init__ is object.__init__:
        return {}
    hints = get_type_hints(provider.__init__)
    hints.pop("return", None)
    return hints


def plan(providers: Iterable[type[Any]], values: Iterable[type[Any]] = ()) -> list[type[Any]]:
    """Order `providers` so that each comes after all it needs.

    Args:
        providers: The classes to build, in any order.
        values: Classes of which an instance is at hand already.

    Raises:
        ContainerError: A need that nobody provides, or a circle of needs.
    """
    wanted, at_hand = list(providers), set(values)
    graph: dict[type[Any], list[type[Any]]] = {}
    for provider in wanted:
        graph[provider] = [need for need in needs(provider).values() if need not in at_hand]
        for name, need in needs(provider).items():
            if need not in at_hand and need not in wanted:
                raise ContainerError(
                    f"{provider.__name__}({name}: {need.__name__}): nothing provides"
                    f" {need.__name__}; add it to the container's providers"
                )
    try:
        return list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        circle = " -> ".join(step.__name__ for step in error.args[1])
        raise ContainerError(f"managers need one another in a circle: {circle}") from error


class Container:
    """One instance of each provider, each opened after what it needs, closed in reverse.

    Providers that are context managers are entered; others are only built. The plan is checked
    on construction, before anything is built.

    Raises:
        ContainerError: The plan has a missing or a circular need.
    """

    def __init__(self, providers: Sequence[type[Any]], values: Sequence[object] = ()) -> None:
        self.plan = plan(providers, map(type, values))
        self._instances: dict[type[Any], Any] = {type(value): value for value in values}
        self._stack = ExitStack()
        self._owner_pid: int | None = None
        #: one thread opens at a time; others that ask meanwhile wait for it
        self._opening = threading.RLock()

    @property
    def is_open_here(self) -> bool:
        """Whether this process opened the container and has not closed it."""
        return self._owner_pid == os.getpid()

    def open(self) -> Self:
        """Build and enter all providers; if one fails, those before it are closed again."""
        self.open_as_asked()
        try:
            self.open_all()
        except BaseException:
            self.close()
            raise
        return self

    def open_as_asked(self) -> Self:
        """Build and enter each provider when it is first asked for, after those that it needs.

        One that fails leaves those open that it needs, and is tried again when it is asked for.
        """
        if self._owner_pid is not None:
            raise ContainerError("this container was opened before; build a new one")
        self._owner_pid = os.getpid()
        self._stack.callback(self._forget)
        return self

    def open_all(self) -> None:
        """Build and enter those that nobody has asked for yet."""
        for provider in self.plan:
            self.get(provider)

    def get(self, provider: type[T]) -> T:
        """The instance of `provider`.

        Raises:
            NotInitializedError: The container is not open.
            ForeignProcessError: Another process opened it.
            ContainerError: It holds no such provider.
        """
        self._check_process(provider.__name__)
        if not self.provides(provider):
            held = ", ".join(sorted(each.__name__ for each in self._provided))
            raise ContainerError(f"no {provider.__name__} in this container; it has {held}")
        if provider not in self._instances:
            with self._opening:
                self._open(provider)
        instance: T = self._instances[provider]
        return instance

    def provides(self, provider: type[Any]) -> bool:
        """Whether `get(provider)` would find something."""
        return provider in self._provided

    def named(self, name: str) -> Any:
        """The instance whose class has that name, or None."""
        found = [provided for provided in self._provided if provided.__name__ == name]
        return self.get(found[0]) if len(found) == 1 else None

    def close(self) -> None:
        """Close all managers, the last opened first, even when one of them fails.

        Safe to call twice; does nothing in a process that did not open the container.
        """
        if self.is_open_here:
            self._stack.close()

    def __enter__(self) -> Self:
        return self if self.is_open_here else self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _provided(self) -> set[type[Any]]:
        return {*self.plan, *self._instances}

    def _open(self, provider: type[Any]) -> None:
        if provider in self._instances:
            return
        required = needs(provider)
        for need in required.values():
            self._open(need)
        instance = provider(**{name: self._instances[need] for name, need in required.items()})
        if isinstance(instance, AbstractContextManager):
            self._stack.enter_context(instance)
        self._instances[provider] = instance

    def _check_process(self, wanted: str) -> None:
        if self._owner_pid is None:
            raise NotInitializedError(f"{wanted}: no managers are open in this process; {_WAY_OUT}")
        if not self.is_open_here:
            raise ForeignProcessError(
                f"{wanted}: these managers belong to process {self._owner_pid}, this is"
                f" {os.getpid()}; {_WAY_OUT}"
            )

    def _forget(self) -> None:
        for provider in self.plan:
            self._instances.pop(provider, None)
        self._owner_pid = None
