"""What speaks against a device: trials under which it broke, and whether it is put aside.

A device is a GPU of a host, by its UUID, or one of a worker's slots on a CPU. What is written of
it is forgotten with the start of its worker, with a trial that succeeds on it, and after a day.

Invariant: a device is put aside only where at least two trials that it broke under succeeded on
another one: what breaks everywhere comes from the objective.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final, NamedTuple

import redis

from workers.coordination import keys
from workers.coordination.studies import Studies
from workers.protocol.states import TrialState

#: How many trials must have broken a device and succeeded elsewhere, before it is put aside.
ENOUGH: Final = 2

#: How many trials are remembered of a device, the latest.
_MOST: Final = 20

#: How long anything is remembered: 1 day.
_KEEP_MS: Final = 24 * 3600 * 1000

_ASIDE: Final = "aside"
_TRIALS: Final = "trials"


class Victim(NamedTuple):
    """A trial under which a device broke."""

    study: str
    number: int


@dataclass(frozen=True)
class DeviceMarks:
    """The marks against one device.

    Args:
        client: The fleet's Redis.
        device: Its name.
    """

    client: redis.Redis
    device: str

    def victims(self) -> list[Victim]:
        """The trials under which it broke since one last succeeded on it."""
        text = self.client.hget(keys.device(self.device), _TRIALS)
        return [] if text is None else [Victim(*each) for each in json.loads(text)]

    def note(self, victim: Victim) -> None:
        """Note that it broke under a trial."""
        others = [each for each in self.victims() if each != victim]
        self._write(_TRIALS, json.dumps([*others, victim][-_MOST:]))

    def succeeded_elsewhere(self) -> list[Victim]:
        """Those of its victims that ended well on another device."""
        return [each for each in self.victims() if self._ended_well_elsewhere(each)]

    def aside(self) -> str | None:
        """Why it is put aside; None if it is not."""
        reason: str | None = self.client.hget(keys.device(self.device), _ASIDE)
        return reason

    def put_aside(self, reason: str) -> None:
        """Have it take no trials any more."""
        self._write(_ASIDE, reason)

    def clear(self) -> None:
        """Forget all that speaks against it."""
        self.client.delete(keys.device(self.device))

    def _write(self, field: str, value: str) -> None:
        pipeline = self.client.pipeline()
        pipeline.hset(keys.device(self.device), field, value)
        pipeline.pexpire(keys.device(self.device), _KEEP_MS)
        pipeline.execute()

    def _ended_well_elsewhere(self, victim: Victim) -> bool:
        record = Studies(self.client).leases(victim.study).record(victim.number)
        return (
            record is not None
            and record.state in {TrialState.COMPLETE, TrialState.PRUNED}
            and record.device not in {None, self.device}
        )
