from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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
from workers.protocol.errors import InvalidInputError


@pytest.fixture(autouse=True)
def own_root(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    # where other tests' sockets lie, and what they have left is theirs
    monkeypatch.setattr("workers.disk.scratch._SHORT_ROOT", tmp_path / "short")
    (tmp_path / "tmp").mkdir()


OWNER = """
import sys
from workers.coordination.identity import ProcessIdentity
from workers.disk.scratch import make_scratch, name_scratch
scratch = name_scratch(ProcessIdentity.current())
make_scratch(scratch)
(scratch / "file").write_text("x")
print(scratch, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def owner(tmp_path):
    """Another process with a scratch directory below the same root."""
    command, environment = [sys.executable, "-c", OWNER], {**os.environ, "TMPDIR": tempfile.tempdir}
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True, env=environment) as process:
        process.scratch = Path(process.stdout.readline().strip())
        yield process
        process.kill()


def renamed(path, **parts):
    """A scratch directory's name with other parts, as another host or container would give it."""
    domain, pid, ticks, rest = path.name.split("-")
    host, kernel, namespace = domain[:6], domain[6:12], domain[12:]
    host, kernel = parts.get("host", host), parts.get("kernel", kernel)
    namespace = parts.get("namespace", namespace)
    return path.with_name(f"{host}{kernel}{namespace}-{pid}-{ticks}-{rest}")


def aged(path, seconds=10**9):
    os.utime(path, (time.time() - seconds,) * 2)
    return path


def test_what_a_dead_process_left_is_removed_and_what_a_live_one_uses_is_not(owner):
    own = name_scratch(ProcessIdentity.current())
    make_scratch(own)
    assert remove_stale_scratch() == []
    owner.kill()
    owner.wait()
    assert remove_stale_scratch() == [owner.scratch]
    assert not owner.scratch.exists()
    assert own.exists()


def test_a_directory_that_somebody_locks_is_left_whatever_its_name_says(owner):
    # a pid namespace that was born with the number of one that is gone
    dead = owner.scratch.with_name(re.sub(r"-[0-9]+-[0-9]+-", "-1-1-", owner.scratch.name))
    owner.scratch.rename(dead)
    assert remove_stale_scratch() == []
    owner.kill()
    owner.wait()
    assert remove_stale_scratch() == [dead]


@pytest.mark.parametrize("part", ["host", "kernel", "namespace"])
def test_a_neighbours_directory_in_use_is_left(owner, part):
    theirs = renamed(owner.scratch, **{part: "0" * 6})
    owner.scratch.rename(theirs)
    aged(theirs)
    assert remove_stale_scratch() == []
    assert (theirs / "file").exists()


def test_what_a_container_of_this_kernel_left_goes_once_nobody_has_locked_it_for_long(owner):
    theirs = renamed(owner.scratch, namespace="0" * 6)
    owner.scratch.rename(theirs)
    owner.kill()
    owner.wait()
    assert remove_stale_scratch() == [], "it may be about to be locked"
    aged(theirs, 3600)
    assert remove_stale_scratch() == [theirs]


def test_what_an_earlier_boot_of_this_host_left_goes_and_another_hosts_stays(owner):
    owner.kill()
    owner.wait()
    ours, theirs = (
        renamed(owner.scratch, kernel="0" * 6, namespace="1" * 6),
        renamed(owner.scratch, kernel="0" * 6, namespace="1" * 6, host="0" * 6),
    )
    owner.scratch.rename(ours)
    theirs.mkdir()
    assert remove_stale_scratch() == [], "it was made since this boot"
    aged(ours), aged(theirs)
    assert remove_stale_scratch() == [ours]
    assert theirs.exists()


def test_on_a_network_file_system_only_what_is_known_to_be_dead_here_goes(owner, monkeypatch):
    monkeypatch.setattr("workers.disk.scratch._file_system", lambda _directory: "nfs4")
    theirs = renamed(owner.scratch, namespace="0" * 6)
    shutil.copytree(owner.scratch, theirs)
    aged(theirs)
    owner.kill()
    owner.wait()
    assert remove_stale_scratch() == [owner.scratch]
    assert theirs.exists()


@pytest.mark.parametrize(
    "name",
    ["..", ".", "", "../tmp", "some-other-thing", "../precious", "/etc", "a\n", "x/../.."],
)
def test_a_record_that_names_anything_else_removes_nothing(name, tmp_path):
    make_scratch(own := name_scratch(ProcessIdentity.current()))
    for sibling in (tmp_path / "precious", scratch_root() / "some-other-thing"):
        sibling.mkdir()
        (sibling / "file").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    remove_scratch(Path(f"{scratch_root()}/{name}"), ProcessIdentity.current())
    remove_scratch(own, ProcessIdentity.current()._replace(pid=1))
    remove_scratch(own / "x" / name, ProcessIdentity.current())
    assert sorted(tmp_path.rglob("*")) == before
    remove_scratch(own, ProcessIdentity.current())


def test_a_root_that_others_could_read_is_closed_to_them():
    scratch_root().mkdir()
    scratch_root().chmod(0o777)
    make_scratch(own := name_scratch(ProcessIdentity.current()))
    assert stat.S_IMODE(scratch_root().stat().st_mode) == 0o700
    remove_scratch(own, ProcessIdentity.current())


def test_a_root_that_is_a_link_is_refused_with_the_way_out(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    scratch_root().symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidInputError, match="set TMPDIR to another directory"):
        make_scratch(name_scratch(ProcessIdentity.current()))
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
def test_a_root_of_another_user_is_refused_with_the_way_out():
    scratch_root().mkdir()
    os.chown(scratch_root(), 12345, -1)
    with pytest.raises(InvalidInputError, match="user 12345.*set TMPDIR to another directory"):
        make_scratch(name_scratch(ProcessIdentity.current()))


def test_a_link_is_not_followed(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    scratch_root().mkdir()
    link = name_scratch(ProcessIdentity.current())
    link.symlink_to(precious)
    assert remove_scratch(link, ProcessIdentity.current())
    assert (precious / "file").exists()
    assert not link.is_symlink()


def test_nothing_outside_the_root_is_removed(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    remove_scratch(elsewhere, ProcessIdentity.current())
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
