from __future__ import annotations

from workers.coordination.clock import lease_clock
from workers.processes.registry import ProcessRecord
from workers.protocol.spec import StudySpec
from workers.trials import refused_studies
from workers.trials.refused_studies import RefusedStudies


def test_what_a_worker_lacks_is_looked_for_again_after_a_while(monkeypatch):
    refusals, spec = RefusedStudies(ProcessRecord()), StudySpec(name="s", trials=1)
    assert not refusals.is_lacking(spec)
    refusals.refuse_lacking(spec, "data.source: there is no such file")
    assert refusals.is_lacking(spec)
    assert not refusals.is_lacking(StudySpec(name="s", trials=2)), "it may take something else"
    later = lease_clock() + 601
    monkeypatch.setattr(refused_studies, "lease_clock", lambda: later)
    assert not refusals.is_lacking(spec), "a share may be back"
    refusals.accept("s")
