"""Low-rank adapters (LoRA) as a study asks for them; what else peft takes is checked by it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

#: What `LoraConfig` of peft takes, and the fleet sets itself.
_OURS: Final = (
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_type",
    "peft_version",
    "revision",
    "task_type",
)

#: How adapters may begin; the other ways change the pretrained weights, or take data for it.
_INIT: Final = (True, False, "gaussian", "orthogonal")


class LoraOptions(BaseModel):
    """Adapters in place of the weights of a pretrained model, and all of its head."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    r: int = Field(default=8, ge=1)
    """The rank of each adapter."""
    alpha: float = Field(default=16.0, gt=0.0)
    """What an adapter adds is scaled by alpha / r."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Of what goes into the adapters."""
    target_modules: str | list[str] = "all-linear"
    """The modules that get one, by the ends of their names, such as `[query, value]`, or by an
    expression; `all-linear` is every linear layer below the head."""

    @field_validator("target_modules")
    @classmethod
    def _is_pattern(cls, modules: str | list[str]) -> str | list[str]:
        if isinstance(modules, str):
            try:
                re.compile(modules)
            except re.error as error:
                raise ValueError(f"it is no regular expression: {error}") from error
        return modules

    @model_validator(mode="after")
    def _leave_out_what_is_ours(self) -> LoraOptions:
        for name in _OURS:
            if name in self.further:
                raise ValueError(f"{name}: the fleet sets it; leave it out")
        for own, name in (("alpha", "lora_alpha"), ("dropout", "lora_dropout")):
            if name in self.further:
                raise ValueError(f"{name}: it is called {own} here")
        start = self.further.get("init_lora_weights", True)
        if start not in _INIT:
            raise ValueError(
                f"init_lora_weights = {start!r}: it would change the pretrained weights, or takes"
                " data; give true, gaussian or orthogonal"
            )
        return self

    @property
    def further(self) -> Mapping[str, Any]:
        """The other arguments of peft's `LoraConfig`."""
        return self.model_extra or {}
