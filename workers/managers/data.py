"""DataManager: data sets from their source to memory-mapped tokens, and loaders over them.

Invariant: a data set is tokenised once a host and mapped once a process; no text lies on both
sides of a split.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch.utils.data import DataLoader

from workers.logs import get_logger
from workers.managers.base import BaseProcessManager
from workers.managers.cuda import CUDAManager
from workers.managers.loader_process import LoaderProcess
from workers.managers.run_directories import DirectoryManager
from workers.managers.sources import changed_at, fingerprint, read_source
from workers.managers.tokenized import PaddingCollator, TokenizedTexts
from workers.managers.tokenizer import TokenizerManager
from workers.processes.registry import ProcessRecord
from workers.protocol.finetune import DataConfig, ModelConfig, TokenizerConfig
from workers.settings import Settings
from workers.texts.split import LabelledTexts, split_rows

log = get_logger(__name__)

#: Raised when the files of a tokenised data set change their meaning.
_LAYOUT: Final = 2


@dataclass(frozen=True, slots=True)
class TextClassificationData:
    """Labelled texts, split and tokenised."""

    train: TokenizedTexts
    validation: TokenizedTexts
    classes: tuple[str, ...]
    """The labels, in the order of their class numbers."""
    tokenizer: Any
    """A `transformers.PreTrainedTokenizerBase`."""


class DataManager(BaseProcessManager):
    """Data sets and the loaders that read them."""

    def __init__(
        self,
        settings: Settings,
        record: ProcessRecord,
        directories: DirectoryManager,
        cuda: CUDAManager,
        tokenizers: TokenizerManager,
    ) -> None:
        super().__init__()
        self._settings = settings
        self._record = record
        self._directories = directories
        self._cuda = cuda
        self._tokenizers = tokenizers
        self._loaded: dict[str, TextClassificationData] = {}

    def text_classification(
        self, config: DataConfig, tokenizer: TokenizerConfig, model: ModelConfig
    ) -> TextClassificationData:
        """Texts with one class each; read, split and tokenised by the first who asks on a host.

        Args:
            config: The source, its columns and its split.
            tokenizer: By hub id or path; else the pretrained model's; else trained on the data.
            model: Names the tokenizer where it is a pretrained one.

        Raises:
            InvalidInputError: The source cannot be used; the message says why.
        """
        tokenizer_id = tokenizer.id or model.id
        recipe = [_LAYOUT, config.model_dump(), tokenizer_id or tokenizer.vocab_size]
        sources = [config.source, *filter(None, [config.validation])]
        key = json.dumps([recipe, [changed_at(source) for source in sources]])
        if key not in self._loaded:
            content = json.dumps([recipe, [fingerprint(source) for source in sources]])
            folder = self._directories.cached(
                "data",
                hashlib.sha256(content.encode()).hexdigest()[:32],
                lambda draft: self._build(draft, config, tokenizer_id, tokenizer.vocab_size),
            )
            self._loaded[key] = self._open(folder)
        return self._loaded[key]

    def loader(
        self,
        texts: TokenizedTexts,
        batches: Sequence[Sequence[int]],
        *,
        pad_id: int,
        num_workers: int = 0,
    ) -> DataLoader[Any]:
        """A loader that yields `batches` in their order, padded.

        Args:
            texts: The split.
            batches: The row numbers of each batch.
            pad_id: The token that fills up.
            num_workers: Processes (spawned, registered, ending with this one) that pad ahead of
                training; 0 pads in this process, which is quicker for short texts.
        """
        settings = self._settings if self._record.is_registered else None
        return DataLoader(
            texts,
            batch_sampler=batches,  # type: ignore[arg-type]  # any sequence of lists will do
            collate_fn=PaddingCollator(pad_id, multiple=8 if self._cuda.is_cuda else 1),
            num_workers=num_workers,
            # the default forks, and CUDA does not survive a fork
            multiprocessing_context="spawn" if num_workers else None,
            worker_init_fn=LoaderProcess(settings, **self._record.assignment),
            # of its own, so that starting a loader draws nothing from the training's generator
            generator=torch.Generator(),
        )

    def _open(self, folder: Path) -> TextClassificationData:
        facts = json.loads((folder / "facts.json").read_text())
        return TextClassificationData(
            train=TokenizedTexts(folder, "train"),
            validation=TokenizedTexts(folder, "validation"),
            classes=tuple(facts["classes"]),
            tokenizer=self._tokenizers.load(facts["tokenizer"]),
        )

    def _build(
        self, folder: Path, config: DataConfig, tokenizer_id: str | None, vocab_size: int
    ) -> None:
        train, validation = split(config)
        classes = in_order({*train.labels, *validation.labels})
        tokenizer_path = tokenizer_id or str(self._tokenizers.train(train.texts, vocab_size))
        tokenizer = self._tokenizers.load(tokenizer_path)
        numbers = {label: number for number, label in enumerate(classes)}
        for name, rows in (("train", train), ("validation", validation)):
            labels = [numbers[label] for label in rows.labels]
            TokenizedTexts.write(folder, name, tokenizer, rows.texts, labels, config.max_length)
        facts = {"classes": classes, "tokenizer": tokenizer_path}
        (folder / "facts.json").write_text(json.dumps(facts, ensure_ascii=False))
        log.info(
            "data_built",
            source=config.source,
            train=len(train.texts),
            validation=len(validation.texts),
            classes=len(classes),
        )


def split(config: DataConfig) -> tuple[LabelledTexts, LabelledTexts]:
    """Read a source and split it into training and held-out texts.

    Raises:
        InvalidInputError: The source cannot be used, or one side is empty.
    """
    train, held_out = split_rows(config, read_source)
    both = len(set(train.texts) & set(held_out.texts))
    if both:
        log.warning("texts_on_both_sides", texts=both, validation=config.validation)
    return train, held_out


def in_order(labels: set[str]) -> list[str]:
    """Class numbers for labels: the same on every host, and of integers in their order."""
    try:
        return sorted(labels, key=lambda label: (int(label), label))
    except ValueError:
        return sorted(labels)
