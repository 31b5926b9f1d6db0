"""Plain arguments of managers: what a script writes, as the section that a study would hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from workers.protocol.errors import InvalidInputError

Section = TypeVar("Section", bound=BaseModel)


def section(
    kind: type[Section], given: Section | str | None, fields: Mapping[str, Any], name: str = "id"
) -> Section:
    """A section of settings: as it is given, or by its name and further fields.

    Args:
        kind: The section's type.
        given: The section, its main field, or None.
        fields: Its other fields.
        name: Its main field.

    Raises:
        InvalidInputError: A field is unknown or out of range, or stands beside a whole section.
    """
    if isinstance(given, kind):
        if fields:
            raise InvalidInputError(
                f"{', '.join(fields)}: beside a {kind.__name__}; set it there, with"
                f" {kind.__name__}(..., {next(iter(fields))}=...)"
            )
        return given
    named = {} if given is None else {name: given}
    try:
        return kind.model_validate({**named, **fields})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        known = ", ".join(kind.model_fields)
        hint = f"; there are {known}" if first["type"] == "extra_forbidden" else ""
        shown = f"{field} = {first['input']!r:.200}: " if field else ""
        raise InvalidInputError(f"{shown}{first['msg']}{hint}") from error
