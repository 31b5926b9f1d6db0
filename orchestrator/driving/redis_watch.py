"""What this orchestrator's Redis is to it now: well or away, the same server, the same data.

Invariant: nothing is concluded from a Redis that lost its data before the fleet's id is back.
"""

from __future__ import annotations

import redis

from workers.coordination import keys
from workers.coordination.connection import describe_trouble, text_of
from workers.coordination.rights import Role, missing_rights
from workers.coordination.studies import ensure_epoch
from workers.disk.fleet_home import FleetHome
from workers.logs import get_logger
from workers.protocol.errors import HomeRefusedError, InvalidInputError
from workers.settings import Settings

log = get_logger(__name__)


class RedisWatch:
    """Watches the fleet's Redis for an orchestrator.

    Args:
        client: The fleet's Redis.
        home: The fleet's home, led by this orchestrator.
        settings: This orchestrator's.
    """

    def __init__(self, client: redis.Redis, home: FleetHome, settings: Settings) -> None:
        self._client = client
        self._home = home
        self._settings = settings
        #: of Redis, when it was last looked at
        self.epoch = ensure_epoch(client)
        #: whether Redis has taken rights away
        self.is_refused = False
        self._run_id: str | None = None
        self._trouble: str | None = None
        self.reason = ""
        """What people were told of the last error."""

    @property
    def trouble(self) -> str | None:
        """What people are told of the last error, until all goes well again."""
        return None if self._trouble is None else self.reason

    def has_rights(self) -> bool:
        """Whether what Redis refused us is given back: half a turn would be taken over and over."""
        if self.is_refused:
            self.is_refused = bool(missing_rights(self._client, Role.ORCHESTRATOR))
        return not self.is_refused

    def failed(self, error: redis.RedisError | HomeRefusedError) -> str:
        """Take note of an error, and log it the first time; what to tell people of it."""
        self.is_refused = isinstance(error, redis.exceptions.NoPermissionError)
        if text_of(error) == self._trouble:
            return self.reason
        self._trouble = text_of(error)
        if isinstance(error, HomeRefusedError):
            self.reason = str(error)
            log.error("home_refused", error=self.reason, hint="nothing is driven until then")
        else:
            self.reason = describe_trouble(error, self._client, Role.ORCHESTRATOR, self._settings)
            log.warning("redis_lost", error=self.reason, hint="waiting for it to come back")
        return self.reason

    def went_well(self) -> None:
        """Take note that Redis did all that it was asked."""
        self._trouble = None

    def has_lost_data(self) -> bool:
        """Whether it holds other data than when it was last looked at."""
        return bool(self._client.get(keys.EPOCH) != self.epoch)

    def has_restarted(self) -> bool:
        """Whether the server is another one since the last time this was asked."""
        run_id = self._client.info("server").get("run_id")
        before, self._run_id = self._run_id, run_id
        if before in {None, run_id}:
            return False
        log.warning("redis_restarted", run_id=run_id)
        return True

    def take_epoch(self) -> str:
        """The epoch now, from which all is to go on.

        Raises:
            redis.ConnectionError: It lost its data, and is not the fleet's own again yet.
            HomeRefusedError: The home is another fleet's, or its id cannot be read or written.
        """
        try:
            fleet = self._home.try_lead()
        except (InvalidInputError, OSError) as error:
            raise HomeRefusedError(str(error)) from error
        if fleet is None:
            raise redis.ConnectionError("it lost its data, and the fleet's id is not back yet")
        self.epoch = ensure_epoch(self._client)
        return self.epoch
