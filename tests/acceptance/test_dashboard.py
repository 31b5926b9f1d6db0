"""The web page in a real browser: a live fleet, kills included, is seen there and acted on.

`PICTURES=ops/guides/pictures python -m pytest tests/acceptance/test_dashboard.py` takes the
pictures of the guides anew.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import chromium
from playwright.sync_api import Page, expect
from shown import STEPS
from waiting import wait_until

from orchestrator.handle import StudyHandle
from orchestrator.local.servers import stop_process

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 760}
#: How long a page may take to show something, on a machine that is busy.
PATIENCE_MS = 60_000


expect.set_options(timeout=PATIENCE_MS)

STUDY = {
    "name": "vision",
    "direction": "maximize",
    "metric": "accuracy",
    "pruner": {"type": "median", "n_startup_trials": 8, "n_warmup_steps": 4},
    "sampler": {"type": "tpe", "seed": 4},
    "space": {
        "learning_rate": {"type": "float", "low": 1e-5, "high": 1e-1, "log": True},
        "layers": {"type": "int", "low": 1, "high": 6},
        "optimizer": {"type": "categorical", "choices": ["adamw", "sgd", "lion"]},
        "dropout": {"type": "float", "low": 0.0, "high": 0.5},
    },
}


class Browser:
    """Pages of a real Chromium, and what any of them complained of or asked others for."""

    def __init__(self, chromium, address: str, token: str) -> None:
        self._chromium, self._address, self.token = chromium, address, token
        self.complaints: list[str] = []
        self.expected: list[str] = []

    def open(self, path: str = "/", *, acts: bool = True, **looks) -> Page:
        looks.setdefault("viewport", DESKTOP)
        page = self._begin(self._chromium.new_context(**looks))
        page.goto(f"{self._address}{path}{f'#token={self.token}' if acts else ''}")
        return page

    def beside(self, page: Page) -> Page:
        """Another tab at the same address, which was given no token."""
        another = self._begin(page.context)
        another.goto(page.url)
        return another

    def forget_refusals(self) -> None:
        """Let what was refused for want of the token not count; it was to be."""
        kept = [each for each in self.complaints if "403" not in each]
        assert len(kept) < len(self.complaints)
        self.complaints[:] = kept

    def _begin(self, context) -> Page:
        return self.watched(context.new_page())

    def watched(self, page: Page) -> Page:
        """A page that is held to this host."""
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda asked: self._hold_to_this_host(asked.url))
        return page

    def _note(self, told) -> None:
        if told.type == "error":
            self.complaints.append(f"{told.text} {told.location.get('url')}")

    def _hold_to_this_host(self, url: str) -> None:
        if not url.startswith((self._address, "data:", "blob:")):
            self.complaints.append(f"asked for {url}")

    def picture(self, page: Page, name: str, top: str | None = None) -> None:
        """Keep what a page shows, where pictures are asked for; `top` is below its bar."""
        folder = os.environ.get("PICTURES")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            if top is not None:
                found = page.locator(top)
                found.evaluate(
                    "each => scrollTo(0, each.getBoundingClientRect().top + scrollY - 75)"
                )
                page.wait_for_timeout(1500)  # what comes into view is drawn
            page.screenshot(path=f"{folder}/{name}.png")


@pytest.fixture
def browser(fleet) -> Iterator[Browser]:
    dashboard = subprocess.Popen(
        [Path(sys.executable).with_name("trialfleet"), "dashboard"],
        env=fleet.environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    address, _, token = dashboard.stdout.readline().split()[1].partition("/#token=")
    with chromium() as started:
        yield Browser(started, address, token)
    stop_process(dashboard, signal.SIGINT, 30)
    assert dashboard.returncode in {0, 130}
    dashboard.stdout.close()


@pytest.mark.long
def test_a_live_fleet_with_a_kill_is_seen_in_a_browser_and_acted_on(fleet, browser):
    shutil.copy(Path(__file__).parents[1] / "shown.py", fleet.folder)
    fleet.use_studies(fleet.folder)
    nothing_yet_says_what_to_type(browser)
    fleet.rescale(0.3)
    fleet.serve()
    fleet.worker(slots=3)
    fleet.hand_in({**STUDY, "objective": "shown.py:curve", "trials": 4000})
    the_fleet_is_seen_with_its_leases(browser)
    killed = a_kill_and_its_recovery_are_on_the_time_line(fleet, browser)
    why_each_attempt_ended_is_on_the_page_of_the_trial(browser, killed)
    charts_follow_the_study(fleet, browser)
    buttons_do_what_commands_do_and_only_with_the_token(fleet, browser)
    a_phone_shows_each_page_without_scrolling_sideways(browser, killed)
    colours_follow_the_system_and_the_switch(browser)
    the_keyboard_reaches_everything_in_order(browser)
    what_users_named_is_text(fleet, browser)
    a_redis_that_is_away_is_told_and_comes_back_by_itself(fleet, browser)
    StudyHandle("vision", fleet.settings).cancel()
    fleet.study = "vision"
    fleet.await_over()


@pytest.mark.long
def test_the_page_takes_the_token_and_optuna_dashboard_is_beside_it(fleet, browser):
    shutil.copy(Path(__file__).parents[1] / "shown.py", fleet.folder)
    fleet.use_studies(fleet.folder)
    fleet.serve()
    fleet.worker(slots=1)
    fleet.hand_in({**STUDY, "objective": "shown.py:curve", "trials": 4})
    stranger = browser.open("/studies/vision", acts=False)
    expect(stranger.get_by_role("heading", name="This page takes the token")).to_be_visible()
    expect(stranger.locator("#link")).to_have_text("locked")
    stranger.get_by_role("link", name="trialfleet").click()
    expect(stranger.get_by_role("heading", name="This page takes the token")).to_be_visible()
    browser.forget_refusals()
    stranger.get_by_role("button", name="Give the token").click()
    stranger.get_by_label("Token", exact=True).fill(browser.token)
    stranger.get_by_role("button", name="Use it").click()
    expect(stranger.get_by_role("link", name="vision", exact=True)).to_be_visible()
    assert not stranger.evaluate("document.cookie"), "no script reads the cookie"
    expect(browser.beside(stranger).get_by_role("link", name="vision", exact=True)).to_be_visible()
    fleet.study = "vision"
    fleet.await_over()
    with stranger.context.expect_page() as opened:
        stranger.get_by_role("link", name="Optuna").click()
    its = browser.watched(opened.value)
    assert its.evaluate("sessionStorage.length") == 0, "its scripts have no token"
    its.get_by_text("vision").first.click()
    expect(its.get_by_text("Objective Value").first).to_be_visible()
    expect(its.locator("svg.main-svg, .main-svg").first).to_be_visible()
    browser.picture(its, "optuna-dashboard")
    its.reload()
    expect(its.get_by_text("vision").first).to_be_visible()
    # a stream that was asked for before the token was given may be refused after it
    late = ("status of 403", "/api/live")
    assert [each for each in browser.complaints if not all(part in each for part in late)] == []


def nothing_yet_says_what_to_type(browser):
    page = browser.open()
    expect(page.get_by_text("trialfleet run ops/studies/language-id.yaml")).to_be_visible()
    expect(page.get_by_text("celery -A workers worker")).to_be_visible()
    page.close()


def the_fleet_is_seen_with_its_leases(browser):
    page = browser.open()
    expect(page.get_by_role("link", name="vision", exact=True)).to_be_visible()
    expect(page.locator(".lease")).to_have_count(3)
    expect(page.locator("#main a[href*='/trials/']").first).to_be_visible()
    expect(page.locator("#link")).to_have_text("live")
    browser.picture(page, "fleet")
    page.close()


def a_kill_and_its_recovery_are_on_the_time_line(fleet, browser) -> int:
    page = browser.open("/studies/vision")

    def on_its_way():
        for each in fleet.processes("trial"):
            record = None if each.trial is None else fleet.leases.record(each.trial)
            saved = None if record is None else record.checkpoint
            if saved is not None and record.state == "RUNNING" and 3 <= saved.step <= STEPS - 6:
                return each
        return None

    found = wait_until(on_its_way, "a trial has made some steps", 120)
    os.kill(found.identity.pid, signal.SIGKILL)
    legend = page.locator("#plot-timeline .legendtext")
    expect(legend.filter(has_text="process died")).to_have_count(1)
    expect(legend.filter(has_text="goes on")).to_have_count(1)
    page.close()
    return found.trial


def why_each_attempt_ended_is_on_the_page_of_the_trial(browser, killed):
    page = browser.open(f"/studies/vision/trials/{killed}")
    attempts = page.locator(".attempts li")
    expect(attempts.first).to_contain_text("its process died under it")
    expect(attempts.nth(1)).to_contain_text("from the checkpoint of step")
    expect(page.locator("#plot-curve .scatterlayer .trace").first).to_be_visible()
    expect(page.locator("h1 + .badge")).to_have_text(re.compile("complete|pruned"))
    browser.picture(page, "trial")
    page.close()


def charts_follow_the_study(fleet, browser):
    handle = StudyHandle("vision", fleet.settings)
    wait_until(lambda: handle.status().num_ended >= 14, "there is something to draw", 180)
    page = browser.open("/studies/vision", viewport={"width": 1280, "height": 1240})
    for name in ("timeline", "history", "curves", "importances", "parallel", "slices"):
        plot = page.locator(f"#plot-{name}")
        plot.scroll_into_view_if_needed()
        expect(plot.locator("svg.main-svg").first).to_be_visible()
    expect(page.locator(".chart > p:visible")).to_have_count(0)  # nor does any say what is wrong
    expect(page.locator("#plot-slices .plot")).to_have_count(len(STUDY["space"]))

    def names_what_is_pointed_at():  # until the chart is drawn anew
        page.locator("#plot-history .point").last.hover(force=True)
        return page.locator("#plot-history .hovertext").count()

    wait_until(names_what_is_pointed_at, "the chart names the trial that is pointed at")
    before = page.locator(".progress .number").first.inner_text()
    expect(page.locator(".progress .number").first).not_to_have_text(before)
    page.evaluate("scrollTo(0, 0)")
    browser.picture(page, "study")
    browser.picture(page, "charts", top=".charts:has(#plot-curves)")
    browser.picture(page, "trials", top="section:has(> #trials-title)")
    page.close()


def buttons_do_what_commands_do_and_only_with_the_token(fleet, browser):
    handle = StudyHandle("vision", fleet.settings)
    page = browser.open("/studies/vision")
    expect(page.get_by_role("button", name="Pause")).to_be_enabled()
    assert "token" not in page.url, "it is in no history and no link"
    assert not page.evaluate("document.cookie"), "no script reads the cookie"
    reading = browser.beside(page)
    expect(reading.get_by_role("button", name="Pause")).to_be_disabled()
    reading.close()
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("dialog").get_by_role("button", name="Pause").click()
    expect(page.locator("h1 + .badge")).to_have_text("paused")
    assert handle.status().wish == "pause"
    page.get_by_role("button", name="Enqueue").click()
    page.get_by_label("learning_rate").fill("0.002")
    page.get_by_label("optimizer").select_option("lion")
    page.get_by_role("dialog").get_by_role("button", name="Enqueue").click()
    expect(page.locator("#said")).to_contain_text("enqueued one trial")
    page.get_by_role("button", name="Extend").click()
    page.get_by_label("Trials in all").fill("5000")
    page.get_by_role("dialog").get_by_role("button", name="Extend").click()
    expect(page.locator("#said")).to_contain_text("extended to 5000 trials")
    assert handle.spec().trials == 5000
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("h1 + .badge")).to_have_text("running")
    page.close()


def a_phone_shows_each_page_without_scrolling_sideways(browser, killed):
    for path in ("/", "/studies/vision", f"/studies/vision/trials/{killed}"):
        page = browser.open(path, viewport=PHONE, has_touch=True, is_mobile=True)
        expect(page.locator("h1")).to_be_attached()
        expect(page.locator(".tile").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, path
        if path == "/studies/vision":
            expect(page.locator("#plot-timeline svg.main-svg").first).to_be_attached()
            browser.picture(page, "phone")
        page.close()


def colours_follow_the_system_and_the_switch(browser):
    page = browser.open("/studies/vision", color_scheme="dark")
    expect(page.locator("body")).to_have_css("background-color", "rgb(18, 21, 28)")
    line = page.locator("#plot-history .scatterlayer .lines path").first
    dark = line.get_attribute("style")
    browser.picture(page, "dark")
    page.locator("#theme").click()
    expect(line).not_to_have_attribute("style", dark)
    expect(page.locator("body")).to_have_css("background-color", "rgb(245, 246, 248)")
    page.reload()
    expect(page.locator("body")).to_have_css("background-color", "rgb(245, 246, 248)")
    page.close()


def the_keyboard_reaches_everything_in_order(browser):
    page = browser.open("/studies/vision")
    expect(page.get_by_role("button", name="Pause")).to_be_enabled()
    reached = []
    for _ in range(11):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("document.activeElement.id || document.activeElement.innerText")
        )
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    assert reached[:4] == ["Skip to the content", "trialfleet", "Fleet", "vision"]
    assert reached[4:7] == ["key", "theme", "Optuna"]
    assert reached[7:11] == ["do-pause", "do-stop", "do-cancel", "do-enqueue"]
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.locator("#do-enqueue")).to_be_focused()
    page.close()


def what_users_named_is_text(fleet, browser):
    directions = {"directions": ["maximize", "maximize"], "metric": ["<b>up</b>", "down"]}
    fleet.hand_in(
        {
            "name": "tricks",
            "objective": "shown.py:trick",
            "trials": 8,
            "max_failures": 1,
            **directions,
        }
    )
    handle = StudyHandle("tricks", fleet.settings)
    wait_until(lambda: handle.status().is_over, "the study of odd names is over", 120)
    page = browser.open("/studies/tricks")
    expect(page.locator("#plot-pareto svg.main-svg").first).to_be_visible()
    for name in ("importances", "parallel", "slices"):
        page.locator(f"#title-{name}").scroll_into_view_if_needed()
    expect(page.locator("#plot-slices svg.main-svg").first).to_be_attached()
    expect(page.get_by_text("onerror=").first).to_be_visible()
    page.goto(page.url + "/trials/3")
    expect(page.get_by_text("ValueError: <img").first).to_be_visible()
    assert page.locator("#main img").count() == 0
    assert "tricked" not in page.title()
    page.close()


def a_redis_that_is_away_is_told_and_comes_back_by_itself(fleet, browser):
    page = browser.open()
    expect(page.locator(".lease").first).to_be_visible()
    fleet.redis.stop()
    expect(page.locator("#trouble")).to_contain_text("Redis")
    expect(page.get_by_role("link", name="vision", exact=True)).to_be_visible()
    fleet.redis.start()
    expect(page.locator("#trouble")).to_be_hidden()
    expect(page.locator(".lease").first).to_be_visible()
    page.close()
    assert browser.complaints == []
