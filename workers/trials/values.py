"""What an objective returns, as the numbers that the study asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workers.protocol.errors import ObjectiveError
from workers.protocol.spec import StudySpec


def read_values(returned: Any, spec: StudySpec) -> list[float]:
    """The objective's values in the order of the study's directions.

    Args:
        returned: A number, a sequence of numbers, or a mapping from metric to number.
        spec: Names the metrics and counts the directions.

    Raises:
        ObjectiveError: A metric is missing, the count is wrong, or a value is no finite number.
    """
    values = _pick(returned, spec)
    if len(values) != len(spec.all_directions):
        raise ObjectiveError(
            f"the objective returned {len(values)} values and the study has"
            f" {len(spec.all_directions)} directions"
        )
    numbers = []
    for value in values:
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            raise ObjectiveError(f"the objective returned {value!r}, which is no number") from error
        if number != number:  # noqa: PLR0124 - NaN
            raise ObjectiveError("the objective returned nan, which cannot be compared")
        numbers.append(number)
    return numbers


def _pick(returned: Any, spec: StudySpec) -> Sequence[Any]:
    if not isinstance(returned, Mapping):
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
