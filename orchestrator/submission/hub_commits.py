"""Which commits of a hub a study reads: looked up once, when it is handed in.

Invariant: all trials of a study, also of one that is extended, read the same commits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from workers.protocol.errors import InvalidInputError
from workers.protocol.finetune import HUB
from workers.protocol.parameters import CategoricalDimension
from workers.protocol.spec import FINETUNE, StudySpec
from workers.remote.hub import RepoKind, commit_of, is_on_hub, is_switched_off, parts_of
from workers.remote.hub_data import is_directory
from workers.remote.patience import Patience

#: The settings that name something on a hub, by section.
_NAMES: Final[dict[str, tuple[RepoKind, tuple[str, ...]]]] = {
    "data": ("dataset", ("source", "validation")),
    "model": ("model", ("id",)),
    "tokenizer": ("model", ("id",)),
}


def with_commits(spec: StudySpec, known: Mapping[str, Any] | None = None) -> StudySpec:
    """A study of the built-in objective with the commit of each hub id that it may read.

    With the network switched off, what was never fetched stays as it is.

    Args:
        spec: The study.
        known: The `config` of the study that has its name already, whose commits stay.

    Raises:
        InvalidInputError: The hub has no such repository or revision.
        RemoteUnavailableError: The hub does not answer, whatever was tried.
    """
    if spec.objective != FINETUNE:
        return spec
    config = dict(spec.config)
    for section, (kind, settings) in _NAMES.items():
        fields = config.get(section, {})
        if not isinstance(fields, Mapping):
            continue  # it is refused when the study is checked
        commits = dict(fields.get("commits") or {})
        before = ((known or {}).get(section) or {}).get("commits") or {}
        for setting in settings:
            for name in _named(spec, fields, section, setting):
                field = f"config.{section}.{setting} = {name!r}"
                found = before.get(name) or commits.get(name)
                found = found or _commit(kind, name, fields.get("revision"), field)
                if found is not None:
                    commits[name] = found
        if commits:
            config[section] = {**fields, "commits": commits}
    return spec if config == spec.config else spec.model_copy(update={"config": config})


def _named(spec: StudySpec, fields: Mapping[str, Any], section: str, setting: str) -> Iterable[str]:
    """The hub ids that a setting may have in some trial."""
    dimension = spec.space.get(f"{section}.{setting}")
    choices = dimension.choices if isinstance(dimension, CategoricalDimension) else []
    for name in [fields.get(setting), *choices]:
        if not isinstance(name, str):
            continue
        if section != "data":
            if is_on_hub(name):
                yield name
        elif name.startswith(HUB) and not is_directory(name):
            yield name


def _commit(kind: RepoKind, name: str, revision: str | None, field: str) -> str | None:
    repository, own_revision = parts_of(name.removeprefix(HUB))
    wanted = own_revision or (str(revision) if revision is not None else None)
    try:
        return Patience().ask(field, lambda: commit_of(kind, repository, wanted))
    except (OSError, ValueError) as error:
        if is_switched_off():
            return None
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InvalidInputError(
            f"{field}{'' if wanted is None else f' at revision {wanted!r}'}: the hub does not give"
            f" it ({first}); mend the name, or log in with a token that may read it; a path is"
            " written with a leading ./ or /"
        ) from error
