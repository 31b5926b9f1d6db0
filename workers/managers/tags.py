"""From the classes of words to those of tokens.

Invariant: a word's class is learned at its first token, once; its other tokens, special ones and
padding are `NOT_LEARNED`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from workers.disk.cache_entry import Progress
from workers.protocol.errors import InvalidInputError

#: The label of a token that no word begins with; as torch and `transformers` have it.
NOT_LEARNED: Final = -100

#: Texts that are tokenised at once.
_PORTION: Final = 4096


def tags_of_tokens(
    tokenizer: Any,
    texts: Sequence[str],
    tags: npt.NDArray[np.object_],
    max_length: int,
    progress: Progress,
) -> npt.NDArray[np.int32]:
    """The class of each token, int32 [texts, the most tokens of one].

    Args:
        tokenizer: A fast one: others do not tell where in a text a token stands.
        texts: Words with one blank between them.
        tags: The number of each word's class, of each text.
        max_length: Tokens after which a text is cut; the words behind are not learned.
        progress: Told of each portion; what it raises ends the work.

    Raises:
        InvalidInputError: The tokenizer is none of those.
    """
    if not tokenizer.is_fast:
        raise InvalidInputError(
            f"tokenizer {tokenizer.name_or_path!r} does not tell where in a text a token stands,"
            " which task: token_classification asks for; save it as a fast one (tokenizer.json)"
        )
    rows: list[npt.NDArray[np.int32]] = []
    for start in range(0, len(texts), _PORTION):
        progress("texts whose words are found", start, len(texts))
        portion = list(texts[start : start + _PORTION])
        found = tokenizer(
            portion, truncation=True, max_length=max_length, return_offsets_mapping=True
        )
        for text, own, spans in zip(
            portion, tags[start : start + _PORTION], found["offset_mapping"], strict=True
        ):
            rows.append(_of_text(text, own, spans))
    longest = max(map(len, rows), default=0)
    table = np.full((len(rows), longest), NOT_LEARNED, dtype=np.int32)
    for number, row in enumerate(rows):
        table[number, : len(row)] = row
    return table


def _of_text(
    text: str, tags: Sequence[int], spans: Sequence[tuple[int, int]]
) -> npt.NDArray[np.int32]:
    """The class of each token of a text, by where in it they stand; of special ones, nowhere."""
    characters = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    word_of_character = np.cumsum(characters == ord(" "))
    # by the last character: the blank before a word may be its first token's
    ends = np.array([end for _, end in spans], dtype=np.int64)
    is_text = np.array([start < end for start, end in spans], dtype=np.bool_)
    is_text &= characters[ends - 1] != ord(" ")
    words = np.where(is_text, word_of_character[ends - 1], -1)
    row = np.full(len(spans), NOT_LEARNED, dtype=np.int32)
    found, first = np.unique(words, return_index=True)
    row[first[found >= 0]] = np.asarray(tags)[found[found >= 0]]
    return row
