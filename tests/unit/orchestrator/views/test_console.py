from __future__ import annotations

import re
from pathlib import Path

import pytest

import orchestrator
from orchestrator.doctor.drawing import draw_group
from orchestrator.doctor.examination import Group
from orchestrator.doctor.findings import ok
from orchestrator.local.cache_commands import draw_entries
from orchestrator.status import Best, StudyStatus, UnreadableStudy
from orchestrator.views import console
from orchestrator.views.console import open_console
from orchestrator.views.ps import draw_tree
from orchestrator.views.screen import draw
from orchestrator.views.watch import draw_studies, print_summary
from workers.coordination.identity import ProcessIdentity
from workers.disk.cache_sweep import CachedEntry
from workers.processes.registry import ProcessEntry
from workers.protocol.states import ProcessKind
from workers.settings import Settings

WORDS = "many words of which none is to be lost " * 8
LONG = f"{WORDS}and the last"


def status(state: str) -> StudyStatus:
    return StudyStatus(
        study="s" * 200, state=state, objective="finetune", metrics=["x"], directions=["minimize"],
        wanted=2, trials={"queued": 0, "running": 1, "complete": 1}, wall_seconds=1,
        busy_seconds=1, slots=1, best=Best(number=0, value=1.0, params={"text": LONG}),
    )  # fmt: skip


def process() -> ProcessEntry:
    identity = ProcessIdentity("host", "boot", 7, 1)
    return ProcessEntry(identity=identity, kind=ProcessKind.MAIN, stalled=[LONG])


def entry() -> CachedEntry:
    return CachedEntry(
        Path("/cache/tokens/1"), "tokens", 1, 1.0, {"source": LONG}, 1.0, is_in_use=False
    )


DRAWN = {
    "ps": lambda: draw_tree([process()]),
    "studies": lambda: draw_studies([UnreadableStudy(study="s", reason=LONG)]),
    "status": lambda: draw(status("running")),
    "doctor": lambda: draw_group(Group(subject="Redis", findings=[ok("memory", LONG)])),
    "cache list": lambda: draw_entries([entry()], Settings()),
}


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")


@pytest.mark.parametrize("command", DRAWN)
def test_what_is_no_terminal_gets_whole_lines(command, capsys):
    open_console().print(DRAWN[command]())
    lines = capsys.readouterr().out.splitlines()
    (found,) = [line for line in lines if "many words" in line]
    assert LONG in found
    assert "\x1b" not in found
    assert max(map(len, lines)) < 2 * len(LONG), "and none is filled up"


def test_the_summary_of_a_study_that_is_over_has_whole_lines(capsys):
    print_summary(status("finished"), open_console())
    assert f"  text = {LONG}\n" in capsys.readouterr().out


def test_a_terminal_is_as_wide_as_it_says(monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert open_console().width == 40


def test_no_other_part_of_the_command_line_opens_a_console():
    package = Path(orchestrator.__file__).parent
    opened = {path for path in package.rglob("*.py") if re.search(r"\bConsole\(", path.read_text())}
    assert opened == {Path(console.__file__)}
