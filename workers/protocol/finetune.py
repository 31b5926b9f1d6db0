"""The settings of the built-in objective `finetune`, checked on submission, read by workers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import Field, field_validator, model_validator

from workers.protocol.data_options import BUILT_IN_SOURCES, FILE_FORMATS, HUB, DataConfig
from workers.protocol.lora import LoraOptions
from workers.protocol.model_options import ModelConfig, TokenizerConfig
from workers.protocol.tasks import DEFAULT_TASK, TASKS, TaskName
from workers.protocol.training_options import TrainingOptions

__all__ = [
    "BUILT_IN_SOURCES",
    "DECIDES_THE_MODEL",
    "FILE_FORMATS",
    "HUB",
    "DataConfig",
    "FinetuneConfig",
    "ModelConfig",
    "TokenizerConfig",
]

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
    """DataLoader processes that pad batches ahead of training; with 0 a thread does for a GPU, and
    on the CPU each batch is made when it is wanted: quicker wherever the task has no slow work to
    do on each text."""
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
