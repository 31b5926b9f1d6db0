"""The settings of the built-in objective `finetune`, checked on submission, read by workers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from workers.protocol.lora import LoraOptions
from workers.protocol.section import Section
from workers.protocol.tasks import DEFAULT_TASK, TASKS, TaskName
from workers.protocol.training_options import TrainingOptions

#: Built-in data sets, by the name that `data.source` gives them.
BUILT_IN_SOURCES: Final = ("cldr-language-id",)

#: Before the name of a data set that lies on a hub.
HUB: Final = "hub:"

#: Files that `data.source` may name, by suffix, to the format's name.
FILE_FORMATS: Final = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
}


#: How the names of the settings begin from which a model, and whether it takes the texts, follow.
DECIDES_THE_MODEL: Final = (
    "model.",
    "tokenizer.",
    "data.max_length",
    "data.block_size",
    "data.across_texts",
    "dropout",
    "lora",
    "freeze",
    "gradient_checkpointing",
    "compile",
)

#: Fields of every transformers configuration that a study does not choose.
_OF_THE_DATA: Final = ("num_labels", "id2label", "label2id", "problem_type")


class DataConfig(Section):
    """Where the texts and labels come from, and how they are split."""

    source: str = "cldr-language-id"
    """A built-in name, a CSV, JSON lines or parquet file, or a hub id as `hub:owner/name`.

    `hub:` may also name a directory that is laid out as a data set of the hub is.
    """
    configuration: str | None = None
    """Of a hub data set that has several, such as `sst2`; by default its default one."""
    revision: str | None = None
    """Of a hub data set: a branch, a tag or a commit; by default what `main` is at submission."""
    split: str = "train"
    """Of a hub data set: what is trained on."""
    validation_split: str | None = None
    """Of a hub data set: what is held out; without one, `validation_fraction` is split off."""
    text: str = "text"
    """The column that holds the text."""
    text_pair: str | None = None
    """The column that holds a second text, where pairs are classified."""
    label: str = "label"
    """The column that holds the class; `1.10` is a name like any other, and not `1.1`. Of
    regression, the number; of multi-label, the classes, with `label_separator` between them; of
    token classification, the class of each word, as a list or with blanks between them."""
    labels: list[str] | None = Field(default=None, min_length=2)
    """Of multi-label: columns named like the classes, in place of `label`; each holds 0 or 1."""
    label_separator: str = Field(default=",", min_length=1)
    """Of multi-label: what stands between two classes of a row."""
    validation: str | None = None
    """A second source with the held-out rows; without one, `validation_fraction` is split off."""
    validation_fraction: float = Field(default=0.15, gt=0.0, lt=1.0)
    """The share of *texts* held out; equal texts always fall on the same side."""
    max_length: int = Field(default=128, ge=4, le=32768)
    """Tokens after which a text is cut."""
    block_size: int | None = Field(default=None, ge=4, le=32768)
    """Of causal language modelling: texts are put behind one another and cut into blocks of so many
    tokens, in place of padding each; `max_length` cuts none then."""
    across_texts: bool = False
    """Of blocks: whether a token sees the texts before its own, and is predicted from them."""
    seed: int = 0
    """Seeds the split, so that every trial of a study sees the same one."""
    blank: Literal["error", "drop"] = "error"
    """What is done about rows without a text or a label: the study is refused, or they are left
    out, which is said."""
    encoding: str = "auto"
    """Of text files, such as `cp1252`; `auto` is UTF-8, or what a byte-order mark says."""
    delimiter: str = "auto"
    """Of CSV files: a character or `tab`; `auto` is the one that parts the header into columns."""
    quoting: Literal["standard", "backslash", "none"] = "standard"
    """Of CSV files: a quote within quotes is `""` (standard) or `\\"`, or is text (none)."""
    commits: dict[str, str] = Field(default={})
    """Filled in at submission: the commit of each hub source, the same for all trials."""
    task: TaskName = DEFAULT_TASK
    """Filled in from the `task` beside `data`: what the labels are read as."""

    @field_validator("encoding")
    @classmethod
    def _is_encoding(cls, name: str) -> str:
        try:
            "a".encode("utf-8" if name == "auto" else name)
        except (LookupError, ValueError) as error:
            raise ValueError("no such encoding; utf-8, cp1252 and utf-16 are some") from error
        return name

    @field_validator("delimiter")
    @classmethod
    def _is_delimiter(cls, name: str) -> str:
        if name not in {"auto", "tab"} and (len(name) != 1 or name in '"\r\n\0'):
            raise ValueError("give `auto`, `tab`, or one character that is no quote or line end")
        return name

    @model_validator(mode="after")
    def _fits_source(self) -> DataConfig:
        if self.text_pair in {self.text, *self.label_columns}:
            raise ValueError("`text_pair` names the column of the texts or of the classes again")
        if self.text_pair is not None and self.source in BUILT_IN_SOURCES:
            raise ValueError(f"`text_pair`: {self.source} has one text a row; leave it out")
        if any(source.startswith(HUB) for source in self.sources):
            return self
        for name in ("configuration", "revision", "validation_split"):
            if getattr(self, name) is not None:
                raise ValueError(f"`{name}` is for hub data sets, written hub:owner/name")
        return self

    @model_validator(mode="after")
    def _fits_language_modelling(self) -> DataConfig:
        fields = type(self).model_fields
        if TASKS[self.task].labels == "none":
            for name in ("label", "text_pair"):
                if getattr(self, name) != fields[name].default:
                    raise ValueError(f"`{name}`: {self.task} learns from texts alone; leave it out")
        if self.task == "token_classification" and self.text_pair is not None:
            raise ValueError("`text_pair`: token_classification reads one text a row; leave it out")
        if self.task != "causal_lm":
            for name in ("block_size", "across_texts"):
                if getattr(self, name) != fields[name].default:
                    raise ValueError(f"`{name}` is for task: causal_lm; leave it out")
        elif self.block_size is None and self.across_texts:
            raise ValueError("`across_texts` is for blocks; give `block_size`, too")
        elif self.block_size is not None and "max_length" in self.model_fields_set:
            raise ValueError("`max_length` cuts no text of blocks; give it or `block_size`")
        return self

    @model_validator(mode="after")
    def _fits_task(self) -> DataConfig:
        if TASKS[self.task].labels != "classes":
            for name in ("labels", "label_separator"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"`{name}` is for task: multi_label; leave it out")
        elif self.labels is not None and len(set(self.labels)) < len(self.labels):
            raise ValueError("`labels` names a column twice; name each once")
        return self

    @property
    def label_columns(self) -> list[str]:
        """The columns that say what is learned; none where the texts themselves are."""
        if TASKS[self.task].labels == "none":
            return []
        return [self.label] if self.labels is None else self.labels

    @property
    def roles(self) -> list[tuple[str, str]]:
        """The columns that are read, in the order in which a row holds them, by their settings."""
        labels = "label" if self.labels is None else "labels"
        pair = [] if self.text_pair is None else [("text_pair", self.text_pair)]
        return [("text", self.text), *((labels, each) for each in self.label_columns), *pair]

    @property
    def columns(self) -> list[str]:
        """The columns that are read: text, labels and, where there is one, the second text."""
        return [column for _, column in self.roles]

    @property
    def tokens_a_row(self) -> int:
        """The most that a model is given at once."""
        return self.block_size or self.max_length

    @property
    def held_out(self) -> str | None:
        """The source of the held-out rows, if they are not split off."""
        return self.validation or (self.source if self.validation_split else None)

    @property
    def sources(self) -> list[str]:
        """The one that is trained on, and the held-out one, if any."""
        return [self.source, *([] if self.held_out is None else [self.held_out])]

    def split_of(self, field: str) -> str:
        """Which split of a hub data set is read, by the setting that names the source."""
        if field.endswith("validation"):
            return self.validation_split or "validation"
        return self.split

    @property
    def separator(self) -> str | None:
        """The character between two columns; None where the header tells."""
        return {"auto": None, "tab": "\t"}.get(self.delimiter, self.delimiter)


def _pinned(name: str | None, commits: Mapping[str, str]) -> str | None:
    if name is None or name not in commits:
        return name
    return f"{name.partition('@')[0]}@{commits[name]}"


class TokenizerConfig(Section):
    """The tokenizer; by default the model's own, and without one, one trained on the data."""

    id: str | None = None
    """A hub id, perhaps with a revision as `owner/name@v2`, or a path."""
    commits: dict[str, str] = Field(default={})
    """Filled in at submission: the commit of each hub id, the same for all trials."""
    vocab_size: int = Field(default=4000, ge=64)
    """Entries of a tokenizer that is trained on the data."""

    @property
    def pinned_id(self) -> str | None:
        """The id with its commit, where it has one."""
        return _pinned(self.id, self.commits)


class ModelConfig(BaseModel):
    """A model by hub id or path, or an architecture with the fields of its configuration."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    id: str | None = None
    """A hub id, perhaps with a revision as `owner/name@v2`, or a path with pretrained weights."""
    architecture: str | None = None
    """A transformers model type such as `bert`, built with random weights."""
    attn_implementation: str | None = None
    """How attention is computed, of what the architecture has in transformers: eager, sdpa,
    flash_attention_2, flex_attention...; null is sdpa where it has that."""
    commits: dict[str, str] = Field(default={})
    """Filled in at submission: the commit of each hub id, the same for all trials."""

    @model_validator(mode="after")
    def _one_origin(self) -> ModelConfig:
        if (self.id is None) == (self.architecture is None):
            raise ValueError("give either `id` (pretrained) or `architecture` (from nothing)")
        return self

    @model_validator(mode="after")
    def _float32(self) -> ModelConfig:
        if {"dtype", "torch_dtype"} & set(self.overrides):
            raise ValueError("weights train in float32; `precision: bf16` sets what computes in it")
        return self

    @model_validator(mode="after")
    def _classes_of_the_data(self) -> ModelConfig:
        for name in _OF_THE_DATA:
            if name in self.overrides:
                raise ValueError(f"{name} follows from the classes of the data; leave it out")
        return self

    @property
    def pinned_id(self) -> str | None:
        """The id with its commit, where it has one."""
        return _pinned(self.id, self.commits)

    @property
    def overrides(self) -> Mapping[str, Any]:
        """The further fields, which go into the transformers configuration."""
        return self.model_extra or {}


class FinetuneConfig(TrainingOptions):
    """Everything that `finetune` reads; `space` may vary any of it by dotted name."""

    task: TaskName = DEFAULT_TASK
    """What is learned."""
    data: DataConfig = DataConfig()
    """The texts, and what is told of them."""
    model: ModelConfig = ModelConfig(architecture="bert")
    """What is trained."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """What parts texts into tokens."""
    eval_batch_size: int = Field(default=256, ge=1)
    """Texts a forward pass without gradients."""
    eval_batch_tokens: int | None = Field(default=None, ge=1)
    """Tokens of such a pass, padding included, in place of `eval_batch_size`."""
    dropout: float | None = Field(default=None, ge=0.0, lt=1.0)
    """Sets every dropout probability that the architecture has."""
    lora: LoraOptions | None = None
    """Trains low-rank adapters in place of a pretrained model's weights: `{r: 8, alpha: 16,
    target_modules: [query, value]}`. Checkpoints and the model that is left hold these and the
    head alone."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Label smoothing of the cross entropy, of one class or of each of several."""
    class_weights: Literal["balanced"] | dict[str, float] | None = None
    """How much a text of each class counts in the loss: `balanced` is as much as its class is
    rarer than the mean one, else by the name of the class, and 1 of those that are not named. A
    step's loss is the mean over its texts of loss times weight."""
    mask_fraction: float = Field(default=0.15, gt=0.0, lt=1.0)
    """Of masked language modelling: the share of a text's tokens that are predicted, one at least.
    Of these, 80 % are masked, 10 % another token and 10 % left (Devlin et al., 2019)."""
    precision: Literal["auto", "bf16", "fp16", "tf32", "fp32"] = "auto"
    """`auto` takes the best that the device has."""
    float32_matmul_precision: Literal["auto", "highest", "high", "medium"] = "auto"
    """How products of float32 are computed, as in torch: `auto` is `highest` for fp32 and on the
    CPU, else `high` (TensorFloat-32 where the GPU has it)."""
    loader_workers: int = Field(default=0, ge=0)
    """DataLoader processes that pad batches ahead of training, which each attempt starts anew; with
    0 a thread does for a GPU, and on the CPU each batch is made when it is wanted: quicker wherever
    the task has no slow work to do on each text."""
    seed: int | None = Field(default=None, ge=0, lt=2**32)
    """Seeds weights and order; by default drawn from the study's seed and the trial's number."""

    @model_validator(mode="before")
    @classmethod
    def _data_know_the_task(cls, fields: Any) -> Any:
        if not isinstance(fields, Mapping):
            return fields
        task, data = fields.get("task", DEFAULT_TASK), fields.get("data", {})
        if isinstance(data, DataConfig):
            data = data.model_dump(exclude_unset=True)
        if not isinstance(data, Mapping) or not isinstance(task, str) or task not in TASKS:
            return fields  # refused as what it is
        if data.get("task", task) != task:
            raise ValueError("data.task: give `task` beside `data`, and not in it")
        return {**fields, "data": {**data, "task": task}}

    @field_validator("class_weights", mode="before")
    @classmethod
    def _are_weights(cls, weights: Any) -> Any:
        if not isinstance(weights, Mapping):
            return weights
        if any(not 0.0 < weight < math.inf for weight in map(float, weights.values())):
            raise ValueError("weights are numbers over 0; 1 is the usual one")
        return {str(name): weight for name, weight in weights.items()}

    @model_validator(mode="after")
    def _has_classes_to_weigh(self) -> FinetuneConfig:
        if self.class_weights is not None and TASKS[self.task].labels != "class":
            raise ValueError(f"`class_weights`: {self.task} has not one class a text; leave it out")
        return self

    @model_validator(mode="after")
    def _has_classes_to_smooth(self) -> FinetuneConfig:
        if self.label_smoothing and TASKS[self.task].labels == "number":
            raise ValueError(f"label_smoothing: {self.task} has no classes; leave it out")
        return self

    @model_validator(mode="after")
    def _have_room_for_a_text(self) -> FinetuneConfig:
        for name in ("batch_tokens", "eval_batch_tokens"):
            tokens = getattr(self, name)
            if tokens is not None and tokens < self.data.tokens_a_row:
                setting = "max_length" if self.data.block_size is None else "block_size"
                raise ValueError(
                    f"`{name}` = {tokens} is less than data.{setting} = {self.data.tokens_a_row},"
                    " to which one row may come; raise the one or lower the other"
                )
        if self.eval_batch_tokens is not None and "eval_batch_size" in self.model_fields_set:
            raise ValueError(
                f"`eval_batch_tokens` = {self.eval_batch_tokens} and `eval_batch_size` ="
                f" {self.eval_batch_size} both say what is measured at once; give one of them"
            )
        return self

    @model_validator(mode="after")
    def _has_weights_to_adapt(self) -> FinetuneConfig:
        if self.lora is not None and self.model.id is None:
            raise ValueError(
                "`lora` adapts a pretrained model; give model.id in place of model.architecture"
            )
        return self

    @model_validator(mode="after")
    def _has_something_to_mask(self) -> FinetuneConfig:
        if "mask_fraction" in self.model_fields_set and self.task != "masked_lm":
            raise ValueError("`mask_fraction` is for task: masked_lm; leave it out")
        return self

    @model_validator(mode="after")
    def _attends_in_its_precision(self) -> FinetuneConfig:
        name = self.model.attn_implementation
        if name is not None and name.startswith("flash_") and self.precision in {"fp32", "tf32"}:
            raise ValueError(
                f"model.attn_implementation = {name!r} computes in half precision alone, and"
                f" `precision` is {self.precision}; take bf16, fp16 or auto, or sdpa"
            )
        return self

    @model_validator(mode="after")
    def _agree_on_tf32(self) -> FinetuneConfig:
        if self.precision == "tf32" and self.float32_matmul_precision == "highest":
            raise ValueError(
                "precision: tf32 is float32_matmul_precision: high; give one of them, or fp32"
            )
        return self
