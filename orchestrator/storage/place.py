"""Where a study's results lie, as the orchestrator decides it, and as others may be told.

Invariant: a place names no user, password or option of a database; a URL that holds them stays in
the settings of those who use it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from optuna.study._frozen import FrozenStudy

from orchestrator.storage.attributes import GENERATION_ATTR
from orchestrator.storage.opening import open_reader, storage_url
from workers.coordination.address import redact
from workers.coordination.identity import hostname
from workers.coordination.submitted import Origin
from workers.protocol.errors import InvalidInputError
from workers.settings import Settings

_JOURNAL: Final = "journal://"
_ON_A_DISK: Final = (_JOURNAL, "sqlite:")


def place_of(url: str) -> str:
    """A storage for people, and for telling one from another: a file with its host."""
    if url.startswith(_ON_A_DISK):
        return f"{redact(url)} on {hostname()}"
    return redact(url)


def locate(settings: Settings, name: str, origin: Origin) -> str:
    """The URL under which this orchestrator has, or is to have, a study's results.

    It is that of its own settings, but for a study whose results were begun elsewhere, by other
    settings or an earlier release: that one's place, if it is a file here.

    Args:
        settings: This orchestrator's.
        name: The study.
        origin: What Redis knows of where its results were begun.

    Raises:
        InvalidInputError: They were begun where this orchestrator does not write.
    """
    own = storage_url(settings, name)
    begun = origin.earlier_url or origin.place
    if begun is None or place_of(own) in {origin.place, _place_of_earlier(origin)}:
        return own
    if origin.generation is not None and _generation_at(own, name) == origin.generation:
        return own  # the same disk, on a host of another name
    if origin.earlier_url is not None and not origin.earlier_url.startswith(_JOURNAL):
        return origin.earlier_url
    url = begun.partition(" on ")[0]
    if url.startswith(_ON_A_DISK) and _file_of(url).exists():
        return url
    raise InvalidInputError(
        f"study {name!r} has its results in {redact(begun)}, and this orchestrator keeps them in"
        f" {place_of(own)}; let one with FLEET_HOME and FLEET_STORAGE of that place drive it, or"
        " hand the study in under another name"
    )


def is_found_by_place(settings: Settings, name: str, url: str) -> bool:
    """Whether a study's place alone tells this orchestrator, or the next, the storage's URL."""
    return url == storage_url(settings, name) or url.startswith(_ON_A_DISK)


def is_gone(settings: Settings, name: str, origin: Origin) -> bool:
    """Whether the results of a study that Redis knows were kept here, and were removed."""
    own = storage_url(settings, name)
    if place_of(own) not in {origin.place, _place_of_earlier(origin)}:
        return False
    return _stored(own, name) is None


def _place_of_earlier(origin: Origin) -> str | None:
    return None if origin.earlier_url is None else place_of(origin.earlier_url)


def _file_of(url: str) -> Path:
    return Path(url.partition("://")[2].removeprefix("/" if url.startswith("sqlite") else ""))


def _stored(url: str, name: str) -> FrozenStudy | None:
    storage = open_reader(url)
    if storage is None:
        return None
    return next((each for each in storage.get_all_studies() if each.study_name == name), None)


def _generation_at(url: str, name: str) -> str | None:
    found = _stored(url, name)
    return None if found is None else found.user_attrs.get(GENERATION_ATTR)
