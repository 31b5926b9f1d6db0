from __future__ import annotations

import io
import time

from rich.console import Console

from orchestrator.views.ps import draw_tree
from workers.processes.registry import ProcessEntry


def entry(pid, kind, **facts):
    identity = {"host": "box", "boot_id": "b", "pid": pid, "start_ticks": 1}
    return ProcessEntry(identity=identity, kind=kind, **facts)


def drawn(*entries):
    console = Console(file=io.StringIO(), width=200)
    console.print(draw_tree(entries))
    return console.file.getvalue()


def test_a_slot_that_takes_no_trials_is_shown_with_the_reason():
    text = drawn(
        entry(1, "main", slots=2, queues=["default"]),
        entry(2, "trial", parent=1, gpu="0 (GPU-8f6d4a2e)", aside="put aside: CUDA broke on it"),
        entry(3, "trial", parent=1, gpu="1 (GPU-c0ffee00)"),
    )
    assert "trial 2  gpu 0 (GPU-8f6d4a2e)  takes no trials" in text
    assert "! put aside: CUDA broke on it" in text
    assert "trial 3  gpu 1 (GPU-c0ffee00)  idle" in text


def test_a_process_tells_its_attempt_what_it_uses_and_for_how_long_it_is_there():
    text = drawn(
        entry(
            2, "trial", study="s", trial=7, attempt=2, memory=(3 * 2**30, 512 * 2**20),
            started_at=time.time() - 3700, lease_left_seconds=30,
        )
    )  # fmt: skip
    assert "s trial 7 attempt 2  3.0G and 512M of its GPU  up 1h01m  lease 30 s" in text


def test_an_orchestrator_tells_what_it_drives():
    text = drawn(
        entry(1, "orchestrator", shares={"storage": "5a1e", "queues": {"a": 1, "b": 2}}),
        entry(2, "orchestrator", drives="mine"),
        entry(3, "orchestrator"),
    )
    assert "orchestrator 1  drives 3 studies  " in text
    assert "orchestrator 2  drives mine  " in text
    assert "orchestrator 3  lease" in text
