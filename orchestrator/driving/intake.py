"""Reads the inboxes of all studies that are driven, and hands each what is its own.

Invariant: no study waits for what another one's trials tell, and no question for ends of trials.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import redis

from orchestrator.driving.roster import Roster
from workers.coordination.connection import is_general
from workers.coordination.inbox import Entry, Inbox, are_ends

#: How long ends of trials may wait for others, to be taken in with them: each turn costs the same,
#: whatever it takes in. Trials are kept ready for longer, so that no slot waits for it.
_GATHER_SECONDS: Final = 0.02

#: The same where all studies have trials so short that they wait ready by the dozen.
_SHORT_SECONDS: Final = 0.02
_GATHER_SHORT_SECONDS: Final = 0.08


class Intake:
    """Hands out what trials tell.

    Args:
        inbox: Reads it.
        roster: The studies that are driven.
    """

    def __init__(self, inbox: Inbox, roster: Roster) -> None:
        self._inbox = inbox
        self._roster = roster
        self._read_at = 0.0
        self.are_ends = False
        """Whether all that was read last were ends of trials."""

    def hand_out(self, studies: Sequence[str], block_ms: int) -> None:
        """Give the drivers of some studies what their trials tell.

        Args:
            studies: Those that are open.
            block_ms: How long to wait for it.

        Raises:
            redis.RedisError: Redis is away, or refuses everybody.
        """
        if not studies:
            time.sleep(block_ms / 1000)
            return
        try:
            gathered = self._gather(studies)
            # of all of them, whoever told what was gathered: no study is to wait for another's
            entries = gathered + self._inbox.read(studies, 1 if gathered else block_ms)
        except redis.ResponseError as error:
            if is_general(error):
                raise
            for name in studies:  # it is of one of them, and names none: each is to be asked
                self._roster.drivers[name].is_disturbed = True
            return
        self._read_at, self.are_ends = time.monotonic(), are_ends(each for _, each in entries)
        by_study: dict[str, list[Entry]] = {}
        for name, entry in entries:
            by_study.setdefault(name, []).append(entry)
        for name, own in by_study.items():
            self._roster.drivers[name].hand(own)

    def _has_short_trials(self, study: str) -> bool:
        driver = self._roster.drivers.get(study)
        opened = None if driver is None else driver.open_study
        seconds = None if opened is None else opened.tally.trial_seconds
        return seconds is not None and seconds <= _SHORT_SECONDS

    def _gather(self, studies: Sequence[str]) -> list[tuple[str, Entry]]:
        """Let further ends of trials come in, where ends came, as long as nobody asks anything."""
        gathered: list[tuple[str, Entry]] = []
        are_short = self.are_ends and all(map(self._has_short_trials, studies))
        until = self._read_at + (_GATHER_SHORT_SECONDS if are_short else _GATHER_SECONDS)
        asking = [name for name in studies if not self._roster.submitted[name].spec.space]
        while self.are_ends and (left := until - time.monotonic()) > 0:
            if not asking:
                time.sleep(left)
                break
            found = self._inbox.read(asking, max(1, int(left * 1000)))
            gathered += found
            if found and not are_ends(each for _, each in found):
                break
        return gathered
