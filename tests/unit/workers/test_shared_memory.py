from __future__ import annotations

import os
from pathlib import Path

import pytest

from workers.disk.shared_memory import remove_own_semaphores, semaphore_prefix

FOLDER = Path("/dev/shm")


@pytest.mark.skipif(not FOLDER.is_dir(), reason="there is no /dev/shm here")
def test_a_process_that_ends_at_once_takes_its_own_semaphores_along_and_no_others():
    own = FOLDER / f"sem.{semaphore_prefix(os.getpid())[1:]}-a"
    other = FOLDER / f"sem.{semaphore_prefix(os.getpid())[1:]}0-a"
    own.touch()
    other.touch()
    try:
        remove_own_semaphores()
        assert not own.exists()
        assert other.exists()
    finally:
        other.unlink()
