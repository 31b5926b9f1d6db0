from __future__ import annotations

from orchestrator.status_building import build_status
from orchestrator.storage.tally import Tally
from orchestrator.submission.handed_in_again import changes_told
from workers.protocol.spec import StudySpec


def test_a_timeout_below_what_is_used_is_said_to_end_a_study():
    known = StudySpec(name="s", trials=20)
    after = StudySpec(name="s", trials=20, timeout=60.0)
    running = build_status(known, Tally(known.all_directions)).model_dump()
    told = changes_told(known, after, running | {"wall_seconds": 90.0})
    why = "no further trial begins, since its timeout is used up"
    assert told[1:] == [
        f"study 's': {why}: `trialfleet extend s --set timeout=180s` raises that",
    ]
    assert len(changes_told(known, after, running)) == 1
