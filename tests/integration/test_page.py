"""The page in a real browser, over a real Redis; the test is the workers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator

import pytest
import uvicorn
from chromium import chromium
from hand_fleet import Fleet, turn_until
from playwright.sync_api import Page, expect
from waiting import wait_until

from orchestrator.dashboard.app import make_app
from orchestrator.dashboard.door import Door
from orchestrator.dashboard.server import listen
from workers.coordination import keys
from workers.protocol.given import given_params
from workers.protocol.states import TrialState

TOKEN = "a-token-of-the-tests"

#: How long a page may take to show something, on a machine that is busy.
PATIENCE_MS = 60_000
expect.set_options(timeout=PATIENCE_MS)

Open = Callable[..., Page]


@pytest.fixture
def fleet(client, settings, tmp_path) -> Fleet:
    return Fleet(client, settings, tmp_path)


@pytest.fixture
def address(settings) -> Iterator[str]:
    """Where the page is served, by a thread."""
    door = Door("127.0.0.1", TOKEN, is_open=True)
    with listen(door.host, 0) as listening:
        made = make_app(settings, door, is_closing=lambda: server.should_exit)
        config = uvicorn.Config(made, log_level="critical", lifespan="off", ws="none")
        server = uvicorn.Server(config)
        serving = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        serving.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        serving.join()


@pytest.fixture
def complaints() -> list[str]:
    """What pages complained of."""
    return []


@pytest.fixture
def open_page(address, complaints) -> Iterator[Open]:
    """Opens pages that may act; none of them may complain of anything."""

    def opened(path: str, **looks) -> Page:
        page = started.new_context(**looks).new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda told: told.type == "error" and complaints.append(told.text))
        page.goto(f"{address}{path}#token={TOKEN}")
        return page

    with chromium() as started:
        yield opened
    assert complaints == []


def buttons(page: Page) -> list[str]:
    return page.locator(".actions button").all_inner_texts()


def test_a_study_that_was_stopped_says_so_and_offers_the_way_back(fleet, open_page):
    fleet.submit(trials=3, max_failures=1)
    with fleet.service() as service:
        turn_until(service, lambda: fleet.leases.is_queued(1), "two are enqueued")
        fleet.commit(0, None, TrialState.FAILED)
        fleet.claim(1)
        turn_until(service, lambda: fleet.statuses[-1].trials["failed"] == 1, "it is published")
        page = open_page("/studies/s")
        badge = page.locator("h1 + .badge")
        page.get_by_role("button", name="Stop").click()
        page.get_by_role("dialog").get_by_role("button", name="Stop").click()
        expect(badge).to_have_text("stopping")
        wait_until(lambda: buttons(page) == ["Resume", "Cancel"], "orders would be refused")
        page.goto(page.url.replace("/studies/s", "/"))
        expect(page.locator("td .badge").first).to_have_text("stopping")
        page.go_back()
        page.get_by_role("button", name="Resume").click()
        expect(badge).to_have_text("running")
        going = ["Pause", "Stop", "Cancel", "Enqueue…", "Extend…", "Retry 1 failed trial"]
        wait_until(lambda: buttons(page) == going, "all is offered again")
        page.get_by_role("button", name="Retry").click()
        page.get_by_role("dialog").get_by_role("button", name="Retry").click()
        expect(page.locator("#said")).to_contain_text("1 to be tried again")


def test_a_form_follows_its_study_and_keeps_what_is_typed(fleet, settings, open_page):
    kind = {"type": "categorical", "choices": ["a", 2**53 + 1]}
    narrow = {"x": {"type": "float", "low": 0.0, "high": 1.0}, "kind": kind}
    handle = fleet.submit(trials=2, space=narrow)
    page = open_page("/studies/s")
    page.get_by_role("button", name="Enqueue").click()
    page.get_by_label("x 0 to 1").fill("1.5")
    choices = page.get_by_label("kind")
    choices.select_option(str(2**53 + 1))
    wide = {"x": {**narrow["x"], "high": 2.0}, "kind": {**kind, "choices": ["a", 2**53 + 1, "c"]}}
    handle.extend(space=wide, trials=5)
    expect(page.get_by_label("x 0 to 2")).to_have_value("1.5")
    expect(choices.locator("option")).to_have_text(["drawn", "a", str(2**53 + 1), "c"])
    expect(choices).to_have_value(str(2**53 + 1))
    page.get_by_role("dialog").get_by_role("button", name="Enqueue").click()
    expect(page.locator("#said")).to_contain_text("enqueued one trial")
    (order,) = fleet.client.hvals(keys.orders("s"))
    given = given_params(handle.spec(), json.loads(order)["params"])
    assert given == {"x": 1.5, "kind": 2**53 + 1}
    page.get_by_role("button", name="Extend").click()
    expect(page.get_by_label("Trials in all")).to_have_attribute("min", "5")


def test_a_token_that_is_mistyped_leaves_the_right_one(fleet, open_page, complaints):
    fleet.submit(trials=2)
    page = open_page("/studies/s")
    expect(page.locator("#key")).to_have_text("May act")
    page.locator("#key").click()
    for wrong in ("another-token-than-it", "m\u00fctze" * 5):
        page.get_by_label("Token", exact=True).fill(wrong)
        page.get_by_role("button", name="Use it").click()
        expect(page.get_by_role("alert").last).to_have_text("This is not the token.")
    page.get_by_role("button", name="Back").click()
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("dialog").get_by_role("button", name="Pause").click()
    expect(page.locator("h1 + .badge")).to_have_text("paused")
    assert len(complaints) == 1, "of the one that was refused"
    complaints.clear()
