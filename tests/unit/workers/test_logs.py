from __future__ import annotations

import io
import json
import logging
import os
from contextlib import suppress
from pathlib import Path

import pytest
import structlog

from workers.logs import configure_logging, get_logger


@pytest.fixture(autouse=True)
def logging_as_before():
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()


def test_away_from_a_terminal_each_line_is_json_with_what_is_bound():
    stream = io.StringIO()
    configure_logging(stream=stream)
    with structlog.contextvars.bound_contextvars(study="s", trial=3, attempt=2):
        get_logger("x").info("event", value=1.5)
    logging.getLogger("celery").warning("from the library %s", 7)
    own, foreign = map(json.loads, stream.getvalue().splitlines())
    assert own["event"] == "event"
    assert (own["study"], own["trial"], own["attempt"], own["value"]) == ("s", 3, 2, 1.5)
    assert own["pid"] == os.getpid()
    assert (foreign["event"], foreign["level"]) == ("from the library 7", "warning")


def test_an_exception_is_one_line_of_json_too():
    stream = io.StringIO()
    configure_logging(stream=stream)
    try:
        int("bad")
    except ValueError:
        get_logger("x").exception("failed")
    (line,) = stream.getvalue().splitlines()
    assert "ValueError: invalid literal" in json.loads(line)["exception"]


def test_on_a_full_disk_lines_are_lost_and_nothing_is_printed_in_their_place(capsys):
    with suppress(OSError), Path("/dev/full").open("w") as full:
        configure_logging(stream=full)
        get_logger("x").info("lost")
    assert capsys.readouterr() == ("", "")
