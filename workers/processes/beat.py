"""Keeps this process's record in the registry alive for as long as the process lives."""

from __future__ import annotations

import threading

import redis

from workers.logs import get_logger
from workers.processes.registry import ProcessRecord

log = get_logger(__name__)


class ProcessBeat:
    """A thread that beats for a record until it is stopped."""

    def __init__(self, record: ProcessRecord, beat_seconds: float) -> None:
        self._record = record
        self._beat_seconds = beat_seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="process-beat", daemon=True)

    def start(self) -> None:
        """Start to beat."""
        self._thread.start()

    def stop(self) -> None:
        """Stop, and wait for the last beat to end."""
        self._ended.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._ended.wait(self._beat_seconds):
            try:
                self._record.beat()
            except redis.RedisError as error:
                log.warning("process_beat_failed", error=str(error))
