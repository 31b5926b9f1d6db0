"""The logs of what `run` starts, kept short while they are written: objectives may print a lot.

Invariant: whoever writes goes on writing: the file stays the same one, as each appends to it.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final

#: At which size a log is put aside as `NAME.1`, and begun anew: 64 MiB.
MOST_BYTES: Final = 64 * 2**20


def keep_short(home: Path, most_bytes: int = MOST_BYTES) -> None:
    """Put logs of a home aside that have grown too long; what was aside before goes."""
    for path in [*home.glob("logs/*.log"), home / "redis" / "server.log"]:
        with suppress(OSError):  # no room for the copy, or no such log: it is left
            if path.stat().st_size > most_bytes:
                shutil.copyfile(path, path.with_name(f"{path.name}.1"))
                os.truncate(path, 0)
