"""The attributes of studies and trials that the fleet itself keeps with the results."""

from __future__ import annotations

from typing import Final

from workers.protocol.plain import OWN_PREFIX

#: Prefix of the attributes that the fleet itself keeps in the storage.
ATTR: Final = OWN_PREFIX

#: The study attribute that says that its sampler has nothing more to suggest.
EXHAUSTED_ATTR: Final = f"{ATTR}exhausted"

#: The trial attribute that says which order asked for it, so that none is carried out twice.
ORDER_ATTR: Final = f"{ATTR}order"

#: The trial attribute that says which trial it retries.
RETRIES_ATTR: Final = f"{ATTR}retries"

#: The study attribute that says what people want of it (a `Wish`), for when Redis forgot it.
WISH_ATTR: Final = f"{ATTR}wish"

#: The study attribute that says why no further trial is started, and with which traceback.
ENDED_BY_ATTR: Final = f"{ATTR}ended_by"

#: The study attribute that says how many trials had ended when somebody went on with the study.
FORGIVEN_ATTR: Final = f"{ATTR}forgiven"

#: The study attribute that holds the whole specification.
SPEC_ATTR: Final = f"{ATTR}spec"

#: The study attribute that holds what makes two submissions the same study.
IDENTITY_ATTR: Final = f"{ATTR}identity"

#: The study attribute that tells a study from an earlier one of its name that was removed.
GENERATION_ATTR: Final = f"{ATTR}generation"

#: The study attribute that says that `trialfleet run` alone is to go on with it.
BY_RUN_ATTR: Final = f"{ATTR}by_run"
