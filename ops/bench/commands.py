"""What people ask of a study while it is tormented: pause, resume, extend, enqueue, cancel.

A command that Redis was not there to take is no command; one that it took must be carried out once.
"""

from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import redis
from bench_fleet import BenchFleet

from orchestrator.handle import StudyHandle
from orchestrator.storage.attributes import ORDER_ATTR
from workers.protocol.errors import FleetError, InvalidInputError

#: How often each command is chosen; a study that is paused or cancelled is soon resumed.
COMMANDS: Final = {
    "pause": 12, "pause now": 4, "resume": 20, "extend": 4, "enqueue": 12, "cancel": 1,
}  # fmt: skip


@dataclass
class Commands:
    """Asks at random, and knows what must have come of it."""

    bench: BenchFleet
    name: str
    pick: random.Random
    asked: Counter[str] = field(default_factory=Counter)
    points: list[float] = field(default_factory=list)
    """The learning rates of the trials that were ordered."""

    @property
    def handle(self) -> StudyHandle:
        """The study."""
        return StudyHandle(self.name, self.bench.settings)

    def ask(self) -> str | None:
        """Ask for one thing; what it was, if Redis took it and the study allows it."""
        command = self.pick.choices(list(COMMANDS), list(COMMANDS.values()))[0]
        try:
            self._ask(command)
        except (FleetError, redis.RedisError):
            return None  # what was asked before forbids it, or Redis has just been killed
        self.asked[command] += 1
        return command

    def let_go_on(self) -> None:
        """Resume it, should it have been paused or cancelled last."""
        with suppress(InvalidInputError):  # it is over
            self.handle.resume()

    def _ask(self, command: str) -> None:
        handle = self.handle
        if command == "enqueue":
            point = self.pick.uniform(1e-3, 4e-3)
            self.points.append(point)  # also where Redis dies while it answers
            handle.enqueue({"learning_rate": point})
        elif command == "extend":
            handle.extend(trials=handle.spec().trials + 1)
        elif command == "pause now":
            handle.pause(now=True)
        else:
            getattr(handle, command)()

    def wrong_orders(self) -> int:
        """How many ordered trials there are twice or were never ordered, or are missing."""
        trials = self.handle.study.trials
        ordered = [
            trial.system_attrs["fixed_params"]["learning_rate"]
            for trial in trials
            # one that a cancel withdrew is ordered again by the fleet itself, as a retry
            if str(trial.user_attrs.get(ORDER_ATTR, "")).startswith("given:")
        ]
        missing = self.asked["enqueue"] - len(set(ordered))
        strange = sum(point not in self.points for point in ordered)
        return max(0, missing) + strange + len(ordered) - len(set(ordered))
