"""TokenizerManager: loads tokenizers by hub id or path, or trains one where there is none.

Invariant: equal texts and settings train equal tokenizers, once a host; each is loaded once a
process.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from workers.managers.base import BaseProcessManager
from workers.managers.run_directories import DirectoryManager
from workers.protocol.errors import InvalidInputError

#: Raised when training changes, so that cached tokenizers are trained anew.
_RECIPE: Final = 1

#: Training takes minutes over one endless word; no piece of one is longer than this anyway.
_LONG_WORD: Final = re.compile(r"\S{128}")

_SPECIAL: Final = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


class TokenizerManager(BaseProcessManager):
    """Loads, trains and caches tokenizers."""

    def __init__(self, directories: DirectoryManager) -> None:
        super().__init__()
        self._directories = directories
        self._loaded: dict[str, PreTrainedTokenizerBase] = {}

    def load(self, id_or_path: str | Path) -> PreTrainedTokenizerBase:
        """A tokenizer by hub id or path, loaded once a process.

        Raises:
            InvalidInputError: There is none.
        """
        key = str(id_or_path)
        if key not in self._loaded:
            try:
                self._loaded[key] = AutoTokenizer.from_pretrained(key)
            except (OSError, ValueError, KeyError) as error:
                raise InvalidInputError(
                    f"tokenizer {key!r} does not load ({_first_line(error)}); give a hub id, a"
                    " path, or leave tokenizer.id out to train one on the data"
                ) from error
        tokenizer = self._loaded[key]
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        return tokenizer

    def train(self, texts: Sequence[str], vocab_size: int) -> Path:
        """A byte-pair tokenizer trained on `texts`, as a directory that `load` reads.

        Args:
            texts: What to learn from; case and accents are kept.
            vocab_size: Entries at most, special tokens included.
        """
        digest = hashlib.sha256(json.dumps([_RECIPE, vocab_size]).encode())
        for text in texts:
            digest.update(text.encode() + b"\0")
        return self._directories.cached(
            "tokenizers",
            digest.hexdigest()[:32],
            lambda folder: _train(texts, vocab_size).save_pretrained(str(folder)),
        )


def _train(texts: Sequence[str], vocab_size: int) -> Any:
    """Byte-pair encoding (Sennrich et al., 2016, arXiv:1508.07909) over words with their space."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token=_SPECIAL["unk_token"]))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(
        (_LONG_WORD.sub(r"\g<0> ", text) for text in texts),
        trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=list(_SPECIAL.values()), show_progress=False
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_SPECIAL)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
