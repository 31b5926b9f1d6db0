"""How `finetune` trains, whatever it learns: its length, evaluations, checkpoints and model.

Invariant: a study that says nothing of an option trains as before there was one.
"""

from __future__ import annotations

import re
from typing import Any, Final, Literal

from pydantic import Field, field_validator, model_validator

from workers.protocol.optimizer_options import OptimizerOptions
from workers.protocol.section import Section


class Every(Section):
    """How often: every so many optimizer steps, or passes over the training texts."""

    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps."""
    epochs: float | None = Field(default=None, gt=0.0)
    """Passes over the training texts; 0.5 is twice a pass."""

    @model_validator(mode="after")
    def _one_unit(self) -> Every:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either `steps` or `epochs`")
        return self


class EarlyStopping(Section):
    """When a training that gets no better ends before its last step."""

    patience: int = Field(ge=1)
    """Evaluations in a row that may be no better than the best; the training ends with them."""
    min_delta: float = Field(default=0.0, ge=0.0)
    """By more than this an evaluation has to be better than the best to count as better."""


#: Before a pattern that is a regular expression.
REGEX: Final = "re:"

#: Of two settings of the same thing: the one, the other, and what the first stands for.
_EITHER: Final = (
    ("evaluate_every", "evaluations_per_epoch", "when it is evaluated"),
    ("checkpoint_every", "checkpoint_interval_seconds", "when checkpoints are saved"),
)


class TrainingOptions(OptimizerOptions):
    """How long is trained, when that is measured and saved, and what of it is kept."""

    epochs: int = Field(default=3, ge=1)
    """Passes over the training texts."""
    max_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps after which the training ends, over as many passes as they take; where
    `epochs` is given, too, whichever is over first."""
    evaluations_per_epoch: int = Field(default=1, ge=1)
    """How often an epoch is interrupted to evaluate, report and ask whether to prune."""
    evaluate_every: Every | None = None
    """When to evaluate, in place of `evaluations_per_epoch`: `{steps: 500}` or `{epochs: 2}`. The
    last step is always evaluated."""
    objective: Literal["auto", "last", "best"] = "auto"
    """Which evaluation is the trial's result, and whose model is left: the last, or the best by the
    study's first metric. `auto` is the last, or, with `early_stopping`, the best. `best` is what
    one wants of a model that is used; checkpoints then hold its weights a second time."""
    early_stopping: EarlyStopping | None = None
    """Ends a training that gets no better: `{patience: 3, min_delta: 0.001}`."""
    log_every_steps: int | None = Field(default=None, ge=1)
    """Every so many steps, their mean loss and gradient norm, the learning rate and tokens a second
    go to the log and to W&B, as `train/loss` and so on; null: what each evaluation tells. Tokens
    are those of texts, by the seconds of training: without evaluations and compiling."""
    checkpoint_interval_seconds: float = Field(default=30.0, ge=0.0)
    """How much training a crash may cost; a drain always saves."""
    checkpoint_every: Every | None = None
    """When to save, in place of `checkpoint_interval_seconds`: `{steps: 500}` or `{epochs: 1}`."""
    freeze: list[str] = Field(default=[])
    """Weights that stay as they are, by runs of their dotted names with globs and ranges, such as
    `[embeddings, encoder.layer.0-3]`, or by expressions, such as `re:layer[.][02][.]`."""
    gradient_checkpointing: bool = False
    """Computes activations a second time in place of keeping them: less memory, slower steps."""
    compile: bool | Literal["default", "max-autotune-no-cudagraphs"] = False
    """Compiles the model by `torch.compile`, in its default mode or another: minutes in the first
    step and the first evaluation, which no rate of the training counts, and quicker steps after.
    Code is kept in `FLEET_CACHE` for all trials of an equal model; the CPU takes a C++ compiler, a
    GPU Triton and a C compiler, and both Python's headers."""
    save_model: Literal["auto", "best", "all", "none"] = "auto"
    """Which trials leave their model: those that beat the study's best so far, all, or none. `auto`
    is `best`, or `all` where another is worth having: in a study that keeps the models of its `best
    3`, or has several directions."""

    @field_validator("compile", mode="before")
    @classmethod
    def _takes_many_shapes(cls, mode: Any) -> Any:
        if mode in {"reduce-overhead", "max-autotune"}:
            raise ValueError(
                f"{mode!r} records a CUDA graph for each shape of a batch, and texts have many;"
                " take true, or max-autotune-no-cudagraphs"
            )
        return mode

    @field_validator("freeze")
    @classmethod
    def _are_patterns(cls, patterns: list[str]) -> list[str]:
        for pattern in patterns:
            try:
                re.compile(pattern.removeprefix(REGEX) if pattern.startswith(REGEX) else "")
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        return patterns

    @model_validator(mode="after")
    def _computes_activations_one_way(self) -> TrainingOptions:
        if self.compile and self.gradient_checkpointing:
            raise ValueError(
                "`compile` chooses by itself which activations are computed twice, and"
                " `gradient_checkpointing` breaks the model into pieces for it; give one of them"
            )
        return self

    @property
    def keeps_best(self) -> bool:
        """Whether the best evaluation is the result, and not the last."""
        if self.objective == "auto":
            return self.early_stopping is not None
        return self.objective == "best"

    @property
    def compile_mode(self) -> str | None:
        """The mode of `torch.compile`; None where nothing is compiled."""
        if self.compile is True:
            return "default"
        return self.compile or None

    @property
    def num_epochs(self) -> int | None:
        """Passes over the training texts; None where `max_steps` alone says when it ends."""
        is_open = self.max_steps is not None and "epochs" not in self.model_fields_set
        return None if is_open else self.epochs

    def num_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps of a training that does not end early."""
        limits = [] if self.max_steps is None else [self.max_steps]
        if self.num_epochs is not None:
            limits.append(self.num_epochs * steps_per_epoch)
        return min(limits)

    @model_validator(mode="after")
    def _say_it_once(self) -> TrainingOptions:
        for one, other, what in _EITHER:
            if {one, other} <= self.model_fields_set and getattr(self, one) is not None:
                raise ValueError(f"`{one}` and `{other}` both say {what}; give one of them")
        return self
