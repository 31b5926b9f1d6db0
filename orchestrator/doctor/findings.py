"""What a look at one thing came to: fine, worth a thought, or broken, and what to do about it.

Invariant: whatever is not fine names its fix, as a command or a setting.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    """It works, and something will be lost, slow or open."""
    ERROR = "error"
    """Trials will not run, or be lost."""


class Finding(BaseModel):
    """One line of what the doctor has to say."""

    model_config = ConfigDict(frozen=True)

    looked_at: str
    level: Level
    told: str
    """In one line."""
    fix: str | None = None
    """A command or a setting; of all that is not fine."""


def ok(looked_at: str, told: str) -> Finding:
    """It is as it should be."""
    return Finding(looked_at=looked_at, level=Level.OK, told=told)


def warning(looked_at: str, told: str, fix: str) -> Finding:
    """It works, and something will be lost, slow or open."""
    return Finding(looked_at=looked_at, level=Level.WARNING, told=told, fix=fix)


def error(looked_at: str, told: str, fix: str) -> Finding:
    """Trials will not run, or be lost."""
    return Finding(looked_at=looked_at, level=Level.ERROR, told=told, fix=fix)
