"""What is stored with a study, and read by other releases than the one that wrote it.

Invariant: a field that a later release added is left out of what was stored, and refused of people.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationInfo, model_validator

#: The validation context of what was stored, by whatever release; what users write is checked.
STORED: Final = "stored"


class StoredModel(BaseModel):
    """A group of fields: frozen, and closed."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, ser_json_inf_nan="constants"
    )

    @model_validator(mode="before")
    @classmethod
    def _ignore_later_fields(cls, fields: Any, info: ValidationInfo) -> Any:
        """Of what was stored, leave out what a later release added and this one does not know."""
        if info.context == STORED and isinstance(fields, Mapping):
            return {name: value for name, value in fields.items() if name in cls.model_fields}
        return fields
