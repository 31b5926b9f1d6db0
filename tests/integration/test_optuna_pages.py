"""`optuna-dashboard` beside the page: it shows the fleet's studies, and can change nothing."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
from hand_fleet import Fleet, turn_until
from starlette.testclient import TestClient

from orchestrator.dashboard.app import make_app
from orchestrator.dashboard.door import TOKEN_HEADER, Door
from orchestrator.dashboard.optuna_storage import OneStudy, StudyList
from orchestrator.storage.read_only import ReadOnlyDatabase, ReadOnlyStorage
from workers.protocol.errors import FleetError

pytest.importorskip("optuna_dashboard")

TOKEN = "a-token-of-the-tests"
HOST = "http://127.0.0.1:8000"


@pytest.fixture
def fleet(client, settings, tmp_path):
    return Fleet(client, settings, tmp_path)


@pytest.fixture
def reader(settings):
    """Who opened the printed link once."""
    reader = client_of(settings)
    assert reader.post("/api/token", headers={TOKEN_HEADER: TOKEN}).status_code == 200
    return reader


def client_of(settings):
    return TestClient(make_app(settings, Door("127.0.0.1", TOKEN)), base_url=HOST)


def run_study(fleet, *values):
    fleet.submit(trials=len(values))
    with fleet.service() as service:
        for number, value in enumerate(values):
            turn_until(service, lambda at=number: fleet.leases.is_queued(at), "it is enqueued")
            fleet.commit(number, value)
        turn_until(service, lambda: service.is_done("s"), "it is over")


def listed(reader):
    answer = reader.get("/optuna/api/studies")
    assert answer.status_code == 200, answer.text
    return {each["study_name"]: each for each in answer.json()["study_summaries"]}


def test_studies_are_listed_and_each_is_shown_with_its_trials(fleet, reader):
    run_study(fleet, 0.5, 0.25, 0.75)
    fleet.submit(name="other", directions=["minimize", "maximize"], metric=["a", "b"])
    found = listed(reader)
    assert set(found) == {"other", "s"}
    assert found["other"]["directions"] == ["minimize", "maximize"]
    number = found["s"]["study_id"]
    assert number < 2**53, "a browser's numbers hold it"
    shown = reader.get(f"/optuna/api/studies/{number}?after=0").json()
    assert shown["name"] == "s"
    assert [each["values"] for each in shown["trials"]] == [[0.5], [0.25], [0.75]]
    assert {each["study_id"] for each in shown["trials"]} == {number}
    assert [each["number"] for each in shown["best_trials"]] == [1], "it is minimized"
    assert len(reader.get(f"/optuna/api/studies/{number}?after=2").json()["trials"]) == 1
    shares = reader.get(f"/optuna/api/studies/{number}/param_importances").json()
    assert [each["name"] for each in shares["param_importances"][0]] == ["x"]
    table = reader.get(f"/csv/{number}")
    assert table.text.startswith("Number,State,")
    assert "attachment" in table.headers["content-disposition"]
    assert reader.get("/optuna/api/meta").json()["artifact_is_available"] is False
    assert reader.get(f"/optuna/api/studies/{found['other']['study_id']}").status_code == 404


def test_its_pages_lie_at_the_root_and_load_nothing_from_elsewhere(reader):
    lead = reader.get("/optuna/", follow_redirects=False)
    assert (lead.status_code, lead.headers["location"]) == (307, "/dashboard")
    for path in ("/dashboard", "/dashboard/studies/5/analytics"):
        answer = reader.get(path)
        ours, its = answer.text.index("/assets/optuna.js"), answer.text.index("/static/bundle.js")
        assert ours < its, "before its own script"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "http:" not in answer.headers["content-security-policy"]
    script = reader.get("/static/bundle.js")
    assert script.headers["content-encoding"] == "gzip"
    assert reader.get("/static/bundle.js", headers={"accept-encoding": "x"}).text == script.text
    assert "unsafe" not in reader.get("/").headers["content-security-policy"]


ABSENT = [
    "/optuna/api/studies/5", "/optuna/api/studies/5/param_importances", "/csv/5",
    "/optuna/api/studies/-1", "/optuna/api/studies/x", f"/optuna/api/studies/{'9' * 40}",
    "/optuna/api/nothing", "/optuna/api/", "/static/nothing.js", "/static/..%2f__init__.py",
    "/optuna/dashboard", "/optuna/static/bundle.js", "/optuna/api/artifacts/1", "/artifacts/1/2",
]  # fmt: skip


def test_what_it_has_not_is_not_there(fleet, reader):
    run_study(fleet, 0.5)
    number = listed(reader)["s"]["study_id"]
    for path in (*ABSENT, f"/optuna/api/studies/{number}/plot/nothing"):
        assert reader.get(path).status_code == 404, path
    for query in ("after=x", "after=-1", "after=", "after=,", "after=%00", "x=1", "&"):
        assert reader.get(f"/optuna/api/studies/{number}?{query}").status_code == 400, query


WRITING = [
    ("POST", "/optuna/api/studies", {"study_name": "mine", "directions": ["minimize"]}),
    ("DELETE", "/optuna/api/studies/NUMBER", {}),
    ("POST", "/optuna/api/studies/NUMBER/rename", {"study_name": "mine"}),
    ("PUT", "/optuna/api/studies/NUMBER/note", {"version": 1, "body": "mine"}),
    ("PUT", "/optuna/api/studies/NUMBER/0/note", {"version": 1, "body": "mine"}),
    ("POST", "/optuna/api/trials/0/tell", {"state": "complete", "values": [9]}),
    ("POST", "/optuna/api/trials/0/user-attrs", {"user_attrs": {"mine": 1}}),
    ("POST", "/optuna/api/studies/NUMBER", {}),
    ("POST", "/dashboard", {}),
    ("PUT", "/static/bundle.js", {}),
]  # fmt: skip


def test_nothing_of_it_writes_with_the_token_or_without(fleet, reader, client, settings):
    run_study(fleet, 0.5)
    number = listed(reader)["s"]["study_id"]
    journal = settings.home / "studies" / "s" / "journal.log"
    before = journal.read_bytes(), sorted(client.keys("*"))
    for method, path, body in WRITING:
        address = path.replace("NUMBER", str(number))
        for headers, status in (({}, {403}), ({TOKEN_HEADER: TOKEN}, {404, 405})):
            answer = reader.request(method, address, json=body, headers=headers)
            assert answer.status_code in status, (method, address, answer.text)
    assert (journal.read_bytes(), sorted(client.keys("*"))) == before


@pytest.mark.parametrize("kind", [OneStudy, StudyList, ReadOnlyDatabase])
def test_its_storage_refuses_each_method_that_writes(kind):
    storage = object.__new__(kind)
    names = [
        name for name in dir(ReadOnlyStorage) if name.startswith(("set_", "create_", "delete"))
    ]
    assert len(names) >= 9
    for name in [*names, "record_heartbeat"]:
        with pytest.raises(FleetError, match="only writer"):
            getattr(storage, name)(1, 2, 3)


def test_without_the_token_nothing_of_it_is_answered(settings):
    stranger = client_of(settings)
    for path in ("/optuna/", "/optuna/api/studies", "/dashboard", "/static/bundle.js", "/csv/1"):
        answer = stranger.get(path, follow_redirects=False)
        assert answer.status_code == 403, path
        assert "trialfleet dashboard" in answer.json()["error"]["message"]


def test_a_live_study_is_read_on_and_another_one_of_its_name_has_another_number(
    fleet, reader, settings, client
):
    fleet.submit(trials=2)
    with fleet.service() as service:
        turn_until(service, lambda: fleet.leases.is_queued(0), "it is enqueued")
        number = listed(reader)["s"]["study_id"]
        assert states(reader, number)[0] == "Running"
        fleet.commit(0, 0.5)
        # it keeps trials for two seconds
        turn_until(service, lambda: states(reader, number)[0] == "Complete", "it is read on")
    client.flushall()
    shutil.rmtree(settings.home / "studies")
    fleet.pretend_worker()
    run_study(fleet, 0.75)
    another = listed(reader)["s"]["study_id"]
    assert another != number
    assert reader.get(f"/optuna/api/studies/{number}").status_code == 404
    assert states(reader, another) == ["Complete"]


def states(reader, number):
    trials = reader.get(f"/optuna/api/studies/{number}").json()["trials"]
    return [each["state"] for each in trials]


def test_values_that_json_has_not_are_shown(fleet, reader):
    run_study(fleet, 1e308, float("inf"), -1e308)
    number = listed(reader)["s"]["study_id"]

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    text = reader.get(f"/optuna/api/studies/{number}").text
    shown = json.loads(text, parse_constant=refuse)
    assert len(shown["trials"]) == 3


def test_a_chart_that_plotly_draws_says_how_to_install_it(fleet, reader, monkeypatch):
    run_study(fleet, 0.5)
    number = listed(reader)["s"]["study_id"]
    monkeypatch.setattr(
        "orchestrator.dashboard.optuna_pages.find_spec", lambda name: name != "plotly" or None
    )
    answer = reader.get(f"/optuna/api/studies/{number}/plot/contour")
    assert answer.status_code == 404
    assert "pip install plotly" in answer.json()["error"]["message"]


def test_without_the_package_the_page_says_how_to_install_it(settings, monkeypatch, reader):
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    monkeypatch.setattr("orchestrator.dashboard.optuna_pages.find_spec", lambda _: None)
    page = reader.get("/optuna/")
    assert page.status_code == 200
    assert "/assets/main.js" in page.text
    assert "pip install 'trialfleet[dashboard]'" in reader.get("/assets/main.js").text
    for path in ("/dashboard", "/optuna/api/studies"):
        answer = reader.get(path)
        assert answer.status_code == 404
        assert "pip install 'trialfleet[dashboard]'" in answer.json()["error"]["message"]
