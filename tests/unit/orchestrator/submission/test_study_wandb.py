from __future__ import annotations

import pytest

from orchestrator.submission.study import Study, build_spec
from workers.protocol.errors import InvalidInputError
from workers.protocol.spec import StudySpec
from workers.protocol.study_options import WandbSpec

GIVEN = {"name": "s", "objective": "package.module:objective"}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (None, None),
        ("offline", WandbSpec(mode="offline")),
        (True, WandbSpec()),
        (False, WandbSpec(mode="disabled")),
        ({}, WandbSpec()),
        ({"project": "p", "tags": ["a"]}, WandbSpec(project="p", tags=["a"])),
    ],
)
def test_what_a_study_asks_of_wandb_is_read_and_makes_it_no_other_study(
    tmp_path, written, expected
):
    spec = build_spec({**GIVEN, "wandb": written}, "study.yaml", base=tmp_path)
    assert spec.wandb == expected
    assert StudySpec.read(spec.model_dump_json()) == spec
    assert spec.identity() == StudySpec(**GIVEN).identity()


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("of", "wandb.mode = 'of': it should be 'online', 'offline' or 'disabled'"),
        ({"mod": "offline"}, "wandb.mod = 'offline': no such setting; did you mean 'mode'?"),
        ({"project": "a/b"}, "wandb.project = 'a/b': write up to 128 characters, and none of / "),
        ({"project": ""}, "wandb.project = '': "),
        ({"tags": "a"}, "wandb.tags = 'a': it should be a valid list"),
        ({"tags": ["x" * 65]}, "wandb.tags.0 = "),
        (7, "wandb = 7: "),
    ],
)
def test_what_wandb_does_not_take_is_refused_by_name(tmp_path, written, message):
    with pytest.raises(InvalidInputError) as error:
        build_spec({**GIVEN, "wandb": written}, "study.yaml", base=tmp_path)
    assert message in str(error.value)


def test_a_script_asks_for_runs_as_a_file_does():
    assert Study("package.module:objective", wandb="offline").spec.wandb == WandbSpec(
        mode="offline"
    )
