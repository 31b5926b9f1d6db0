"""The passwords that this process was given, and texts without them.

Whoever reads a URL has its password learned, and whoever keeps what trials print, what the
variables of its environment hold that are named for secrets; whatever is logged, printed or
published of an error, or kept of what a trial printed, is passed through `hide`.

Invariant: no text that `hide` returns holds a password that was learned before, in none of the
spellings in which URLs, representations and JSON write it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit

#: What stands in the place of a password.
HIDDEN: Final = "***"

#: A shorter password is hidden only where it stands alone: it may be a part of any word.
_SHORT: Final = 4

#: A variable's name that says that it holds a secret; a number may follow what says so.
_SECRET_NAME: Final = re.compile(
    # whatever stands around such a word
    r"(?:^|_)(?:SECRETS?|TOKEN|PASSWORD|PASSWD|PASSPHRASE|PWD|CREDENTIALS?|APIKEY)(?:_|$)"
    r"|(?:^|_)(?:API|ACCESS|SECRET|PRIVATE|AUTH|ENCRYPTION)_KEY(?:_|$)"
    # at the end of a name, with or without a border before it: PGPASSWORD, SSHPASS, AUTHTOKEN
    r"|(?:SECRETS?|TOKEN|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|AUTH)(?:_?\d+)?$"
    r"|(?:API|ACCESS|SECRET|PRIVATE|AUTH|ENCRYPTION)KEY(?:_?\d+)?$"
    r"|(?<!COM)(?<!BY)(?<!TRES)(?<!SUR)PASS(?:_?\d+)?$"
    r"|(?<!COM)(?<!S)PAT(?:_?\d+)?$"
    # a key that is shown to anybody, or names a column, is none
    r"|(?<!PUBLIC)(?<!PRIMARY)(?<!FOREIGN)(?<!SORT)(?<!PARTITION)(?<!GROUP)(?<!METRIC)"
    r"_KEY(?:_?\d+)?$"
)

#: What is no secret, whatever the variable is called: switches, numbers, places.
_PLAIN: Final = re.compile(r"(?i)true|false|yes|no|none|[\d.,:]+|(?:~\w*|\.\.?)?/[\w~./@,: -]*")

#: A shorter value of a variable is no secret, and may be any word.
_LEAST_SECRET: Final = 6

#: A URL, or what was to be one, that has something before an `@`.
_MISTYPED: Final = re.compile(
    r"(?:[A-Za-z][\w+.-]*(?::|(?=/)))?(?P<slashes>/*)(?P<before>.+)@", re.DOTALL
)

#: Each spelling that is to be hidden.
_known: Final[set[str]] = set()


def learn(password: str | None) -> None:
    """Have a password hidden from now on."""
    if password:
        _known.update(_spellings(password))


def learn_from(url: str | None) -> None:
    """Have what a URL says in confidence hidden from now on; whatever else it is."""
    for found in _in_url(url or ""):
        learn(found)
        learn(unquote(found))


def has_password(text: str) -> bool:
    """Whether a text is a URL that says something in confidence."""
    return "://" in text and bool(_in_url(text))


def learn_environment(environment: Mapping[str, str]) -> None:
    """Have hidden what variables hold that are named for secrets, and the passwords of URLs."""
    for name, value in environment.items():
        if _names_a_secret(name) and len(value) >= _LEAST_SECRET and not _PLAIN.fullmatch(value):
            learn(value)
            learn(value.strip())
        if "://" in value:
            learn_from(value)


def hide(text: str) -> str:
    """A text without the passwords that were learned."""
    return _compiled(frozenset(_known)).sub(HIDDEN, text) if _known else text


def hide_in(document: Any) -> Any:
    """A document without them, in all its texts, those of its keys included."""
    if isinstance(document, str):
        return hide(document)
    if isinstance(document, Mapping):
        return {hide_in(name): hide_in(value) for name, value in document.items()}
    if isinstance(document, (list, tuple)):
        return [hide_in(each) for each in document]
    return document


def whole(content: bytes) -> int:
    """How much of a text that goes on can be hidden from: no password is cut in two there."""
    known = _encoded(frozenset(_known))
    cut = len(content) - max((_begun(content, each) for each in known), default=0)
    if cut < len(content):
        for found in _compiled_bytes(known).finditer(content):
            if found.start() < cut < found.end():
                return found.start()
    return cut


@lru_cache(maxsize=1)
def _encoded(known: frozenset[str]) -> frozenset[bytes]:
    return frozenset(each.encode(errors="surrogateescape") for each in known)


@lru_cache(maxsize=1)
def _compiled_bytes(known: frozenset[bytes]) -> re.Pattern[bytes]:
    return re.compile(b"|".join(map(re.escape, sorted(known, key=len, reverse=True))))


def _begun(content: bytes, spelling: bytes) -> int:
    """How many bytes at the end of a text may be the beginning of a spelling."""
    place = content.find(spelling[:1], max(0, len(content) - len(spelling) + 1))
    while place >= 0 and not spelling.startswith(content[place:]):
        place = content.find(spelling[:1], place + 1)
    return 0 if place < 0 else len(content) - place


@lru_cache(maxsize=1)
def _compiled(known: frozenset[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(_pattern, sorted(known, key=len, reverse=True))))


def _names_a_secret(name: str) -> bool:
    return bool(_SECRET_NAME.search(name.upper().replace("-", "_")))


def _in_url(url: str) -> list[str]:
    try:
        parts = urlsplit(url.strip())
        in_query = _in_query(parts.query)
        # a password without a name is often written in the name's place
        password = parts.password or parts.username
    except ValueError:
        return _before_at(url)
    if not parts.netloc:
        return [*_before_at(url), *in_query]
    return [each for each in [password, *in_query] if each]


def _before_at(url: str) -> list[str]:
    """What a mistyped URL says in confidence: of `redis:/user:password@host`, the password."""
    match = _MISTYPED.match(url.strip())
    if match is None:
        return []
    _, colon, password = match["before"].partition(":")
    if not colon and match["slashes"] == "///":
        return []  # the path of a file or a socket
    return [found] if (found := password or match["before"].rstrip(":")) else []


def _in_query(query: str) -> list[str]:
    return [value for name, value in parse_qsl(query) if "pass" in name.lower()]


def _pattern(spelling: str) -> str:
    escaped = re.escape(spelling)
    return rf"(?<!\w){escaped}(?!\w)" if len(spelling) < _SHORT else escaped


def _spellings(password: str) -> set[str]:
    shown = {password, repr(password)[1:-1], ascii(password)[1:-1]}
    encoded = {quote(password, safe=""), quote(password), quote_plus(password)}
    # what was read from a file or a log may have been written as JSON before
    return shown | encoded | {json.dumps(each)[1:-1] for each in shown}
