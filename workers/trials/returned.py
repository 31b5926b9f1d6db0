"""What an objective returns, as the numbers that the study asks for."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from workers.protocol.errors import ObjectiveError
from workers.protocol.plain import as_number, is_array
from workers.protocol.spec import StudySpec


def read_values(returned: Any, spec: StudySpec) -> list[float]:
    """The objective's values in the order of the study's directions; infinite ones are values.

    Args:
        returned: A number, a sequence or an array of numbers, or a mapping from metric to number.
        spec: Names the metrics and counts the directions.

    Raises:
        ObjectiveError: A metric is missing, the count is wrong, or a value is no number or NaN.
    """
    _refuse_unfinished(returned)
    values = _pick(returned, spec)
    if len(values) != len(spec.all_directions):
        raise ObjectiveError(
            f"the objective returned {len(values)} values and the study has"
            f" {len(spec.all_directions)} directions"
        )
    return [
        _number(value, name) for value, name in zip(values, _names(returned, spec), strict=True)
    ]


def _names(returned: Any, spec: StudySpec) -> list[str]:
    """What to call each value in an error."""
    if isinstance(returned, Mapping):
        return [f"metric {name!r}" for name in spec.metrics]
    count = len(spec.all_directions)
    return [
        f"value {number} of {count}" if count > 1 else "value" for number in range(1, count + 1)
    ]


def _refuse_unfinished(returned: Any) -> None:
    """Refuse what was called and never ran."""
    if inspect.iscoroutine(returned) or inspect.isgenerator(returned):
        kind = "coroutine" if inspect.iscoroutine(returned) else "generator"
        returned.close()
        raise ObjectiveError(
            f"the objective returned a {kind}, which never ran; let it return its value"
            + (": call `asyncio.run(...)` in it" if kind == "coroutine" else ", without `yield`")
        )


def _number(value: Any, name: str) -> float:
    if value is None:
        raise ObjectiveError(
            "the objective returned None, which is no number; let it return its value"
        )
    number = as_number(value, f"the objective's {name}")
    if math.isnan(number):
        raise ObjectiveError(
            f"the objective's {name} is nan, which cannot be compared; where a training diverged,"
            " lower its learning rate or clip its gradients"
        )
    return number


def _pick(returned: Any, spec: StudySpec) -> Sequence[Any]:
    if not isinstance(returned, Mapping):
        if is_array(returned) and len(returned.shape) == 1:
            return list(returned)
        return returned if isinstance(returned, (list, tuple)) else [returned]
    if not spec.metrics:
        raise ObjectiveError(
            f"the objective returned a mapping with {', '.join(returned)};"
            " name the one to optimise with `metric:` in the study"
        )
    missing = [name for name in spec.metrics if name not in returned]
    if missing:
        raise ObjectiveError(
            f"metric {missing[0]!r} is not among what the objective returned: {', '.join(returned)}"
        )
    return [returned[name] for name in spec.metrics]
