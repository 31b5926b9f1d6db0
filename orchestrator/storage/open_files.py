"""How many journals this process holds open, of all that it writes: the files of the others rest.

A process may have 1024 files open where nobody says otherwise, and an orchestrator writes as many
journals as there are studies that are not over.

Invariant: at most `most_journals()` files are open, but for those that are just being written.
"""

from __future__ import annotations

import resource
import threading
from collections import OrderedDict
from typing import Final, Protocol

from workers.logs import get_logger

log = get_logger(__name__)

#: Left for connections, what is being read, and what libraries open.
_OTHERS: Final = 256

#: As many journals may be open in any case.
_LEAST: Final = 32

#: With fewer files, an orchestrator may run out of them whatever it does.
_FEW: Final = _OTHERS + _LEAST


class Resting(Protocol):
    """A file that is opened again when it is needed."""

    def rest(self) -> bool:
        """Close it for now, if nobody is at it; whether it is closed."""


def allow_open_files() -> None:
    """Let this process have as many files open as the system allows it to."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError) as error:  # macOS has a lower bound of its own
            log.debug("file_limit_kept", limit=soft, error=str(error))
    if soft != resource.RLIM_INFINITY and soft < _FEW:
        log.warning("few_open_files", limit=soft, hint=f"ulimit -n {4 * _FEW}")


def most_journals() -> int:
    """How many journals may be open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if soft == resource.RLIM_INFINITY else max(_LEAST, soft - _OTHERS)


class OpenFiles:
    """Those that are open, the one that was not used for longest first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: OrderedDict[int, Resting] = OrderedDict()

    def used(self, file: Resting) -> None:
        """Note that a file is open and was used, and have others rest where there are too many."""
        with self._lock:
            self._files[id(file)] = file
            self._files.move_to_end(id(file))
            too_many = len(self._files) - most_journals()
            oldest = list(self._files.items())[: max(0, too_many)]
        for key, each in oldest:
            if each is not file and each.rest():
                self._forget(key)

    def closed(self, file: Resting) -> None:
        """Forget a file that was closed for good."""
        self._forget(id(file))

    def _forget(self, key: int) -> None:
        with self._lock:
            self._files.pop(key, None)


#: Those of this process.
OPEN: Final = OpenFiles()
