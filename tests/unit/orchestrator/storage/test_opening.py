from __future__ import annotations

import os

import pytest

from orchestrator.storage.opening import StudyStorage, load_readonly, open_reader
from workers.protocol.errors import InvalidInputError, StorageUnreadableError


@pytest.mark.parametrize("open_it", [StudyStorage.open, open_reader])
@pytest.mark.parametrize("user", ["me:se@cret", "m@me:secret", "me:secret@"])
def test_an_address_whose_password_has_an_at_sign_is_refused_without_any_of_it(open_it, user):
    """The driver took what follows the first one for the host, and named it."""
    with pytest.raises(InvalidInputError, match="write that as %40") as refused:
        open_it(f"postgresql://{user}@db.example/optuna")
    assert "cret" not in str(refused.value)


@pytest.mark.parametrize(
    "open_it", [StudyStorage.open, open_reader, lambda url: load_readonly(url, "s")]
)
def test_what_is_no_file_is_told_and_nobody_waits_for_it(open_it, tmp_path):
    """A named pipe is opened once somebody writes it: whoever looked waited for that."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "device").symlink_to("/dev/null")
    for name, kind in {"pipe": "a named pipe", "folder": "a folder", "device": "a device"}.items():
        with pytest.raises(StorageUnreadableError, match=f"{name} is {kind} and no journal; move"):
            open_it(f"journal://{tmp_path}/{name}")
