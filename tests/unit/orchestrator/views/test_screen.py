from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from orchestrator.status import Best, EndedTrial, RunningTrial, StudyStatus
from orchestrator.storage.best_so_far import BestSoFar
from orchestrator.views.screen import LiveView, Screen, sparkline
from orchestrator.views.slot_rows import slot_lines
from orchestrator.views.watch import PlainView

NOW = 1_795_000_000.0


def running(number, **fields):
    given = {
        "attempt": 1 + number % 2,
        "step": 100 * number,
        "value": 0.123456789,
        "params": {"learning_rate": 0.001, "name": "x" * 300, "escape": "\x1b[2J"},
        "owner": f"box-{number % 3}:{'0' * 36}:{1000 + number}:77",
        "slot": f"cpu slot {number}",
        "lease_until_ms": int((NOW + 30) * 1000),
        "claimed_at_ms": int((NOW - 100) * 1000),
        "step_at_ms": int((NOW - 4) * 1000),
        "total_steps": 100_000,
        "steps_per_second": 2.5,
        "examples_per_second": 160.0,
        "memory_bytes": 3 * 2**30,
    }
    return RunningTrial(number=number, **{**given, **fields})


def ended(number):
    error = "ValueError: " + "no " * 100 if number % 2 else None
    state = "failed" if error else "complete"
    return EndedTrial(number=number, state=state, value=0.5, error=error, seconds=3.0, attempts=2)


def status(slots=64, trials=10_000):
    counts = {"queued": 900, "running": slots, "complete": trials, "pruned": 31, "failed": 7}
    return StudyStatus(
        study="a-study-with-a-long-name-of-many-words",
        state="running",
        objective="finetune",
        metrics=["accuracy"],
        directions=["maximize"],
        wanted=trials + 1000,
        trials={**counts, "dead": 2, "cancelled": 0},
        best=Best(number=0, value=0.5, params={"lr": 0.001, "text": "y" * 500}),
        wall_seconds=3600.0,
        busy_seconds=20.0,
        losses=3,
        slots=slots,
        recent=[ended(number) for number in range(20)],
        running=[running(number) for number in range(slots)],
        history=[index / 100 for index in range(100)],
        put_aside=["0 (GPU-1) of box: " + "CUDA does not work here, " * 20],
        stalled="the disk is full: " + "make room " * 50,
    )


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 20), (200, 50), (20, 6), (60, 12)])
def test_a_screen_fits_its_terminal_however_much_there_is_to_tell(width, height):
    screen = Screen(status(), "a message " * 30, "Ctrl-C: x", height)
    lines = screen.lines(width)
    assert len(lines) < height
    assert max(line.cell_len for line in lines) <= width
    assert lines[-1].plain.startswith("Ctrl-C"), "what Ctrl-C does is seen in any case"
    assert lines[0].plain.startswith("a-study"[: width - 1])
    assert "\x1b" not in "".join(line.plain for line in lines)
    console = Console(file=io.StringIO(), width=width, height=height)
    console.print(Screen(status(), "", "", height))
    assert len(console.file.getvalue().splitlines()) < height, "rich wraps none of them"


def test_what_does_not_fit_is_counted():
    lines = slot_lines([running(number) for number in range(64)], 80, 10, NOW)
    assert len(lines) == 10
    assert lines[-1].plain == "and 56 more that run"
    every = slot_lines([running(number) for number in range(4)], 80, 10, NOW)
    assert len(every) == 9, "parameters have a line of their own where there is room"
    assert len(slot_lines([running(number) for number in range(5)], 80, 10, NOW)) == 6


def test_drawing_many_trials_is_quick():
    found, began = status(), time.process_time()
    for _ in range(10):
        Screen(found, height=50).lines(200)
    assert (time.process_time() - began) / 10 < 0.1


def test_a_slot_tells_where_it_runs_how_far_it_is_and_what_it_uses():
    head, line, _ = slot_lines([running(7)], 200, 10, NOW)
    assert head.plain.split() == [
        "host", "slot", "trial", "try", "step", "rate", "mem", "lease", "value",
    ]  # fmt: skip
    assert line.plain.startswith("box-1 cpu 7     7   2 ~710/100000 160 ex/s 3.0G   30s 0.12346")


def test_eighty_columns_have_all_that_there_is_of_a_slot_and_fewer_what_matters_most():
    long = running(
        100_007, owner=f"a-host-with-a-long-name-7.example.com:{'0' * 36}:1000:77",
        slot="0 (GPU-8f6d4a2e-0000)", step=999_999, total_steps=1_000_000, attempt=12,
        examples_per_second=12_345.6, memory_bytes=int(999.9 * 2**30), value=-1.23456e-05,
        lease_until_ms=int((NOW + 59 * 60) * 1000), params={"rate": 0.001},
    )  # fmt: skip
    head, line, below = slot_lines([long], 80, 10, NOW)
    assert head.plain.split() == [
        "host", "slot", "trial", "try", "step", "rate", "mem", "lease", "value",
    ]  # fmt: skip
    assert line.plain.split() == [
        "ng-name-7", "gpu", "0", "100007", "12", "~1000000/1000000"[:16], "12.3k", "ex/s", "999.9G",
        "59m00s", "-1.2346e-05",
    ]  # fmt: skip
    assert below.plain.strip() == "rate=0.001"
    assert max(len(each.plain) for each in (head, line, below)) <= 80
    assert slot_lines([long], 45, 10, NOW)[0].plain.split() == ["trial", "try", "step", "value"]
    assert slot_lines([running(7)], 20, 10, NOW)[0].plain.split() == ["trial", "step"]


def test_a_step_that_nobody_can_estimate_is_said_to_be_old_and_what_is_prepared_is_shown():
    silent = running(7, steps_per_second=None, total_steps=None, step_at_ms=(NOW - 42) * 1000)
    assert "700 42s ago" in slot_lines([silent], 200, 10, NOW)[1].plain
    over = running(7, steps_per_second=1e9)
    assert "~100000/100000" in slot_lines([over], 200, 10, NOW)[1].plain
    reading = running(0, activity="rows read: 3 of 9\n", step=0, step_at_ms=0)
    assert slot_lines([reading], 40, 10, NOW)[2].plain.endswith("rows read: 3 of 9\\n")
    many = slot_lines([reading] * 8, 40, 10, NOW)
    assert many[1].plain.endswith("rows read: 3 of 9\\n")


def test_a_sparkline_is_as_wide_as_it_may_be_and_tells_the_last_value():
    assert sparkline([0.0, 1.0], 40) == "▁█"
    assert sparkline([1.0, 1.0, 1.0], 40) == "▁▁▁"
    assert sparkline([float("-inf"), 0.0, 0.5, 1.0], 3) == "▁▅█"
    many = sparkline([float(index) for index in range(1000)], 10)
    assert (len(many), many[0], many[-1]) == (10, "▁", "█")
    assert sparkline([1.0], 40) == ""
    assert sparkline([0.0, 1.0], 40, is_ascii=True) == "_#"
    assert sparkline([-1.7e308, 0.0, 1.7e308], 40) == "▁▅█", "whose difference is infinite"
    assert sparkline([0.0, 5e-324], 40) == "▁▁", "whose halves are equal"


@pytest.mark.parametrize("width", range(1, 12))
def test_a_screen_of_few_columns_is_drawn(width):
    drawn = Screen(status(), "a message", "Ctrl-C", 20).lines(width)
    assert max(line.cell_len for line in drawn) <= width


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp437", "koi8-r", "utf-8"])
def test_every_view_is_drawn_in_the_signs_that_the_terminal_has(encoding):
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding=encoding, errors="strict")
    console = Console(file=stream, force_terminal=True, width=80, height=30)
    odd = status(2).model_copy(update={"study": "größer-\N{SNOWMAN}", "stalled": "\udcff … ─"})
    with LiveView(console, "Ctrl-C: x") as view:
        view.say("waiting for \N{SNOWMAN} " + "long " * 50)
        view._live.refresh()
        view.update(odd)
        view._live.refresh()
    plain = PlainView(console)
    plain.update(odd)
    plain.say("\N{SNOWMAN}")
    stream.flush()
    told = written.getvalue().decode(encoding)
    assert told.count("best  ") == 2
    assert ("▁" in told) == (encoding == "utf-8")


def test_what_cannot_be_drawn_is_said_and_the_next_status_is_drawn():
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=30)
    broken = status(2).model_copy(update={"history": ["no number", "nor this"]})
    with LiveView(console) as view:
        view.update(broken)
        view._live.refresh()
        assert "not drawn: TypeError" in console.file.getvalue()
        view.update(status(2))
        view._live.refresh()
    assert "best  accuracy" in console.file.getvalue()


def test_the_best_so_far_stays_short_and_ends_with_the_best():
    line = BestSoFar("minimize")
    assert line.points == []
    for value in [5.0, 7.0, float("nan"), 3.0]:
        line.add(value)
    assert line.points == [5.0, 5.0, 3.0]
    for index in range(10_000):
        line.add(3.0 - index)
    points = line.points
    assert points[-1] == 3.0 - 9999
    assert 64 <= len(points) <= 129
    assert points == sorted(points, reverse=True)


def test_a_terminal_of_another_size_is_drawn_anew():
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=30)
    view = LiveView(console, "Ctrl-C: x")
    view.update(status())
    view._render()
    assert "\x1b[2J" not in console.file.getvalue()
    console.size = (60, 20)
    assert "\x1b[2J" not in console.file.getvalue()
    view._render()
    assert "\x1b[2J" in console.file.getvalue()
