"""What tokenised texts ask of a model: a vocabulary, positions, and where special tokens lie.

Invariant: it follows from a tokenizer and a length alone.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Final

from transformers import PreTrainedTokenizerBase

from workers.protocol.finetune import DataConfig

#: What a tokenizer without a token of its own takes for it.
_STANDS_IN: Final = {"eos": "sep", "bos": "cls", "sep": "eos", "cls": "bos"}


@dataclass(frozen=True, slots=True)
class TextFormat:
    """What tokenised texts ask of a model."""

    vocab_size: int
    """Token ids are below it; entries that were added to a tokenizer are included."""
    max_length: int = 0
    """Tokens of the longest text."""
    special: tuple[tuple[str, int], ...] = ()
    """Special tokens, by the names that a configuration has for them, such as `pad_token_id`."""
    example: tuple[int, ...] = ()
    """A short text, as the tokenizer puts it."""
    is_of_blocks: bool = False
    """Whether rows are blocks, of `data.block_size`, and not texts, of up to `data.max_length`."""
    is_packed: bool = False
    """Whether a row holds several texts, which must not see one another."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, max_length: int) -> TextFormat:
        """What the texts of a tokenizer ask for, when they are cut after `max_length` tokens."""
        own = {
            name: getattr(tokenizer, f"{name}_token_id")
            for name in ("pad", "bos", "eos", "sep", "cls", "mask")
        }
        special = {
            f"{name}_token_id": number if number is not None else own.get(_STANDS_IN.get(name, ""))
            for name, number in own.items()
        }
        example = tokenizer("An example.", truncation=True, max_length=max_length)["input_ids"]
        return cls(
            # ids may have gaps
            vocab_size=max(len(tokenizer), max(tokenizer.get_vocab().values(), default=-1) + 1),
            max_length=max_length,
            special=tuple((name, number) for name, number in special.items() if number is not None),
            example=tuple(example),
        )

    @classmethod
    def of_data(cls, tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> TextFormat:
        """What a study's texts ask for."""
        texts = cls.of(tokenizer, config.tokens_a_row)
        is_of_blocks = config.block_size is not None
        return dataclasses.replace(
            texts, is_of_blocks=is_of_blocks, is_packed=is_of_blocks and not config.across_texts
        )

    @property
    def length_setting(self) -> str:
        """The setting that says how long a row may be."""
        return "data.block_size" if self.is_of_blocks else "data.max_length"

    @property
    def token_ids(self) -> dict[str, int]:
        """The special tokens, by name."""
        return dict(self.special)


def end_of(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that ends a text, if there is one."""
    end: int | None = tokenizer.eos_token_id
    return end if end is not None else tokenizer.sep_token_id
