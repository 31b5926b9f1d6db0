"""The page in a real browser, over a real Redis; the test is the workers."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator

import optuna
import pytest
import uvicorn
from chromium import chromium
from hand_fleet import SPACE, Fleet, turn_until
from playwright.sync_api import Page, expect
from waiting import wait_until

from orchestrator.dashboard.app import make_app
from orchestrator.dashboard.door import Door
from orchestrator.dashboard.server import listen
from orchestrator.storage.attributes import ATTR, SPEC_ATTR
from orchestrator.storage.opening import StudyStorage, create_or_load_study, storage_url
from workers.coordination import keys
from workers.protocol.given import given_params
from workers.protocol.spec import StudySpec
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


@pytest.fixture
def stored(settings, tmp_path):
    """A study of 300 trials that no fleet has: every fifth failed."""
    spec = StudySpec(name="old", objective="/a/train.py:objective", space=SPACE, trials=300)
    storage = StudyStorage.open(storage_url(settings, "old"))
    sampler, pruner = optuna.samplers.RandomSampler(), optuna.pruners.NopPruner()
    study = create_or_load_study(spec, storage.storage, sampler, pruner)
    study.set_user_attr(SPEC_ATTR, spec.model_dump_json())
    study.add_trials([stored_trial(number) for number in range(300)])
    storage.close()


def stored_trial(number: int) -> optuna.trial.FrozenTrial:
    failed = {f"{ATTR}state": "FAILED", f"{ATTR}error": f"ValueError: of {number}"}
    has_failed = number % 5 == 3
    return optuna.trial.create_trial(
        state=optuna.trial.TrialState.FAIL if has_failed else optuna.trial.TrialState.COMPLETE,
        value=None if has_failed else number / 10,
        params={"x": number / 300},
        distributions={"x": optuna.distributions.FloatDistribution(0, 1)},
        user_attrs=failed if has_failed else {},
    )


def test_each_trial_is_found_in_the_list_by_keyboard_and_on_a_phone(stored, open_page):
    phone = {"viewport": {"width": 360, "height": 760}, "has_touch": True, "is_mobile": True}
    page = open_page("/studies/old", **phone)
    rows = page.get_by_role("region", name="Trials", exact=True).locator("tbody tr")
    position = page.locator(".pages [role=status]")
    expect(position).to_have_text("1 to 20 of 300")
    page.get_by_label("State").focus()
    page.locator(":focus").select_option("F")
    expect(position).to_have_text("1 to 20 of 60")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.locator(":focus").select_option("oldest")
    expect(rows.first).to_contain_text("3")
    page.locator("#trials-after").focus()
    for pressed in ("Enter", "Enter", "Enter"):  # the last one is one too many
        page.keyboard.press(pressed)
    expect(position).to_have_text("41 to 60 of 60")
    expect(page.locator("#trials-after")).to_be_focused()
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    rows.get_by_role("link", name="298").click()
    expect(page.locator("h1")).to_have_text("Trial 298")
    expect(page.get_by_text("ValueError: of 298").first).to_be_visible()
    page.go_back()
    expect(position).to_have_text("41 to 60 of 60")
    page.get_by_label("Number").fill("1x")
    expect(page.get_by_text("Write a number, or two")).to_be_visible()
    page.get_by_label("Number").fill("103")
    page.keyboard.press("Enter")
    expect(page.get_by_text("ValueError: of 103").first).to_be_visible()


def test_a_click_on_a_point_of_a_chart_opens_its_trial(stored, open_page):
    page = open_page("/studies/old")
    point = page.locator("#plot-history .scatterlayer .point").nth(7)
    point.scroll_into_view_if_needed()

    point.hover(force=True)
    expect(page.locator("#plot-history.at-trial")).to_be_attached()
    point.click(force=True)
    page.wait_for_url("**/trials/*")
    expect(page.locator("h1")).to_have_text(re.compile(r"Trial \d+"))
    page.go_back()
    expect(page.locator("#plot-history .point").first).to_be_attached()


def test_tabs_that_are_hidden_hold_no_connection_and_go_on_when_seen_again(fleet, open_page):
    handle = fleet.submit(trials=3)
    first = open_page("/studies/s")
    tabs = [first]
    for _ in range(7):  # a browser has six connections to a host
        hide(tabs[-1])
        tab = first.context.new_page()
        tab.goto(first.url)
        tabs.append(tab)
        expect(tab.locator("#link")).to_have_text("live")
        expect(tab.locator("h1")).to_have_text("s")
    handle.pause()
    expect(tabs[-1].locator("h1 + .badge")).to_have_text("paused")
    hide(tabs[-1])
    expect(first.locator("h1 + .badge")).to_have_text("running")
    asked: list[str] = []
    first.on("request", lambda request: asked.append(request.url))
    hide(first, is_hidden=False)
    expect(first.locator("h1 + .badge")).to_have_text("paused")
    streams = [url for url in asked if "/api/live" in url]
    assert streams, "it was hidden without one"
    assert not any("since=0" in url for url in streams), "it goes on where it was"


def hide(page: Page, *, is_hidden: bool = True) -> None:
    """Have a page believe that nobody sees it; a browser without a screen shows all of its tabs."""
    page.evaluate(
        """(isHidden) => {
          Object.defineProperty(document, "hidden", { value: isHidden, configurable: true });
          document.dispatchEvent(new Event("visibilitychange"));
        }""",
        is_hidden,
    )
