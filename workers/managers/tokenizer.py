"""TokenizerManager: loads tokenizers by hub id or path, or trains one where there is none.

Invariant: equal texts and settings train equal tokenizers, once a host; each is loaded once a
process, and again where its files were replaced.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from workers.disk.cache_entry import Entry, Progress, unwatched
from workers.managers.base import BaseProcessManager
from workers.managers.hub import HubManager
from workers.managers.recipe import code_digest
from workers.managers.run_directories import DirectoryManager
from workers.protocol.errors import InvalidInputError, UnfitModelError

#: Training takes minutes over one endless word; no piece of one is longer than this anyway.
_LONG_WORD: Final = re.compile(r"\S{128}")

#: Of a tokenizer's settings, those that say where it came from.
_ELSEWHERE: Final = {
    "name_or_path", "vocab_file", "merges_file", "tokenizer_file", "special_tokens_map_file",
    "is_local", "local_files_only", "cache_dir", "tokenizer_object", "_commit_hash",
}  # fmt: skip

_OS_ERROR: Final = re.compile(r"os error (\d+)")

#: Tokenizers that a process keeps.
_MOST_LOADED: Final = 8

#: Texts between two words of progress.
_TOLD_EVERY: Final = 1024

#: How tokenizers write a space.
_SPACES: Final = "\u2581\u0120 "

#: The share of words that may have other ids than a model has learnt.
_FEW_MOVED: Final = 0.01

_SPECIAL: Final = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


class TokenizerManager(BaseProcessManager):
    """Loads, trains and caches tokenizers."""

    def __init__(self, directories: DirectoryManager, hub: HubManager) -> None:
        super().__init__()
        self._directories = directories
        self._hub = hub
        self._loaded: dict[str, _Loaded] = {}

    def load(self, id_or_path: str | Path) -> PreTrainedTokenizerBase:
        """A tokenizer by hub id or path, loaded once a process for each state of its files.

        Raises:
            InvalidInputError: There is none.
            RemoteUnavailableError: The hub did not answer, whatever was tried.
        """
        return self._load(str(id_or_path)).tokenizer

    def content(self, id_or_path: str | Path) -> str:
        """What a tokenizer makes of texts, as a digest: the same wherever its files lie.

        Raises:
            InvalidInputError: There is none.
        """
        return self._load(str(id_or_path)).content

    def train(self, texts: Sequence[str], vocab_size: int, progress: Progress = unwatched) -> Entry:
        """A byte-pair tokenizer trained on `texts`; `load` reads the entry's path.

        Args:
            texts: What to learn from; case and accents are kept.
            vocab_size: Entries at most, special tokens included.
            progress: Told of the texts that were read; what it raises ends the training.
        """
        digest = hashlib.sha256()
        for text in texts:
            digest.update(text.encode() + b"\0")
        key = {
            "code": code_digest("managers/tokenizer.py"),
            "tokenizers": tokenizers.__version__,
            "texts": digest.hexdigest(),
            "vocab_size": vocab_size,
        }

        def build(folder: Path) -> dict[str, Any]:
            trained = train_on(_watched(texts, progress), vocab_size)
            save(trained, folder)
            return {"texts": len(texts), "vocab_size": len(trained)}

        return self._directories.cached("tokenizers", key, build, progress)

    def _load(self, name: str) -> _Loaded:
        files = self._files(name)
        state = _state_of(Path(files))
        known = self._loaded.get(name)
        if known is None or known.state != state:
            tokenizer = read(name, files)
            # before it is used: that leaves traces in it
            known = _Loaded(tokenizer, _content_of(tokenizer), state)
            self._loaded.pop(name, None)
            while len(self._loaded) >= _MOST_LOADED:
                del self._loaded[next(iter(self._loaded))]
            self._loaded[name] = known
        return known

    def _files(self, name: str) -> str:
        """The path of a tokenizer's files."""
        try:
            return self._hub.model_files(f"tokenizer {name!r}", name, with_weights=False)
        except (OSError, ValueError) as error:
            raise _refusal(name, error) from error


@dataclass(frozen=True, slots=True)
class _Loaded:
    tokenizer: PreTrainedTokenizerBase
    content: str
    state: list[tuple[str, int, int, int]]


def read(name: str, files: str | None = None) -> PreTrainedTokenizerBase:
    """A tokenizer by hub id or path, with a token to pad with.

    Args:
        name: As the study names it.
        files: Where it lies, if the name does not tell.

    Raises:
        InvalidInputError: There is none, or nothing to pad with.
    """
    files = files or name
    try:
        tokenizer = _class_of(Path(files)).from_pretrained(files)
    except (OSError, ValueError, KeyError) as error:
        raise _refusal(name, error) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    special = set(tokenizer.added_tokens_decoder)
    vocabulary = tokenizer.get_vocab().items()
    if not any(word.strip(_SPACES) for word, number in vocabulary if number not in special):
        # transformers 5 makes one of the model's config.json alone: each word would be unknown
        raise InvalidInputError(
            f"tokenizer {name!r} has no vocabulary: its files are missing; save the tokenizer"
            " beside the model, or give tokenizer.id"
        )
    if tokenizer.pad_token is None:
        raise InvalidInputError(
            f"tokenizer {name!r} has no token to pad with, nor one for the end or the unknown in"
            " its place; save it with a pad_token"
        )
    return tokenizer


def _refusal(name: str, error: Exception) -> InvalidInputError:
    return InvalidInputError(
        f"tokenizer {name!r} does not load ({_first_line(error)}); give a hub id, a path, or leave"
        " tokenizer.id out to train one on the data"
    )


def _class_of(folder: Path) -> Any:
    """What reads a tokenizer as it was saved.

    `AutoTokenizer` prefers the class of a qwen2 beside it, which splits words otherwise.
    """
    with suppress(OSError, ValueError, AttributeError):
        saved = json.loads((folder / "tokenizer_config.json").read_text()).get("tokenizer_class")
        if saved == PreTrainedTokenizerFast.__name__ and (folder / "tokenizer.json").exists():
            return PreTrainedTokenizerFast
    return AutoTokenizer


def refuse_foreign(tokenizer: Any, own: Any, model_id: str) -> None:
    """Refuse a tokenizer whose ids are not those that a pretrained model has learnt.

    Args:
        tokenizer: The one that is to be used; it may have more entries.
        own: The model's.
        model_id: The model.

    Raises:
        UnfitModelError: Many words have other ids.
    """
    ids, special = tokenizer.get_vocab(), set(own.added_tokens_decoder)
    learnt = {word: number for word, number in own.get_vocab().items() if number not in special}
    moved = [word for word, number in learnt.items() if ids.get(word) != number]
    if len(moved) > _FEW_MOVED * len(learnt):
        word = moved[0]
        raise UnfitModelError(
            f"tokenizer.id = {tokenizer.name_or_path!r}: model.id = {model_id!r} has learnt other"
            f" ids ({word!r} is {learnt[word]} there, and {ids.get(word, 'nothing')} here); leave"
            " tokenizer.id out, or take an architecture in place of the model"
        )


def _state_of(folder: Path) -> list[tuple[str, int, int, int]]:
    """Changes when a file of a folder does; empty where there is none."""
    if not folder.is_dir():
        return []
    states = [(path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
    return [(name, state.st_ino, state.st_size, state.st_mtime_ns) for name, state in states]


def _content_of(tokenizer: Any) -> str:
    """A digest of all that decides which ids a tokenizer gives to a text."""
    facts = {name: value for name, value in tokenizer.init_kwargs.items() if name not in _ELSEWHERE}
    digest = hashlib.sha256(json.dumps([type(tokenizer).__name__, facts], default=repr).encode())
    if tokenizer.is_fast:
        digest.update(tokenizer.backend_tokenizer.to_str().encode())
        return digest.hexdigest()
    with tempfile.TemporaryDirectory() as folder:  # its vocabulary, in files of its own kind
        for file in map(Path, tokenizer.save_vocabulary(folder)):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _watched(texts: Sequence[str], progress: Progress) -> Iterator[str]:
    for number, text in enumerate(texts):
        if number % _TOLD_EVERY == 0:
            progress("texts read to train a tokenizer", number, len(texts))
        yield text


def save(tokenizer: Any, folder: Path) -> None:
    """Save a tokenizer beside whatever a folder holds.

    Raises:
        OSError: The disk takes no more.
    """
    try:
        tokenizer.save_pretrained(str(folder))
    except Exception as error:
        number = _OS_ERROR.search(str(error))  # the library in Rust tells it in words only
        if number is None:
            raise
        raise OSError(int(number[1]), str(error)) from error


def train_on(texts: Iterable[str], vocab_size: int) -> Any:
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
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_SPECIAL)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
