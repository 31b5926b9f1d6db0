from __future__ import annotations

import subprocess
import sys
import tempfile

import pytest

from workers.coordination.identity import ProcessIdentity
from workers.disk.scratch import (
    make_scratch,
    name_scratch,
    redirect_temporary_files,
    remove_scratch,
    remove_stale_scratch,
    scratch_root,
)


@pytest.fixture(autouse=True)
def own_root(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()


def test_what_a_dead_process_left_is_removed_and_what_a_live_one_uses_is_not():
    ended = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=-1)
    stale = name_scratch(ProcessIdentity.of(ended.pid))
    ended.communicate()
    own = name_scratch(ProcessIdentity.current())
    make_scratch(stale)
    make_scratch(own)
    (stale / "file").write_text("x")
    assert remove_stale_scratch() == [stale]
    assert not stale.exists()
    assert own.exists()


def test_a_link_is_not_followed(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    scratch_root().mkdir()
    link = scratch_root() / "1-1-link"
    link.symlink_to(precious)
    remove_scratch(link)
    assert (precious / "file").exists()
    assert not link.is_symlink()


def test_nothing_outside_the_root_is_removed(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    remove_scratch(elsewhere)
    assert elsewhere.exists()


def test_names_that_are_not_ours_are_left():
    scratch_root().mkdir()
    other = scratch_root() / "some-other-thing"
    other.mkdir()
    assert remove_stale_scratch() == []
    assert other.exists()


def test_temporary_files_are_made_in_a_directory_and_scratch_stays_where_it_was(tmp_path):
    root = scratch_root()
    before = tempfile.gettempdir()
    directory = name_scratch(ProcessIdentity.current())
    make_scratch(directory)
    restore = redirect_temporary_files(directory)
    program = "import tempfile; from workers.disk.scratch import scratch_root as root\n"
    program += "print(tempfile.gettempdir(), root())"
    below = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert tempfile.gettempdir() == str(directory)
    assert scratch_root() == root
    assert below.stdout.split() == [str(directory), str(root)]
    restore()
    assert scratch_root().name == root.name
    assert tempfile.gettempdir() != str(directory)
    tempfile.tempdir = before
