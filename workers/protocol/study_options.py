"""The sections of a study beside its space: its sampler, share, stops, and what is kept."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from workers.passwords import learn_from
from workers.protocol.stored_model import StoredModel

#: The most trials of which `keep` can say that they are the best.
MAX_BEST: Final = 100

#: A user and a password in a URL.
_PASSWORD: Final = re.compile(r"://[^/@]*:[^/@]*@")


class SamplerSpec(BaseModel):
    """An Optuna sampler by name, or `module:Class`; further keys go to its constructor."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    type: str = "tpe"
    """Such as `tpe`, `gp`, `cmaes`, `random`, `grid`."""
    seed: int | None = None
    """Seeds what it draws, and with it each trial."""
    engine: Literal["rust"] | None = None
    """`rust`: what draws is rustuna's (an extra), many times as fast in studies of thousands of
    trials; it has `tpe`, and does not look at trials that run. By default Optuna's own."""


class PrunerSpec(BaseModel):
    """An Optuna pruner by name, or `module:Class`; further keys go to its constructor."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    type: str = "none"
    """Such as `median`, `hyperband`, `asha`, `patient`."""
    promote: bool = False
    """Of `asha`: a trial is paused at each rung, and the best ones go on where they stopped."""

    @property
    def prunes(self) -> bool:
        """Whether a running trial asks it if it is to be given up."""
        return not self.promote and self.type.lower().removesuffix("pruner") not in {"none", "nop"}


class ResourcesSpec(StoredModel):
    """What a trial needs of the machine that runs it."""

    queue: str = Field(default="default", pattern=r"^[A-Za-z0-9_.-]+$")
    """The Celery queue; a worker reads it with `celery -A workers worker -Q NAME`."""
    gpus: int = Field(default=1, ge=0, le=1)
    """GPUs a trial uses where there are any: each pool process owns at most one."""


class WandbSpec(StoredModel):
    """What a study asks of Weights & Biases."""

    mode: Literal["online", "offline", "disabled"] | None = None
    """By default online where there are credentials, and offline elsewhere."""
    project: str | None = None
    """By default `WANDB_PROJECT`, else `trialfleet`."""
    entity: str | None = Field(default=None, min_length=1)
    """A team or a user; by default `WANDB_ENTITY`, else the credentials'."""
    tags: list[Annotated[str, Field(min_length=1, max_length=64)]] = Field(default=[])
    """Of each run."""

    @field_validator("project")
    @classmethod
    def _is_a_name(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[^/\\#?%:\r\n]{1,128}", value):
            raise ValueError("write up to 128 characters, and none of / \\ # ? % :")
        return value


class ShareSpec(StoredModel):
    """Which part of a queue's slots a study gets while others want them, too."""

    weight: float = Field(default=1.0, ge=1e-6, le=1e6)
    """A study of weight 2 gets twice the slot-seconds of one of weight 1."""
    priority: int = Field(default=0, ge=-5, le=5)
    """A study gets twenty times the slot-seconds of one that stands one step lower; none gets
    nothing."""
    max_slots: int | None = Field(default=None, ge=1)
    """At most so many of its trials run at once."""


class KeepSpec(StoredModel):
    """What stays on disk of trials that have ended."""

    models: str = Field(default="all", pattern=r"^(all|best ([1-9]\d?|100))$")
    """Whose models: of `all` trials that left one, or of the `best 3` complete ones alone, which is
    to say what is called `model`, or `model.*`, in `trial.result_directory`."""

    @property
    def num_models(self) -> int | None:
        """Of how many trials, the best; None for all."""
        return None if self.models == "all" else int(self.models.split()[1])


class BudgetSpec(StoredModel):
    """What a study may use up beside `trials` and `timeout`; then no further trial is started."""

    slot_hours: float | None = Field(default=None, gt=0.0, allow_inf_nan=False)
    """Hours for which its trials may hold slots, all attempts of all trials together."""
    gpu_hours: float | None = Field(default=None, gt=0.0, allow_inf_nan=False)
    """Likewise, slots with a GPU."""


class StopSpec(StoredModel):
    """What ends a study before its budgets do: no further trial is started, those that run end."""

    target: float | None = Field(default=None, allow_inf_nan=False)
    """A value that is good enough."""
    patience: int | None = Field(default=None, ge=1)
    """Trials in a row, complete or pruned, of which none was better than the best before."""
    min_delta: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    """By how much a trial must be better to count as better."""
    equal_failures: int = Field(default=10, ge=0)
    """Trials in a row that failed with the same traceback; 0 for never."""


class WarmStart(StoredModel):
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


class CodeSpec(StoredModel):
    """Which code the trials run."""

    must_match: bool = False
    """Whether workers whose objective's file differs from the submitter's leave it to others."""
    sha256: str | None = None
    """Of that file; filled in at submission."""
    ship: list[Annotated[str, Field(min_length=1)]] = Field(default=[])
    """Files and folders that travel with the study, by paths below its file's folder (a script's
    own), so that workers need not have them; they import the objective from there."""
    package: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """The digest of what travels; filled in at submission. Another one makes another study."""
