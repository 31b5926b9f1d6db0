from __future__ import annotations

import io
import json
import logging
from urllib.parse import quote, quote_plus

import pytest
import structlog

from workers.coordination.address import parse_address
from workers.logs import configure_logging, get_logger, traceback_of
from workers.passwords import hide, learn_from
from workers.protocol.errors import InvalidInputError
from workers.protocol.plain import describe_error
from workers.settings import Settings

PASSWORDS = [
    "pw-secret",
    "s3:c@r/et",
    "quo\"te\\back'slash",
    "perc%41ent%",
    "blank and+plus",
    "schlüssel\N{KEY}",
    "tab\tnew\nline",
    "$(id) {braces} *[a-z]*",
]


def spellings(password):
    shown = [password, repr(password)[1:-1], json.dumps(password)[1:-1]]
    return [*shown, quote(password, safe=""), quote(password), quote_plus(password)]


def urls(password):
    encoded = quote(password, safe="")
    return [
        f"redis://:{encoded}@h:1/0",
        f"rediss://user:{encoded}@h:1/0",
        f"redis://{encoded}@h:1/0",
        f"redis://h:1/0?password={quote_plus(password)}",
        f"redis://u:{encoded}@h:1/0?db=2",
        f"unix://:{encoded}@/a/b.sock",
        f"postgresql+psycopg://user:{encoded}@h/optuna",
    ]


def fail(text):
    raise ConnectionError(text)


@pytest.fixture
def stream():
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    made = io.StringIO()
    configure_logging(stream=made)
    yield made
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.mark.parametrize("password", PASSWORDS)
def test_no_spelling_of_a_password_is_shown_by_any_log(stream, password):
    log, foreign = get_logger("x"), logging.getLogger("kombu")
    for url in urls(password):
        learn_from(url)
        for text in [url, f"b'{url}'", *(f"<{each}>" for each in spellings(password))]:
            log.info("event", url=text, nested={"a": [text, (1, text)]}, object=ValueError(text))
            foreign.error("cannot connect to %s: %r", text, OSError(text))
            try:
                fail(text)
            except ConnectionError as error:
                log.exception("failed")
                foreign.exception("failed again")
                log.warning("told", error=traceback_of(error), short=describe_error(error, 300))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 5 * 7 * (2 + len(spellings(password)))
    for line in lines:
        document = json.loads(line)
        assert document["level"] in {"info", "warning", "error"}
        for spelling in spellings(password):
            assert spelling not in line
            assert spelling not in str(document)
    assert "***" in lines[0]


def test_a_short_password_is_hidden_where_it_stands_alone():
    learn_from("redis://:a@h/0")
    learn_from("redis://:1@h/0")
    assert hide("redis://:a@h:6379/0 has a state 1") == "redis://:***@h:6379/0 has *** state ***"


def test_what_is_no_url_harms_nobody():
    for url in ["", None, "a", "redis://[h", "redis://h:port", ":@", "://", "\0"]:
        learn_from(url)
    assert hide("a text") == "a text"


@pytest.mark.parametrize("password", PASSWORDS)
def test_settings_and_refusals_show_no_password(password):
    for url in urls(password):
        shown = [repr(Settings(redis_url=url, storage=url))]
        for build in (
            lambda url=url: Settings.build({"redis_ur": url}),
            lambda url=url: parse_address(url.replace("h:1", "h:port")),
            lambda url=url: parse_address(url + ("&" if "?" in url else "?") + "pasword=1"),
        ):
            try:
                build()
            except InvalidInputError as error:
                shown.append(str(error))
        for spelling in spellings(password):
            assert not [text for text in shown if spelling in text]
