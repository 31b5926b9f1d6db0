from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from orchestrator.cli import app
from workers.disk.cache import Cache
from workers.disk.cache_entry import MANIFEST
from workers.disk.cache_sweep import CacheLimits

DAY = 24 * 3600.0


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of three entries, unused for 1, 10 and 40 days."""
    monkeypatch.setenv("FLEET_CACHE", str(tmp_path / "cache"))
    cache = Cache(tmp_path / "cache", CacheLimits(10**9, 10**9))
    for days in (10, 1, 40):

        def build(folder, days=days):
            (folder / "ids").write_bytes(b"x" * 1000 * days)
            return {"source": f"rows {days}\x1b.csv", "tokenizer": None}

        entry = cache.get("data", {"days": days}, build)
        os.utime(entry.path / MANIFEST, (time.time() - days * DAY - 60,) * 2)
    del entry
    return cache


def trialfleet(*arguments):
    with capture_logs():  # the console script shows errors alone
        result = CliRunner().invoke(app, ["cache", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return json.loads(result.stdout) if "--json" in arguments else result.stdout


def sources(entries):
    return [
        int(entry["about"]["source"].removeprefix("rows ").split("\x1b")[0]) for entry in entries
    ]


def test_entries_are_listed_with_the_latest_used_first(cache):
    document = trialfleet("list", "--json")
    assert sources(document["entries"]) == [1, 10, 40]
    assert [entry["bytes"] for entry in document["entries"]] == [1000, 10_000, 40_000]
    assert (document["bytes"], document["max_bytes"]) == (51_000, 50 * 10**9)
    assert document["folder"] == str(cache.folder)
    text = trialfleet("list")
    for part in ("1 d ago", "10.0 kB", "rows 40\\x1b.csv", "3 entries, 51.0 kB of 50.0 GB", "30 d"):
        assert part in " ".join(text.split())
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("options", "environment", "removed"),
    [
        ([], {}, [40]),
        (["--older-than", "7d"], {}, [40, 10]),
        (["--older-than", "7d"], {"FLEET_CACHE_SIZE": "0"}, [40, 10]),
        (["--older-than", "100d"], {}, []),
        (["--all"], {}, [40, 10, 1]),
        ([], {"FLEET_CACHE_AGE": "2d"}, [40, 10]),
        ([], {"FLEET_CACHE_AGE": "100d", "FLEET_CACHE_SIZE": "12KB"}, [40]),
    ],
)
def test_entries_go_by_age_by_the_settings_or_all(
    cache, monkeypatch, options, environment, removed
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    document = trialfleet("clean", *options, "--json")
    assert sources(document["removed"]) == removed
    assert document["freed_bytes"] == 1000 * sum(removed)
    assert document["bytes"] == 51_000 - 1000 * sum(removed)


def test_what_is_in_use_stays(cache):
    entry = cache.get("data", {"days": 40}, lambda _: {})
    assert [each["in_use"] for each in trialfleet("list", "--json")["entries"]] == [
        True,
        False,
        False,
    ]
    assert trialfleet("clean", "--all").startswith(
        "removed 2 entries, 11.0 kB; 1 entry left, 40.0 kB"
    )
    assert (entry.path / "ids").exists()


def test_a_cache_that_was_never_used_is_empty(tmp_path, monkeypatch):
    monkeypatch.setenv("FLEET_CACHE", str(tmp_path / "none"))
    assert "nothing is cached in" in trialfleet("list")
    assert trialfleet("clean", "--all", "--json")["removed"] == []
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--older-than", "soon"], "--older-than = 'soon': 'soon' is no duration"),
        (["--older-than", "1d", "--all"], "--all and --older-than: give one of them"),
    ],
)
def test_options_that_make_no_sense_are_refused(cache, options, message):
    command = [sys.executable, "-m", "orchestrator.cli", "cache", "clean", *options]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert len(trialfleet("list", "--json")["entries"]) == 3
