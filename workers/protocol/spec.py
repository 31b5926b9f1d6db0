"""The specification of a study, as submitted, stored and read by every side."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from copy import deepcopy
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from workers.passwords import learn_from
from workers.protocol.states import Charge
from workers.protocol.tasks import DEFAULT_TASK

#: The name of the built-in objective.
FINETUNE: Final = "finetune"

#: Settings that may change between two submissions of one study: they alter no trial's meaning.
EXTENDABLE: Final = frozenset(
    {
        "trials",
        "timeout",
        "trial_timeout",
        "budget",
        "stop",
        "max_failures",
        "max_losses",
        "progress_timeout",
        "resources",
        "share",
        "keep",
        "wandb",
        "code",
        "on_end",
    }
)

#: Raised whenever `StudySpec.work` is over something else: orchestrators sign records anew then.
_WORK_VERSION: Final = 2

#: The most trials of which `keep` can say that they are the best.
MAX_BEST: Final = 100

#: A user and a password in a URL.
_PASSWORD: Final = re.compile(r"://[^/@]*:[^/@]*@")

Scalar: TypeAlias = str | int | float | bool | None
Direction: TypeAlias = Literal["maximize", "minimize"]


#: The validation context of what was stored, by whatever release; what users write is checked.
_STORED: Final = "stored"

_NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$"


def is_study_name(text: str) -> bool:
    """Whether a study can have this name."""
    return re.fullmatch(_NAME.strip("^$"), text) is not None


class _Model(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, ser_json_inf_nan="constants"
    )

    @model_validator(mode="before")
    @classmethod
    def _ignore_later_fields(cls, fields: Any, info: ValidationInfo) -> Any:
        """Of what was stored, leave out what a later release added and this one does not know."""
        if info.context == _STORED and isinstance(fields, Mapping):
            return {name: value for name, value in fields.items() if name in cls.model_fields}
        return fields


class _Dimension(_Model):
    when: dict[str, list[Scalar]] = {}
    """Other parameters and the values of theirs for which this one exists."""
    default: Scalar = None
    """Of a parameter that the study did not have at first: what its trials before had in its
    place; without it, they lack the parameter."""

    @field_validator("when", mode="before")
    @classmethod
    def _one_value_is_a_list(cls, value: Any) -> Any:
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            return value
        return {name: each if isinstance(each, list) else [each] for name, each in value.items()}


class FloatDimension(_Dimension):
    """A real interval, `low` and `high` included."""

    type: Literal["float"]
    low: float
    high: float
    log: bool = False
    step: float | None = Field(default=None, gt=0.0)


class IntDimension(_Dimension):
    """A range of integers, `low` and `high` included."""

    type: Literal["int"]
    low: int
    high: int
    log: bool = False
    step: int = Field(default=1, ge=1)


class CategoricalDimension(_Dimension):
    """A choice among values."""

    type: Literal["categorical"]
    choices: list[Scalar] = Field(min_length=1)


Dimension = Annotated[
    FloatDimension | IntDimension | CategoricalDimension, Field(discriminator="type")
]


class SamplerSpec(BaseModel):
    """An Optuna sampler by name, or `module:Class`; further keys go to its constructor."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str = "tpe"
    seed: int | None = None


class PrunerSpec(BaseModel):
    """An Optuna pruner by name, or `module:Class`; further keys go to its constructor."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    type: str = "none"
    promote: bool = False
    """Of `asha`: a trial is paused at each rung, and the best ones go on where they stopped."""

    @property
    def prunes(self) -> bool:
        """Whether a running trial asks it if it is to be given up."""
        return not self.promote and self.type.lower().removesuffix("pruner") not in {"none", "nop"}


class ResourcesSpec(_Model):
    """What a trial needs of the machine that runs it."""

    queue: str = Field(default="default", pattern=r"^[A-Za-z0-9_.-]+$")
    """The Celery queue; a worker reads it with `celery -A workers worker -Q NAME`."""
    gpus: int = Field(default=1, ge=0, le=1)
    """GPUs a trial uses where there are any: each pool process owns at most one."""


class WandbSpec(_Model):
    """What a study asks of Weights & Biases."""

    mode: Literal["online", "offline", "disabled"] | None = None
    """By default online where there are credentials, and offline elsewhere."""
    project: str | None = None
    """By default `WANDB_PROJECT`, else `trialfleet`."""
    entity: str | None = Field(default=None, min_length=1)
    """A team or a user; by default `WANDB_ENTITY`, else the credentials'."""
    tags: list[Annotated[str, Field(min_length=1, max_length=64)]] = []
    """Of each run."""

    @field_validator("project")
    @classmethod
    def _is_a_name(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[^/\\#?%:\r\n]{1,128}", value):
            raise ValueError("write up to 128 characters, and none of / \\ # ? % :")
        return value


class ShareSpec(_Model):
    """Which part of a queue's slots a study gets while others want them, too."""

    weight: float = Field(default=1.0, gt=0.0, le=1e6)
    """A study of weight 2 gets twice the slot-seconds of one of weight 1."""
    priority: int = Field(default=0, ge=-5, le=5)
    """A study gets twenty times the slot-seconds of one that stands one step lower; none gets
    nothing."""
    max_slots: int | None = Field(default=None, ge=1)
    """At most so many of its trials run at once."""


class KeepSpec(_Model):
    """What stays on disk of trials that have ended."""

    models: str = Field(default="all", pattern=r"^(all|best ([1-9]\d?|100))$")
    """Whose models: of `all` trials that left one, or of the `best 3` complete ones alone, which is
    to say what is called `model`, or `model.*`, in `trial.result_directory`."""

    @property
    def num_models(self) -> int | None:
        """Of how many trials, the best; None for all."""
        return None if self.models == "all" else int(self.models.split()[1])


class BudgetSpec(_Model):
    """What a study may use up beside `trials` and `timeout`; then no further trial is started."""

    slot_hours: float | None = Field(default=None, gt=0.0, allow_inf_nan=False)
    """Hours for which its trials may hold slots, all attempts of all trials together."""
    gpu_hours: float | None = Field(default=None, gt=0.0, allow_inf_nan=False)
    """Likewise, slots with a GPU."""


class StopSpec(_Model):
    """What ends a study before its budgets do: no further trial is started, those that run end."""

    target: float | None = Field(default=None, allow_inf_nan=False)
    """A value that is good enough."""
    patience: int | None = Field(default=None, ge=1)
    """Trials in a row, complete or pruned, of which none was better than the best before."""
    min_delta: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    """By how much a trial must be better to count as better."""
    equal_failures: int = Field(default=10, ge=0)
    """Trials in a row that failed with the same traceback; 0 for never."""


class WarmStart(_Model):
    """Another study, whose complete trials the sampler learns from."""

    study: str
    """Its name, as Optuna or this fleet knows it."""
    home: str | None = None
    """Another `FLEET_HOME` that it lies in; by default that of this fleet's orchestrator."""
    storage: str | None = None
    """An Optuna storage URL that it lies in, without a password."""

    @model_validator(mode="after")
    def _one_place(self) -> WarmStart:
        if self.home is not None and self.storage is not None:
            raise ValueError("give `home` or `storage`, not both")
        if self.storage is not None and _PASSWORD.search(self.storage):
            learn_from(self.storage)
            raise ValueError(
                "a password would be kept with the study; leave it to the database's own means,"
                " such as ~/.pgpass"
            )
        return self


class CodeSpec(_Model):
    """Which code the trials run."""

    must_match: bool = False
    """Whether workers whose objective's file differs from the submitter's leave it to others."""
    sha256: str | None = None
    """Of that file; filled in at submission."""
    ship: list[Annotated[str, Field(min_length=1)]] = []
    """Files and folders that travel with the study, by paths below its file's folder (a script's
    own), so that workers need not have them; they import the objective from there."""
    package: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """The digest of what travels; filled in at submission. Another one makes another study."""


class StudySpec(_Model):
    """A study: what to run, over which space, towards what."""

    version: Literal[1] = 1
    name: str = Field(pattern=_NAME)
    """Letters, digits, dot, dash, underscore; names keys in Redis and a directory."""
    objective: str = FINETUNE
    """`finetune`, `package.module:function` or `/path/file.py:function`."""
    direction: Direction | None = None
    directions: list[Direction] | None = None
    metric: str | list[str] | None = None
    """What the objective's value is called; picks from the mapping if it returns one."""
    trials: int = Field(default=20, ge=1)
    """How many trials to run in all."""
    timeout: float | None = Field(default=None, gt=0.0)
    """Seconds after which no further trial is started."""
    trial_timeout: float | None = Field(default=None, gt=0.0)
    """Seconds for which one trial may hold slots, all its attempts together, before it FAILED."""
    budget: BudgetSpec = BudgetSpec()
    stop: StopSpec = StopSpec()
    max_failures: int = Field(default=3, ge=1)
    """Failures of one trial (exceptions, exits, no progress) after which it is DEAD."""
    max_losses: int = Field(default=10, ge=1)
    """Processes that one trial may take down, or lose with their hosts, before it is DEAD."""
    progress_timeout: float = Field(default=600.0, gt=0.0)
    """Seconds without a training step after which an attempt counts as hung and is ended."""
    sampler: SamplerSpec = SamplerSpec()
    pruner: PrunerSpec = PrunerSpec()
    space: dict[str, Dimension] = {}
    """Parameters by dotted name of the setting; empty where the objective suggests its own."""
    config: dict[str, Any] = {}
    """The objective's fixed settings."""
    resources: ResourcesSpec = ResourcesSpec()
    share: ShareSpec = ShareSpec()
    keep: KeepSpec = KeepSpec()
    wandb: WandbSpec | None = None
    """A run a trial; without it, where the worker has credentials or `WANDB_MODE`."""
    code: CodeSpec = CodeSpec()
    on_end: str | None = None
    """Run once when the study has ended, with its status as JSON: a command of a shell, on standard
    input, or the URL of a web hook, as the body of a POST."""
    warm_start: WarmStart | None = Field(default=None, alias="from")
    """`from`: a study, or `study` with its `home` or `storage`, whose complete trials the sampler
    learns from."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    @field_validator("timeout", "trial_timeout", "progress_timeout", mode="before")
    @classmethod
    def _parse_duration(cls, value: Any) -> Any:
        return parse_duration(value) if isinstance(value, str) else value

    @field_validator("warm_start", mode="before")
    @classmethod
    def _expand_study(cls, value: Any) -> Any:
        return {"study": value} if isinstance(value, str) else value

    @field_validator("sampler", "pruner", mode="before")
    @classmethod
    def _expand_name(cls, value: Any) -> Any:
        return {"type": value} if isinstance(value, str) else value

    @field_validator("wandb", mode="before")
    @classmethod
    def _expand_mode(cls, value: Any) -> Any:
        if isinstance(value, bool):
            return {} if value else {"mode": "disabled"}
        return {"mode": value} if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _empty_is_default(cls, fields: Any) -> Any:
        """A key with nothing behind it (`space:`) is one that is not there."""
        if not isinstance(fields, Mapping):
            return fields
        return {name: value for name, value in fields.items() if value is not None}

    @model_validator(mode="after")
    def _directions_agree(self) -> StudySpec:
        if self.direction is not None and self.directions is not None:
            raise ValueError("give `direction` or `directions`, not both")
        if self.directions is not None and not self.directions:
            raise ValueError("`directions` is empty; give one for each objective value")
        if self.metric is not None and len(self.metrics) != len(self.all_directions):
            raise ValueError(
                f"`metric` names {len(self.metrics)} values and `directions`"
                f" {len(self.all_directions)}; give one metric for each direction"
            )
        return self

    @model_validator(mode="after")
    def _stops_make_sense(self) -> StudySpec:
        if len(self.all_directions) > 1:
            for name in ("target", "patience"):
                if getattr(self.stop, name) is not None:
                    raise ValueError(
                        f"stop.{name} needs one value, and the study has several directions; leave"
                        " it out"
                    )
        if self.stop.min_delta and self.stop.patience is None:
            raise ValueError("stop.min_delta says nothing without stop.patience; give both")
        return self

    def limit(self, charge: Charge) -> int:
        """After how many attempts that count as `charge` a trial is DEAD."""
        return self.max_failures if charge is Charge.FAILURE else self.max_losses

    @property
    def all_directions(self) -> list[Direction]:
        """One direction for each objective value; like Optuna, `minimize` where none is given."""
        return self.directions or [self.direction or "minimize"]

    @property
    def metrics(self) -> list[str]:
        """One name for each objective value; empty where the study names none."""
        if self.metric is None:
            return []
        return [self.metric] if isinstance(self.metric, str) else self.metric

    @classmethod
    def read(cls, stored: str | Mapping[str, Any]) -> StudySpec:
        """A specification, or its identity, as some release stored it.

        Fields that a later release added are left out, and those that an earlier one lacks have
        their defaults.

        Raises:
            ValidationError: It is none, or of a version that this release does not read.
        """
        fields = json.loads(stored) if isinstance(stored, str) else stored
        return cls.model_validate(fields, context=_STORED)

    def identity(self) -> dict[str, Any]:
        """All that makes two submissions the same study, as plain JSON, without defaults."""
        identity = self.model_dump(mode="json", exclude=set(EXTENDABLE), exclude_defaults=True)
        for dimension in identity.get("space", {}).values():
            dimension.pop("default", None)  # says what was, not what is to be
        own = self._config_without_defaults()
        config = {name: each for name, each in identity.pop("config", {}).items() if name in own}
        if config:
            identity["config"] = config
        identity["directions"] = self.all_directions
        identity.pop("direction", None)
        if self.code.package is not None:
            identity["code"] = {"package": self.code.package}
        return {"name": self.name, **identity}

    def digest(self) -> str:
        """A sha256 over the specification without defaults: a field that is added alters none."""
        text = self.model_dump_json(exclude_defaults=True)
        return f"v2:{hashlib.sha256(text.encode()).hexdigest()}"

    def work(self) -> str:
        """A sha256 over what its trials run, which no extension and no wider space changes.

        Two specifications of the same identity have the same.
        """
        config = self._config_without_defaults()
        work = [_WORK_VERSION, self.name, self.objective, config, self.code.package]
        return hashlib.sha256(json.dumps(work, sort_keys=True).encode()).hexdigest()

    def _config_without_defaults(self) -> dict[str, Any]:
        config = dict(self.config)
        if self.objective == FINETUNE and config.get("task") == DEFAULT_TASK:
            del config["task"]
        return config

    def trial_seed(self, number: int) -> int:
        """The seed of trial `number`: the same for each of its attempts, in [0, 2**31)."""
        text = f"{self.sampler.seed}:{number}".encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:4]) >> 1


_NUMBER: Final = r"\d+(?:\.\d+)?"
#: What `parse_duration` reads.
DURATION_PATTERN: Final = rf"^\s*(?:{_NUMBER}|(?:{_NUMBER}\s*[dhms]\s*)+)\s*$"
_DURATION: Final = re.compile(DURATION_PATTERN)
_PART: Final = re.compile(rf"({_NUMBER})\s*([dhms]?)")
_UNIT_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_duration(text: str) -> float:
    """Read `90`, `90s`, `15m`, `1h30m` or `1d` as seconds.

    Raises:
        ValueError: The text is none of these.
    """
    parts = _PART.findall(text)
    units = [unit for _, unit in parts]
    if _DURATION.match(text) is None or len(set(units)) < len(units):
        raise ValueError(f"{text!r} is no duration; write 90s, 15m, 2h, 1h30m or 1d")
    return sum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts)


def merge_params(config: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """Lay `params`, whose names are dotted paths, over `config`."""
    merged = deepcopy(dict(config))
    for path, value in params.items():
        *parents, leaf = path.split(".")
        node = merged
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return merged
