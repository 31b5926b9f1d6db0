"""Whose fault it is that a model does not compile: the host's, or its own."""

from __future__ import annotations

import errno
import os
import signal
import subprocess

import pytest

from workers.managers.compiler_errors import is_of_host, is_of_training

SHORT_OF = os.strerror(errno.ENOSPC)


def failed(output, status=1):
    """What is raised of a compiler, as torch raises it: by another error."""
    error = RuntimeError(f"C++ compile error\n\nOutput:\n{output}\n\nread the docs")
    error.__cause__ = subprocess.CalledProcessError(status, ["g++"], output.encode())
    return error


#: As gcc 9 to 12, its assembler and linker, and clang say it.
OF_HOST = {
    "ended": "g++: fatal error: Killed signal terminated program cc1plus\ncompilation terminated.",
    "ended, in older words": "g++: internal compiler error: Killed (program cc1plus)\n"
    "Please submit a full bug report,\nwith preprocessed source if appropriate.\n"
    "See <file:///usr/share/doc/gcc-9/README.Bugs> for instructions.",
    "linker ended": "collect2: fatal error: ld terminated with signal 9 [Killed]\n"
    "compilation terminated.",
    "clang ended": "clang++: error: unable to execute command: Killed\n"
    "clang++: error: linker command failed due to signal (use -v to see invocation)",
    "limit": "g++: internal compiler error: File size limit exceeded signal terminated program"
    " cc1plus\nPlease submit a full bug report, with preprocessed source (by using -freport-bug).\n"
    "See <file:///usr/share/doc/gcc-12/README.Bugs> for instructions.",
    "full, compiler": "k.cpp:1:18: fatal error: error closing /tmp/ccA.s: No space left on device\n"
    "    1 | int f(){return 1;}\n      |                  ^\ncompilation terminated.",
    "full, assembler": "/tmp/ccA.s: Assembler messages:\n/tmp/ccA.s: Fatal error: can't write 11"
    " bytes to section .text of k.o: 'No space left on device'\n"
    "/tmp/ccA.s: Fatal error: k.o: No space left on device",
    "full, linker": "/usr/bin/ld: final link failed: No space left on device\n"
    "collect2: error: ld returned 1 exit status",
    "memory": "virtual memory exhausted: Cannot allocate memory",
    "memory, in other words": "cc1plus: out of memory allocating 65536 bytes after a total of 9",
}

OF_MODEL = {
    "a name": "k.cpp:3:7: error: 'Killed' was not declared in this scope\n"
    "    3 |   f(Killed); // No space left on device\n      |     ^~~~~~",
    "a text": "k.cpp:1:2: error: #error g++: fatal error: No space left on device\n"
    "    1 | #error g++: fatal error: No space left on device\n      |  ^~~~~",
    "a warning before": "g++: warning: cache: No space left on device\n"
    "k.cpp:3:7: error: 'x' was not declared in this scope",
    "its own end": "g++: internal compiler error: Segmentation fault signal terminated program"
    " cc1plus\nPlease submit a full bug report, with preprocessed source.",
    "what is not there": "cc1plus: fatal error: k.cpp: No such file or directory\n"
    "compilation terminated.",
    "nothing": "",
}


@pytest.mark.parametrize("said", OF_HOST.values(), ids=OF_HOST)
def test_a_compiler_that_was_ended_or_is_short_of_something_says_so_in_its_last_word(said):
    assert is_of_host(failed(said))


@pytest.mark.parametrize("said", OF_MODEL.values(), ids=OF_MODEL)
def test_words_of_the_model_that_a_compiler_quotes_are_none_of_the_host(said):
    assert not is_of_host(failed(said))


def test_numbers_say_by_what_a_compiler_ended_and_what_there_was_none_of():
    assert is_of_host(failed("", -signal.SIGKILL))
    assert is_of_host(failed("", 128 + signal.SIGTERM)), "as a shell tells it"
    assert not is_of_host(failed("", -signal.SIGSEGV)), "by itself, of what it compiles"
    assert is_of_host(OSError(errno.EAGAIN, "fork"))
    assert not is_of_host(OSError(errno.ENOENT, SHORT_OF))
    assert not is_of_host(ValueError(f"g++: {SHORT_OF}")), "of no compiler"


def test_a_compiler_without_memory_is_not_a_batch_that_is_too_large():
    assert is_of_training(RuntimeError("CUDA out of memory"))
    assert not is_of_training(failed(OF_HOST["memory, in other words"]))
