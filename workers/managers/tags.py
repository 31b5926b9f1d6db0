"""From the classes of words to those of tokens.

Invariant: a word's class is learned at its first token, once; its other tokens, special ones and
padding are `NOT_LEARNED`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from workers.protocol.errors import InvalidInputError

#: The label of a token that no word begins with; as torch and `transformers` have it.
NOT_LEARNED: Final = -100

_BLANK: Final = ord(" ")


class WordTags:
    """The classes of the words of some texts, handed out token by token.

    Args:
        tokenizer: A fast one: others do not tell where in a text a token stands.
        tags: The number of each word's class, of each text.
        max_length: Tokens after which a text is cut.

    Raises:
        InvalidInputError: The tokenizer is none of those.
    """

    def __init__(self, tokenizer: Any, tags: Sequence[Sequence[int]], max_length: int) -> None:
        if not tokenizer.is_fast:
            raise InvalidInputError(
                f"tokenizer {tokenizer.name_or_path!r} does not tell where in a text a token"
                " stands, which task: token_classification asks for; save it as a fast one"
                " (tokenizer.json)"
            )
        self._tags = tags
        self._max_length = max_length
        self._num_words = 0
        self._num_cut = 0
        self._num_cut_texts = 0
        self._num_dropped = 0
        #: the first of them
        self._dropped = ""

    def of_tokens(
        self,
        start: int,
        texts: Sequence[str],
        lengths: npt.NDArray[np.int64],
        spans: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.int32]:
        """The class of each token of some texts behind one another, int32 [tokens].

        Args:
            start: The number of the first text.
            texts: Words with one blank between them.
            lengths: Tokens of each text, [texts].
            spans: Where in its text each token begins and ends, [tokens, 2]; of special ones,
                nowhere.
        """
        characters = np.frombuffer(" ".join(texts).encode("utf-32-le"), dtype=np.uint32)
        # of all texts, one behind the other, as they are joined here
        word_of_character = np.cumsum(characters == _BLANK)
        sizes = np.fromiter(map(len, texts), np.int64, len(texts)) + 1
        # by the last character: the blank before a word may be its first token's
        last = spans[:, 1] + np.repeat(np.cumsum(sizes) - sizes, lengths) - 1
        is_text = spans[:, 0] < spans[:, 1]
        is_text &= characters[np.where(is_text, last, 0)] != _BLANK
        words = np.where(is_text, word_of_character[np.where(is_text, last, 0)], -1)
        found, first = np.unique(words, return_index=True)
        first, found = first[found >= 0], found[found >= 0]
        own = self._tags[start : start + len(texts)]
        row = np.full(len(spans), NOT_LEARNED, dtype=np.int32)
        row[first] = np.concatenate([np.asarray(each, dtype=np.int32) for each in own])[found]
        self._count(texts, lengths, np.array([len(each) for each in own]), found)
        return row

    def _count(
        self,
        texts: Sequence[str],
        lengths: npt.NDArray[np.int64],
        num_words: npt.NDArray[np.int64],
        found: npt.NDArray[np.int64],
    ) -> None:
        """Count the words that no token stands for: those behind a cut, and those before one."""
        ends = np.cumsum(num_words)
        text_of = np.searchsorted(ends, found, side="right")
        reached = np.zeros(len(texts), dtype=np.int64)
        reached[text_of] = found + 1 - (ends - num_words)[text_of]  # in order: the last one stays
        reached = np.where(lengths >= self._max_length, reached, num_words)
        self._num_words += int(ends[-1])
        self._num_cut += int((num_words - reached).sum())
        self._num_cut_texts += int((reached < num_words).sum())
        num_dropped = int(reached.sum()) - len(found)
        if num_dropped and not self._num_dropped:
            is_reached = np.arange(ends[-1]) < np.repeat(ends - num_words + reached, num_words)
            is_reached[found] = False
            self._dropped = " ".join(texts).split(" ")[int(is_reached.argmax())]
        self._num_dropped += num_dropped

    def finding(self, split: str) -> str | None:
        """What there is to say of words that no token stands for, if there are some.

        Args:
            split: The texts' name.
        """
        said = []
        if self._num_cut:
            said.append(
                f"{self._num_cut} of {self._num_words} words, of {self._num_cut_texts} texts, are"
                " neither learned nor measured: a text is cut after data.max_length ="
                f" {self._max_length} tokens; raise it, or part long texts"
            )
        if self._num_dropped:
            said.append(
                f"{self._num_dropped} of {self._num_words} words, such as {self._dropped!r}, are"
                " neither learned nor measured: the tokenizer has no token for them; leave them"
                " out, or name a tokenizer that knows their characters"
            )
        return f"{split}: {'; '.join(said)}" if said else None
