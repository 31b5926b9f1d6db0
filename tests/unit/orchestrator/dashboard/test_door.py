from __future__ import annotations

import pytest
from starlette.responses import Response

from orchestrator.dashboard.door import TOKEN_HEADER, Door, is_loopback, is_open_to_this_host
from workers.protocol.errors import InvalidInputError
from workers.settings import Settings

TOKEN = "a-token-of-the-tests"


def scope(method="GET", path="/api/fleet", query=b"", **headers):
    given = {"host": "127.0.0.1:8000", **{name.replace("_", "-"): v for name, v in headers.items()}}
    return {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query,
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in given.items()],
    }


def status(door, **given):
    found = door.refuses(scope(**given))
    return None if found is None else found[0]


def with_token(token=TOKEN):
    return {TOKEN_HEADER.replace("-", "_"): token}


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost", "LOCALHOST."]
)
def test_loopback_is_known_in_each_spelling(host):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "localhost.evil.example", "", "a b"])
def test_what_others_reach_is_not_loopback(host):
    assert not is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "gpu-box"])
def test_an_address_that_others_reach_takes_a_token_of_yours(host):
    with pytest.raises(InvalidInputError, match=rf"--host {host}.*--token"):
        Door(host)
    assert Door(host, TOKEN).token == TOKEN


@pytest.mark.parametrize("token", ["short", "x" * 15, "with a space in it", "mütze" * 5, "a/b" * 9])
def test_a_token_that_can_be_guessed_or_fits_no_header_is_refused(token):
    with pytest.raises(InvalidInputError, match="--token: give at least 16"):
        Door("127.0.0.1", token)


def test_each_start_draws_a_token_of_its_own():
    first, second = Door("127.0.0.1"), Door("127.0.0.1")
    assert first.token != second.token
    assert len(first.token) >= 30
    assert first.token not in repr(first)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "FROB"])
def test_whatever_is_no_reading_takes_the_token(method):
    door = Door("127.0.0.1", TOKEN)
    assert status(door, method=method) == 403
    for wrong in ("", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "ÿ" * 20):
        assert status(door, method=method, **with_token(wrong)) == 403
    assert status(door, method=method, **with_token()) is None


def test_where_nothing_is_secret_whoever_is_on_this_host_reads():
    assert status(Door("127.0.0.1", TOKEN, is_open=True)) is None
    assert status(Door("::1", TOKEN, is_open=True), host="[::1]:8000") is None
    forwarded = status(Door("127.0.0.1", TOKEN, is_open=True), host="localhost:9000")
    assert forwarded is None, "a forwarded port"


LOCKED = [
    (Door("127.0.0.1", TOKEN), "127.0.0.1:8000"),
    (Door("0.0.0.0", TOKEN), "gpu-box:8000"),
    (Door("0.0.0.0", TOKEN, is_open=True), "gpu-box:8000"),
    (Door("0.0.0.0", TOKEN, is_open=True), "127.0.0.1:8000"),
]


@pytest.mark.parametrize(("door", "host"), LOCKED)
def test_elsewhere_reading_takes_the_token_and_the_page_itself_does_not(door, host):
    for path in ("/api/fleet", "/api/live", "/api/studies/s", "/optuna/", "/dashboard", "/any"):
        assert status(door, host=host, path=path) == 403, path
        assert status(door, host=host, path=path, **with_token()) is None
    for path in ("/", "/studies/s", "/studies/s/trials/0", "/assets/main.js"):
        assert status(door, host=host, path=path) is None, path


@pytest.mark.parametrize(("door", "host"), LOCKED)
def test_the_cookie_opens_reading_and_never_acting(door, host):
    answer = Response()
    door.let_read(answer)
    cookie, *attributes = answer.headers["set-cookie"].split("; ")
    assert {each.lower() for each in attributes} == {"httponly", "samesite=strict", "path=/"}
    assert TOKEN not in answer.headers["set-cookie"]
    assert status(door, host=host, cookie=f"other=1; {cookie}") is None
    assert status(door, host=host, cookie=cookie, method="POST") == 403
    assert status(door, host=host, cookie=cookie, origin="http://evil.example") == 403
    name, _, value = cookie.partition("=")
    for wrong in (f"{name}={TOKEN}", f"{name}=", f"x={value}", f"{name}={value}0", "ÿ=ÿ;;="):
        assert status(door, host=host, cookie=wrong) == 403
    with_value = {TOKEN_HEADER.replace("-", "_"): value}
    assert status(door, host=host, method="POST", **with_value) == 403
    with_other_token = Door(door.host, TOKEN + "x")
    assert status(with_other_token, host=host, cookie=cookie) == 403


SECRET = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    ("given", "is_open"),
    [
        ({"redis_url": "redis://127.0.0.1:6379/0"}, True),
        ({"redis_url": "redis://viewer@127.0.0.1:6379/0"}, True),
        ({"redis_url": "redis://127.0.0.1/0", "storage": "sqlite:////tmp/x.db"}, True),
        ({"redis_url": "redis://:word@127.0.0.1:6379/0"}, False),
        ({"redis_url": "redis://viewer:word@127.0.0.1:6379/0"}, False),
        ({"redis_url": "redis://127.0.0.1:6379/0", "secret": SECRET}, False),
        ({"redis_url": "redis://127.0.0.1/0", "storage": "postgresql://u:word@h/d"}, False),
        ({"redis_url": "unix:///run/redis.sock"}, False),
        ({}, False),
    ],
)
def test_reading_is_open_only_where_anybody_on_this_host_could_read_redis(given, is_open):
    assert is_open_to_this_host(Settings.build(given)) is is_open


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "[", "10.0.0.7"]
)
def test_a_name_that_somebody_has_resolved_to_this_host_is_not_answered(host):
    door = Door("127.0.0.1", TOKEN, is_open=True)
    assert status(door, host=host) == 403
    assert status(door, host=host, method="POST", **with_token()) == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:8001"},
        {"origin": "http://localhost:8000"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors"},
    ],
)
def test_a_foreign_page_gets_nothing_even_with_the_token(headers):
    door = Door("127.0.0.1", TOKEN, is_open=True)
    assert status(door, **headers) == 403
    assert status(door, method="POST", **headers, **with_token()) == 403


def test_the_page_itself_and_a_link_that_leads_to_it_are_answered():
    door = Door("127.0.0.1", TOKEN, is_open=True)
    own = {"origin": "http://127.0.0.1:8000", "sec_fetch_site": "same-origin"}
    assert status(door, method="POST", **own, **with_token()) is None
    visit = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}
    assert status(door, path="/", **visit) is None


PUBLIC = Door("127.0.0.1", TOKEN, is_open=True, public_url="https://Fleet.example:8443/")


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "fleet.example", "fleet.example:8443"])
def test_behind_a_proxy_its_name_and_origin_are_the_pages_own(host):
    own = {"host": host, "origin": "https://fleet.example:8443", "sec_fetch_site": "same-origin"}
    assert status(PUBLIC, method="POST", **own, **with_token()) is None
    assert status(PUBLIC, path="/", host=host) is None
    assert status(PUBLIC, method="POST", **own) == 403
    assert status(PUBLIC, host=host) == 403, "whoever comes through it is on another host"
    for origin in ("http://fleet.example:8443", "https://fleet.example:1", "https://evil", "null"):
        foreign = {**own, "origin": origin}
        assert status(PUBLIC, method="POST", **foreign, **with_token()) == 403, origin


@pytest.mark.parametrize("host", ["evil.example", "fleet.example.evil", "", "["])
def test_behind_a_proxy_no_other_name_is_answered(host):
    assert status(PUBLIC, host=host, **with_token()) == 403
    without = Door("127.0.0.1", TOKEN)
    assert "--public-url" in without.refuses(scope(host="fleet.example"))[1]


def test_a_public_address_is_that_of_a_whole_host_and_keeps_its_cookie_to_https():
    assert PUBLIC.public_url == "https://fleet.example:8443"
    assert (
        Door("::1", TOKEN, public_url="https://[2001:DB8::1]:443").public_url
        == "https://[2001:db8::1]"
    )
    for url in ("fleet.example", "https://", "https://a/b", "ftp://a", "https://a?x", "https://a:x",
                "https://me@a", "javascript:alert(1)"):  # fmt: skip
        with pytest.raises(InvalidInputError, match="--public-url"):
            Door("127.0.0.1", TOKEN, public_url=url)
    answer = Response()
    PUBLIC.let_read(answer)
    assert "Secure" in answer.headers["set-cookie"]


def test_an_address_that_is_too_long_is_refused():
    door = Door("127.0.0.1", TOKEN)
    assert status(door, path="/" + "a" * 3000) == 414
    assert status(door, query=b"a=" + b"b" * 3000) == 414
