"""The passwords that this process was given, and texts without them.

Whoever reads a URL has its password learned; whatever is logged, printed or published of an error
is passed through `hide`.

Invariant: no text that `hide` returns holds a password that was learned before, in none of the
spellings in which URLs, representations and JSON write it.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Final
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit

#: What stands in the place of a password.
HIDDEN: Final = "***"

#: A shorter password is hidden only where it stands alone: it may be a part of any word.
_SHORT: Final = 4

#: Each spelling that is to be hidden.
_known: Final[set[str]] = set()


def learn(password: str | None) -> None:
    """Have a password hidden from now on."""
    if password:
        _known.update(_spellings(password))


def learn_from(url: str | None) -> None:
    """Have what a URL says in confidence hidden from now on; whatever else it is."""
    if not url:
        return
    with suppress(ValueError):
        parts = urlsplit(url.strip())
        # a password without a name is often written in the name's place
        for found in (parts.password or parts.username, *_in_query(parts.query)):
            learn(found)
            learn(unquote(found or ""))


def hide(text: str) -> str:
    """A text without the passwords that were learned."""
    if not _known:
        return text
    alternatives = "|".join(map(_pattern, sorted(_known, key=len, reverse=True)))
    return re.sub(alternatives, HIDDEN, text)


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
