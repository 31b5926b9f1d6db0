"""A study file of one trial's parameters, to run what was found once more, or elsewhere.

Invariant: its one trial has the parameters that the trial had, whatever the objective asks for.
"""

from __future__ import annotations

from typing import Any, Final

from optuna.trial import FrozenTrial

from orchestrator.submission.space import values_of
from workers.protocol.parameters import merge_params
from workers.protocol.spec import FINETUNE, StudySpec

#: The longest name that a study may have.
_NAME_LENGTH: Final = 100


def fixed_fields(spec: StudySpec, trial: FrozenTrial) -> dict[str, Any]:
    """The fields of a study of one trial.

    Args:
        spec: The study.
        trial: One of its trials.

    Returns:
        Settings of `finetune` with the parameters among them; of any other objective, a space with
        one choice a parameter, since its code asks for them by name.
    """
    suffix = f"-trial-{trial.number}"
    fields: dict[str, Any] = {
        "name": f"{spec.name[: _NAME_LENGTH - len(suffix)]}{suffix}",
        "objective": spec.objective,
        **_directions(spec),
        "trials": 1,
    }
    kept = {"max_failures", "max_losses", "progress_timeout", "resources"}
    fields |= spec.model_dump(mode="json", include=kept, exclude_defaults=True)
    if spec.sampler.seed is not None:
        fields["sampler"] = {"type": "random", "seed": spec.sampler.seed}
    if spec.code.ship:
        fields["code"] = {"ship": spec.code.ship}
    params = values_of(spec, trial.params)
    if spec.objective == FINETUNE:
        return {**fields, "config": merge_params(spec.config, params)}
    if params:
        fields["space"] = {
            name: {"type": "categorical", "choices": [value]} for name, value in params.items()
        }
    return {**fields, "config": spec.config} if spec.config else fields


def _directions(spec: StudySpec) -> dict[str, Any]:
    fields = spec.model_dump(mode="json", include={"direction", "directions", "metric"})
    return {name: value for name, value in fields.items() if value is not None}
