"""The settings of `finetune` that name its model and its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, model_validator

from workers.protocol.section import Section

#: Fields of every transformers configuration that a study does not choose.
_OF_THE_DATA: Final = ("num_labels", "id2label", "label2id", "problem_type")


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
