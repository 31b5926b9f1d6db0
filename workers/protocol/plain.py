"""What users hand over, made plain: numbers, text and JSON that every side can send and store.

| given | becomes |
|---|---|
| Python, NumPy and torch numbers, arrays and tensors of one element | a number |
| text | itself; a lone surrogate is escaped; over 2**20 characters are cut off |
| list, tuple, set, frozenset, deque, range | a list (of a set, in order) |
| mapping | an object; its keys as `json` writes them |
| NumPy array, tensor, of up to 10,000 elements | nested lists |
| Path, UUID, torch's and NumPy's types and devices | text |
| datetime, date, time, NumPy's datetime | ISO 8601 text; timedelta: seconds |
| Decimal, Fraction | a number |
| Enum | its value |
| dataclass, pydantic model | an object of its fields |

Invariant: what these functions return, `json` writes as UTF-8 and reads back equal (NaN as NaN).
"""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import PurePath
from typing import Any, Final, TypeAlias
from uuid import UUID

from pydantic import BaseModel

from workers.passwords import hide
from workers.protocol.errors import InvalidInputError, UnsuitableValueError

Plain: TypeAlias = "bool | int | float | str | list[Plain] | dict[str, Plain] | None"

#: Characters of one text; what is beyond them is cut off.
MAX_TEXT: Final = 2**20

#: Characters of a name; what Optuna's databases hold.
MAX_KEY: Final = 512

#: How the names of the attributes begin that the fleet itself keeps in a study's storage.
OWN_PREFIX: Final = "trialfleet:"

#: Elements of one array: a parameter, an attribute, a confusion matrix; no weights.
MAX_ELEMENTS: Final = 10_000

#: Digits of an integer; Python itself refuses to write more than 4,300.
_MAX_DIGITS: Final = 4_000

#: How deep values may be nested; `json` itself fails at some thousand.
_MAX_DEPTH: Final = 64

#: Types whose text says all, by module and name: theirs are imported by nobody here.
_TEXT_TYPES: Final = frozenset({"torch.device", "torch.dtype", "torch.layout", "numpy.dtype"})


#: From here on, the numbers of Redis are not exact.
MAX_STEP: Final = 2**53


def as_number(value: Any, what: str) -> float:
    """A number as a Python float.

    Args:
        value: A Python, NumPy or torch number, or an array or tensor with one element.
        what: Names the value in an error, such as `report(value=..., step=3)`.

    Raises:
        UnsuitableValueError: It is none of these.
    """
    try:
        return float(_single(value))
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise UnsuitableValueError(
            f"{what}: {shown(value)} is no number ({type_name(value)}); give a number, or an array"
            " of one element"
        ) from error


def as_finite(value: Any, what: str) -> float:
    """A number that is neither NaN nor infinite.

    Raises:
        UnsuitableValueError: It is, or it is no number.
    """
    number = as_number(value, what)
    if not math.isfinite(number):
        raise UnsuitableValueError(f"{what}: {number} is not finite; give a finite number")
    return number


def as_step(value: Any, what: str = "step") -> int:
    """A step of a training: a whole number from 0; like Optuna's, a fraction is cut off.

    Args:
        value: A Python, NumPy or torch number.
        what: Names it in an error.

    Raises:
        UnsuitableValueError: It is no number, or negative, or over 2**53 - 1, from which on the
            numbers of Redis are not exact.
    """
    number = as_finite(value, what)
    if not 0 <= number < MAX_STEP:
        raise UnsuitableValueError(
            f"{what} = {number:.0f}: give a whole number from 0 to 2**53 - 1"
        )
    return int(number)


def as_key(value: Any) -> str:
    """The name of an attribute or a constraint.

    Raises:
        UnsuitableValueError: It is no text, too long, or one of the fleet's own.
    """
    if not isinstance(value, str):
        raise UnsuitableValueError(f"{shown(value)} is {type_name(value)}; a name is text")
    name = plain_text(value)
    if len(name) > MAX_KEY:
        raise UnsuitableValueError(
            f"the name {name[:40]!r}... has {len(name)} characters, and {MAX_KEY} are the most"
        )
    if name.startswith(OWN_PREFIX):
        raise UnsuitableValueError(f"{name!r}: names with {OWN_PREFIX!r} are the fleet's own")
    return name


def as_plain(value: Any, what: str) -> Plain:
    """A value as plain JSON, by the rules above.

    Args:
        value: Whatever a user attaches to a trial.
        what: Names the value in an error; the place in it is added.

    Raises:
        UnsuitableValueError: Something in it has no rule, is too large, too deep, or holds itself.
    """
    return _plain(value, what, 0)


def as_setting(value: Any, name: str) -> Plain:
    """What a script sets of a study, as a study file would have it.

    Args:
        value: By the rules above; no text is cut off.
        name: The setting.

    Raises:
        InvalidInputError: It cannot be written into a file.
    """
    try:
        as_plain(value, name)
    except UnsuitableValueError as error:
        problem = str(error).partition(";")[0]
        raise InvalidInputError(
            f"{problem}; a study is kept as JSON: give numbers, text, and lists and mappings of"
            " them, and of a function its name, such as `module:function`"
        ) from error
    return _whole(value, name)


def plain_text(value: Any, limit: int = MAX_TEXT) -> str:
    """Text that every side can send: without lone surrogates, and not too long."""
    text = str.__str__(value) if isinstance(value, str) else str(value)
    if len(text) > limit:
        text = f"{text[:limit]}... ({len(text) - limit} characters more)"
    # a name of a file may hold bytes that are no text
    return text.encode("utf-8", "backslashreplace").decode()


def describe_error(error: BaseException, limit: int) -> str:
    """An error as `Type: message`, whatever its own methods do."""
    try:
        message = str(error)
    except BaseException as second:  # noqa: BLE001 - its text is its author's code
        message = f"(its text cannot be had: {type(second).__name__})"
    return plain_text(hide(f"{type(error).__name__}: {message}"), limit)


def strict_json(value: Plain) -> Plain:
    """A value whose infinite numbers and NaN are text, for readers of JSON by its standard."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, list):
        return [strict_json(item) for item in value]
    if isinstance(value, dict):
        return {key: strict_json(item) for key, item in value.items()}
    return value


def is_array(value: Any) -> bool:
    """Whether a value is a NumPy array or scalar, a tensor, or what behaves like one."""
    return not isinstance(value, type) and all(
        hasattr(value, name) for name in ("item", "tolist", "dtype", "shape")
    )


def type_name(value: Any) -> str:
    """The full name of a value's type; a builtin's alone."""
    kind = type(value)
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def is_finite(number: float) -> bool:
    """Whether a float can hold a number, as which Optuna keeps it."""
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def shown(value: Any) -> str:
    """A value in an error, whatever its own methods do."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - its text is its author's code
        text = "a value"
    return plain_text(text, 80)


def _single(value: Any) -> Any:
    """The one element of an array or tensor; anything else as it is."""
    if is_array(value):
        if math.prod(value.shape) != 1:
            raise TypeError("not one element")
        return value.item()
    return value


def _plain(value: Any, where: str, depth: int) -> Plain:
    if depth > _MAX_DEPTH:
        raise UnsuitableValueError(
            f"{where} is nested more than {_MAX_DEPTH} deep, or holds itself; flatten it"
        )
    for applies, make in _RULES:
        if applies(value):
            return make(value, where, depth)
    raise UnsuitableValueError(
        f"{where}: {type_name(value)}: it has no plain JSON form; give numbers, text, lists or"
        " mappings of them, and leave what is large in `trial.result_directory`"
    )


def _plain_array(array: Any, where: str, depth: int) -> Plain:
    count = math.prod(array.shape)
    if count > MAX_ELEMENTS:
        raise UnsuitableValueError(
            f"{where}: {type_name(array)} of {count} elements, and {MAX_ELEMENTS} are the most;"
            " save it in `trial.result_directory` or a checkpoint"
        )
    if str(array.dtype).startswith(("datetime64", "timedelta64", "complex", "torch.complex", "V")):
        # of dates, what `item` gives depends on their unit
        if str(array.dtype).startswith("datetime64"):
            return _plain(array.astype(str).tolist(), where, depth)
        raise UnsuitableValueError(
            f"{where}: {type_name(array)} of {array.dtype}: it has no plain JSON form; give numbers"
        )
    try:
        content = array.tolist()
    except (RuntimeError, TypeError, ValueError) as error:  # on a device that holds no data
        raise UnsuitableValueError(
            f"{where}: {type_name(array)}: its content cannot be read: {plain_text(error, 200)}"
        ) from error
    if is_array(content):
        raise UnsuitableValueError(f"{where}: {type_name(array)} of {array.dtype} is no number")
    return _plain(content, where, depth)


def _plain_integer(value: int, where: str) -> int:
    if value.bit_length() > _MAX_DIGITS * 3.33:
        raise UnsuitableValueError(
            f"{where}: an integer of more than {_MAX_DIGITS} digits; give it as text"
        )
    return value


def _plain_items(values: Iterable[Any], where: str, depth: int) -> list[Plain]:
    return [_plain(item, f"{where}[{index}]", depth + 1) for index, item in enumerate(values)]


def _plain_mapping(values: Mapping[Any, Any], where: str, depth: int) -> dict[str, Plain]:
    found: dict[str, Plain] = {}
    for key, item in values.items():
        name = _plain_key(key, where)
        if name in found:
            raise UnsuitableValueError(
                f"{where}: two of its keys are {name!r} in JSON; name them apart"
            )
        found[name] = _plain(item, f"{where}[{name!r}]", depth + 1)
    return found


def _plain_key(key: Any, where: str) -> str:
    is_compound = isinstance(key, (Mapping, AbstractSet, tuple))
    plain = [] if is_compound else _plain(key, f"{where}'s key", 1)
    if isinstance(plain, (list, dict)):
        raise UnsuitableValueError(
            f"{where}: a key is {type_name(key)}; in JSON, keys are text: give text or a number"
        )
    return plain if isinstance(plain, str) else json.dumps(plain)


def _whole(value: Any, where: str) -> Plain:
    """The same as `_plain`, of what that takes, with all of its texts."""
    if isinstance(value, Mapping):
        return {_plain_key(key, where): _whole(item, where) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_whole(item, where) for item in value]
    return plain_text(value, len(value)) if isinstance(value, str) else _plain(value, where, 0)


def _is_text_type(value: Any) -> bool:
    name = type_name(value)
    return name in _TEXT_TYPES or name.startswith("numpy.dtypes.")


def _sorted(items: list[Plain]) -> list[Plain]:
    """A set in an order that is the same in each process."""
    return sorted(items, key=lambda item: (type(item).__name__, json.dumps(item)))


def _is(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kinds)


def _is_list(value: Any) -> bool:
    is_bytes = isinstance(value, (bytes, bytearray, memoryview))
    return isinstance(value, (Sequence, collections.deque)) and not is_bytes


def _fields(value: Any) -> dict[str, Any]:
    return {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}


def _is_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


#: What applies to a value, and what it becomes; the first that applies counts.
_RULES: Final[tuple[tuple[Callable[[Any], bool], Callable[[Any, str, int], Plain]], ...]] = (
    (_is(Enum), lambda value, where, depth: _plain(value.value, where, depth + 1)),
    (_is(bool, type(None)), lambda value, *_: value),
    (is_array, _plain_array),
    (_is(int), lambda value, where, _: _plain_integer(int(value), where)),
    (_is(float, Decimal, Fraction), lambda value, where, _: as_number(value, where)),
    (_is(str, PurePath, UUID), lambda value, *_: plain_text(value)),
    (_is_text_type, lambda value, *_: plain_text(value)),
    (_is(dt.date, dt.time), lambda value, *_: str(value.isoformat())),  # a datetime is a date
    (_is(dt.timedelta), lambda value, *_: float(value.total_seconds())),
    (_is_dataclass, lambda value, where, depth: _plain_mapping(_fields(value), where, depth)),
    (_is(BaseModel), lambda value, where, depth: _plain_mapping(dict(value), where, depth)),
    (_is(Mapping), _plain_mapping),
    (_is(AbstractSet), lambda value, where, depth: _sorted(_plain_items(value, where, depth))),
    (_is_list, _plain_items),
)
