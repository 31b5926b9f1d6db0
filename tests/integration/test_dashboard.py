"""The page's application against a real Redis: what it reads, what it does, and what it refuses."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path

import anyio
import httpx2
import pytest
import redis
from hand_fleet import Fleet, turn_until
from starlette.responses import Response
from starlette.testclient import TestClient
from typer.testing import CliRunner
from waiting import wait_until

from orchestrator.cli import app
from orchestrator.dashboard.app import MAX_BODY, make_app
from orchestrator.dashboard.door import TOKEN_HEADER, Door
from orchestrator.dashboard.feeds import MAX_FEEDS, Feeds
from orchestrator.dashboard.live import stream
from orchestrator.dashboard.trial_document import trial_document
from orchestrator.handle import StudyHandle
from orchestrator.storage.attributes import GENERATION_ATTR
from orchestrator.storage.event_file import events_file
from workers.coordination import connection, keys
from workers.disk.output_files import output_file
from workers.protocol.errors import FleetError, InvalidInputError
from workers.protocol.events import Cause, EventKind, encode, line_of
from workers.protocol.given import given_params
from workers.protocol.messages import Result
from workers.protocol.states import TrialState

TOKEN = "a-token-of-the-tests"
HOST = "http://127.0.0.1:8000"
TRICK = "<img src=x onerror=alert(1)>"


def client_of(settings, **headers):
    made = make_app(settings, Door("127.0.0.1", TOKEN, is_open=True))
    return TestClient(made, base_url=HOST, headers=headers, raise_server_exceptions=True)


@pytest.fixture
def reader(settings):
    return client_of(settings)


@pytest.fixture
def actor(settings):
    return client_of(settings, **{TOKEN_HEADER: TOKEN})


@pytest.fixture
def fleet(client, settings, tmp_path):
    return Fleet(client, settings, tmp_path)


@pytest.fixture
def study(fleet, settings):
    """Two trials: one complete after its process died, one that failed; a third waits."""
    fleet.submit(trials=3)
    with fleet.service() as service:
        turn_until(service, lambda: fleet.leases.is_queued(0), "the first is enqueued")
        fleet.leases.release(0, fleet.claim(0).token, cause=Cause.PAUSED)
        fleet.commit(0, 0.5)
        turn_until(service, lambda: fleet.leases.is_queued(1), "the second is enqueued")
        failed = Result(error=f"ValueError: {TRICK}")
        fleet.leases.commit(1, fleet.claim(1).token, TrialState.FAILED, failed, Cause.FAILED)
        turn_until(service, lambda: fleet.leases.is_queued(2), "the third is enqueued")
        turn_until(
            service,
            lambda: StudyHandle("s", settings).status().trials["failed"] == 1,
            "it is published",
        )
        yield service


def get(reader, path):
    answer = reader.get(path)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_fleet_is_its_processes_and_a_study_its_status_and_its_trials_as_columns(study, reader):
    found = get(reader, "/api/fleet")
    (worker,) = [each for each in found["processes"] if each["kind"] == "main"]
    assert (worker["slots"], worker["queues"]) == (2, ["default"])
    assert worker["lease_left_seconds"] > 0
    (listed,) = found["studies"]
    assert (listed["study"], listed["state"], listed["wanted"]) == ("s", "running", 3)
    assert found["trouble"] is None
    shown = get(reader, "/api/studies/s")
    assert shown["best"]["value"] == 0.5
    assert shown["space"]["x"]["high"] == 1.0
    columns = get(reader, "/api/studies/s/trials")["trials"]
    assert columns["states"] == "CFO"
    assert columns["values"][0][:2] == [0.5, None]
    assert len(columns["params"]["x"]) == 3
    assert get(reader, "/api/studies/s/curves") == {"curves": [], "reported": 0}
    assert "4 complete trials" in get(reader, "/api/studies/s/importances")["problem"]


def test_a_trial_is_its_attempts_and_why_each_ended_and_the_time_line_shows_them(
    study, fleet, reader
):
    found = get(reader, "/api/studies/s/trials/0")
    assert [each["why"] for each in found["life"]["attempts"]] == [
        "the study was paused, and it gave the trial back",
        "",
    ]
    assert found["values"] == [0.5]
    assert found["sentences"][0] == "trial 0 of s: COMPLETE with 0.5 after 2 attempts"
    failed = get(reader, "/api/studies/s/trials/1")
    assert TRICK in failed["life"]["error"], "as it stands: the page shows it as text"
    first = get(reader, "/api/studies/s/timeline")
    assert [(bar["trial"], bar["end"]) for bar in first["bars"]] == [
        (0, "PAUSED"), (0, "COMPLETE"), (1, "FAILED"),
    ]  # fmt: skip
    fleet.claim(2)
    further = get(reader, f"/api/studies/s/timeline?since={first['revision']}")
    assert [(bar["trial"], bar["end"]) for bar in further["bars"]] == [(2, "RUNNING")]
    seconds, microseconds = fleet.client.time()
    assert 0 <= seconds + microseconds / 1e6 - further["now"] < 60, "by the clock of the events"
    for path, status in ABSENT:
        answer = reader.get(path)
        assert answer.status_code == status, f"{path}: {answer.text}"
        assert "\n" not in answer.json()["error"]["message"]


ABSENT = [
    ("/api/studies/nobody", 404),
    ("/api/studies/nobody/trials", 404),
    ("/api/studies/a%20b", 404),
    ("/api/studies/..%2f..%2fetc", 404),
    ("/api/studies/s/trials/99", 404),
    ("/api/studies/s/trials/x", 404),
    ("/api/studies/s/trials/-1", 404),
    ("/api/studies/s/timeline?since=x", 400),
    ("/api/live?study=a%20b", 404),
    ("/api/nothing", 404),
    ("/assets/..%2fapp.py", 404),
    ("/assets/page.html", 404),
    ("/assets/__init__.py", 404),
]


def test_each_page_and_asset_comes_with_a_policy_that_runs_no_inline_script(reader):
    for path in ("/", "/studies/s", "/studies/s/trials/1", "/assets/main.js", "/api/nothing"):
        answer = reader.get(path)
        policy = answer.headers["content-security-policy"]
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
    page = reader.get("/").text
    assert "<script>" not in page
    assert " style=" not in page
    assert " onclick=" not in page


def test_the_charts_library_is_sent_packed(reader):
    answer = reader.get("/assets/plotly-4.1.1.min.js")
    assert answer.headers["content-encoding"] == "gzip"
    assert "immutable" in answer.headers["cache-control"]
    assert answer.text.startswith(
        "/*! plotly.js v4.1.1 (scatter, bar, heatmap, contour, parcoords)"
    )
    bare = reader.get("/assets/plotly-4.1.1.min.js", headers={"accept-encoding": "identity"})
    assert bare.text == answer.text
    assert "MIT" in reader.get("/assets/plotly-LICENSE.txt").text


def test_an_asset_that_a_browser_has_is_not_sent_again(reader):
    first = reader.get("/assets/main.js")
    again = reader.get("/assets/main.js", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def post(actor, path, body, **headers):
    return actor.post(
        path, content=json.dumps(body), headers={"content-type": "application/json", **headers}
    )


def test_actions_are_those_of_the_command_line(study, actor, settings):
    handle = StudyHandle("s", settings)
    assert post(actor, "/api/studies/s/pause", {}).json()["status"]["state"] == "paused"
    assert handle.status().wish == "pause"
    assert post(actor, "/api/studies/s/resume", {}).json()["status"]["state"] == "running"
    assert (
        post(actor, "/api/studies/s/extend", {"trials": 9}).json()["done"] == "extended to 9 trials"
    )
    wider = {"settings": ["space.x.high=2.0"]}
    assert post(actor, "/api/studies/s/extend", wider).status_code == 200
    assert handle.spec().space["x"].high == 2.0
    given = {"params": {"x": 0.25}}
    assert post(actor, "/api/studies/s/enqueue", given).json()["done"] == "enqueued one trial"
    assert "before" in post(actor, "/api/studies/s/enqueue", given).json()["done"]
    assert post(actor, "/api/studies/s/retry", {"numbers": [1]}).status_code == 200
    assert post(actor, "/api/studies/s/stop", {}).json()["status"]["wish"] == "stop"
    assert post(actor, "/api/studies/s/cancel", {}).json()["status"]["state"] == "cancelling"


@pytest.mark.parametrize("verb", ["pause", "stop", "cancel"])
def test_a_study_that_is_over_stays_so_and_the_page_says_that(fleet, actor, settings, verb):
    fleet.submit(trials=1)
    with fleet.service() as service:
        turn_until(service, lambda: fleet.leases.is_queued(0), "it is enqueued")
        fleet.commit(0, 0.5)
        turn_until(service, lambda: StudyHandle("s", settings).status().is_over, "it is over")
    answer = post(actor, f"/api/studies/s/{verb}", {}).json()
    assert answer["done"] == "it is over (finished), and stays as it is"
    assert answer["status"]["state"] == "finished"


#: Beyond 2**53, where a browser's own numbers have gaps.
LARGE = 2**53 + 1


def test_whole_numbers_beyond_those_of_browsers_arrive_as_they_were_written(fleet, actor, settings):
    kinds = {"type": "categorical", "choices": [LARGE, LARGE - 1, "7", 7, True]}
    fleet.submit(trials=1, space={"k": kinds, "n": {"type": "int", "low": 0, "high": 2**60}})
    space = get(actor, "/api/studies/s")["space"]
    assert space["k"]["choices_json"] == [str(LARGE), str(LARGE - 1), '"7"', "7", "true"]
    headers = {"content-type": "application/json"}

    def enqueued(params):
        body = f'{{"params":{params}}}'
        answer = actor.post("/api/studies/s/enqueue", content=body, headers=headers)
        assert answer.json()["done"] == "enqueued one trial", answer.text
        (order,) = fleet.client.hvals(keys.orders("s"))
        fleet.client.delete(keys.orders("s"))
        return given_params(StudyHandle("s", settings).spec(), json.loads(order)["params"])

    for choice in space["k"]["choices_json"]:
        given = enqueued(f'{{"k":{choice},"n":{LARGE}}}')
        assert json.dumps(given) == json.dumps({"k": json.loads(choice), "n": LARGE})
    fleet.submit(name="free", trials=1, space={})
    body = f'{{"params":{{"n":{LARGE}}}}}'
    assert actor.post("/api/studies/free/enqueue", content=body, headers=headers).is_success
    (order,) = fleet.client.hvals(keys.orders("free"))
    assert json.loads(order)["params"] == {"n": LARGE}


UNFIT = [
    ("pase", {}, "did you mean 'pause'"),
    ("pause", {"nov": True}, "pause: nov: .*it takes now"),
    ("pause", [], "pause: the body"),
    ("resume", {"x": 1}, "it takes an empty object"),
    ("extend", {}, "extend it by what"),
    ("extend", {"trials": 1}, "less than it has"),
    ("extend", {"trials": 2**60}, "extend: trials"),
    ("extend", {"timeout": "soon"}, "timeout"),
    ("extend", {"settings": ["space.y.high=3"]}, "no such parameter"),
    ("extend", {"settings": ["trials=2"]}, "less than it has"),
    ("extend", {"settings": ["config.epochs=3"]}, "config cannot change"),
    ("extend", {"settings": ["stop.taget=3"]}, "stop.taget"),
    ("enqueue", {"params": {}}, "enqueue: params"),
    ("enqueue", {"params": {"y": 1}}, "has no such parameter"),
    ("enqueue", {"params": {"x": 7}}, "not within"),
    ("enqueue", {"params": {"x": "1"}}, "no finite number"),
    ("retry", {"numbers": [0]}, "only trials that failed"),
    ("retry", {"numbers": ["a"]}, "retry: numbers"),
]


def test_an_action_that_cannot_be_is_one_clear_line_and_changes_nothing(study, actor, client):
    before = contents(client)
    for verb, body, told in UNFIT:
        answer = post(actor, f"/api/studies/s/{verb}", body)
        assert answer.status_code == 400, answer.text
        assert re.search(told, answer.json()["error"]["message"]), answer.text
    assert contents(client) == before


STRANGERS = [
    ({}, 403),
    ({TOKEN_HEADER: "a-token-of-somebody"}, 403),
    ({TOKEN_HEADER: TOKEN, "origin": "http://evil.example"}, 403),
    ({TOKEN_HEADER: TOKEN, "origin": "null"}, 403),
    ({TOKEN_HEADER: TOKEN, "host": "evil.example"}, 403),
    ({TOKEN_HEADER: TOKEN, "sec-fetch-site": "cross-site"}, 403),
    ({"cookie": f"{TOKEN_HEADER}={TOKEN}; token={TOKEN}"}, 403),
    ({"authorization": f"Bearer {TOKEN}"}, 403),
    ({TOKEN_HEADER: TOKEN, "content-type": "text/plain"}, 415),
    ({TOKEN_HEADER: TOKEN, "content-type": "application/x-www-form-urlencoded"}, 415),
]


def test_without_the_token_or_from_another_page_nothing_is_done(study, reader, client):
    before = contents(client)
    for headers, status in STRANGERS:
        for verb in ("pause", "stop", "cancel", "enqueue", "extend", "retry"):
            given = {"content-type": "application/json", **headers}
            answer = reader.post(f"/api/studies/s/{verb}", content="{}", headers=given)
            assert answer.status_code == status, answer.text
    large = json.dumps({"params": {"x": "1" * MAX_BODY}})
    given = {TOKEN_HEADER: TOKEN, "content-type": "application/json"}
    answer = reader.post("/api/studies/s/enqueue", content=large, headers=given)
    assert answer.status_code == 413
    assert contents(client) == before


def contents(client):
    """All that Redis holds, and how long each key stays."""
    return {key: _value(client, key) for key in client.keys("*")}


def _value(client, key):
    read = {
        "string": client.get,
        "hash": client.hgetall,
        "zset": lambda each: client.zrange(each, 0, -1, withscores=True),
        "set": client.smembers,
        "list": lambda each: client.lrange(each, 0, -1),
        "stream": client.xrange,
    }
    return read[client.type(key)](key)


def test_what_changes_of_a_study_is_sent_and_nothing_else(study, fleet, settings):
    feeds = Feeds(settings)
    feed = feeds.study("s")
    seen = feed.look()
    assert feed.since(seen)["trials"]["numbers"] == []
    fleet.commit(2, 0.25)
    turn_until(study, lambda: StudyHandle("s", settings).status().trials["complete"] == 2, "told")
    feed.look()
    news = feed.since(seen)
    assert news["trials"]["numbers"] == [2]
    assert (news["trials"]["states"], news["study"]["state"]) == ("C", "finished")
    assert not news["again"]
    assert feed.since(2**53)["again"], "a revision that no page was given here"
    seen = feed.look()
    wider = {"x": {"type": "float", "low": 0.0, "high": 2.0}}
    StudyHandle("s", settings).extend(space=wider)
    assert feed.look() > seen, "forms are to know of it"
    assert feed.since(seen)["study"]["space"]["x"]["high"] == 2.0


@pytest.mark.parametrize("since", ["since=0", "since=1&run=of-another-server"])
def test_a_page_that_has_rows_of_another_time_is_told_all_once(study, settings, since):
    turns = iter([False, False])
    door = Door("127.0.0.1", TOKEN, is_open=True)
    made = make_app(settings, door, is_closing=lambda: next(turns, True))
    with TestClient(made, base_url=HOST) as reader:
        answer = reader.get(f"/api/live?study=s&{since}")
    (news,) = [line for line in answer.text.splitlines() if line.startswith("data: ")]
    told = json.loads(news.removeprefix("data: "))
    assert (told["again"], told["trials"]["states"]) == (True, "CFO")
    assert told["run"] == get(TestClient(made, base_url=HOST), "/api/studies/s/trials")["run"]


def test_a_page_of_a_trial_is_told_of_that_trial_alone(study, settings, fleet):
    looks = iter([None, None, lambda: fleet.commit(2, 0.5), None])

    def is_closing():
        act = next(looks, True)
        if callable(act):
            act()
            handle = StudyHandle("s", settings)
            before = handle.status()
            turn_until(study, lambda: handle.status() != before, "it is published")
        return act is True

    made = make_app(settings, Door("127.0.0.1", TOKEN, is_open=True), is_closing=is_closing)
    with TestClient(made, base_url=HOST) as reader:
        answer = reader.get("/api/live?study=s&trial=0")
    told = [line for line in answer.text.splitlines() if line.startswith("data: ")]
    assert told == ['data: {"trial":0}'], "at the beginning; what became of others is not its news"
    for number, status in (("x", 404), ("-1", 200)):
        ended = make_app(settings, Door("127.0.0.1", TOKEN, is_open=True), is_closing=lambda: True)
        with TestClient(ended, base_url=HOST) as reader:
            assert reader.get(f"/api/live?study=s&trial={number}").status_code == status


def characters_read():
    """What this thread has read so far, from files and sockets."""
    told = Path("/proc/thread-self/io").read_text()
    return int(re.search(r"rchar: (\d+)", told)[1])


def test_a_further_look_at_a_trial_reads_no_more_than_is_new(study, fleet, settings):
    others = encode(EventKind.ASKED, trial=7, detail="x" * 200)
    path = events_file(settings.home, "s")
    begun = path.read_text()
    path.write_text("".join(line_of(f"1-{at}", others) for at in range(50_000)) + begun)
    generation = StudyHandle("s", settings).study.user_attrs[GENERATION_ATTR]
    token = fleet.claim(2).token
    printed = output_file(settings.home, "s", 2, 1, token, generation)
    printed.write(0, "é" * 4_000_000 + "the end\n")
    feed = Feeds(settings).study("s")
    first = trial_document(feed, 2)
    assert first["printed"][0]["lines"][-1].endswith("the end")
    trial_document(feed, 2)  # what is imported late is by now
    before = characters_read()
    again = trial_document(feed, 2)
    assert characters_read() - before < 2**20
    assert again["life"]["attempts"] == first["life"]["attempts"] != []
    fleet.leases.commit(2, token, TrialState.COMPLETE, Result(values=[0.5]))
    assert trial_document(feed, 2)["life"]["state"] == "COMPLETE"


def test_pages_of_more_studies_than_are_held_are_told_all_and_nothing_is_read_anew(fleet, settings):
    names = [f"s{number}" for number in range(MAX_FEEDS + 2)]
    for name in names:
        fleet.submit(name=name)
    feeds = Feeds(settings)
    with ExitStack() as pages:
        for name in names:
            pages.enter_context(feeds.following(name))
        first = {name: feeds.looked_at(name) for name in names}
        assert all(feeds.looked_at(name) is feed for name, feed in first.items())
        seen = {name: feed.revision for name, feed in first.items()}
    dropped = [name for name in names if feeds.looked_at(name) is not first[name]]
    assert len(dropped) >= 2, "nobody follows them"
    for name in dropped:
        anew = feeds.looked_at(name)
        assert anew.revision > seen[name]
        assert anew.since(seen[name])["again"], "the page has rows of what is no more"


def test_another_study_of_the_name_and_one_in_a_wider_space_are_read_anew(
    fleet, client, settings, tmp_path
):
    feed = Feeds(settings).study("s")
    page = feed.revision
    former = tmp_path / "former"
    for count, value in ((1, 0.5), (2, 0.75)):
        client.flushall()
        for journal in (settings.home / "studies").rglob("journal*"):
            former.hardlink_to(journal)
        shutil.rmtree(settings.home / "studies", ignore_errors=True)
        fleet.pretend_worker()
        fleet.submit(trials=count)
        with fleet.service() as service:
            for number in range(count):
                turn_until(service, lambda at=number: fleet.leases.is_queued(at), "it is enqueued")
                fleet.commit(number, value)
            turn_until(service, lambda: service.is_done("s"), "it is over")
        if former.exists():  # file systems give a number again that has become free
            (journal,) = (settings.home / "studies").rglob("journal*")
            former.write_bytes(journal.read_bytes())
            former.replace(journal)
        feed.look()
        news = feed.since(page)
        assert news["again"] == (value != 0.5), "rows of the former study are to go"
        assert news["trials"]["values"] == [[value] * count]
        page = feed.revision
        assert [bar["trial"] for bar in feed.timeline(0)["bars"]] == [*range(count)]
    handle = StudyHandle("s", settings)
    wider = {"x": {"type": "float", "low": 0.0, "high": 2.0}}
    handle.extend(trials=3, space=wider)
    with fleet.service() as service:
        turn_until(service, lambda: fleet.leases.is_queued(2), "it goes on")
        feed.look()
        news = feed.since(page)
        assert (news["again"], news["trials"]["states"]) == (True, "CCO")


def test_a_redis_that_is_away_and_a_fault_are_told_once_and_their_end_too(tmp_path, monkeypatch):
    monkeypatch.setenv("FLEET_HOME", str(tmp_path / "home"))
    looks = iter(
        [b"1", None, *(redis.ConnectionError("no"),) * 2, b"2", *(KeyError("x"),) * 2, None]
    )

    def look():
        found = next(looks, StopIteration)
        if found is StopIteration:
            ended.append(True)
            return None
        if isinstance(found, Exception):
            raise found
        return found

    async def kinds():
        response = stream(look, is_closing=lambda: bool(ended))
        chunks = [chunk async for chunk in response.body_iterator]
        return [chunk.split(b"\n")[0] for chunk in chunks]

    ended = []
    assert anyio.run(kinds) == [
        b": hello", b"event: news", b"event: trouble", b"event: news", b"event: well",
        b"event: trouble", b"event: well",
    ]  # fmt: skip
    kept = (tmp_path / "home" / "logs" / "errors.log").read_text()
    assert kept.count("Traceback") == 1, "of what nobody foresaw, once"


def test_where_no_redis_is_named_and_none_is_there_that_is_no_trouble(study, settings, monkeypatch):
    monkeypatch.setattr(connection, "DEFAULT_URL", "redis://127.0.0.1:1/0")
    found = get(client_of(settings.model_copy(update={"redis_url": None})), "/api/fleet")
    assert found["at_rest"]
    assert found["studies"] == [{"study": "s", "state": "at rest"}]


def test_without_redis_the_page_says_so_and_shows_what_this_home_has(study, settings):
    away = settings.model_copy(update={"redis_url": "redis://:canary-of-redis@127.0.0.1:1/0"})
    reader = client_of(away)
    found = get(reader, "/api/fleet")
    assert "127.0.0.1:1" in found["trouble"]
    assert found["studies"] == [{"study": "s", "state": "at rest"}]
    assert not found["at_rest"], "it was named, and is away"
    answer = reader.get("/api/studies/s")
    assert answer.status_code == 503
    assert "canary" not in answer.text + json.dumps(found)


def test_no_password_of_this_process_is_on_any_page(study, settings, monkeypatch, client):
    monkeypatch.setenv("FLEET_SECRET", "canary-in-the-environment")
    monkeypatch.setenv("WANDB_API_KEY", "canary-in-the-environment")
    canary = settings.redis_url.split(":")[2].split("@")[0]
    client.hset("unrelated", "x", canary)
    reader = client_of(settings)
    paths = [
        "/", "/api/fleet", "/api/studies/s", "/api/studies/s/trials", "/api/studies/s/trials/0",
        "/api/studies/s/curves", "/api/studies/s/timeline", "/api/studies/s/importances",
        "/api/studies/nobody", "/api/studies/s/nothing", "/api/live?study=..",
    ]  # fmt: skip
    for path in paths:
        answer = reader.get(path)
        told = answer.text + str(answer.headers)
        assert canary not in told, path
        assert TOKEN not in told, path
        assert "canary" not in told, path


@pytest.fixture
def certificate(tmp_path):
    """A certificate of this host, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make certificates with")
    files = tmp_path / "page.crt", tmp_path / "page.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
         "-out", files[0], "-keyout", files[1]],
        check=True, capture_output=True,
    )  # fmt: skip
    return files


def test_the_page_speaks_https_with_a_certificate(study, settings, certificate):
    certfile, keyfile = map(str, certificate)
    options = ["--certfile", certfile, "--keyfile", keyfile]
    with serving(settings, *options) as (_, address, token):
        assert address.startswith("https://127.0.0.1:")
        trusted = ssl.create_default_context(cafile=certfile)
        with httpx2.Client(base_url=address, verify=trusted) as reader:
            assert reader.post("/api/token", headers={TOKEN_HEADER: token}).status_code == 200
            (cookie,) = reader.cookies.jar
            assert cookie.secure
            assert reader.get("/api/studies/s").json()["study"] == "s"


def test_behind_a_proxy_the_page_acts_at_its_public_address(study, settings):
    door = Door("127.0.0.1", TOKEN, is_open=True, public_url="https://fleet.example")
    page = TestClient(make_app(settings, door), base_url="http://127.0.0.1:8000")
    for host in ("127.0.0.1:8000", "fleet.example"):  # as nginx has it without, and with `$host`
        given = {"host": host, "origin": "https://fleet.example", TOKEN_HEADER: TOKEN}
        assert post(page, "/api/studies/s/pause", {}, **given).status_code == 200
        assert page.get("/api/studies/s", headers={"host": host}).status_code == 403
        foreign = {**given, "origin": "https://evil.example"}
        assert post(page, "/api/studies/s/stop", {}, **foreign).status_code == 403


SEED = random.SystemRandom().randrange(10**6)


@pytest.mark.parametrize(
    "count", [1000, pytest.param(10_000, marks=[pytest.mark.long, pytest.mark.slow])]
)
@pytest.mark.parametrize("is_open", [True, False])
def test_thousands_of_odd_requests_change_nothing_and_never_break_it(
    study, settings, client, is_open, count
):
    """Paths, methods, queries, bodies and headers of all kinds, without the token and with it."""
    print(f"SEED={SEED}")
    pick = random.Random(SEED)
    door = Door("127.0.0.1", TOKEN, is_open=is_open)
    page, journal = make_app(settings, door), settings.home / "studies" / "s" / "journal.log"
    given = Response()
    door.let_read(given)
    cookie = given.headers["set-cookie"].partition(";")[0].encode()
    for key in client.scan_iter("*"):
        client.persist(key)  # some would go by themselves
    before = contents(client), journal.read_bytes()
    statuses = Counter()

    async def ask_all():
        for _ in range(count):
            scope, body = odd_request(pick)
            if pick.random() < 0.3:  # what opens reading opens nothing else
                scope["headers"].append((b"cookie", cookie))
            with anyio.fail_after(20):
                status, answer = await asked(page, scope, body)
            assert status < 500, (SEED, scope, answer)
            assert b"Traceback" not in answer
            statuses[status] += 1

    anyio.run(ask_all)
    assert (contents(client), journal.read_bytes()) == before
    assert set(statuses) >= {200, 403, 404, 405}, statuses


WORDS = [
    "", "api", "studies", "s", "trials", "0", "-1", "9" * 30, "fleet", "live", "token", "pause",
    "extend", "enqueue", "timeline", "curves", "importances", "assets", "main.js", "..", "%2e%2e",
    "optuna", "dashboard", "csv", "static", "bundle.js", "favicon.ico", "meta", "1", "%00", "%ff",
    "%0d%0aset-cookie:x=1", "\u00fc", "<script>", "{", "*", "?", "#", "a" * 900,
]  # fmt: skip

BODIES = [
    b"", b"{}", b"[]", b"null", b"{", b"\xff\xfe", b"0" * 70_000, b'{"params": {"x": NaN}}',
    b"[" * 5000, b'{"trials": 1e400}', b'{"trials": -1}', b'{"params": {"x": [[[[]]]]}}',
    b'{"trials": ' + b"9" * 5000 + b"}", b'{"params": {"\\ud800": 1}}', b'{"now": "maybe"}',
]  # fmt: skip


def odd_request(pick):
    """A scope and a body; those that have the token ask for what cannot be."""
    path = "/" + "/".join(pick.choices(WORDS, k=pick.randrange(6)))
    method = pick.choice(
        ["GET", "GET", "HEAD", "POST", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "X"]
    )
    headers = [
        (
            b"host",
            pick.choice([b"127.0.0.1:8000", b"127.0.0.1", b"localhost", b"evil", b"\xff", b""]),
        )
    ]
    for name in ("origin", "cookie", "content-type", "content-length", "range", "if-none-match",
                 "accept-encoding", "sec-fetch-site", TOKEN_HEADER):  # fmt: skip
        if pick.random() < 0.3:
            odd = bytes(pick.randrange(1, 256) for _ in range(pick.randrange(40)))
            headers.append(
                (name.encode(), pick.choice([odd, b"application/json", b"gzip", b"1", b"null"]))
            )
    is_known = pick.random() < 0.3
    if is_known:  # of a study that is not there, or with a body that no action takes
        headers = [
            (b"host", b"127.0.0.1"),
            (b"content-type", b"application/json"),
            (TOKEN_HEADER.encode(), TOKEN.encode()),
        ]
        path = f"/api/studies/{pick.choice(['nobody', 's', '..', 'a b'])}/{pick.choice(WORDS)}"
    body = pick.choice(
        [each for each in BODIES if each not in {b"", b"{}"}] if is_known else BODIES
    )
    query = bytes(pick.randrange(33, 127) for _ in range(pick.choice([0, 0, 10, 3000])))
    if "live" in path and method == "GET":
        method = "POST"  # what never ends has a test of its own
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path.replace("%2e", "."),
        "raw_path": path.encode(),
        "query_string": query,
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 5),
        "server": ("127.0.0.1", 8000),
    }
    return scope, body


async def asked(page, scope, body):
    """The status and the body of an answer, by the application alone."""
    told = []
    parts = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive():
        return parts.pop() if parts else {"type": "http.disconnect"}

    async def send(message):
        told.append(message)

    await page(scope, receive, send)
    return told[0]["status"], b"".join(each.get("body", b"") for each in told[1:])


@contextmanager
def serving(settings, *options):
    """A real `trialfleet dashboard`: its process, its address, its token."""
    command = [Path(sys.executable).with_name("trialfleet"), "dashboard", "--json", *options]
    environment = {**os.environ, **settings.to_environment()}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = json.loads(process.stdout.readline())["url"]
            address, _, token = url.partition("/#token=")
            yield process, address, token
        finally:
            process.kill()


@pytest.fixture
def served(settings):
    with serving(settings) as found:
        yield found


def test_the_command_tells_a_link_once_and_ends_at_once_with_a_page_open(study, served):
    process, address, token = served
    with httpx2.Client(base_url=address) as reader:
        answer = reader.post("/api/token", headers={TOKEN_HEADER: token})
        assert answer.status_code == 200
        (cookie,) = reader.cookies.jar
        assert (cookie.path, cookie.secure) == ("/", False)
        assert cookie.has_nonstandard_attr("HttpOnly")
        assert token not in cookie.value
        assert reader.post("/api/token").status_code == 403, "the cookie does not act"
        with reader.stream("GET", "/api/live") as pages:
            lines = pages.iter_lines()
            wait_until(lambda: next(lines).startswith("data: "), "the fleet is told")
            process.send_signal(signal.SIGINT)
            assert process.wait(20) in {0, 130}
    assert token not in process.stdout.read()


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_fleet_with_a_password_is_read_with_the_token_alone(study, settings, address):
    with serving(settings, "--host", address, "--token", TOKEN) as (_, url, token):
        assert token == TOKEN
        with httpx2.Client(base_url=url.replace("0.0.0.0", "127.0.0.1")) as stranger:
            for path in ("/api/fleet", "/api/studies/s", "/api/studies/s/trials", "/api/live"):
                refused = stranger.get(path)
                assert refused.status_code == 403, path
                assert "trialfleet dashboard" in refused.json()["error"]["message"]
                assert "no-referrer" in refused.headers["referrer-policy"]
            assert stranger.get("/").status_code == 200
            read = stranger.get("/api/studies/s", headers={TOKEN_HEADER: TOKEN})
            assert read.json()["study"] == "s"
            assert stranger.post("/api/token", headers={TOKEN_HEADER: TOKEN}).status_code == 200
            assert stranger.get("/api/studies/s").json()["study"] == "s", "by its cookie"


def test_an_address_that_cannot_be_had_is_one_clear_line(settings, monkeypatch):
    for name, value in settings.to_environment().items():
        monkeypatch.setenv(name, value)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for words, kind, told in [
            (["--port", str(port)], FleetError, rf"--port {port}: .*choose another"),
            (["--host", "no.such.host.invalid", "--token", TOKEN], FleetError, "no.such.host"),
            (["--host", "0.0.0.0"], InvalidInputError, "--host 0.0.0.0.*--token"),
            (["--token", "short"], InvalidInputError, "at least 16"),
            (["--public-url", "fleet.example"], InvalidInputError, "--public-url fleet.example"),
            (["--keyfile", "page.key"], InvalidInputError, "--certfile"),
            (["--certfile", "no.such.crt"], FleetError, "--certfile no.such.crt: No such file"),
            (["--certfile", __file__], FleetError, "--certfile .*as PEM"),
        ]:
            with pytest.raises(kind, match=told):
                CliRunner().invoke(app, ["dashboard", *words], catch_exceptions=False)

    for name in list(sys.modules):
        if name.startswith("starlette"):
            monkeypatch.setitem(sys.modules, name, None)
        elif name.startswith("orchestrator.dashboard."):
            monkeypatch.delitem(sys.modules, name)
    with pytest.raises(FleetError, match=r"starlette.*pip install 'trialfleet\[dashboard\]'"):
        CliRunner().invoke(app, ["dashboard"], catch_exceptions=False)


def test_no_page_tells_what_variables_hold_that_are_named_for_secrets(fleet, settings, monkeypatch):
    secret = "canary-of-an-objective"
    monkeypatch.setenv("SOME_API_KEY", secret)
    fleet.submit(trials=1)
    with fleet.service() as service:
        turn_until(service, lambda: fleet.leases.is_queued(0), "it is enqueued")
        failed = Result(error=f"ValueError: at {secret}")
        fleet.leases.commit(0, fleet.claim(0).token, TrialState.FAILED, failed, Cause.FAILED)
        handle = StudyHandle("s", settings)
        turn_until(service, lambda: handle.status().trials["failed"] == 1, "it is published")
    told = client_of(settings).get("/api/studies/s/trials/0").text
    assert "at ***" in told
    assert secret not in told


def test_what_matters_is_told_to_whom_asks_for_nothing_else(fleet, settings):
    fleet.submit(trials=4)
    with fleet.service() as service:
        for number in range(4):
            turn_until(service, lambda at=number: fleet.leases.is_queued(at), "it is enqueued")
            fleet.commit(number, number / 4)
        turn_until(service, lambda: service.is_done("s"), "it is over")
    found = get(client_of(settings), "/api/studies/s/importances")
    assert found["problem"] is None
    assert found["num_complete"] == 4


@pytest.mark.usefixtures("fleet")
def test_a_study_that_nobody_knows_is_404_at_each_address(reader):
    for rest in ("", "/trials", "/trials/0", "/curves", "/importances", "/timeline"):
        assert reader.get(f"/api/studies/nobody{rest}").status_code == 404, rest
