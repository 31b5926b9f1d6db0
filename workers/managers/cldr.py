"""The built-in data set `cldr-language-id`: which of 20 languages is "Englannin punta"?

The texts are the Unicode CLDR's names of territories, languages, scripts, variants and currencies
(https://cldr.unicode.org, Unicode License), as the `babel` package ships them. A text that several
languages share is left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Final

import babel

#: The classes, as CLDR spells them.
LANGUAGES: Final = (
    "en", "de", "fr", "es", "it", "pt", "nl", "sv", "da", "nb",
    "fi", "pl", "cs", "sk", "hu", "ro", "tr", "vi", "id", "et",
)  # fmt: skip


def language_id_texts() -> tuple[list[str], list[str]]:
    """The texts, and the language of each; about 16,800, in a fixed order."""
    languages_of: dict[str, set[str]] = defaultdict(set)
    for language in LANGUAGES:
        for name in _names(babel.Locale(language)):
            languages_of[name].add(language)
    pairs = [
        (text, next(iter(languages)))
        for text, languages in sorted(languages_of.items())
        if len(languages) == 1
    ]
    return [text for text, _ in pairs], [language for _, language in pairs]


def _names(locale: babel.Locale) -> Iterator[str]:
    for table in (
        locale.territories, locale.languages, locale.scripts, locale.variants, locale.currencies,
    ):  # fmt: skip
        yield from table.values()
