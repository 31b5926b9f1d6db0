"""What an objective attaches to its trial: user attributes and constraints, as plain JSON.

Invariant: they fit the message that tells how the attempt ended, and belong to its step: an attempt
that goes on from a checkpoint has what the trial had there, but for what it has set by itself.
"""

from __future__ import annotations

import json
from typing import Any, Final, TypeVar

from optuna._warnings import optuna_warn

from workers.disk.checkpoint_content import Kept
from workers.protocol.errors import UnsuitableValueError
from workers.protocol.plain import as_finite, as_key, as_plain

T = TypeVar("T")

#: Bytes of JSON that a trial's user attributes may take together.
MAX_ATTRS_BYTES: Final = 4 * 2**20


class Attributes:
    """Those of one attempt, and of the checkpoint that it goes on from."""

    def __init__(self) -> None:
        self._user_attrs: dict[str, Any] = {}
        self._sizes: dict[str, int] = {}
        self._constraints: dict[str, float] = {}
        #: those of the step that it goes on from
        self._constraints_before: dict[str, float] = {}

    @property
    def user_attrs(self) -> dict[str, Any]:
        """What was attached."""
        return dict(self._user_attrs)

    @property
    def constraints(self) -> dict[str, float]:
        """What was set; above 0 it is violated."""
        return {**self._constraints_before, **self._constraints}

    def set_user_attr(self, key: str, value: Any) -> None:
        """Attach a fact, or replace it.

        Raises:
            UnsuitableValueError: The value has no plain form, or all of them take too much.
        """
        name = as_key(key)
        plain = as_plain(value, f"user attribute {name!r}")
        size = len(json.dumps({name: plain}, ensure_ascii=False).encode())
        total = size + sum(other for known, other in self._sizes.items() if known != name)
        if total > MAX_ATTRS_BYTES:
            raise UnsuitableValueError(
                f"user attribute {name!r}: with it the trial's attributes take {total} bytes, and"
                f" {MAX_ATTRS_BYTES} are the most; leave what is large in `trial.result_directory`"
            )
        self._sizes[name] = size
        self._user_attrs[name] = plain

    def set_constraint(self, key: str, value: float) -> None:
        """Set a constraint; the first value stands.

        Raises:
            UnsuitableValueError: The value is no finite number.
        """
        name = as_key(key)
        number = as_finite(value, f"constraint {name!r}")
        if name in self._constraints:
            optuna_warn(f"constraint {name!r} is set already; {number} is ignored")
        else:
            self._constraints[name] = number

    def to_be_kept(self) -> dict[str, Any]:
        """What belongs to the step that is saved, and comes back with it."""
        found = {"user_attrs": self.user_attrs, "constraints": self.constraints}
        return {name: dict(each) for name, each in found.items() if each}

    def take_back(self, kept: Kept[T] | None) -> T | None:
        """Have what this attempt has not set be the checkpoint's; what that holds."""
        if kept is None:
            return None
        for name, value in kept.attributes.get("user_attrs", {}).items():
            if name not in self._user_attrs:
                self.set_user_attr(name, value)
        self._constraints_before = dict(kept.attributes.get("constraints", {}))
        return kept.content
