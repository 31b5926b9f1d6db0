"""Orders: trials that people want beyond those of the sampler, on their way to the orchestrator.

Invariant: an order that is given twice has one id, by which it is carried out once.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, TypeAdapter


class _Order(BaseModel):
    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    asked_ms: int = 0
    """When it was given, on the server's clock; orders are carried out in this order."""
    place: int = 0
    """Among those that were given together."""


class Given(_Order):
    """One trial with these parameters; the sampler draws what they leave open."""

    kind: Literal["given"] = "given"
    params: dict[str, Any]
    """By the names under which the storage holds choices."""

    @property
    def id(self) -> str:
        """The same for the same parameters."""
        text = json.dumps(self.params, sort_keys=True)
        return f"given:{hashlib.sha256(text.encode()).hexdigest()[:32]}"


class Retry(_Order):
    """One more trial for each that failed or died, with its parameters."""

    kind: Literal["retry"] = "retry"
    numbers: list[int] | None = None
    """Of these, which may be cancelled ones; by default of all that failed or died."""

    @property
    def id(self) -> str:
        """The same for the same trials."""
        return f"retry:{'all' if self.numbers is None else self.numbers}"


Order: TypeAlias = Given | Retry

_ADAPTER: Final[TypeAdapter[Order]] = TypeAdapter(Order)


def read_order(text: str) -> Order:
    """An order as Redis has it.

    Raises:
        ValueError: It is none.
    """
    return _ADAPTER.validate_json(text)
