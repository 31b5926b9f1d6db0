"""A slot of a worker by hand: takes what is announced, and claims it, without Celery."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Final

import redis

from workers.coordination import keys
from workers.coordination.grants import Grant
from workers.coordination.leases import TrialLeases
from workers.coordination.studies import Studies
from workers.protocol.messages import RunTrial
from workers.settings import Settings

#: For how long a message is waited for.
_WAIT_SECONDS: Final = 0.2


def claimed(client: redis.Redis, settings: Settings) -> Iterator[tuple[TrialLeases, int, Grant]]:
    """The trials of the next message, claimed one after the other; none where no message comes."""
    popped = client.blpop([f"{keys.CELERY_PREFIX}default"], timeout=_WAIT_SECONDS)
    if popped is None:
        return
    body = base64.b64decode(json.loads(popped[1])["body"])
    hint = RunTrial(**json.loads(body)[1]["message"])
    leases = Studies(client).leases(hint.study, hint.epoch)
    for number in (hint.number, *hint.more):
        grant = leases.claim(number, "bench", settings.times.lease)
        if isinstance(grant, Grant):
            yield leases, number, grant
