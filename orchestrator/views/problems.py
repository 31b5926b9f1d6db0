"""What stands in a study's way, one line each, and what lies beside it.

Invariant: nothing that somebody wrote reaches a terminal raw.
"""

from __future__ import annotations

from rich.text import Text

from orchestrator.status import StudyStatus
from orchestrator.views.ps import printable


def problem_lines(status: StudyStatus) -> list[Text]:
    """All of it."""
    return [*refusing_lines(status), *stalled_lines(status), *set_aside_lines(status)]


def stalled_lines(status: StudyStatus) -> list[Text]:
    """Why the study stands still, if it does."""
    waits = [Text(f"waits: {printable(reason)}", style="yellow") for reason in status.waits_for]
    if status.stalled is None:
        return waits
    return [Text(f"stalled: {printable(status.stalled)}", style="bold red"), *waits]


def refusing_lines(status: StudyStatus) -> list[Text]:
    """Slots that take no trials, workers with other code, and what lies beside."""
    return [
        *(
            Text(f"takes no trials: {printable(reason)}", style="red")
            for reason in status.put_aside
        ),
        *(Text(f"other code: {printable(reason)}", style="yellow") for reason in status.other_code),
        *(
            Text(f"on_end: {printable(reason)}", style="red")
            for reason in [status.end_problem]
            if reason
        ),
        *(
            Text(f"as it was in a narrower space: study {name} of its storage", style="dim")
            for name in [status.former]
            if name
        ),
    ]


def set_aside_lines(status: StudyStatus) -> list[Text]:
    """What trials told and could not be taken in."""
    return [Text(f"not taken in: {printable(reason)}", style="red") for reason in status.set_aside]
