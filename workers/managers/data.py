"""DataManager: data sets from their source to memory-mapped tokens, and loaders over them.

Invariant: a data set is tokenised once a host and mapped once a process; no text lies on both
sides of a split.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.context import SpawnContext
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader

from workers.disk.cache_entry import MANIFEST, Entry, Progress, unwatched
from workers.logs import get_logger
from workers.managers.base import BaseProcessManager
from workers.managers.cuda import CUDAManager
from workers.managers.data_origin import DataOrigin
from workers.managers.forked_loaders import ForkedLoaders
from workers.managers.hub import HubManager
from workers.managers.loader_process import LoaderProcess, copy_loader
from workers.managers.plain_arguments import section
from workers.managers.run_directories import DirectoryManager
from workers.managers.sources import read_source
from workers.managers.tags import WordTags
from workers.managers.targets import classes_of, targets_of
from workers.managers.text_format import end_of
from workers.managers.tokenized import Collate, PaddingCollator, TokenizedTexts
from workers.managers.tokenizer import TokenizerManager
from workers.processes.registry import ProcessRecord
from workers.protocol.errors import TransientError
from workers.protocol.finetune import DataConfig, ModelConfig, TokenizerConfig
from workers.settings import Settings
from workers.texts.labels import kind_of
from workers.texts.rows import Row
from workers.texts.split import LabelledTexts, split_rows

log = get_logger(__name__)

T = TypeVar("T")
Loader = TypeVar("Loader", bound=DataLoader[Any])

#: Data sets that a process keeps mapped; of those it used before, the cache may be cleaned.
_MOST_MAPPED: Final = 8

#: Rows between two words of progress.
_TOLD_EVERY: Final = 1024

#: The folder of an entry that holds a tokenizer which was trained on its data.
_TRAINED: Final = "tokenizer"


@dataclass(frozen=True, slots=True)
class Examples:
    """Labelled texts, or pairs of them, split and tokenised."""

    train: TokenizedTexts
    validation: TokenizedTexts
    classes: tuple[str, ...]
    """Their names, in the order of their numbers; none where numbers are learned."""
    tokenizer: Any
    """A `transformers.PreTrainedTokenizerBase`."""
    entry: Entry
    """Where it lies in the cache, and stays for as long as this lives."""


class DataManager(BaseProcessManager):
    """Data sets and the loaders that read them."""

    def __init__(
        self,
        settings: Settings,
        record: ProcessRecord,
        directories: DirectoryManager,
        cuda: CUDAManager,
        tokenizers: TokenizerManager,
        hub: HubManager,
    ) -> None:
        super().__init__()
        self._settings = settings
        self._record = record
        self._directories = directories
        self._cuda = cuda
        self._tokenizers = tokenizers
        self._hub = hub
        self._loaded: dict[str, Examples] = {}
        self._loaders = ForkedLoaders()

    def close(self) -> None:
        """End loader processes, and the server that forks them."""
        self._loaders.close()

    def end_trial(self) -> frozenset[int]:
        """End loader processes that a trial left; the pids of children that are this manager's."""
        return self._loaders.end_trial()

    def text_classification(
        self,
        source: DataConfig | str,
        tokenizer: TokenizerConfig | str | None = None,
        model: ModelConfig | str | None = None,
        progress: Progress = unwatched,
        *,
        vocab_size: int | None = None,
        **fields: Any,
    ) -> Examples:
        """Texts with one class each: `examples` of the task that is meant by default.

        data.text_classification("reviews.csv", "prajjwal1/bert-tiny", max_length=64)
        """
        return self.examples(source, tokenizer, model, progress, vocab_size=vocab_size, **fields)

    def examples(
        self,
        source: DataConfig | str,
        tokenizer: TokenizerConfig | str | None = None,
        model: ModelConfig | str | None = None,
        progress: Progress = unwatched,
        *,
        vocab_size: int | None = None,
        **fields: Any,
    ) -> Examples:
        """Labelled texts; read, split and tokenised by the first who asks on a host.

            data.examples("stars.csv", "prajjwal1/bert-tiny", task="regression", label="stars")

        Args:
            source: A file, `hub:owner/name` or a built-in name; or all that `DataConfig` holds.
            tokenizer: By hub id or path; else the pretrained model's; else trained on the data.
            model: Names the tokenizer where it is a pretrained one.
            progress: Told how far building is, in a trial by `trial.preparing`; what it raises
                ends the building, or the waiting for another process's.
            vocab_size: Entries of a tokenizer that is trained on the data.
            **fields: Of `DataConfig`: `task`, columns, split, `max_length`...

        Raises:
            InvalidInputError: The source cannot be used; the message says why.
            TransientError: A hub or a file server did not answer, whatever was tried, no disk takes
                the tokens, or a file was written while it was read.
        """
        config = section(DataConfig, source, fields, "source")
        sized = {} if vocab_size is None else {"vocab_size": vocab_size}
        words = section(TokenizerConfig, tokenizer, sized)
        pretrained = None if model is None else section(ModelConfig, model, {}).pinned_id
        tokenizer_id = words.pinned_id or pretrained
        origin = self._origin(config, tokenizer_id, words.vocab_size)
        if origin.name not in self._loaded:
            while len(self._loaded) >= _MOST_MAPPED:  # first, so that there is room for this one
                del self._loaded[next(iter(self._loaded))]
            self._loaded[origin.name] = self._cached(
                origin, config, tokenizer_id, words.vocab_size, progress
            )
        data = self._loaded[origin.name] = self._loaded.pop(origin.name)  # the latest used one
        data.entry.note_use()
        return data

    def _cached(
        self,
        origin: DataOrigin,
        config: DataConfig,
        tokenizer_id: str | None,
        vocab_size: int,
        progress: Progress,
    ) -> Examples:
        """The data of an origin, from the cache or built into it."""

        def build(draft: Path) -> dict[str, Any]:
            about = self._build(draft, config, tokenizer_id, vocab_size, progress)
            if origin != self._origin(config, tokenizer_id, vocab_size):
                raise TransientError(
                    f"data.source = {config.source!r}, its validation or its tokenizer was written"
                    " while it was read; it is read again"
                )
            return about

        key = self._ask(config, lambda: origin.key(progress))
        entry = self._directories.cached("data", key, build, progress)
        return self._open(entry, tokenizer_id)

    def loader(
        self,
        texts: TokenizedTexts,
        batches: Sequence[Sequence[int]],
        *,
        pad_id: int,
        num_workers: int = 0,
        collator: Callable[[int, int], Collate] = PaddingCollator,
    ) -> DataLoader[Any]:
        """A loader that yields `batches` in their order, padded.

        Args:
            texts: The split.
            batches: The row numbers of each batch.
            pad_id: The token that fills up.
            num_workers: Processes (fresh, registered, ending with this one) that pad ahead of
                training; 0 pads in this process, which is quicker for short texts.
            collator: Makes, of the padding token and a number of which lengths are multiples, what
                puts rows into one batch.
        """
        return DataLoader(
            texts,
            batch_sampler=batches,  # type: ignore[arg-type]  # any sequence of lists will do
            collate_fn=collator(pad_id, 8 if self._cuda.is_cuda else 1),
            num_workers=num_workers,
            # the default forks, and CUDA does not survive a fork
            multiprocessing_context=self._loaders.context() if num_workers else None,
            worker_init_fn=self.loader_process(),
            # of its own, so that starting a loader draws nothing from the training's generator
            generator=torch.Generator(),
        )

    def registered(self, loader: Loader) -> Loader:
        """A copy of a DataLoader of yours whose processes are registered and end with this one.

        Those that it would spawn are forked from a server that has imported torch: as fresh, and
        there in a moment.

        Args:
            loader: Any `torch.utils.data.DataLoader`; its `worker_init_fn` is called as well.
        """
        first = self.loader_process(then=loader.worker_init_fn)
        copied = copy_loader(loader, worker_init_fn=first)
        if _spawns(loader):
            copied.multiprocessing_context = self._loaders.context()
        return copied

    def loader_process(self, then: Callable[[int], object] | None = None) -> LoaderProcess:
        """A `worker_init_fn` for loaders of the trial that this process runs."""
        settings = self._settings if self._record.is_registered else None
        return LoaderProcess(settings, **self._record.assignment, then=then)

    def _origin(self, config: DataConfig, tokenizer_id: str | None, vocab_size: int) -> DataOrigin:
        content = None if tokenizer_id is None else self._tokenizers.content(tokenizer_id)
        return self._ask(config, lambda: DataOrigin.now(config, content or vocab_size))

    def _open(self, entry: Entry, tokenizer_id: str | None) -> Examples:
        facts = json.loads((entry.path / "facts.json").read_text(encoding="utf-8"))
        return Examples(
            train=TokenizedTexts(entry.path, "train", entry),
            validation=TokenizedTexts(entry.path, "validation", entry),
            classes=tuple(facts["classes"]),
            tokenizer=self._tokenizers.load(tokenizer_id or entry.path / _TRAINED),
            entry=entry,
        )

    def _ask(self, config: DataConfig, call: Callable[[], T]) -> T:
        return self._hub.ask(f"data.source = {config.source!r}", call)

    def _build(
        self,
        folder: Path,
        config: DataConfig,
        tokenizer_id: str | None,
        vocab_size: int,
        progress: Progress,
    ) -> dict[str, Any]:
        started_at = time.monotonic()
        train, validation = self._ask(config, lambda: split(config, progress))
        classes = classes_of([*train.labels, *validation.labels], config)
        if tokenizer_id is None:
            self._copy_trained(
                [*train.texts, *train.pairs], vocab_size, folder / _TRAINED, progress
            )
        tokenizer = self._tokenizers.load(tokenizer_id or folder / _TRAINED)
        for name, rows in (("train", train), ("validation", validation)):
            labels = targets_of(rows.labels, classes, config)
            tags = None
            if kind_of(config) == "tags":
                tags = WordTags(tokenizer, labels.tolist(), config.max_length)
            TokenizedTexts.write(
                folder,
                name,
                tokenizer,
                rows.texts,
                labels if tags is None else np.zeros(len(rows.texts), np.uint8),
                None if config.block_size else config.max_length,
                progress,
                rows.pairs,
                end_of(tokenizer) if config.task == "causal_lm" else None,
                tags,
            )
            if tags is not None and (finding := tags.finding(name)):
                log.warning("data_finding", finding=finding)
        facts = json.dumps({"classes": classes}, ensure_ascii=False)
        (folder / "facts.json").write_text(facts, encoding="utf-8")
        about = {
            "source": Path(config.source).name,
            "train": len(train.texts),
            "validation": len(validation.texts),
            "classes": len(classes),
            "max_length": config.tokens_a_row,
            "tokenizer": tokenizer_id and Path(tokenizer_id).name,
        }
        log.info("data_built", **about, seconds=round(time.monotonic() - started_at, 2))
        return about

    def _copy_trained(
        self, texts: Sequence[str], vocab_size: int, folder: Path, progress: Progress
    ) -> None:
        """Train a tokenizer into an entry, which is whole by itself then."""
        trained = self._tokenizers.train(texts, vocab_size, progress)
        folder.mkdir()
        for path in trained.path.iterdir():
            if path.name != MANIFEST:
                shutil.copyfile(path, folder / path.name)


def _spawns(loader: DataLoader[Any]) -> bool:
    context = loader.multiprocessing_context
    if loader.num_workers and context is None:
        return multiprocessing.get_start_method(allow_none=True) == "spawn"
    return type(context) is SpawnContext


def split(
    config: DataConfig, progress: Progress = unwatched
) -> tuple[LabelledTexts, LabelledTexts]:
    """Read a source and split it into training and held-out texts.

    Raises:
        InvalidInputError: The source cannot be used, or one side is empty.
    """

    def read(source: str, config: DataConfig, field: str) -> Iterator[Row]:
        for number, row in enumerate(read_source(source, config, field)):
            if number % _TOLD_EVERY == 0:
                progress(f"rows read of {Path(source).name}", number, 0)
            yield row

    return split_rows(config, read, lambda finding: log.warning("data_finding", finding=finding))
