"""`report`, on studies that lie in a home without a fleet."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from PIL import Image
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.storage.attributes import ATTR, CODE_ATTR, SPEC_ATTR
from orchestrator.storage.event_file import events_file
from orchestrator.storage.opening import StudyStorage, create_or_load_study, storage_url
from orchestrator.submission.study import load_study
from workers.disk import durable
from workers.protocol.errors import FleetError, InvalidInputError, StudyNotKnownError
from workers.protocol.events import Cause, EventKind, encode, line_of
from workers.protocol.spec import StudySpec
from workers.settings import Settings

TRICK = "</script><img src=x onerror=alert(1)> $x_{1}$ %{y} {{ 7 * 7 }}"
CANARY, URL_CANARY = "canary-of-the-environment", "canary-of-a-url"

DISTRIBUTIONS = {
    "rate": FloatDistribution(1e-5, 1e-1, log=True),
    "width": FloatDistribution(0, 1),
    TRICK: CategoricalDistribution([TRICK, "plain"]),
}


def trial(at, how=TrialState.COMPLETE, values=None, **own):
    params = {"rate": 10 ** -(1 + at % 5), "width": at % 7 / 7, TRICK: [TRICK, "plain"][at % 2]}
    return create_trial(
        state=how,
        values=(values or [at / 10]) if how is TrialState.COMPLETE else None,
        params=params,
        distributions=DISTRIBUTIONS,
        intermediate_values={} if how is TrialState.FAIL else {0: 1.0, 1: at / 5},
        user_attrs={f"{ATTR}{name}": value for name, value in own.items()},
    )


FAILED = {
    "state": "FAILED",
    "error": f"ValueError: {TRICK} {CANARY}",
    "traceback": f"Traceback\n  redis://:{URL_CANARY}@box/0\nValueError: {TRICK} {CANARY}",
    "code": "c0de",
}
TRIALS = [
    *(trial(at, code="c0de" if at % 2 else "c0df") for at in range(12)),
    trial(12, TrialState.PRUNED),
    trial(13, TrialState.FAIL, **FAILED),
    trial(14, TrialState.RUNNING),
]


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name in ("FLEET_REDIS_URL", "FLEET_STORAGE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FLEET_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def stored(home):
    """Puts a study with some trials, and its events, under the home."""

    def store(trials=TRIALS, **fields):
        space = {"rate": {"type": "float", "low": 1e-5, "high": 1e-1, "log": True}}
        given = {"name": "s", "objective": "/a/train.py:objective", "space": space}
        spec = StudySpec.model_validate({**given, **fields})
        storage = StudyStorage.open(storage_url(Settings(home=home), spec.name))
        sampler, pruner = optuna.samplers.RandomSampler(), optuna.pruners.NopPruner()
        study = create_or_load_study(spec, storage.storage, sampler, pruner)
        study.set_user_attr(SPEC_ATTR, spec.model_dump_json())
        study.set_user_attr(f"{CODE_ATTR}c0de", {"torch": "2.13.0", "host": "one"})
        study.set_user_attr(f"{CODE_ATTR}c0df", {"torch": "2.12.0", "host": "two"})
        study.add_trials(trials)
        storage.close()
        return spec

    return store


def tell(home):
    place = {"process": "box:boot:7:9", "device": "cpu-0"}
    told = [
        (1, encode(EventKind.CLAIMED, trial=0, attempt=1, token=1, **place)),
        (5, encode(EventKind.REQUEUED, trial=0, attempt=1, cause=Cause.DIED, held_ms=4000)),
        (6, encode(EventKind.CLAIMED, trial=0, attempt=2, token=2, **place)),
        (9, encode(EventKind.ENDED, trial=0, attempt=2, state="COMPLETE", held_ms=3000)),
    ]
    events_file(home, "s").write_text("".join(line_of(f"{at}000-0", text) for at, text in told))


def call(*words):
    result = CliRunner().invoke(app, ["report", *map(str, words)])
    if isinstance(result.exception, FleetError):
        raise result.exception
    assert result.exception is None, result.exception
    return result.stdout


class Parts(HTMLParser):
    """The elements of a page, and its texts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)


def test_one_file_tells_what_was_asked_what_came_out_and_how_to_run_the_best_again(
    home, stored, tmp_path
):
    stored(trials=TRIALS)
    tell(home)
    told = json.loads(call("s", "-o", "report.html", "--json"))
    assert told == {
        "study": "s",
        "file": str(tmp_path / "report.html"),
        "format": "html",
        "bytes": (tmp_path / "report.html").stat().st_size,
        "trials": 15,
    }
    text = " ".join(Parts((tmp_path / "report.html").read_text()).texts)
    for wanted in (
        "20 trials of /a/train.py:objective, to minimize value.",
        "14 of 20 trials ended",
        "Trial 0 is the best, with value 0.",
        "Where the slot time went",
        "2.13.0",
        "differs",
        "Contour",
    ):
        assert wanted in text, wanted
    document = _json("s")
    (tmp_path / "best.yaml").write_text(document["best_study_file"])
    assert load_study("best.yaml").trials == 1
    assert document["slot_time"]["lost"] == 4.0
    assert document["slot_time"]["trained"] == 3.0
    assert [bar["end"] for bar in document["timeline"]] == ["DIED", "COMPLETE"]
    now = float(re.findall(r'"now": ([\d.]+)', (tmp_path / "report.html").read_text())[-1])
    assert 0 <= document["made_at"] - now < 600, "until when what runs is drawn"


def _json(name):
    call(name, "-o", "report.json")
    return json.loads(_read("report.json"))


def test_what_users_named_is_text_and_the_file_loads_and_runs_nothing_but_its_own(stored):
    stored(metric=TRICK)
    call("s", "-o", "report.html")
    text = Path("report.html").read_bytes().decode()
    parts = Parts(text)
    assert not [
        tag for tag, attrs in parts.tags if tag == "img" or "src" in attrs or "href" in attrs
    ]
    assert not [attrs for _, attrs in parts.tags if any(name.startswith("on") for name in attrs)]
    assert any(TRICK in each for each in parts.texts)
    scripts = re.findall(r"<script(?: type=\"module\")?>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == 2
    policy = next(attrs["content"] for tag, attrs in parts.tags if "http-equiv" in attrs)
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


@pytest.mark.parametrize("form", ["html", "json", "csv", "png"])
def test_no_format_tells_a_secret(stored, monkeypatch, form):
    stored()
    monkeypatch.setenv("SOME_API_KEY", CANARY)
    monkeypatch.setenv("OTHER_BROKER", f"redis://:{URL_CANARY}@box/0")
    call("s", "--format", form)
    content = Path(f"s-report.{form}").read_bytes()
    assert CANARY.encode() not in content
    assert URL_CANARY.encode() not in content
    assert form == "png" or b"***" in content


def test_a_study_without_trials_and_one_of_several_directions_have_a_report(stored):
    stored(trials=[])
    assert "0 trials" in call("s")
    assert "No trial has begun" in _read("s-report.html")
    call("s", "-o", "s.png")
    two = [trial(at, values=[at / 10, (5 - at) ** 2]) for at in range(8)]
    stored(trials=two, name="two", directions=["minimize", "maximize"])
    document = _json("two")
    assert document["front"] == [0]
    assert (
        "1 trial on the Pareto front; the first has value 1 0 and value 2 25."
        in (document["outcome"])
    )
    call("two")
    assert "Pareto front" in _read("two-report.html")
    call("two", "-o", "two.png")
    with Image.open("two.png") as image:
        assert image.size == (1800, 1200)


def test_values_without_a_bound_three_directions_and_many_parameters_have_a_report(stored):
    huge = [trial(at, values=[(-1) ** at * 1e299]) for at in range(8)]
    # no axis holds them, nor the distance between two of them
    endless = [trial(at, values=[value]) for at, value in enumerate([1e308, -1e308])]
    endless += [trial(2, values=[math.inf]), trial(3, values=[-math.inf])]
    space = {f"p{at}": {"type": "float", "low": 0, "high": 1} for at in range(40)}
    stored(trials=[*huge, *endless], space=space)
    document = _json("s")
    assert "p10, p11 and 28 more." in document["asked"][2]
    assert document["charts"]["values"][0][-4:] == [None] * 4
    assert document["charts"]["contour"]["z"][0][0] is not None
    stored(
        trials=[trial(at, values=[at, -at, 1.0]) for at in range(5)],
        name="three",
        directions=["minimize"] * 3,
        metric=["a", "b", "c"],
    )
    for form in ("html", "png"):
        for name in ("s", "three"):
            call(name, "--format", form)
    assert "History of c" in _read("three-report.html")
    assert "of a and b" in _read("three-report.html")


def _read(name):
    return Path(name).read_text()


def test_a_table_of_all_trials_is_the_one_of_export(stored):
    stored()
    call("s", "-o", "trials.csv")
    rows = list(csv.DictReader(io.StringIO(_read("trials.csv"))))
    assert len(rows) == len(TRIALS)
    assert rows[3]["params_width"] == str(3 / 7)


def test_a_file_is_overwritten_whole_or_not_at_all(stored, monkeypatch, tmp_path):
    stored()
    target = tmp_path / "report.html"
    target.write_text("what was there")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(durable, "_write", full)
        with pytest.raises(InvalidInputError, match="report.html: .*No space left.*nothing was"):
            call("s", "-o", target)
    assert target.read_text() == "what was there"
    call("s", "-o", target)
    assert target.read_text().startswith("<!doctype html>")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["home", "report.html"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["s", "-o", "no/such/report.html"], "there is no folder no/such; make it first"),
        (["s", "-o", "home"], "-o home: it is a folder"),
        (["s", "-o", "report.pdf"], "-o report.pdf: a report is one of html, png, csv, json"),
        (["s", "--format", "htlm"], "--format htlm: .*did you mean"),
    ],
)
def test_what_cannot_be_written_is_refused_by_name(stored, words, message, tmp_path):
    stored()
    with pytest.raises(InvalidInputError, match=message):
        call(*words)
    assert [each.name for each in tmp_path.iterdir()] == ["home"]


def test_a_study_that_nobody_knows_is_refused_with_the_one_that_was_meant(stored):
    stored(name="language")
    with pytest.raises(StudyNotKnownError, match="langage.*did you mean 'language'"):
        call("langage")


def test_ten_thousand_trials_fit_into_a_file_of_ten_megabytes(stored, tmp_path):
    stored(trials=[trial(at) for at in range(10_000)])
    call("s", "-o", "report.html")
    assert (tmp_path / "report.html").stat().st_size < 10e6
    text = _read("report.html")
    assert "Charts of parameters show 2,000 of 10,000 complete trials" in text
    assert re.search(r"\b[67]\d of 10,000 curves are drawn", text)
