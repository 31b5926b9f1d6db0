"""The classes of a data set that names them beside its rows, which may hold their numbers.

Invariant: an integer is the number of a class, whatever the classes are called.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final, Literal

from workers.texts.values import UnusableError, whole

#: How text in the label column may be meant.
Reading = Literal["names", "numbers"]

#: How many names a message shows.
_SHOWN: Final = 10


class ClassNames:
    """The names of classes, by their numbers.

    Args:
        names: None, where rows hold the names themselves.
    """

    def __init__(self, names: Sequence[str] = ()) -> None:
        self._names = tuple(names)
        self._known = frozenset(names)

    def __bool__(self) -> bool:
        return bool(self._names)

    def of_numbers(self, values: Sequence[Any]) -> Sequence[Any]:
        """What label columns hold, with names in place of integers.

        Raises:
            UnusableError: One is the number of no class.
        """
        if not self._names:
            return values
        return [
            [self._of_number(each) for each in value]
            if isinstance(value, list)
            else self._of_number(value)
            for value in values
        ]

    def readings(self, labels: Sequence[str]) -> set[Reading]:
        """How labels that are text can be meant, all of them alike."""
        found: set[Reading] = set()
        if self._known.issuperset(labels):
            found.add("names")
        if all(map(self._is_number, labels)):
            found.add("numbers")
        return found

    def of_text(self, labels: Sequence[str]) -> tuple[str, ...]:
        """The names of classes whose numbers are written so."""
        return tuple(self._names[int(each)] for each in labels)

    def refusal(self, label: str) -> str:
        """What is wrong with a label that stands for none of them."""
        shown = ", ".join(self._names[:_SHOWN]) + (", ..." if len(self._names) > _SHOWN else "")
        return (
            f"{label!r} is no class of it (it has {shown}); -1 stands for a hidden one: take a"
            " split with labels"
        )

    def _is_number(self, text: str) -> bool:
        return text.isascii() and text.isdecimal() and int(text) < len(self._names)

    def _of_number(self, value: Any) -> Any:
        number = whole(value)
        if isinstance(number, bool) or not isinstance(number, int | float | Decimal):
            return value
        if not isinstance(number, int) or not 0 <= number < len(self._names):
            raise UnusableError(self.refusal(str(number)))
        return self._names[number]


def has_text(values: Sequence[Any]) -> bool:
    """Whether a label column, or an element of its lists, holds text."""
    return any(
        has_text(value) if isinstance(value, list) else isinstance(value, str) for value in values
    )


#: Of data whose rows hold the names.
NO_NAMES: Final = ClassNames()
