"""What people are told of a study that was there when they handed it in: what is other now.

Invariant: nothing that somebody set is set anew unsaid.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from pydantic import ValidationError

from orchestrator.extension import changed_settings
from orchestrator.status import StudyStatus
from orchestrator.views.ways_on import say_still_ends
from workers.coordination.submitted import WISHED
from workers.passwords import hide
from workers.protocol.spec import StudySpec
from workers.protocol.states import Wish


def changes_told(known: StudySpec, spec: StudySpec, status: Any) -> list[str]:
    """What changes of a study, and whether anything begins by it.

    Args:
        known: The study as it was.
        spec: As it is handed in now.
        status: As its orchestrator published it of the study as it was, if it did.
    """
    told = []
    changes = changed_settings(known, spec)
    if changes:
        shown = ", ".join(
            f"{name} = {_as_text(new)} (it was {_as_text(old)})"
            for name, (old, new) in changes.items()
        )
        told.append(f"study {spec.name!r} is known, and goes on with {shown}")
    with suppress(ValidationError):  # of a release that is none of ours
        found = None if status is None else StudyStatus.model_validate(status)
        if found is not None:
            why = say_still_ends(found, known, spec, f"trialfleet extend {spec.name}")
            told += [] if why is None else [f"study {spec.name!r}: no further trial begins, {why}"]
    return told


def wish_told(name: str, before: Wish, wish: Wish) -> list[str]:
    """What was wanted of a study before, if it was not to run, and what becomes of that."""
    if wish.is_pause:
        return [f"study {name!r} is paused, and stays so: `trialfleet resume {name}` lets it go on"]
    if before is not Wish.RUN:
        return [f"study {name!r}: {WISHED[before]}, and goes on by this"]
    return []


def _as_text(value: Any) -> str:
    return hide(json.dumps(value))
