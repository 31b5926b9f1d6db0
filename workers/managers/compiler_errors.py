"""What the error of a compilation tells of its host: its compiler was ended, or short of something.

Compilers quote the source that they compile, and that has names and texts of the model in it. So of
what one said only its own last word counts, and no word of it where a number says the same.

Invariant: what a model is made of does not have its trial tried again as if the host were at fault.
"""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import Iterator
from typing import Final

from workers.protocol.memory_errors import is_of_memory

#: What a compiler, or who starts it, meets on a host that is short of something.
_SHORTAGES: Final = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EAGAIN)

#: By what others end a compiler, a full disk included; by others it ends itself.
_ENDED_BY: Final = (
    signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGXCPU, signal.SIGXFSZ,
    signal.SIGBUS,
)  # fmt: skip

#: As shells tell that a program ended by a signal.
_SHELL_STATUS: Final = 128

_ENDS: Final = "|".join(re.escape(signal.strsignal(number) or "") for number in _ENDED_BY)
_SHORT: Final = "|".join(re.escape(os.strerror(number)) for number in _SHORTAGES)

#: A line in which a compiler, an assembler or a linker speaks of itself. Its name stands before it,
#: or that of the file which it writes; a place in a source does only where it could not go on.
_OWN_WORD: Final = re.compile(
    r"(?:(?:[^\s:]+|LLVM ERROR|virtual memory exhausted): (?:.*: )?|\S+:\d+:\d+: fatal error: .*: )"
    rf"(?:['\"]?(?:{_SHORT})['\"]?"
    rf"|(?:{_ENDS})(?: \(core dumped\))?(?: signal terminated program \S+| \(program \S+\))?"
    rf"|ld terminated with signal \d+ \[(?:{_ENDS})\].*"
    r"|out of memory(?: allocating \d+ bytes.*)?"
    r")\.?"
)

#: What follows it, and says nothing of its own: lines of the source among it.
_AFTERWORD: Final = re.compile(
    r"\s*(?:\d*\s*\|.*)?|compilation terminated\.|collect2: error: ld returned \d+ exit status"
    r"|clang\S*: (?:error: linker|note:|error: clang) .*"
    r"|Please submit a full bug report.*|with preprocessed source if appropriate\."
    r"|See <\S+> for instructions\."
)


def compilation_errors() -> tuple[type[Exception], ...]:
    """What torch raises where a model does not compile."""
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    return (TorchDynamoException, CppCompileError, InvalidCxxCompiler)


def is_of_training(error: Exception) -> bool:
    """Whether memory ran out of what computes, and of no compiler."""
    return is_of_memory(error) and not any(map(_output_of, _chain(error)))


def is_of_host(error: BaseException) -> bool:
    """Whether what compiles was ended, or lacked room: the model is not to blame."""
    return any(
        (isinstance(each, OSError) and each.errno in _SHORTAGES)
        or _was_ended(getattr(each, "returncode", 0))
        or _speaks_of_host(_output_of(each))
        for each in _chain(error)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _was_ended(status: int) -> bool:
    return any(status in {-number, _SHELL_STATUS + number} for number in _ENDED_BY)


def _output_of(error: BaseException) -> str:
    """What a compiler said whose failure an error is; empty where it is of none."""
    output = getattr(error, "output", None)
    if isinstance(output, bytes):
        return output.decode(errors="replace")
    return output if isinstance(output, str) else ""


def _speaks_of_host(output: str) -> bool:
    lines = (line.rstrip() for line in reversed(output.splitlines()))
    last = next((line for line in lines if not _AFTERWORD.fullmatch(line)), "")
    return _OWN_WORD.fullmatch(last) is not None
