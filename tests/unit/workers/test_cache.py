from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from disks import fill, small_disk
from structlog.testing import capture_logs
from waiting import wait_until

from workers.coordination.identity import ProcessIdentity
from workers.disk.cache import Cache
from workers.disk.cache_entry import MANIFEST, EntryInUseError
from workers.disk.cache_sweep import CacheLimits, CacheSweep, renounce

LIMITS = CacheLimits(max_bytes=10**9, max_age_seconds=3600.0)
KEY = {"content": "a", "max_length": 8}
DAY = 24 * 3600.0


class Builder:
    """Fills entries, and counts how often it had to."""

    def __init__(self, size=1000):
        self.builds = 0
        self.size = size

    def __call__(self, folder):
        self.builds += 1
        (folder / "big.ids").write_bytes(bytes(range(200)) * (self.size // 200))
        (folder / "tokenizer").mkdir()
        (folder / "tokenizer" / "tokenizer.json").write_text("{}")
        return {"source": "rows.csv"}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def use_at(entry, seconds_ago):
    os.utime(entry.path / MANIFEST, (time.time() - seconds_ago,) * 2)


def files(folder):
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != ".swept")
    return sorted(str(path.relative_to(folder)) for path in found)


def whole(path):
    names = ["big.ids", MANIFEST, "tokenizer/tokenizer.json"]
    return [f"data/{path.name}/{name}" for name in names]


def test_an_entry_is_built_once_and_a_failed_build_leaves_nothing(folder):
    build = Builder()

    def fail(draft):
        build(draft)
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        Cache(folder, LIMITS).get("data", KEY, fail)
    assert files(folder) == [f"data/{next(folder.glob('data/.*.lock')).name}"]
    first = Cache(folder, LIMITS).get("data", KEY, build)
    same = Cache(folder, LIMITS).get("data", dict(reversed(KEY.items())), build)
    other = Cache(folder, LIMITS).get("data", {**KEY, "max_length": 9}, build)
    assert first.path == same.path != other.path
    assert build.builds == 3
    shutil.rmtree(other.path)
    assert files(folder) == whole(first.path), "no draft and no lock is left"


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
@pytest.mark.parametrize("file", ["big.ids", "tokenizer/tokenizer.json", MANIFEST])
def test_a_damaged_entry_is_said_and_built_again(folder, damage, file):
    build = Builder()
    path = Cache(folder, LIMITS).get("data", KEY, build).path
    expected = (path / "big.ids").read_bytes()
    damage(path / file)
    with capture_logs() as logs:
        entry = Cache(folder, LIMITS).get("data", KEY, build)
    (said,) = [each for each in logs if each["event"] == "cache_entry_damaged"]
    assert Path(file).name in said["reason"]
    assert build.builds == 2
    assert (entry.path / "big.ids").read_bytes() == expected
    assert files(folder) == whole(path), "what was damaged is gone"


def test_a_file_that_nobody_built_is_damage_too(folder):
    build = Builder()
    path = Cache(folder, LIMITS).get("data", KEY, build).path
    (path / "stray").touch()
    Cache(folder, LIMITS).get("data", KEY, build)
    assert build.builds == 2


def test_who_uses_a_damaged_entry_keeps_it_until_it_is_dropped(folder):
    build = Builder()
    cache = Cache(folder, LIMITS)
    entry = cache.get("data", KEY, build)
    truncate(entry.path / "big.ids")
    again = Cache(folder, LIMITS).get("data", KEY, build)
    assert again.path == entry.path
    assert list(folder.glob("data/.*.removed")), "put aside: it may be mapped by another host"
    del entry
    CacheSweep(folder, LIMITS).sweep()
    assert files(folder) == whole(again.path)


def test_a_cache_can_be_moved(folder, tmp_path):
    build = Builder()
    Cache(folder, LIMITS).get("data", KEY, build)
    folder.rename(tmp_path / "elsewhere")
    moved = Cache(tmp_path / "elsewhere", LIMITS).get("data", KEY, build)
    assert build.builds == 1
    for file in moved.path.rglob("*"):
        assert str(tmp_path).encode() not in (file.read_bytes() if file.is_file() else b"")


def test_what_was_not_used_for_the_longest_goes_first(folder):
    build = Builder(1000)
    cache = Cache(folder, LIMITS)
    entries = [cache.get("data", {"n": n}, build) for n in range(4)]
    for age, entry in zip([400, 100, 300, 200], entries, strict=True):
        use_at(entry, age)
    paths = [entry.path for entry in entries]
    held = entries[2]
    del entries, entry
    sizes = CacheLimits(max_bytes=2100, max_age_seconds=DAY)
    removed = CacheSweep(folder, sizes).sweep()
    assert [each.path for each in removed] == [paths[0], paths[3]], "and none that is in use"
    assert held.path.exists()
    assert paths[1].exists()
    Cache(folder, sizes).get("data", {"n": 1}, build)
    assert build.builds == 4
    Cache(folder, sizes).get("data", {"n": 4}, build)
    assert [path.exists() for path in paths] == [False, False, True, False], "after each build"


def test_what_was_not_used_for_long_goes(folder):
    cache = Cache(folder, LIMITS)
    old, new = (cache.get("data", {"n": n}, Builder()) for n in range(2))
    use_at(old, LIMITS.max_age_seconds + 60)
    use_at(new, LIMITS.max_age_seconds - 60)
    paths = old.path, new.path
    assert CacheSweep(folder, LIMITS).sweep() == [], "both are in use"
    del old, new
    assert [each.path for each in CacheSweep(folder, LIMITS).sweep()] == [paths[0]]
    assert files(folder) == whole(paths[1])


def test_opening_an_entry_removes_what_is_too_old_once_an_hour(folder):
    cache = Cache(folder, LIMITS)
    paths = [cache.get("data", {"n": n}, Builder()).path for n in range(3)]

    def open_first_when_the_next_is_old(number):
        old = time.time() - LIMITS.max_age_seconds - 60
        os.utime(paths[number] / MANIFEST, (old, old))
        cache.get("data", {"n": 0}, Builder())
        return paths[number].exists()

    assert not open_first_when_the_next_is_old(1)
    assert open_first_when_the_next_is_old(2)
    mark = folder / ".swept"
    os.utime(mark, (mark.stat().st_mtime - 3700,) * 2)
    assert not open_first_when_the_next_is_old(2)


def test_nothing_else_in_the_folder_is_touched(folder):
    (folder / "data" / "mine").mkdir(parents=True)
    (folder / "data" / "mine" / "file").touch()
    (folder / "data" / ".hidden").touch()
    (folder / "file").touch()
    before = files(folder)
    everything = CacheLimits(max_bytes=0, max_age_seconds=0.0)
    assert CacheSweep(folder, everything).sweep() == []
    assert files(folder) == before


def draft(folder, owner, seconds_ago):
    path = folder / "data" / f".{'a' * 32}.{'b' * 8}.draft"
    path.mkdir(parents=True)
    (path / MANIFEST).write_text(owner)
    (path / "big.ids").write_bytes(b"half")
    for each in (*path.iterdir(), path):
        os.utime(each, (time.time() - seconds_ago,) * 2)
    return path


@pytest.mark.parametrize(
    ("owner", "seconds_ago", "is_left"),
    [
        (str(ProcessIdentity.current()), 2 * DAY, True),
        (str(ProcessIdentity.current()._replace(start_ticks=1)), 0, False),
        ("elsewhere:boot:1:1", DAY / 2, True),
        ("elsewhere:boot:1:1", 2 * DAY, False),
        ("", DAY / 2, True),
        ("", 2 * DAY, False),
    ],
    ids=["alive", "dead", "elsewhere", "elsewhere and old", "unnamed", "unnamed and old"],
)
def test_a_draft_goes_when_its_builder_is_dead_as_far_as_can_be_told(
    folder, owner, seconds_ago, is_left
):
    path = draft(folder, owner, seconds_ago)
    CacheSweep(folder, LIMITS).sweep()
    assert path.exists() is is_left


BUILDER = """
import os, sys
from pathlib import Path
from workers.disk.cache import Cache
from workers.disk.cache_sweep import CacheLimits

folder, name = Path(sys.argv[1]), sys.argv[2]

def build(draft):
    (folder.parent / f"{name} builds").touch()
    (draft / "ids").write_bytes(b"half")
    if name == "first":
        sys.stdin.read()  # until it is killed
    (draft / "ids").write_bytes(b"whole")
    return {}

def progress(what, done, total):
    (folder.parent / f"{name} waits").touch()

entry = Cache(folder, CacheLimits(10**9, 3600.0)).get("data", {}, build, progress)
print((entry.path / "ids").read_text(), flush=True)
"""


def builder(folder, name, *prefix):
    return subprocess.Popen(
        [*prefix, sys.executable, "-c", BUILDER, str(folder), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


ELSEWHERE = ["unshare", "--uts", "sh", "-c", 'hostname elsewhere && exec "$0" "$@"']


@pytest.mark.parametrize(
    "prefix",
    [
        [],
        pytest.param(
            ELSEWHERE,
            marks=pytest.mark.skipif(os.getuid() != 0, reason="only root names a host"),
        ),
    ],
    ids=["same host", "other host"],
)
def test_a_builder_that_is_killed_is_taken_over_at_once(folder, prefix):
    first = builder(folder, "first", *prefix)
    wait_until((folder.parent / "first builds").exists, "the first one builds")
    second = builder(folder, "second")
    third = builder(folder, "third")
    for name in ("second", "third"):
        wait_until((folder.parent / f"{name} waits").exists, "the others wait")
    first.send_signal(signal.SIGKILL)
    # a lock that nobody releases is waited for without an end
    told = [process.communicate(timeout=60)[0].strip() for process in (second, third)]
    assert told == ["whole"] * 2
    first.communicate()
    built = [name for name in ("second", "third") if (folder.parent / f"{name} builds").exists()]
    assert len(built) == 1
    # of a process of another host it cannot be told that it is dead: its draft stays for a day
    assert len(list(folder.glob("data/.*.draft"))) == (1 if prefix else 0)


class Interrupted(BaseException):
    pass


def test_who_waits_for_another_can_be_stopped(folder):
    entered, leave = threading.Event(), threading.Event()

    def build(draft):
        entered.set()
        leave.wait()
        return {}

    def stop(what, done, total):
        raise Interrupted(what)

    thread = threading.Thread(target=lambda: Cache(folder, LIMITS).get("data", KEY, build))
    thread.start()
    entered.wait()
    with pytest.raises(Interrupted, match="another process that builds"):
        Cache(folder, LIMITS).get("data", KEY, build, stop)
    leave.set()
    thread.join()


def test_the_check_of_a_large_entry_can_be_stopped(folder):
    build = Builder(9 * 2**20)
    Cache(folder, LIMITS).get("data", KEY, build)
    told = []

    def stop(what, done, total):
        told.append((what, done, total))
        if done > 2**23:
            raise Interrupted

    with pytest.raises(Interrupted):
        Cache(folder, LIMITS).get("data", KEY, build, stop)
    assert [each[0] for each in told] == ["checking cached bytes"] * 3
    assert told[-1][1] <= told[-1][2]


def test_on_a_full_disk_there_is_no_entry_and_nothing_is_left(folder):
    with small_disk(folder, 256) as filler:
        cache = Cache(folder, LIMITS)
        with pytest.raises(OSError) as full:  # noqa: PT011 - its number is looked at
            cache.get("data", KEY, Builder(10**6))
        assert full.value.errno == errno.ENOSPC
        assert [path for path in files(folder) if not path.endswith(".lock")] == []
        fill(filler)
        with pytest.raises(OSError) as full:  # noqa: PT011
            cache.get("data", KEY, Builder())
        assert full.value.errno == errno.ENOSPC
        filler.unlink()
        cache.get("data", KEY, Builder())


def test_a_cache_that_can_only_be_read_serves_what_it_has(folder):
    with small_disk(folder, 256):
        path = Cache(folder, LIMITS).get("data", KEY, Builder()).path
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        build = Builder()
        assert Cache(folder, LIMITS).get("data", KEY, build).path == path
        assert build.builds == 0
        with pytest.raises(OSError) as refused:  # noqa: PT011
            Cache(folder, LIMITS).get("data", {}, build)
        assert refused.value.errno == errno.EROFS
        (entry,) = CacheSweep(folder, CacheLimits(0, 0.0)).entries()
        assert entry.is_in_use, "it is not ours to remove"


def test_where_there_are_no_locks_entries_are_built_and_removed_with_more_patience(
    folder, monkeypatch
):
    def no_locks(descriptor, operation):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    build = Builder()
    everything = CacheLimits(max_bytes=0, max_age_seconds=0.0)
    with capture_logs() as logs:
        entry = Cache(folder, LIMITS).get("data", KEY, build)
    assert [each["event"] for each in logs] == ["cache_without_locks"]
    assert CacheSweep(folder, everything).sweep() == [], "somebody may use it"
    for path in (entry.path, *entry.path.rglob("*")):
        os.utime(path, (time.time() - 2 * DAY,) * 2)
    assert len(CacheSweep(folder, everything).sweep()) == 1


def test_whoever_opens_an_entry_finds_it_whole_while_others_build_and_remove_it(folder):
    """Three threads ask for entries; two remove all that is not in use, as fast as they can."""
    until = time.monotonic() + 3.0
    wrong: list[BaseException] = []
    asked = 0

    def ask():
        nonlocal asked
        build, cache = Builder(), Cache(folder, LIMITS)
        while time.monotonic() < until and not wrong:
            entry = cache.get("data", {"n": asked % 2}, build)
            assert (entry.path / "big.ids").stat().st_size == 1000
            assert (entry.path / "tokenizer" / "tokenizer.json").read_text() == "{}"
            asked += 1

    def remove():
        while time.monotonic() < until and not wrong:
            CacheSweep(folder, CacheLimits(0, 0.0)).sweep()

    def watched(body):
        try:
            body()
        except BaseException as error:
            wrong.append(error)
            raise

    threads = [threading.Thread(target=watched, args=[body]) for body in (ask,) * 3 + (remove,) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert asked > 20


def test_an_entry_that_grows_is_whole_and_goes_by_what_lies_there_once_nobody_uses_it(folder):
    cache = Cache(folder, LIMITS)
    entry = cache.get("compiled", KEY, lambda _: {"model": "Bert"})
    (entry.path / "fxgraph").mkdir()
    (entry.path / "fxgraph" / "code.so").write_bytes(bytes(5000))
    again = cache.get("compiled", KEY, lambda _: {"model": "Bert"})
    assert again.path == entry.path
    sweep = CacheSweep(folder, CacheLimits(max_bytes=4000, max_age_seconds=3600.0))
    [seen] = sweep.entries()
    assert 5000 <= seen.num_bytes < 20_000
    assert sweep.sweep() == [], "it is in use"
    for each in (entry, again):
        each.leave()
    assert [each.digest for each in sweep.sweep()] == [entry.path.name]
    assert not entry.path.exists()


def test_an_entry_that_grows_stays_where_it_is_while_used_though_one_found_fault_with_it(folder):
    cache = Cache(folder, LIMITS)
    entry, other = (cache.get("compiled", KEY, lambda _: {}) for _ in range(2))
    (entry.path / "code.so").write_bytes(b"half")
    renounce(entry)
    assert (other.path / "code.so").exists()
    assert CacheSweep(folder, CacheLimits(0, 0.0)).sweep() == [], "it is in use"
    with pytest.raises(EntryInUseError):
        cache.get("compiled", KEY, lambda _: {})
    other.leave()
    anew = cache.get("compiled", KEY, lambda _: {})
    assert anew.path == other.path
    assert [path.name for path in anew.path.iterdir()] == [MANIFEST]
    renounce(anew)
    assert not anew.path.exists(), "nobody else used it"
