"""A report of a study that runs, from a real Redis, and its file in a real browser."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from hand_fleet import Fleet, turn_until
from playwright.sync_api import sync_playwright

from orchestrator.handle import StudyHandle
from orchestrator.reporting.document import StudyAtHand, report_of
from orchestrator.reporting.page import page
from workers.protocol.errors import StudyNotKnownError
from workers.protocol.events import Cause
from workers.protocol.messages import Result
from workers.protocol.states import TrialState

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
TRICK = "<img src=x onerror=alert(1)>"

#: How long a page may take, on a machine that is busy.
PATIENCE_MS = 60_000


@pytest.fixture
def fleet(client, settings, tmp_path):
    return Fleet(client, settings, tmp_path)


@pytest.fixture
def study(fleet, settings):
    """Of eight trials one lost its process, one failed, one is pruned, and one runs."""
    space = {
        "x": {"type": "float", "low": 0.0, "high": 1.0},
        "rate": {"type": "float", "low": 1e-5, "high": 1e-1, "log": True},
        "kind": {"type": "categorical", "choices": [TRICK, f"{TRICK}{{{{ 7 * 7 }}}}"]},
    }
    fleet.submit(trials=9, space=space, metric=TRICK, sampler={"type": "random", "seed": 1})

    def claim(number):
        turn_until(service, lambda: fleet.leases.is_queued(number), f"{number} is enqueued")
        return fleet.claim(number)

    with fleet.service() as service:
        fleet.leases.release(0, claim(0).token, cause=Cause.PAUSED)
        for number in range(6):
            told = Result(values=[number / 7], busy_seconds=2.0)
            fleet.leases.commit(number, claim(number).token, TrialState.COMPLETE, told)
        failed = Result(error=f"ValueError: {TRICK}", traceback=f"Traceback\nValueError: {TRICK}")
        fleet.leases.commit(6, claim(6).token, TrialState.FAILED, failed, Cause.FAILED)
        fleet.leases.commit(7, claim(7).token, TrialState.PRUNED, Result(busy_seconds=1.0))
        claim(8)
        turn_until(
            service,
            lambda: (found := StudyHandle("s", settings).status()).num_ended == 8 and found.running,
            "it is published",
        )
        yield service


def test_a_study_that_runs_has_a_report_of_what_there_is(study, settings):
    report = report_of(StudyAtHand.read("s", settings))
    assert "The study is running: 8 of 9 trials ended" in report.outcome[0]
    assert report.slot_time.running > 0.0
    assert [bar["end"] for bar in report.timeline[-1:]] == ["RUNNING"]
    assert [(each.what, each.trials) for each in report.failures] == [(f"ValueError: {TRICK}", [6])]
    assert report.failures[0].text.startswith("Traceback")
    assert report.charts.states == "CCCCCCFPO"
    assert any("ended with another one to come" in line for line in report.outcome)


def test_where_its_results_are_elsewhere_the_report_says_so(study, settings, tmp_path):
    elsewhere = settings.model_copy(update={"home": tmp_path / "another home"})
    settings.home.rename(tmp_path / "not on this machine")
    try:
        report = report_of(StudyAtHand.read("s", elsewhere))
    finally:
        (tmp_path / "not on this machine").rename(settings.home)
    assert report.status.num_ended == 8
    assert report.charts.states == ""
    assert "The results are on another machine" in report.notes[0]
    assert len(report.timeline) == 10, "events are news in Redis"
    assert TRICK.encode() not in page(report)
    with pytest.raises(StudyNotKnownError):
        StudyAtHand.read("none-of-these", elsewhere)


def test_a_study_that_nobody_has_driven_has_a_report_of_what_was_asked(fleet, settings):
    fleet.submit(trials=9)
    report = report_of(StudyAtHand.read("s", settings))
    assert report.asked[0].startswith("9 trials of ")
    assert b"No trial has begun" in page(report)


@pytest.fixture
def chromium():
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("no chromium on the PATH; apt-get install chromium")
        pytest.skip("no chromium on the PATH; apt-get install chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


def test_its_file_draws_all_charts_in_a_browser_from_itself_alone(
    study, settings, chromium, tmp_path
):
    file = tmp_path / "report.html"
    file.write_bytes(page(report_of(StudyAtHand.read("s", settings))))
    wide, phone = {"width": 1280, "height": 900}, {"width": 360, "height": 760}
    for size, scheme in ((wide, "light"), (phone, "dark")):
        complaints, asked = [], []
        opened = chromium.new_page(viewport=size, color_scheme=scheme)
        opened.set_default_timeout(PATIENCE_MS)
        opened.on("console", lambda told, to=complaints: to.append(told.text))
        opened.on("pageerror", lambda error, to=complaints: to.append(str(error)))
        opened.on("request", lambda request, to=asked: to.append(request.url))
        opened.goto(file.as_uri())
        opened.wait_for_selector("html[data-drawn]", state="attached")
        assert complaints == []
        assert asked == [file.as_uri()]
        assert opened.evaluate("document.documentElement.scrollWidth") <= size["width"]
        drawn = opened.locator(".chart:has(.main-svg) > h2").all_inner_texts()
        titles = " ".join(drawn)
        for title in ("History", "What matters", "Slices", "Contour", "Time line of slots"):
            assert title in titles, titles
        assert "No trial has reported" in opened.locator("#chart-curves").inner_text()
        assert opened.locator("img").count() == 0
        assert TRICK in opened.locator(".failures").inner_text()
    opened.evaluate("dispatchEvent(new Event('beforeprint'))")
    theme = "document.documentElement.dataset.theme"
    assert opened.evaluate(theme) == "light", "paper is light"
    opened.evaluate("dispatchEvent(new Event('afterprint'))")
    assert opened.evaluate(theme) == "auto"
    data = json.loads(opened.locator("#data").text_content())
    assert any(TRICK in (kind or "") for kind in data["charts"]["params"]["kind"])
