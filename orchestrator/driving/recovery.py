"""Finds the studies that storage holds unfinished and Redis has forgotten, so that they go on."""

from __future__ import annotations

from collections.abc import Iterator

import optuna

from orchestrator.storage.attributes import (
    BY_RUN_ATTR,
    ENDED_BY_ATTR,
    EXHAUSTED_ATTR,
    GENERATION_ATTR,
    SPEC_ATTR,
    WISH_ATTR,
    is_beside,
)
from orchestrator.storage.opening import open_reader, storage_url, stored_journals
from orchestrator.storage.place import place_of
from orchestrator.storage.tally import Tally
from workers.coordination.address import redact
from workers.coordination.studies import Studies
from workers.coordination.submitted import Origin, Submitted
from workers.logs import get_logger
from workers.protocol.errors import InvalidInputError
from workers.protocol.spec import StudySpec
from workers.protocol.states import Wish
from workers.settings import Settings

log = get_logger(__name__)


def resubmit_forgotten(settings: Settings, studies: Studies) -> list[str]:
    """Write studies that Redis lost there again; their names.

    Those of `FLEET_STORAGE`, or those with a journal under `FLEET_HOME`. A finished study is left
    where it is: the storage alone tells about it. One that was paused or stopped stays so.
    """
    found = []
    for submitted in _unfinished(settings, studies):
        name = submitted.spec.name
        studies.restore(submitted)
        log.warning("study_recovered", study=name, source="storage")
        found.append(name)
    return found


def _unfinished(settings: Settings, known: Studies) -> Iterator[Submitted]:
    for study in _forgotten(settings, known):
        try:
            submitted = _submitted(study, settings)
        except Exception as error:  # noqa: BLE001 - what one of them holds is no other's concern
            log.warning("stored_study_unreadable", study=study.study_name, error=str(error))
            continue
        if submitted is not None:
            yield submitted


def _submitted(study: optuna.Study, settings: Settings) -> Submitted | None:
    """A stored study as it is to go on; None if it is over, or nobody handed it in."""
    attrs = study.user_attrs
    text = attrs.get(SPEC_ATTR)
    if text is None or attrs.get(BY_RUN_ATTR):
        return None  # not made by trialfleet, or interrupted and not handed in
    spec = StudySpec.read(text)
    tally = Tally(spec.all_directions, study.get_trials(deepcopy=False))
    is_over = attrs.get(ENDED_BY_ATTR) or attrs.get(EXHAUSTED_ATTR)
    has_more = tally.num_sampled < spec.trials and not is_over
    if not (tally.open or has_more):
        return None
    origin = Origin(attrs.get(GENERATION_ATTR), place_of(storage_url(settings, spec.name)))
    return Submitted(spec, Wish(attrs.get(WISH_ATTR, Wish.RUN)), origin=origin)


def _forgotten(settings: Settings, known: Studies) -> Iterator[optuna.Study]:
    """The stored studies that Redis does not know; journals of others are not opened."""
    paths = {path.parent.name: path for path in stored_journals(settings.home)}
    forgotten = paths.keys() - known.existing(list(paths))
    journals = [f"journal://{paths[name]}" for name in sorted(forgotten)]
    for url in [settings.storage] if settings.storage else journals:
        try:
            yield from _studies_in(url, known)
        except InvalidInputError:
            raise  # a database that is not there at the start is told to whoever starts
        except Exception:
            log.exception("storage_unreadable", url=redact(url), hint="its studies are left alone")


def _studies_in(url: str, known: Studies) -> list[optuna.Study]:
    storage = open_reader(url)
    if storage is None:
        return []
    names = [each.study_name for each in storage.get_all_studies()]
    there = known.existing(names)
    return [
        optuna.load_study(study_name=name, storage=storage)
        for name in names
        if not (is_beside(name) or name in there)
    ]
