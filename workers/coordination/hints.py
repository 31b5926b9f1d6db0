"""Hints: the Celery messages that tell some worker that a trial may be claimed.

A hint may be lost, doubled, delayed or reordered; sending one again is always safe.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import redis
from celery import Celery
from kombu.exceptions import OperationalError

from workers.coordination import keys
from workers.coordination.address import parse_address
from workers.protocol.messages import RUN_TRIAL, RunTrial
from workers.protocol.seals import UNSEALED, Seal

#: What both sides must agree on, so that a message is neither lost nor run in parallel by Celery.
BROKER_SETTINGS: Final[dict[str, Any]] = {
    "task_ignore_result": True,  # with a backend, a task that ends while Redis is away is FAILURE
    "task_serializer": "json",
    "accept_content": ["json"],
    "task_default_queue": "default",
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,  # a Redis that is away for a day comes back to workers
    "broker_transport_options": {
        "global_keyprefix": keys.CELERY_PREFIX,
        # a pattern of channels is allowed to a user by its very letters: the same in any database
        "fanout_prefix": False,
        # runs from the fetch and is never renewed: it must outlast any trial
        "visibility_timeout": 7 * 24 * 3600,
        # how soon a lost worker's unacknowledged hints return
        "unacked_restore_interval": 10,
        "unacked_restore_throttle": 1,
        "socket_connect_timeout": 3.0,
        "socket_keepalive": True,
    },
}


#: A Redis that does not answer is away: whoever sends a hint has a lease to renew. A worker, which
#: waits in Redis for messages, has no such limit.
_ANSWER_SECONDS: Final = 3.0
_SENDING: Final[dict[str, Any]] = {
    "broker_transport_options": {
        **BROKER_SETTINGS["broker_transport_options"],
        "socket_timeout": _ANSWER_SECONDS,
    },
    # once, on another connection: this one may have been cut off meanwhile
    "task_publish_retry_policy": {"max_retries": 1, "interval_start": 0.1, "interval_max": 0.1},
}


class Hints:
    """Sends hints by the task's name, without importing the task.

    Args:
        redis_url: The fleet's Redis.
        seal: Signs them, if the fleet has a secret.
    """

    def __init__(self, redis_url: str, seal: Seal = UNSEALED) -> None:
        self._seal = seal
        self._app = Celery("trialfleet-hints", set_as_current=False)
        address = parse_address(redis_url)
        server = address.broker_settings(_SENDING["broker_transport_options"])
        self._app.conf.update({**BROKER_SETTINGS, **_SENDING, **server})

    def send(
        self,
        study: str,
        number: int,
        epoch: str,
        queue: str,
        delay_seconds: float = 0.0,
        more: Sequence[int] = (),
    ) -> None:
        """Announce that a trial may be claimed, now or after a delay.

        Args:
            study: The trial's study.
            number: The trial.
            epoch: Of Redis.
            queue: Which slots are to hear of it.
            delay_seconds: How much later.
            more: Trials that the same slot is to run after it.

        Raises:
            redis.ConnectionError: Redis does not take the message.
            redis.exceptions.NoPermissionError: It may not be sent by this user.
        """
        hint = RunTrial(study=study, number=number, epoch=epoch, more=tuple(more))
        self.pass_on(hint.sealed(self._seal), queue, delay_seconds)

    def pass_on(self, hint: RunTrial, queue: str, delay_seconds: float = 0.0) -> None:
        """Send a hint that was received, as it is: whoever signed it answers for it.

        Raises:
            redis.ConnectionError: Redis does not take the message.
            redis.exceptions.NoPermissionError: It may not be sent by this user.
        """
        try:
            self._app.send_task(
                RUN_TRIAL,
                kwargs={"message": hint.encode()},
                queue=queue,
                countdown=delay_seconds or None,
            )
        except OperationalError as error:  # kombu's name for all that can be wrong with a broker
            is_refused = isinstance(error.__cause__, redis.exceptions.NoPermissionError)
            kind = redis.exceptions.NoPermissionError if is_refused else redis.ConnectionError
            raise kind(f"a hint was not sent: {error}") from error

    def waiting(self, client: Any, queue: str) -> int:
        """How many hints lie in a queue that no worker has fetched."""
        return int(client.llen(f"{keys.CELERY_PREFIX}{queue}"))

    def close(self) -> None:
        """Give the broker's connections back."""
        self._app.close()
