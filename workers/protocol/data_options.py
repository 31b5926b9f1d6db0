"""The settings of `finetune` that say where texts and labels come from, and how they are read."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field, field_validator, model_validator

from workers.protocol.section import Section
from workers.protocol.tasks import DEFAULT_TASK, TASKS, TaskName

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
    labels_as: Literal["auto", "names", "numbers"] = "auto"
    """Of a hub data set that names its classes: what text in the column of the labels is. `auto` is
    what all rows of a split can be; where they can be both, the study is refused. Integers are
    always the numbers of classes."""
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
        for name in ("configuration", "revision", "validation_split", "labels_as"):
            if getattr(self, name) != type(self).model_fields[name].default:
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
