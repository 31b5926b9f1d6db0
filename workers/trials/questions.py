"""What an attempt asks the orchestrator while it waits: parameters, and verdicts on its reports.

Invariant: an answer is taken for the question that is open, and for no other.
"""

from __future__ import annotations

import json
import time
from functools import partial
from typing import Any, Final

from optuna import distributions
from optuna.distributions import BaseDistribution

from workers.protocol.errors import ObjectiveError, TransientError, UnsealedError
from workers.trials.held_lease import HeldLease

#: After which a suggestion is asked for again: the orchestrator may have been restarted.
_ASK_AGAIN_SECONDS: Final = 5.0

#: How long one blocking read lasts, between looks at the lease.
_READ_SECONDS: Final = 0.5


class Questions:
    """Asks under the lease of one attempt, and waits for the answers."""

    def __init__(self, lease: HeldLease) -> None:
        self._lease = lease

    def ask(self, name: str, distribution: BaseDistribution) -> Any:
        """A parameter, suggested from a distribution.

        Raises:
            ObjectiveError: The sampler has none.
            TransientError: The answer is signed by no secret of this worker's.
            LeaseLost: Somebody else may run the trial now.
        """
        lease, text = self._lease, distributions.distribution_to_json(distribution)
        while True:
            lease.check()
            status, *rest = lease.patiently(
                lambda: lease.leases.suggest(lease.number, lease.token, name, text)
            )
            if status == "LOST":
                lease.give_up()
            if status == "VALUE":
                return self._answered(name, *rest)
            reply = self._await_reply(f"suggest:{name}", _ASK_AGAIN_SECONDS)
            if reply is not None and "error" in reply:
                raise ObjectiveError(f"{name}: {reply['error']}")
            if reply is not None:
                return self._answered(name, json.dumps(reply["value"]), reply.get("seal"))

    def verdict(self, step: int, timeout_seconds: float) -> bool:
        """Whether the pruner gives the trial up by its report of `step`; False if none."""
        verdict = self._await_reply(f"report:{step}", timeout_seconds)
        return verdict is not None and bool(verdict["prune"])

    def _answered(self, name: str, value: str, seal: str | None) -> Any:
        """A parameter that the orchestrator answered with, in JSON.

        Raises:
            TransientError: It is signed by no secret of this worker's.
        """
        try:
            self._lease.leases.check_answer(self._lease.number, name, value, seal)
        except UnsealedError as error:
            raise TransientError(str(error)) from error
        return json.loads(value)

    def _await_reply(self, request: str, timeout_seconds: float) -> dict[str, Any] | None:
        lease = self._lease
        deadline = time.monotonic() + timeout_seconds
        while (left := deadline - time.monotonic()) > 0:
            if lease.is_lost:
                lease.give_up()
            wait_seconds = min(left, _READ_SECONDS)
            reply = lease.patiently(
                partial(lease.leases.await_reply, lease.number, lease.token, wait_seconds)
            )
            # answers to requests that were given up may still lie in the list
            if reply is not None and reply["request"] == request:
                return reply
        return None
