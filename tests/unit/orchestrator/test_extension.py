from __future__ import annotations

import pytest

from orchestrator.extension import CHANGEABLE, changed_settings, extended
from orchestrator.submission.overrides import extension_fields
from workers.protocol.errors import InvalidInputError
from workers.protocol.spec import StudySpec

SPEC = StudySpec(
    name="s",
    trials=20,
    timeout=3600.0,
    budget={"slot_hours": 4.0},
    stop={"target": 0.2, "patience": 9},
    space={"x": {"type": "float", "low": 0.0, "high": 1.0}},
    warm_start={"study": "former"},
)


@pytest.mark.parametrize(
    ("text", "setting", "value"),
    [
        ("trials=30", "trials", 30),
        ("timeout=2h", "timeout", 7200.0),
        ("trial_timeout=10m", "trial_timeout", 600.0),
        ("budget.slot_hours=8", "budget.slot_hours", 8.0),
        ("budget.slot_hours=null", "budget.slot_hours", None),
        ("stop.target=0.1", "stop.target", 0.1),
        ("stop.target=null", "stop.target", None),
        ("share.weight=3", "share.weight", 3.0),
        ("share.max_slots=1", "share.max_slots", 1),
        ("resources.queue=big", "resources.queue", "big"),
        ("max_failures=1", "max_failures", 1),
        ("max_losses=99", "max_losses", 99),
        ("keep.models=best 3", "keep.models", "best 3"),
        ("wandb=offline", "wandb.mode", "offline"),
    ],
)
def test_what_may_change_while_a_study_runs_does_and_nothing_else(text, setting, value):
    changes, space = extension_fields(SPEC, None, [text])
    assert space is None
    after = extended(SPEC, changes)
    changed = changed_settings(SPEC, after)
    assert changed[setting][1] == value
    assert all(name.split(".")[0] == setting.split(".")[0] for name in changed)
    assert after.identity() == SPEC.identity(), "it is the same study"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trials=10", "less than it has, 20"),
        ("timeout=null", "timeout=null"),
        ("budget.slot_hours=1", "budget.slot_hours = 1 is less than it has, 4"),
        ("budget.gpu_hours=1", "has no budget.gpu_hours"),
        ("budget.slot_hour=9", "budget.slot_hour = 9"),
        ("stop.patience=0", "stop.patience = 0"),
        ("share.weight=heavy", "share.weight = 'heavy'"),
        ("share=heavy", "share = 'heavy'"),
        ("objective=train:main", "objective cannot change"),
        ("sampler.seed=1", "sampler cannot change"),
        ("code.must_match=true", "code cannot change"),
        ("stopp.target=1", "did you mean 'stop'"),
        ("space={x: {type: float, low: 0.0, high: 2.0}}", "--space FILE, or .*space.learning_rate"),
        ("space=null", "--space FILE"),
    ],
)
def test_what_may_not_change_is_refused_by_name(text, message):
    with pytest.raises(InvalidInputError, match=message):
        extended(SPEC, extension_fields(SPEC, None, [text])[0])


def test_what_settings_are_together_is_refused_with_the_reason_and_without_a_password():
    before = StudySpec(name="s", on_end="https://user:s3cret@host.example/x" + 300 * "y")
    with pytest.raises(InvalidInputError) as refused:
        extended(before, {"stop": {"min_delta": 0.1}})
    assert "patience" in str(refused.value)
    assert "s3cret" not in str(refused.value)
    for wrong in (["https://user:s3cret@host.example/x"], {"url": "https://user:s3cret@host/x"}):
        with pytest.raises(InvalidInputError, match="on_end: ") as refused:
            extended(SPEC, {"on_end": wrong})
        assert "s3cret" not in str(refused.value)
    with pytest.raises(InvalidInputError, match=r"max_losses = 'https://user:\*\*\*@") as refused:
        extended(SPEC, {"max_losses": "https://user:s3cret@host.example/x"})
    assert "s3cret" not in str(refused.value)


def test_each_setting_that_can_change_is_one_of_a_study():
    assert set(StudySpec.model_fields) >= CHANGEABLE
