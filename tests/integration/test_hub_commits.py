"""Studies whose data and models lie on a hub, as they are handed in."""

from __future__ import annotations

import pytest

from orchestrator.submission import preflight
from orchestrator.submission.submit import submit
from workers.coordination.studies import Studies
from workers.protocol.errors import FleetError, InvalidInputError, RemoteUnavailableError
from workers.protocol.finetune import FinetuneConfig
from workers.protocol.spec import StudySpec
from workers.remote import patience

ROWS = "text,label\n" + "".join(f"text {n},0{n % 3}\n" for n in range(60))
SOURCE = "hub:me/rows"


@pytest.fixture(autouse=True)
def any_model(monkeypatch):
    """Whether a model can be is tried in a process of its own, and is no question of these."""
    monkeypatch.setattr(preflight, "check_models", lambda *_: None)


@pytest.fixture
def repo(hub):
    found = hub.repo("datasets", "me/rows")
    found.commit({"train.csv": ROWS, "test.csv": ROWS.replace("text ", "other ")})
    return found


def study(name="s", space=None, trials=2, **data):
    config = {"data": {"source": SOURCE, **data}, "model": {"architecture": "bert"}}
    fields = {"direction": "maximize", "metric": "accuracy", "trials": trials}
    return StudySpec(name=name, config=config, space=space or {}, **fields)


def test_a_study_and_its_extension_read_one_commit_however_the_hub_moves(
    hub, repo, settings, client
):
    submit(study(), settings)
    known = Studies(client).spec("s")
    (commit,) = repo.commits
    assert known.config["data"]["commits"] == {SOURCE: commit}
    repo.commit({"train.csv": ROWS + "more,00\n"})
    submit(study(trials=5), settings)
    extended = Studies(client).spec("s")
    assert extended.config == known.config
    assert extended.trials == 5
    submit(study("another"), settings)
    assert Studies(client).spec("another").config["data"]["commits"] != {SOURCE: commit}


def test_every_id_that_a_trial_may_get_has_its_commit(hub, repo, settings, client):
    other = hub.repo("datasets", "me/more")
    shas = {SOURCE: next(iter(repo.commits)), "hub:me/more": other.commit({"train.csv": ROWS})}
    space = {"data.source": {"type": "categorical", "choices": [*shas]}}
    submit(study(space=space), settings)
    assert Studies(client).spec("s").config["data"]["commits"] == shas


def test_models_and_tokenizers_are_read_at_their_commits(hub):
    config = FinetuneConfig.model_validate(
        {
            "model": {"id": "me/model", "commits": {"me/model": "a" * 40}},
            "tokenizer": {"id": "me/words@v2", "commits": {"me/words@v2": "b" * 40}},
        }
    )
    assert config.model.pinned_id == f"me/model@{'a' * 40}"
    assert config.tokenizer.pinned_id == f"me/words@{'b' * 40}"
    assert "commits" not in config.model.overrides


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"source": "hub:me/none"},
            r"config.data.source = 'hub:me/none': the hub does not",
        ),
        ({"revision": "v9"}, r"at revision 'v9': the hub does not give it"),
        ({"split": "tset"}, r"config.data.split = 'tset': 'hub:me/rows' has no such split"),
        ({"configuration": "de"}, r"config.data.configuration = 'de'"),
        ({"label": "labels"}, r"config.data.label = 'labels': train.csv has no such column"),
    ],
)
def test_what_the_hub_has_not_is_refused_before_anything_is_enqueued(
    hub, repo, settings, client, data, message
):
    with pytest.raises(InvalidInputError, match=message):
        submit(study(**data), settings)
    assert not Studies(client).exists("s")


def test_a_hub_that_is_away_at_submission_is_told_as_such(hub, repo, settings, client, monkeypatch):
    monkeypatch.setattr(patience.Patience, "ask", _quick(patience.Patience.ask))
    hub.always = "reset"
    with pytest.raises(RemoteUnavailableError, match="config.data.source = 'hub:me/rows' cannot"):
        submit(study(), settings)
    assert issubclass(RemoteUnavailableError, FleetError)
    assert not issubclass(RemoteUnavailableError, InvalidInputError)
    assert not Studies(client).exists("s")


def _quick(ask):
    return lambda _self, *call: ask(patience.Patience(0.01), *call)
