"""ModelManager: models by hub id, path or architecture; pretrained weights are read once a process.

Invariant: every model handed out is fresh and in float32: pristine pretrained weights, and what is
drawn beside them from torch's generator, whatever this process built before.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch
import transformers

from workers.disk import durable
from workers.logs import get_logger
from workers.managers import adapters, attention, model_fit, pretrained_head, weights
from workers.managers.base import BaseProcessManager
from workers.managers.cuda import CUDAManager
from workers.managers.head import SEQUENCE_CLASSIFIER, Head, HeadKind
from workers.managers.hub import HubManager
from workers.managers.plain_arguments import section
from workers.managers.run_directories import DirectoryManager
from workers.managers.text_format import TextFormat
from workers.managers.tokenizer import TokenizerManager, refuse_foreign
from workers.managers.tokenizer import save as save_tokenizer
from workers.protocol.errors import InvalidInputError, WorkerLacksError
from workers.protocol.finetune import DataConfig, ModelConfig
from workers.protocol.lora import LoraOptions

log = get_logger(__name__)

#: Tokens of the text that a new shape of model is tried with: few, so that it takes no time.
_TRIED_TOKENS: Final = 8

#: Shapes that are remembered: of a study whose widths are searched, each trial may have another.
_MOST_TRIED: Final = 100


class ModelManager(BaseProcessManager):
    """Builds, saves and loads models on the device of this process."""

    def __init__(
        self,
        directories: DirectoryManager,
        cuda: CUDAManager,
        tokenizers: TokenizerManager,
        hub: HubManager,
    ) -> None:
        super().__init__()
        self._tokenizers = tokenizers
        self._directories = directories
        self._cuda = cuda
        self._hub = hub
        self._checkpoints = weights.KeptCheckpoints()
        self._formats: WeakKeyDictionary[Any, dict[int, TextFormat]] = WeakKeyDictionary()
        #: the models whose ids a tokenizer was found to have
        self._suited: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()
        #: the shapes of models that have taken a text here
        self._tried: set[tuple[str, HeadKind, TextFormat, str | None]] = set()

    def open(self) -> None:
        """Keep the library's progress bars, and a hint that is none here, out of the log."""
        transformers.utils.logging.disable_progress_bar()
        logging.getLogger("transformers.modeling_utils").addFilter(_is_no_hint_at_masks)

    def sequence_classifier(
        self,
        model: ModelConfig | str | None = None,
        *,
        architecture: str | None = None,
        labels: Sequence[str] = (),
        num_labels: int = 0,
        tokenizer: Any = None,
        vocab_size: int = 0,
        pad_token_id: int | None = None,
        max_length: int = 0,
        dropout: float | None = None,
        problem_type: str | None = None,
        lora: LoraOptions | Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> Any:
        """A fresh model with a classification head, in training mode, on the device.

            models.sequence_classifier("prajjwal1/bert-tiny", labels=["no", "yes"])
            models.sequence_classifier(architecture="bert", hidden_size=64, num_labels=2)

        What is not pretrained is drawn from torch's generator on the CPU: seed it first. A
        pretrained head is kept where it was trained for the same classes, by their names.

        Args:
            model: A pretrained model by hub id or path; or all that `ModelConfig` holds.
            architecture: A transformers model type such as `bert`, in place of a pretrained one.
            labels: The classes, in the order of their numbers.
            num_labels: Their number, where they have no names: a pretrained head of as many
                classes is kept as it is.
            tokenizer: What the texts are tokenised with.
            vocab_size: Entries of the tokenizer, where it is not given; an architecture gets as
                many embeddings.
            pad_token_id: Its padding token, where it is not given.
            max_length: Tokens of the longest text; an architecture gets as many positions.
            dropout: Sets every dropout probability of the configuration, if given.
            problem_type: What the outputs stand for, as `transformers` calls it, for who loads the
                model elsewhere.
            lora: Adapters to train in place of a pretrained model's weights: `{"r": 8}`, with peft.
            **fields: Of the model's configuration.

        Returns:
            A `transformers.PreTrainedModel`, in float32 whatever the checkpoint's dtype.

        Raises:
            InvalidInputError: No such model or architecture, no classes, or fields that it cannot
                have, or that do not fit the texts.
        """
        named = {} if architecture is None else {"architecture": architecture}
        config = section(ModelConfig, model, fields | named)
        if not labels and num_labels < 1:
            raise InvalidInputError(
                f"num_labels = {num_labels!r}: a classifier has at least one output; give labels="
                " with the names of the classes, or num_labels= with their number"
            )
        if tokenizer is None:
            texts = _untokenised(vocab_size, max_length, pad_token_id)
        else:
            texts = self._words_of(tokenizer, config, max_length)
        unnamed = tuple(f"LABEL_{number}" for number in range(num_labels))
        head = Head(SEQUENCE_CLASSIFIER, tuple(labels) or unnamed, problem_type)
        return self._fresh(
            config, head, texts, dropout, adapters.as_options(lora), is_matched_by_name=bool(labels)
        )

    def with_head(
        self,
        head: Head,
        model: ModelConfig | str,
        *,
        tokenizer: Any,
        data: DataConfig,
        dropout: float | None = None,
        lora: LoraOptions | Mapping[str, Any] | None = None,
    ) -> Any:
        """A fresh model with a head of any kind, as `sequence_classifier` makes a classifier.

            models.with_head(Head(CAUSAL_LM), "gpt2", tokenizer=tokenizer, data=DataConfig())

        Args:
            head: What it has on top; a pretrained one is kept where it stands for the same.
            model: A pretrained model by hub id or path; or all that `ModelConfig` holds.
            tokenizer: What the texts are tokenised with.
            data: How long the model's rows are, and whether they hold several texts.
            dropout: Sets every dropout probability of the configuration, if given.
            lora: Adapters to train in place of a pretrained model's weights.

        Raises:
            InvalidInputError: There is no such model, or it does not take the texts as the head
                asks for: it sees the tokens that it is to predict, or texts beside its own.
        """
        config = section(ModelConfig, model, {})
        if config.pinned_id is not None:
            self._check_words(tokenizer, config.pinned_id)
        texts = TextFormat.of_data(tokenizer, data)
        options = adapters.as_options(lora)
        return self._fresh(
            config, head, texts, dropout, options, is_matched_by_name=bool(head.labels)
        )

    def save(self, model: Any, folder: Path, tokenizer: Any = None) -> None:
        """Save a model so that `load` or `from_pretrained` reads it; whole or not at all.

        In the dtype of its weights: float32, as they were trained. Of a model with adapters these
        alone, as peft reads them.

        Args:
            model: What is saved.
            folder: Where; what is there is replaced.
            tokenizer: Saved beside it, if given.

        Raises:
            OSError, safetensors.SafetensorError: The disk takes no more; nothing is left of it.
        """

        def write(draft: Path) -> None:
            if adapters.is_adapted(model):
                adapters.save(model, draft)
            else:
                model.save_pretrained(str(draft))
            if tokenizer is not None:
                save_tokenizer(tokenizer, draft)

        durable.make_whole(folder, write)

    def load(self, id_or_path: str | Path) -> Any:
        """A model as it was saved, with its head, on the device, in evaluation mode.

        Its weights are in float32. Of a model that was saved without a head, a classifier.

        Raises:
            InvalidInputError: There is none.
        """
        name = str(id_or_path)
        files = self._files(name)
        checkpoint = self._read(name, files, self._saved_head(name, files))
        built = weights.build(checkpoint.config, checkpoint, checkpoint.kind)
        return built.to(self._cuda.device)

    def _fresh(
        self,
        section: ModelConfig,
        head: Head,
        texts: TextFormat,
        dropout: float | None,
        lora: LoraOptions | None,
        *,
        is_matched_by_name: bool,
    ) -> Any:
        """A study's model, in training mode, on the device."""
        checkpoint = None
        if section.pinned_id is not None:
            checkpoint = self._checkpoint(section.pinned_id, head.kind)
        saved = None if checkpoint is None else checkpoint.config
        if checkpoint is not None and is_matched_by_name:
            checkpoint = pretrained_head.for_classes(checkpoint, head.labels)
        config = model_fit.configuration(section, texts, head, dropout, saved)
        config.problem_type = head.problem_type
        model = self._build(section, config, head, texts, checkpoint, lora)
        return model.to(self._cuda.device).train()

    def _build(
        self,
        section: ModelConfig,
        config: Any,
        head: Head,
        texts: TextFormat,
        checkpoint: weights.Checkpoint | None,
        lora: LoraOptions | None,
    ) -> Any:
        """A model on the CPU that takes the texts; one of a new shape is tried on some."""
        if attention.needs_gpu(section.attn_implementation) and not self._cuda.is_cuda:
            raise WorkerLacksError(
                f"model.attn_implementation = {section.attn_implementation!r} takes a GPU, and this"
                " worker computes on the CPU; take sdpa or eager"
            )
        try:
            model = weights.build(config, checkpoint, head.kind)
        except (ValueError, TypeError, RuntimeError, ImportError) as error:
            raise model_fit.unfit(section, config, error) from error
        model_fit.grow(model, texts)
        if lora is not None:
            adapters.adapt(model, lora, head, section, checkpoint)
        shape = (
            section.model_dump_json(),
            head.kind,
            texts,
            None if lora is None else lora.model_dump_json(),
        )
        is_tried_here = not attention.needs_gpu(section.attn_implementation)
        if texts.example and is_tried_here and shape not in self._tried:
            try:
                model_fit.try_text(model, texts, _TRIED_TOKENS, head.kind)
            except (torch.OutOfMemoryError, MemoryError):
                raise
            except Exception as error:
                raise model_fit.unfit(section, config, error) from error
            if len(self._tried) >= _MOST_TRIED:
                self._tried.clear()
            self._tried.add(shape)
        return model

    def _check_words(self, tokenizer: Any, model_id: str) -> None:
        """Refuse a tokenizer with other ids than those of the model's own, if it has one."""
        suited = self._suited.setdefault(tokenizer, set())
        if model_id in suited:
            return
        try:
            own = self._tokenizers.load(model_id)
        except WorkerLacksError:
            return  # there is no such model here, which is told where its weights are read
        except InvalidInputError:
            own = tokenizer  # it has none
        if own is not tokenizer:
            refuse_foreign(tokenizer, own, model_id)
        suited.add(model_id)

    def _words_of(self, tokenizer: Any, config: ModelConfig, max_length: int) -> TextFormat:
        """What a tokenizer makes of texts; of each one once: its vocabulary may be large.

        Raises:
            InvalidInputError: It has other ids than the pretrained model's own.
        """
        if config.pinned_id is not None:
            self._check_words(tokenizer, config.pinned_id)
        known = self._formats.setdefault(tokenizer, {})
        if max_length not in known:
            known[max_length] = TextFormat.of(tokenizer, max_length)
        return known[max_length]

    def _checkpoint(self, id_or_path: str, kind: HeadKind) -> weights.Checkpoint:
        files = self._files(id_or_path)
        return self._checkpoints.get(id_or_path, files, kind, self._read, self._bases(files))

    def _bases(self, files: str) -> list[str]:
        """Of adapters: the files of the model that they are of, and of what that is adapters of.

        Raises:
            InvalidInputError: They are of one another.
        """
        found: list[str] = []
        at = files
        while (base := adapters.base_of(at)) is not None:
            at = self._files(base)
            if at in {files, *found}:
                raise InvalidInputError(
                    f"model.id = {files!r} holds adapters of themselves ({base}); mend its"
                    " adapter_config.json"
                )
            found.append(at)
        return found

    def _saved_head(self, name: str, files: str) -> HeadKind:
        """The head that a model was saved with; of adapters that do not say, that of their model.

        Raises:
            InvalidInputError: There is no model.
        """
        if (of_adapters := adapters.head_of(files)) is not None:
            return of_adapters
        folders = [files, *self._bases(files)]
        return weights.saved_head(name, next(filter(weights.is_configured, folders), files))

    def _read(self, name: str, files: str, kind: HeadKind) -> weights.Checkpoint:
        """A checkpoint; of adapters, that of their model with them in it."""
        base = adapters.base_of(files)
        if base is None:
            return weights.read(name, files, kind)
        return adapters.merged(name, files, self._checkpoint(base, kind), kind)

    def _files(self, id_or_path: str) -> str:
        """The path of a model's files."""
        what = f"model.id = {id_or_path!r}"
        try:
            return self._hub.model_files(what, id_or_path, with_weights=True)
        except (OSError, ValueError) as error:
            raise weights.refusal(id_or_path, error) from error


def _untokenised(vocab_size: int, max_length: int, pad_token_id: int | None) -> TextFormat:
    """What is known of texts where there is no tokenizer to ask."""
    special = () if pad_token_id is None else (("pad_token_id", pad_token_id),)
    return TextFormat(vocab_size, max_length, special)


def _is_no_hint_at_masks(record: logging.LogRecord) -> bool:
    """Blocks have no mask: their positions say what belongs together, padding included."""
    return "passing in an `attention_mask`" not in record.getMessage()
