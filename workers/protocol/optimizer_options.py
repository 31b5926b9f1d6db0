"""How `finetune` makes steps of gradients: the optimizer, its learning rate, and what is clipped.

Invariant: a name or an option that is accepted here is one that the worker's libraries have, and
what they are given is the value that was checked: `no` is false, and `"1e-6"` a number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BeforeValidator,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from workers.protocol.errors import nearest
from workers.protocol.section import Section


def _no_switch(value: Any) -> Any:
    """Refuse true and false for a number: it would be 1 or 0."""
    if isinstance(value, bool):
        raise ValueError("it should be a number")  # noqa: TRY004 - pydantic tells those alone
    return value


_Number = Annotated[float, BeforeValidator(_no_switch), Field(allow_inf_nan=False)]
_Whole = Annotated[int, BeforeValidator(_no_switch)]
_Part = Annotated[_Number, Field(ge=0.0, lt=1.0)]

_Rate: Final = TypeAdapter[Any](Annotated[_Number, Field(ge=0.0)])
_Positive: Final = TypeAdapter[Any](Annotated[_Number, Field(gt=0.0)])
_Share: Final = TypeAdapter[Any](_Part)
_Betas: Final = TypeAdapter[Any](tuple[_Part, _Part])
_Count: Final = TypeAdapter[Any](Annotated[_Whole, Field(ge=1)])
_WholeNumber: Final = TypeAdapter[Any](Annotated[_Whole, Field(ge=0)])
_Switch: Final = TypeAdapter[Any](bool)
_Curve: Final = TypeAdapter[Any](Literal["linear", "cosine", "1-sqrt"])

Options = Mapping[str, TypeAdapter[Any]]

_ADAM: Final[Options] = {"betas": _Betas, "eps": _Positive}

#: The optimizers, and the options of each by the names that torch gives them.
OPTIMIZERS: Final[Mapping[str, Options]] = {
    "adamw": {**_ADAM, "amsgrad": _Switch},
    "adam": {**_ADAM, "amsgrad": _Switch},
    "nadam": {**_ADAM, "momentum_decay": _Rate},
    "radam": _ADAM,
    "adamax": _ADAM,
    "adagrad": {"eps": _Positive, "lr_decay": _Rate},
    "rmsprop": {"alpha": _Share, "eps": _Positive, "momentum": _Share, "centered": _Switch},
    "sgd": {"momentum": _Share, "dampening": _Share, "nesterov": _Switch},
    "adafactor": {"clip_threshold": _Positive, "beta1": _Share},
}

#: Those that leave out a step without waiting for the GPU.
_MAY_SKIP: Final = ("adamw", "adam")

#: The schedules, and the options of each by the names that transformers gives them. Not its
#: `greedy`: older releases that we run with lack it, and it goes back to the rate that it began
#: with, also where a rollback has halved that.
SCHEDULES: Final[Mapping[str, Options]] = {
    "linear": {},
    "cosine": {},
    "constant": {},
    "constant_with_warmup": {},
    "cosine_with_restarts": {"num_cycles": _Count},
    "polynomial": {"lr_end": _Rate, "power": _Positive},
    "inverse_sqrt": {"timescale": _Count},
    "cosine_with_min_lr": {"num_cycles": _Positive, "min_lr": _Rate, "min_lr_rate": _Share},
    "cosine_warmup_with_min_lr": {
        "num_cycles": _Positive,
        "min_lr": _Rate,
        "min_lr_rate": _Share,
        "warmup_lr_rate": _Share,
    },
    "warmup_stable_decay": {
        "num_decay_steps": _Count,
        "warmup_type": _Curve,
        "decay_type": _Curve,
        "min_lr_ratio": _Share,
        "num_cycles": _Positive,
    },
    "reduce_lr_on_plateau": {
        "factor": _Share,
        "patience": _WholeNumber,
        "threshold": _Rate,
        "cooldown": _WholeNumber,
        "min_lr": _Rate,
    },
}

#: The one that follows what evaluations measure, and not the steps.
PLATEAU: Final = "reduce_lr_on_plateau"

#: Options of which exactly one is needed.
_NEEDED: Final = {
    "cosine_with_min_lr": ("min_lr", "min_lr_rate"),
    "cosine_warmup_with_min_lr": ("min_lr", "min_lr_rate"),
    "warmup_stable_decay": ("num_decay_steps",),
}


class OptimizerOptions(Section):
    """What becomes of gradients."""

    batch_size: int = Field(default=32, ge=1)
    """Texts an optimizer step."""
    batch_tokens: int | None = Field(default=None, ge=1)
    """Tokens an optimizer step, padding included, in place of `batch_size`: many short texts, or
    few long ones. All texts count alike: a step of more texts is a larger one."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Texts a forward pass; by default the batch, halved for as long as memory runs out. What fits
    is remembered for the next trials of the process: give this where results must not differ by
    the rounding of another cut."""
    gradient_accumulation_steps: int | None = Field(default=None, ge=1)
    """Forward passes an optimizer step, in place of `micro_batch_size`, which is `batch_size` by
    this. `batch_size` stays the texts of a step: it is not multiplied."""
    optimizer: str = "adamw"
    """adamw, adam, nadam, radam, adamax, adagrad, rmsprop or sgd of torch, or transformers'
    adafactor, with `learning_rate` as its rate."""
    optimizer_options: dict[str, Any] = Field(default={})
    """Of that optimizer, such as `{betas: [0.9, 0.98], eps: 1.0e-6}` or `{momentum: 0.9}`."""
    learning_rate: float = Field(default=5e-4, gt=0.0)
    """Peak learning rate."""
    weight_decay: float = Field(default=0.01, ge=0.0)
    """Weight decay, of matrices and not of biases and norms; decoupled in adamw and adafactor, and
    added to the gradients in the others."""
    warmup_fraction: float = Field(default=0.1, ge=0.0, lt=1.0)
    """The share of all steps over which the learning rate rises."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """The steps over which it rises, in place of `warmup_fraction`."""
    schedule: str = "linear"
    """What the learning rate does after warm-up: linear, cosine or constant, or by
    `transformers.get_scheduler` constant_with_warmup, cosine_with_restarts, polynomial,
    inverse_sqrt, cosine_with_min_lr, cosine_warmup_with_min_lr, warmup_stable_decay or
    reduce_lr_on_plateau, which has no warm-up and follows the study's first metric. Its `greedy` is
    not taken: it would take back what a rollback has halved."""
    schedule_options: dict[str, Any] = Field(default={})
    """Of that schedule, such as `{num_cycles: 3}` or `{min_lr_rate: 0.1}`."""
    max_grad_norm: float | None = Field(default=1.0, gt=0.0)
    """The norm to which gradients are clipped; null clips nothing."""
    on_divergence: Literal["fail", "skip", "rollback"] = "fail"
    """Of a loss or gradient that is NaN or infinite: `fail` ends the trial; `skip` leaves the batch
    out; `rollback` goes on from the last checkpoint, of which each evaluation makes one, with half
    the learning rate."""
    max_divergences: int = Field(default=5, ge=1)
    """Batches in a row left out, or times rolled back, after which the next ends the trial."""

    @field_validator("optimizer")
    @classmethod
    def _is_optimizer(cls, name: str) -> str:
        return _known(name, OPTIMIZERS)

    @field_validator("schedule")
    @classmethod
    def _is_schedule(cls, name: str) -> str:
        return _known(name, SCHEDULES)

    @property
    def rows_a_pass(self) -> int | None:
        """Texts a forward pass, where the study says it."""
        if self.gradient_accumulation_steps is None:
            return self.micro_batch_size
        return self.batch_size // self.gradient_accumulation_steps

    @model_validator(mode="after")
    def _have_their_options(self) -> OptimizerOptions:
        options = _checked("optimizer", self.optimizer, self.optimizer_options, OPTIMIZERS)
        schedule = _checked("schedule", self.schedule, self.schedule_options, SCHEDULES)
        # frozen for others; what is kept is what was checked
        self.__dict__.update(optimizer_options=options, schedule_options=schedule)
        needed = _NEEDED.get(self.schedule, ())
        if needed and len(set(needed) & set(self.schedule_options)) != 1:
            raise ValueError(f"`schedule_options`: {self.schedule} needs {' or '.join(needed)}")
        if options.get("nesterov") and not options.get("momentum"):
            raise ValueError("`optimizer_options`: nesterov needs a momentum")
        if options.get("nesterov") and options.get("dampening"):
            raise ValueError(
                f"`optimizer_options.dampening` = {options['dampening']}: nesterov takes none;"
                " leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _warm_up_once(self) -> OptimizerOptions:
        given = {"warmup_steps", "warmup_fraction"} & self.model_fields_set
        if len(given) > 1 and self.warmup_steps is not None:
            raise ValueError(
                "`warmup_steps` and `warmup_fraction` both say how long the rate rises; give one"
                " of them"
            )
        if self.schedule == PLATEAU and (self.warmup_steps or "warmup_fraction" in given):
            raise ValueError(f"`schedule`: {PLATEAU} has no warm-up; leave out {min(given)}")
        return self

    @model_validator(mode="after")
    def _size_the_batch_once(self) -> OptimizerOptions:
        if self.batch_tokens is None:
            return self
        if "batch_size" in self.model_fields_set:
            raise ValueError(
                f"`batch_tokens` = {self.batch_tokens} and `batch_size` = {self.batch_size} both"
                " say what a step is made of; give one of them"
            )
        if self.gradient_accumulation_steps is not None:
            raise ValueError(
                "`gradient_accumulation_steps`: with batch_tokens, steps differ in their texts;"
                " give micro_batch_size, the texts a pass, or neither"
            )
        return self

    @model_validator(mode="after")
    def _divide_the_batch(self) -> OptimizerOptions:
        passes = self.gradient_accumulation_steps
        if passes is None:
            return self
        if self.batch_size % passes:
            raise ValueError(
                f"`gradient_accumulation_steps`: {passes} passes do not divide batch_size ="
                f" {self.batch_size}, which is the texts of a step, all passes together"
            )
        if self.micro_batch_size not in {None, self.batch_size // passes}:
            raise ValueError(
                f"`gradient_accumulation_steps`: {passes} passes of micro_batch_size ="
                f" {self.micro_batch_size} are not batch_size = {self.batch_size}; give one of them"
            )
        return self

    @model_validator(mode="after")
    def _may_skip(self) -> OptimizerOptions:
        if self.on_divergence == "skip" and self.optimizer not in _MAY_SKIP:
            raise ValueError(
                f"`on_divergence`: skip is for {' and '.join(_MAY_SKIP)}; with {self.optimizer},"
                " take rollback or fail"
            )
        return self


def _known(name: str, table: Mapping[str, Options]) -> str:
    if name not in table:
        raise ValueError(f"there is {', '.join(table)}{nearest(name, table)}")
    return name


def _checked(
    what: str, name: str, given: Mapping[str, Any], table: Mapping[str, Options]
) -> dict[str, Any]:
    """Options as they were checked, of the types that the libraries take."""
    known = table[name]
    found = {}
    for option, value in given.items():
        if option not in known:
            has = f"has {', '.join(known)}" if known else "has no options"
            raise ValueError(f"`{what}_options.{option}`: {name} {has}{nearest(option, known)}")
        try:
            found[option] = known[option].validate_python(value)
        except ValidationError as error:
            message = error.errors()[0]["msg"].removeprefix("Value error, ")
            message = message.replace("Input should", "it should")
            raise ValueError(f"`{what}_options.{option}` = {value!r}: {message}") from error
    return found
