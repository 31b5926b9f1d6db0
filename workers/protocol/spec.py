"""The specification of a study, as submitted, stored and read by every side."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias

from pydantic import ConfigDict, Field, field_validator, model_validator

from workers.protocol.durations import parse_duration
from workers.protocol.parameters import Dimension
from workers.protocol.states import Charge
from workers.protocol.stored_model import STORED, StoredModel
from workers.protocol.study_options import (
    BudgetSpec,
    CodeSpec,
    KeepSpec,
    PrunerSpec,
    ResourcesSpec,
    SamplerSpec,
    ShareSpec,
    StopSpec,
    WandbSpec,
    WarmStart,
)
from workers.protocol.tasks import DEFAULT_TASK

#: The name of the built-in objective.
FINETUNE: Final = "finetune"

#: The objective by which `trialfleet doctor` tries a fleet: it trains nothing, and is built in.
SELF_CHECK: Final = "self-check"

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

Direction: TypeAlias = Literal["maximize", "minimize"]

_NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$"


def is_study_name(text: str) -> bool:
    """Whether a study can have this name."""
    return re.fullmatch(_NAME.strip("^$"), text) is not None


class StudySpec(StoredModel):
    """A study: what to run, over which space, towards what."""

    version: Literal[1] = 1
    """Of this form of a study; there is one."""
    name: str = Field(pattern=_NAME)
    """Letters, digits, dot, dash, underscore; names keys in Redis and a directory."""
    objective: str = FINETUNE
    """`finetune`, `package.module:function` or `/path/file.py:function`."""
    direction: Direction | None = None
    """The better side of the value; by default `minimize`, or what is usual of `metric`."""
    directions: list[Direction] | None = None
    """One for each value, in place of `direction`, for several objectives."""
    metric: str | list[str] | None = None
    """What the objective's value is called; picks from the mapping if it returns one."""
    trials: int = Field(default=20, ge=1, le=10**9)
    """How many trials to run in all."""
    timeout: float | None = Field(default=None, gt=0.0)
    """Seconds after which no further trial is started."""
    trial_timeout: float | None = Field(default=None, gt=0.0)
    """Seconds for which one trial may hold slots, all its attempts together, before it FAILED."""
    budget: BudgetSpec = BudgetSpec()
    """What the study may use up."""
    stop: StopSpec = StopSpec()
    """What ends it earlier."""
    max_failures: int = Field(default=3, ge=1)
    """Failures of one trial (exceptions, exits, no progress) after which it is DEAD."""
    max_losses: int = Field(default=10, ge=1)
    """Processes that one trial may take down, or lose with their hosts, before it is DEAD."""
    progress_timeout: float = Field(default=600.0, gt=0.0)
    """Seconds without a training step after which an attempt counts as hung and is ended."""
    sampler: SamplerSpec = SamplerSpec()
    """What proposes parameters."""
    pruner: PrunerSpec = PrunerSpec()
    """What ends trials that are not promising."""
    space: dict[str, Dimension] = Field(default={})
    """Parameters by dotted name of the setting; empty where the objective suggests its own."""
    config: dict[str, Any] = Field(default={})
    """The objective's fixed settings."""
    resources: ResourcesSpec = ResourcesSpec()
    """Which slots run its trials."""
    share: ShareSpec = ShareSpec()
    """How many of the slots of a queue that others want, too."""
    keep: KeepSpec = KeepSpec()
    """What stays of trials that have ended."""
    wandb: WandbSpec | None = None
    """A run a trial; without it, where the worker has credentials or `WANDB_MODE`."""
    code: CodeSpec = CodeSpec()
    """Which code runs, and whether it travels."""
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
        return cls.model_validate(fields, context=STORED)

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
