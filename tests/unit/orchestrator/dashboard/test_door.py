from __future__ import annotations

import pytest

from orchestrator.dashboard.door import TOKEN_HEADER, Door, is_loopback
from workers.protocol.errors import InvalidInputError

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


def test_on_loopback_whoever_is_on_this_host_reads():
    assert status(Door("127.0.0.1", TOKEN)) is None
    assert status(Door("::1", TOKEN), host="[::1]:8000") is None
    assert status(Door("127.0.0.1", TOKEN), host="localhost:9000") is None, "a forwarded port"


def test_where_others_get_in_reading_takes_the_token_and_the_page_itself_does_not():
    door = Door("0.0.0.0", TOKEN)
    assert status(door, host="gpu-box:8000") == 403
    assert status(door, host="gpu-box:8000", **with_token()) is None
    assert status(door, host="gpu-box:8000", path="/") is None
    assert status(door, host="gpu-box:8000", path="/assets/main.js") is None


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "[", "10.0.0.7"]
)
def test_a_name_that_somebody_has_resolved_to_this_host_is_not_answered(host):
    door = Door("127.0.0.1", TOKEN)
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
    door = Door("127.0.0.1", TOKEN)
    assert status(door, **headers) == 403
    assert status(door, method="POST", **headers, **with_token()) == 403


def test_the_page_itself_and_a_link_that_leads_to_it_are_answered():
    door = Door("127.0.0.1", TOKEN)
    own = {"origin": "http://127.0.0.1:8000", "sec_fetch_site": "same-origin"}
    assert status(door, method="POST", **own, **with_token()) is None
    visit = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}
    assert status(door, path="/", **visit) is None


def test_an_address_that_is_too_long_is_refused():
    door = Door("127.0.0.1", TOKEN)
    assert status(door, path="/" + "a" * 3000) == 414
    assert status(door, query=b"a=" + b"b" * 3000) == 414
