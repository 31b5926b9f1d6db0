"""Whatever is written as a study is in Redis whole, or there is nothing of it."""

from __future__ import annotations

from any_study import STUDIES
from hypothesis import HealthCheck, given
from hypothesis import settings as examples

from orchestrator.handle import StudyHandle
from orchestrator.submission import preflight
from orchestrator.submission.study import build_spec
from orchestrator.submission.submit import submit
from workers.coordination import keys
from workers.coordination.studies import Studies
from workers.protocol.errors import InvalidInputError


def test_a_study_is_handed_in_whole_or_not_at_all(client, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "_import_elsewhere", lambda *_: {"problem": None})
    (tmp_path / "m.py").write_text("def f(trial):\n    return 0.0\n")
    objective = f"{tmp_path}/m.py:f"
    taken = []

    def hand_in(fields):
        """One that is new: each example is a fleet of its own."""
        client.flushall()
        before = set(client.keys("*"))
        try:
            spec = build_spec({"name": "s", **fields, "objective": objective}, "s", base=tmp_path)
            submit(spec, settings, tell=lambda _: None)
        except InvalidInputError:
            assert not client.exists(keys.STUDIES), "nothing is there"
            assert {key for key in client.keys("*") if "{" in key} <= before
            return
        found = Studies(client).spec(spec.name)
        left_out = {"code", "space"}  # the sum of the file; choices in the order that is known
        assert found.model_dump(exclude=left_out) == spec.model_dump(exclude=left_out)
        assert StudyHandle(spec.name, settings).status().wanted == spec.trials
        taken.append(spec)

    checks = list(HealthCheck)

    @examples(max_examples=40, deadline=None, suppress_health_check=checks, print_blob=True)
    @given(STUDIES)
    def every(fields):
        hand_in(fields)

    every()
    assert taken, "some are good"
