"""What a shell completes: names of studies, from a fleet that answers at once.

Invariant: nothing but names is printed, and whoever presses a key does not wait for a fleet.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Final

from orchestrator.storage.known_studies import known_studies
from workers.logs import configure_logging
from workers.settings import Settings

#: How long a fleet has to answer.
_PATIENCE_SECONDS: Final = 0.3


def complete_study(incomplete: str) -> list[str]:
    """The names of studies that begin so; none where no fleet answers in time."""
    found: list[str] = []

    def look() -> None:
        try:
            found.extend(known_studies(Settings.from_environment()))
        except Exception:  # noqa: BLE001 - whatever it is, the command itself says so
            return

    with Path(os.devnull).open("w") as nowhere:
        configure_logging(stream=nowhere)  # a line of a log would be taken for a name
        looking = threading.Thread(target=look, daemon=True)
        looking.start()
        looking.join(_PATIENCE_SECONDS)
        return sorted(name for name in found if name.startswith(incomplete))
