"""Studies as users write them, in YAML or in a script, read into a checked specification.

Invariant: what cannot be read ends in one line that names the field, the value and the way out.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.handle import StudyHandle
from orchestrator.submission.invalid_fields import explain_invalid
from orchestrator.submission.metric_directions import with_direction
from orchestrator.submission.objective_reference import reference_to
from orchestrator.submission.overrides import with_overrides
from orchestrator.submission.shipping import below, ships
from orchestrator.submission.study_file import read_study_file
from workers.protocol.errors import InvalidInputError
from workers.protocol.finetune import FILE_FORMATS, HUB
from workers.protocol.plain import as_setting
from workers.protocol.spec import FINETUNE, StudySpec
from workers.settings import Settings


class Study:
    """A study, as a script makes one.

    Args:
        objective: `finetune`, `package.module:function`, `file.py:function`, or whatever can be
            called with a trial and has a name in a module that workers can import.
        name: By default the objective's.
        direction: `maximize` or `minimize` (the default, as in Optuna).
        directions: One for each value, for several objectives.
        metric: What the value is called; picks it if the objective returns a mapping.
        trials: How many trials to run in all.
        timeout: Seconds, or text such as `2h`, after which no further trial is started.
        trial_timeout: Likewise, for which one trial may hold slots, all its attempts together.
        budget: `slot_hours` and `gpu_hours`, after which no further trial is started.
        stop: `target`, `patience` with `min_delta`, `equal_failures`: what ends the study earlier.
        max_failures: Failures of one trial after which it is given up.
        max_losses: Processes that one trial may take down before it is given up.
        progress_timeout: Seconds, or text, without a training step after which an attempt hangs.
        sampler: A short name, or a mapping with `type`, `seed` and options.
        pruner: A short name, or a mapping with `type` and options.
        space: Parameters by name, as in YAML; empty where the objective suggests its own.
        config: The objective's fixed settings.
        resources: `queue` and `gpus`.
        share: `weight`, `priority` and `max_slots`: its part of the slots that others want, too.
        keep: `models`: what stays of trials that have ended.
        wandb: `mode`, `project`, `entity` and `tags` of a Weights & Biases run a trial, or the
            mode alone.
        warm_start: A study whose complete trials the sampler learns from, as `from` in YAML.
        on_end: A command, or the URL of a web hook, that gets the status as JSON at the end.
        code: `must_match: true` leaves trials to workers whose file of the objective is this one;
            `ship` names files and folders, below the script's own, that travel with the study.

    Raises:
        InvalidInputError: A field holds what it does not take.
    """

    def __init__(
        self,
        objective: str | Callable[..., Any],
        *,
        name: str | None = None,
        direction: str | None = None,
        directions: Sequence[str] | None = None,
        metric: str | Sequence[str] | None = None,
        trials: int = 20,
        timeout: float | str | None = None,
        trial_timeout: float | str | None = None,
        budget: Mapping[str, float] | None = None,
        stop: Mapping[str, float] | None = None,
        max_failures: int = 3,
        max_losses: int = 10,
        progress_timeout: float | str | None = None,
        sampler: str | Mapping[str, Any] | None = None,
        pruner: str | Mapping[str, Any] | None = None,
        space: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        resources: Mapping[str, Any] | None = None,
        share: Mapping[str, float] | None = None,
        keep: Mapping[str, str] | None = None,
        wandb: str | bool | Mapping[str, Any] | None = None,
        warm_start: str | Mapping[str, Any] | None = None,
        on_end: str | None = None,
        code: Mapping[str, Any] | None = None,
    ) -> None:
        reference = objective if isinstance(objective, str) else reference_to(objective)
        fields = {
            "name": name or _name_of(reference),
            "objective": reference,
            "direction": direction,
            "directions": directions,
            "metric": metric,
            "trials": trials,
            "timeout": timeout,
            "trial_timeout": trial_timeout,
            "budget": budget,
            "stop": stop,
            "max_failures": max_failures,
            "max_losses": max_losses,
            "progress_timeout": progress_timeout,
            "sampler": sampler,
            "pruner": pruner,
            "space": space,
            "config": config,
            "resources": resources,
            "share": share,
            "keep": keep,
            "wandb": wandb,
            "from": warm_start,
            "on_end": on_end,
            "code": code,
        }
        given = {
            field: as_setting(value, field) for field, value in fields.items() if value is not None
        }
        #: what `code.ship` names files of
        self._folder = _script_folder()
        self.spec = build_spec(given, "Study", base=Path.cwd(), ship_from=self._folder)

    @classmethod
    def from_file(cls, path: str | Path) -> Study:
        """The study of a YAML file.

        Raises:
            InvalidInputError: The file cannot be read as one.
        """
        study = cls.__new__(cls)
        study.spec = load_study(str(path))
        study._folder = import_directory(str(path))
        return study

    def submit(self, settings: Settings | None = None) -> StudyHandle:
        """Hand the study to the fleet; submitting it again extends it.

        Raises:
            InvalidInputError: The study cannot run; nothing was enqueued.
            RedisUnavailableError: The fleet's Redis does not answer.
        """
        from orchestrator.submission.submit import submit

        ships = bool(self.spec.code.ship)
        folder = self._folder if ships else import_directory(self.spec.objective)
        return submit(self.spec, settings, import_directory=folder)


def load_study(
    reference: str, *, trials: int | None = None, overrides: Sequence[str] = ()
) -> StudySpec:
    """The specification of a YAML file, or of a bare objective.

    Args:
        reference: A YAML file, `module:objective` or `file.py:objective`.
        trials: Overrides the study's number of trials.
        overrides: `NAME=VALUE`, laid over the study's own; their paths are relative to the current
            directory.

    Raises:
        InvalidInputError: It is neither, or a field holds what it does not take.
    """
    if _is_objective(reference):
        fields: dict[str, Any] = {"name": _name_of(reference), "objective": reference}
        origin, base = reference, Path.cwd()
    else:
        path = Path(reference).expanduser()
        fields, origin, base = read_study_file(path), path.name, path.absolute().parent
    if overrides:
        fields = with_overrides(_with_absolute_paths(fields, base), overrides)
        fields, base = {"name": Path(origin).stem, **fields}, Path.cwd()
    if trials is not None:
        fields = {**fields, "trials": trials}
    return build_spec(fields, origin, base=base, ship_from=import_directory(reference))


def import_directory(reference: str) -> Path:
    """The directory whose modules a study may import: its file's, else the current one."""
    name = reference.rpartition(":")[0] if _is_objective(reference) else reference
    path = Path(name).expanduser()
    return path.absolute().parent if path.suffix else Path.cwd()


def build_spec(
    fields: Mapping[str, Any], origin: str, *, base: Path, ship_from: Path | None = None
) -> StudySpec:
    """Check the fields of a study.

    Args:
        fields: As in YAML.
        origin: Where they are from, for messages.
        base: What relative paths of objectives and data are relative to.
        ship_from: What those of code that travels are relative to; by default the same.

    Raises:
        InvalidInputError: The first field that cannot be used, its value, and the way out.
    """
    fields = {"name": Path(origin).stem, **_with_absolute_paths(fields, base)}
    if ships(fields) and isinstance(fields.get("objective"), str):
        fields["objective"] = below(fields["objective"], ship_from or base)
    fields = with_direction(fields)
    try:
        return StudySpec.model_validate(fields)
    except ValidationError as error:
        raise InvalidInputError(f"{origin}: {explain_invalid(error)}") from error


def _script_folder() -> Path:
    """The folder of the script that this process runs; in an interactive session, the current."""
    file = getattr(sys.modules["__main__"], "__file__", None)
    return Path.cwd() if file is None else Path(file).absolute().parent


def _is_objective(reference: str) -> bool:
    """Whether the text is `module:function` or `file.py:function`."""
    module, _, function = reference.rpartition(":")
    return bool(module) and all(part.isidentifier() for part in function.split("."))


def _name_of(reference: str) -> str:
    module, _, function = reference.rpartition(":")
    stem = Path(module).stem if module.endswith(".py") else module
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{stem}-{function}".strip("-"))


def _with_absolute_paths(fields: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """Workers run elsewhere: objectives in files, and data files, travel as absolute paths."""
    resolved = dict(fields)
    objective = resolved.get("objective", FINETUNE)
    if isinstance(objective, str) and ".py:" in objective:
        path, _, function = objective.rpartition(":")
        resolved["objective"] = f"{(base / Path(path).expanduser()).resolve()}:{function}"
    config = resolved.get("config")
    data = config.get("data") if isinstance(config, dict) else None
    if objective == FINETUNE and isinstance(config, dict) and isinstance(data, dict):
        files = {
            key: str((base / Path(value).expanduser()).resolve())
            for key in ("source", "validation")
            if isinstance(value := data.get(key), str)
            and not value.startswith(HUB)
            and Path(value).suffix.lower() in FILE_FORMATS
        }
        files |= {
            key: f"{HUB}{(base / Path(value.removeprefix(HUB)).expanduser()).resolve()}"
            for key in ("source", "validation")
            if isinstance(value := data.get(key), str) and value.startswith((f"{HUB}.", f"{HUB}~"))
        }
        resolved["config"] = {**config, "data": {**data, **files}}
    return resolved
