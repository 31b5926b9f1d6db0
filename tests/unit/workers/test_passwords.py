from __future__ import annotations

import io
import json
import logging
from urllib.parse import quote, quote_plus

import pytest
import structlog

from workers.coordination.address import parse_address
from workers.logs import configure_logging, get_logger, traceback_of
from workers.passwords import hide, learn, learn_environment, learn_from, whole
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


SECRET_NAMES = (
    "PGPASSWORD MYSQL_PWD REDISCLI_AUTH DB_PASS SSHPASS SMTPPASS DBPASS GITHUB_PAT GITHUBPAT"
    " SSH_KEY COMET_KEY AZURE_STORAGE_KEY AUTHTOKEN NGROK_AUTHTOKEN AWS_CREDENTIALS"
    " GOOGLE_CREDENTIALS CREDENTIALS WANDB_API_KEY OPENAI_APIKEY HF_TOKEN HF_TOKEN_READ"
    " AWS_SECRET_ACCESS_KEY AWS_ACCESS_KEY_ID DB_PASSWORD_2 DB_PASS2 PASSWORD CLIENT_SECRET"
    " npm_config__auth db_pass SECRETKEY MY_PASSPHRASE NPM_AUTH-TOKEN"
)
PLAIN_NAMES = (
    "PATH PYTHONPATH PWD OLDPWD KEYBOARD MONKEY TURKEY HOTKEY COMPASS BYPASS COMPAT PASSENGER"
    " PATTERN AUTHOR TOKENIZERS_PARALLELISM MAX_TOKENS SECRETARY KEY_TYPE SORT_KEY PRIMARY_KEY"
    " PUBLIC_KEY COMPATIBLE_WITH SSH_AUTH_SOCK XAUTHORITY PASSWORDLESS_MODE"
)


@pytest.mark.parametrize("name", SECRET_NAMES.split())
def test_what_a_variable_holds_that_is_named_for_a_secret_is_hidden(name):
    value = f"v/{name.lower()}+7f"
    learn_environment({name: f"{value}\n"})
    assert hide(f"it is {value}.") == "it is ***."


@pytest.mark.parametrize("name", PLAIN_NAMES.split())
def test_what_is_only_spelled_alike_is_shown(name):
    value = f"/a/place of {name}" if name.endswith("PWD") else f"some {name} value"
    learn_environment({name: value})
    assert value in hide(f"it is {value}.")


def test_places_switches_and_numbers_are_no_secrets():
    for value in ["/run/secrets/db-pass", "~/.netrc", "../token.txt", "False", "1,000,000.5"]:
        learn_environment({"DB_PASSWORD": value})
        assert hide(f"it is {value}") == f"it is {value}"
    for value in ["/kept+Base64==", ".hidden-word", "~tilde!word"]:
        learn_environment({"DB_PASSWORD": value})
        assert hide(f"it is {value}") == "it is ***"


@pytest.mark.parametrize(
    "secret", ["hf_qwertz", "uvuvuvuv", "multi-line-7\nof secret\n", "schlüssel-ß"]
)
def test_no_cut_through_a_text_shows_a_part_of_a_password(secret):
    learn(secret)
    text = f"before {secret}{secret[:3]} {secret} after".encode()
    for cut in range(len(text) + 1):
        kept = whole(text[:cut])
        parts = text[:kept], text[kept:]
        shown = "".join(hide(each.decode()) for each in parts)
        assert shown == hide(text.decode())
        assert cut - kept < 2 * len(secret.encode())
    assert whole(b"nothing of it.") == len(b"nothing of it.")


@pytest.mark.parametrize(
    "url",
    [
        "redis:/s3cr3tpass@a",
        "redis:s3cr3tpass@a",
        "redis:/u:s3cr3tpass@a:1/0",
        "redis//:s3cr3tpass@a:1/0",
        ":s3cr3tpass@a:1/0",
        "u:s3cr3tpass@a",
        "s3cr3tpass@a",
        "redis:///:s3cr3tpass@a:1/0",
        "redis://u:s3cr3tpass@[a/0",
        "postgresql//u:s3cr3tpass@a/fleet",
    ],
)
def test_the_password_of_a_mistyped_url_is_hidden_too(url):
    learn_from(url)
    assert "s3cr3tpass" not in hide(f"{url} is no URL: its path is 's3cr3tpass@a'")


@pytest.mark.parametrize(
    "url", ["unix:///run/fleet@1/redis.sock", "journal:///home/a@b/journal.log", "file:///a@b", "x"]
)
def test_of_a_path_with_a_sign_nothing_is_taken_for_a_password(url):
    learn_from(url)
    assert hide(url) == url
