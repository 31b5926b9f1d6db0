from __future__ import annotations

import re
from importlib.resources import files

import pytest

ASSETS = files("orchestrator.dashboard.assets")
SHEET = ASSETS.joinpath("page.css").read_text()


def colours(theme: str) -> dict[str, str]:
    """The colours of a theme, by name."""
    selector = ":root {" if theme == "light" else ':root[data-theme="dark"] {'
    block = SHEET.split(selector, 1)[1].split("}", 1)[0]
    return dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block))


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [
        each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


STATES = ("complete", "pruned", "failed", "dead", "cancelled", "running", "paused")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_texts_have_the_contrast_that_accessibility_asks_for(theme):
    found = colours(theme)
    pairs = [(text, ground) for text in ("text", "soft", "accent") for ground in ("card", "page")]
    pairs += [("on-accent", "accent"), ("text", "problem"), ("text", "note")]
    pairs += [(state, "card") for state in STATES]
    wanting = {
        pair: round(ratio, 2)
        for pair in pairs
        if (ratio := contrast(found[pair[0]], found[pair[1]])) < 4.5
    }
    assert wanting == {}


def test_the_dark_that_is_chosen_is_the_dark_of_the_system():
    by_system = SHEET.split(':root[data-theme="auto"] {', 1)[1].split("}", 1)[0]
    assert dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", by_system)) == colours("dark")


def test_no_script_puts_text_together_as_html_or_code():
    for asset in ASSETS.iterdir():
        if asset.name.endswith(".js"):
            text = asset.read_text()
            for way in (
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "new Function",
            ):
                assert way not in text, f"{asset.name}: {way}"


def test_the_page_loads_nothing_from_elsewhere():
    page = ASSETS.joinpath("page.html").read_text()
    assert re.findall(r"(?:src|href)=\"(?!/|#)([^\"]*)", page) == []
    for asset in ASSETS.iterdir():
        if asset.name.endswith((".js", ".css")):
            assert "//cdn" not in asset.read_text()
            assert re.findall(r"https?://", asset.read_text()) == [], asset.name
