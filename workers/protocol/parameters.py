"""The parameters of a study's trials: the dimensions of its space, and their dotted names."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, field_validator

from workers.protocol.stored_model import StoredModel

Scalar: TypeAlias = str | int | float | bool | None


class _Dimension(StoredModel):
    when: dict[str, list[Scalar]] = Field(default={})
    """Other parameters and the values of theirs for which this one exists."""
    default: Scalar = None
    """Of a parameter that the study did not have at first: what its trials before had in its
    place; without it, they lack the parameter."""

    @field_validator("when", mode="before")
    @classmethod
    def _one_value_is_a_list(cls, value: Any) -> Any:
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            return value
        return {name: each if isinstance(each, list) else [each] for name, each in value.items()}


class FloatDimension(_Dimension):
    """A real interval, `low` and `high` included."""

    type: Literal["float"]
    low: float
    """The least value."""
    high: float
    """The greatest value."""
    log: bool = False
    """Draws alike from each order of magnitude; `low` must be above 0."""
    step: float | None = Field(default=None, gt=0.0)
    """Draws `low`, and so many steps from it; not with `log`."""


class IntDimension(_Dimension):
    """A range of integers, `low` and `high` included."""

    type: Literal["int"]
    low: int
    """The least value."""
    high: int
    """The greatest value."""
    log: bool = False
    """Draws alike from each order of magnitude; `low` must be above 0."""
    step: int = Field(default=1, ge=1)
    """Draws `low`, and so many steps from it."""


class CategoricalDimension(_Dimension):
    """A choice among values."""

    type: Literal["categorical"]
    choices: list[Scalar] = Field(min_length=1)
    """The values, in the order in which Optuna counts them."""


Dimension = Annotated[
    FloatDimension | IntDimension | CategoricalDimension, Field(discriminator="type")
]


def merge_params(config: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """Lay `params`, whose names are dotted paths, over `config`."""
    merged = deepcopy(dict(config))
    for path, value in params.items():
        *parents, leaf = path.split(".")
        node = merged
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return merged
