"""What becomes of a Celery message, and of the process, when its trial has been seen to.

Invariant: a process that is replaced exits with a code that says why.
"""

from __future__ import annotations

from enum import Enum
from typing import Final


class Outcome(Enum):
    """What becomes of the Celery message."""

    ENDED = "ended"
    GOES_BACK = "goes back"
    ENDS_PROCESS = "ends the process"
    """The trial has ended, and this process cannot run another one."""
    CUDA_BROKEN = "CUDA broke the process"
    SICK = "the process is sick"
    """Trials fail in it that succeed elsewhere."""

    @property
    def goes_back(self) -> bool:
        """Whether another worker should get the message."""
        return self is Outcome.GOES_BACK

    @property
    def exit_code(self) -> int | None:
        """What this process is to exit with, if it is to be replaced."""
        return _EXIT_CODES.get(self)


#: The exit codes of pool processes that are replaced: an objective changed it for good; a CUDA
#: error broke it; trials fail in it that succeed elsewhere.
EXIT_REPLACED: Final = 74
EXIT_CUDA_BROKEN: Final = 75
EXIT_SICK: Final = 76

_EXIT_CODES: Final = {
    Outcome.ENDS_PROCESS: EXIT_REPLACED,
    Outcome.CUDA_BROKEN: EXIT_CUDA_BROKEN,
    Outcome.SICK: EXIT_SICK,
}
