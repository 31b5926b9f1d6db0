from __future__ import annotations

import pytest
import yaml

from orchestrator.submission.overrides import with_overrides
from orchestrator.submission.study import load_study
from workers.protocol.errors import InvalidInputError

FIELDS = {
    "name": "s",
    "objective": "train.py:objective",
    "sampler": "tpe",
    "trials": 4,
    "space": {
        "lr": {"type": "float", "low": 1e-5, "high": 1e-2, "log": True},
        "model.layers": {"type": "int", "low": 1, "high": 4},
        "x": None,
    },
    "config": {
        "epochs": 3,
        "data": {"source": "a.csv"},
        "a.b": {"c": 1},
        "layer1": 8,
        "none": None,
    },
}


def laid_over(*texts):
    return with_overrides(FIELDS, texts)


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("trials=3", ["trials"], 3),
        ("trials = 3", ["trials"], 3),
        ("timeout=2h", ["timeout"], "2h"),
        ("timeout=", ["timeout"], None),
        ("config.epochs=1", ["config", "epochs"], 1),
        ("config.rate=1e-5", ["config", "rate"], 1e-5),
        ("config.rate='1e-5'", ["config", "rate"], "1e-5"),
        ("config.flag=true", ["config", "flag"], True),
        ("config.flag=no", ["config", "flag"], "no"),
        ("config.text=a=b", ["config", "text"], "a=b"),
        ("config.sizes=[1, 2]", ["config", "sizes"], [1, 2]),
        ("config.data.source=b.csv", ["config", "data", "source"], "b.csv"),
        ("config.data={source: c.csv}", ["config", "data"], {"source": "c.csv"}),
        ("config.a.b.c=2", ["config", "a.b", "c"], 2),
        ("config.new.deep=2", ["config", "new", "deep"], 2),
        ("config.none.deep=2", ["config", "none", "deep"], 2),
        ("config.layer2=9", ["config", "layer2"], 9),
        ("sampler.seed=7", ["sampler"], {"type": "tpe", "seed": 7}),
        ("resources.queue=big", ["resources"], {"queue": "big"}),
        ("space.lr.high=0.1", ["space", "lr", "high"], 0.1),
        ("space.model.layers.high=8", ["space", "model.layers", "high"], 8),
        ("space.lr.when.model.layers=2", ["space", "lr", "when"], {"model.layers": 2}),
        ("space.lr={type: int, low: 1, high: 2}", ["space", "lr", "type"], "int"),
        ("space.a.b={type: int, low: 1, high: 2}", ["space", "a.b", "low"], 1),
    ],
)
def test_a_setting_is_laid_over_the_study_s_own_and_typed_like_yaml(text, path, value):
    found = laid_over(text)
    for name in path:
        found = found[name]
    assert found == value
    assert type(found) is type(value)
    assert FIELDS["config"]["epochs"] == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trials", "write NAME=VALUE"),
        ("=3", "write NAME=VALUE"),
        ("config..epochs=3", "write NAME=VALUE"),
        ("trails=3", "trails: no such setting of a study; did you mean 'trials'?"),
        ("zzz=3", "zzz: no such setting of a study; there are version, name"),
        ("config.epoch=3", "config.epoch: the study has no such setting; did you mean 'epochs'?"),
        ("config.data.sources=3", "config.data.sources: the study has no such setting"),
        ("space.rl.high=0.1", "space has no such parameter"),
        ("space.model.layer.high=1", "did you mean 'model.layers'?"),
        ("space.lr.hihg=0.1", "hihg: no such field of a parameter; did you mean 'high'?"),
        ("trials.x=3", "trials = 4 has no names below it"),
        ("config.epochs.x=3", "epochs = 3 has no names below it"),
        ("config.x=[1", "--set 'config.x=[1', line 1"),
        ("config.x={{ n }}", "the template '{{ n }}' was not rendered"),
    ],
)
def test_what_cannot_be_set_is_refused_in_one_line_with_the_way_out(text, message):
    with pytest.raises(InvalidInputError) as error:
        laid_over(text)
    assert message in str(error.value)
    assert "--set" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_later_setting_wins_and_trials_of_their_own_option_above_all(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    file = tmp_path / "there" / "named.yaml"
    fields = {"objective": "finetune", "config": {"data": {"source": "a.csv"}}}
    file.write_text(yaml.safe_dump(fields))
    sets = ["trials=5", "trials=6", "config.data.validation=b.csv"]
    spec = load_study(str(file), overrides=sets)
    assert (spec.name, spec.trials) == ("named", 6)
    # each path is relative to where it was written
    assert spec.config["data"] == {
        "source": str(tmp_path / "there" / "a.csv"),
        "validation": str(tmp_path / "here" / "b.csv"),
    }
    assert load_study(str(file), overrides=sets, trials=7).trials == 7


def test_a_bare_objective_takes_settings_too():
    spec = load_study("train.py:objective", overrides=["config.epochs=1", "direction=maximize"])
    assert (spec.config, spec.all_directions) == ({"epochs": 1}, ["maximize"])
    with pytest.raises(InvalidInputError, match=r"trials = 0: it should be greater"):
        load_study("train.py:objective", overrides=["trials=0"])
