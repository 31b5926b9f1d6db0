"""The two clocks of the protocol: the server's, and the one that a holder trusts its lease by."""

from __future__ import annotations

import time

import redis

#: On the server time runs on while this machine sleeps; CLOCK_MONOTONIC would not notice.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def lease_clock() -> float:
    """Seconds on this host's clock, the time during which it was suspended included."""
    return time.clock_gettime(_CLOCK)


def server_time_ms(client: redis.Redis) -> int:
    """Milliseconds since 1970 on the server's clock."""
    seconds, microseconds = client.time()
    return int(seconds) * 1000 + int(microseconds) // 1000
