"""Seals: HMACs by which a process tells what its own fleet wrote from what others put into Redis.

Invariant: without a secret nothing is sealed and everything is taken; with one, only what was
sealed by a secret that is accepted here. A seal of one thing fits no other.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias

from workers.protocol.errors import UnsealedError

#: What is sealed; the first part of the bytes, so that a seal of one kind fits no other.
Subject: TypeAlias = Literal["study", "hint", "trial", "answer", "told", "package"]

#: Before all bytes: what else the secret may be used for.
_DOMAIN: Final = b"trialfleet 1\n"

#: A secret shorter than that can be guessed by whoever has one seal.
MIN_CHARACTERS: Final = 16


@dataclass(frozen=True)
class Seal:
    """The secrets of a fleet: the first one seals, all are accepted."""

    secrets: tuple[bytes, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, text: str | None) -> Seal:
        """The secrets that a text names, separated by commas or lines."""
        return cls(tuple(each.encode() for each in secrets_in(text or "")))

    def __bool__(self) -> bool:
        return bool(self.secrets)

    def marks(self) -> list[str]:
        """Eight digits by which each secret is told from others; a seal of nothing, cut short."""
        return [_mac(each, _DOMAIN + b"mark")[:8] for each in self.secrets]

    def put(self, subject: Subject, *parts: Any) -> str:
        """The seal of some parts, which JSON holds; empty without a secret."""
        return _mac(self.secrets[0], _canonical(subject, parts)) if self.secrets else ""

    def fits(self, seal: str | None, subject: Subject, *parts: Any) -> bool:
        """Whether parts were sealed by a secret that is accepted here; without one, always."""
        if not self.secrets:
            return True
        text, given = _canonical(subject, parts), (seal or "").encode("utf-8", "replace")
        fitting = False
        for each in self.secrets:  # all of them, whichever fits: how long it takes tells nothing
            fitting |= hmac.compare_digest(_mac(each, text).encode(), given)
        return fitting

    def is_latest(self, seal: str | None, subject: Subject, *parts: Any) -> bool:
        """Whether they were sealed by the secret that seals now; nothing to do without one."""
        return Seal(self.secrets[:1]).fits(seal, subject, *parts)

    def check(self, seal: str | None, subject: Subject, *parts: Any, what: str, way: str) -> None:
        """Refuse what was not sealed by a secret that is accepted here.

        Args:
            seal: What lies with it; None or empty if nothing.
            subject: What it is.
            parts: Its parts.
            what: Its name, for people.
            way: What to do.

        Raises:
            UnsealedError: It was not.
        """
        if not self.fits(seal, subject, *parts):
            how = "is signed with another secret, or was altered" if seal else "is not signed"
            raise UnsealedError(f"FLEET_SECRET is set here, and {what} {how}: {way}")


#: What to do where the members of a fleet do not agree.
WAY_OUT: Final = "give the orchestrator, and every worker, the same FLEET_SECRET"

#: Of a fleet without a secret, and of whoever only looks.
UNSEALED: Final = Seal()


def secrets_in(text: str) -> list[str]:
    """The secrets that a text names, separated by commas or lines."""
    lines = (part.strip() for line in text.splitlines() for part in line.split(","))
    return [part for part in lines if part]


def _canonical(subject: Subject, parts: Sequence[Any]) -> bytes:
    """The same bytes for the same parts, and other ones for others: JSON escapes what separates."""
    text = json.dumps([subject, *parts], sort_keys=True, separators=(",", ":"))
    return _DOMAIN + text.encode()


def _mac(secret: bytes, text: bytes) -> str:
    return hmac.digest(secret, text, hashlib.sha256).hex()


#: In a trial's record: its seal, and that of an answer of the orchestrator's, by parameter.
RECORD_SEAL: Final = "seal"
ANSWER_SEAL: Final = "seal:"


@dataclass(frozen=True)
class TrialSeals:
    """Seals of the trials of one study.

    Args:
        seal: The fleet's secrets.
        study: The study.
        generation: Its own: a trial of an earlier study of the name is no other's.
        work: What identifies what its trials run.
    """

    seal: Seal
    study: str
    generation: str
    work: str

    def put(self, number: int, params: Mapping[str, str], drawn: str) -> str:
        """The field that seals a record as it is enqueued; empty without a secret.

        Args:
            number: The trial.
            params: The parameters that it begins with, in JSON.
            drawn: What its objective may ask for, in JSON.
        """
        if not self.seal:
            return ""
        mac = self.seal.put("trial", *self._parts(number, params, drawn))
        return json.dumps({"params": sorted(params), "mac": mac})

    def answer(self, number: int, name: str, value: str) -> str:
        """The seal of a parameter that the orchestrator answers with; `value` is JSON."""
        return self.seal.put("answer", self.study, self.generation, number, name, value)

    def told(self, number: int, token: int, kind: str, subject: str, body: str) -> str:
        """The seal of an entry of the inbox; empty without a secret.

        Args:
            number: The trial.
            token: Of the attempt that tells it; 0 of whoever ends one and knows no token.
            kind: Of the entry.
            subject: Likewise.
            body: Likewise.
        """
        return self.seal.put(
            "told", self.study, self.generation, number, token, kind, subject, body
        )

    def is_told(
        self, seal: str, number: int, token: int, kind: str, subject: str, body: str
    ) -> bool:
        """Whether a member of the fleet put an entry into the inbox; without a secret, always."""
        parts = kind, subject, body
        return any(
            self.seal.fits(seal, "told", self.study, self.generation, number, each, *parts)
            for each in (token, 0)
        )

    def is_latest(self, number: int, fields: Mapping[str, str]) -> bool:
        """Whether all of a record is the fleet's, by the secret that seals now."""
        try:
            replace(self, seal=Seal(self.seal.secrets[:1])).check(number, fields)
        except UnsealedError:
            return False
        return True

    def has_sealed_drawn(self, number: int, fields: Mapping[str, str]) -> bool:
        """Whether a record's draws, and what it began with, are the fleet's, by any secret."""
        mac, parts = self._main(number, fields)
        return self.seal.fits(mac, "trial", *parts)

    def check(self, number: int, fields: Mapping[str, str]) -> None:
        """Refuse a record that the fleet did not write, with all parameters that it has by now.

        Raises:
            UnsealedError: It did not.
        """
        if not self.seal:
            return
        mac, parts = self._main(number, fields)
        what = f"the record of trial {number} of study {self.study!r}"
        self.seal.check(mac, "trial", *parts, what=what, way=WAY_OUT)
        begun_with = parts[-2]
        drawn = json.loads(fields.get("drawn") or "{}")
        for field_name, value in fields.items():
            name = field_name.removeprefix("param:")
            if name == field_name or name in begun_with:
                continue
            # as text: NaN is not equal to itself, and 1 is to true
            if name in drawn and value == json.dumps(drawn[name]["value"]):
                continue  # the objective asked for what was drawn, and sealed, before
            self.check_answer(number, name, value, fields.get(ANSWER_SEAL + name))

    def check_answer(self, number: int, name: str, value: str, seal: str | None) -> None:
        """Refuse a parameter that the orchestrator did not answer with.

        Raises:
            UnsealedError: It did not.
        """
        parts = self.study, self.generation, number, name, value
        what = f"{name} of trial {number} of study {self.study!r}"
        self.seal.check(seal, "answer", *parts, what=what, way=WAY_OUT)

    def _main(self, number: int, fields: Mapping[str, str]) -> tuple[str | None, list[Any]]:
        """A record's own seal, and what it is over."""
        names, mac = _read(fields.get(RECORD_SEAL))
        params = {name: fields.get(f"param:{name}", "") for name in names}
        return mac, self._parts(number, params, fields.get("drawn", ""))

    def _parts(self, number: int, params: Mapping[str, str], drawn: str) -> list[Any]:
        return [self.study, self.generation, self.work, number, dict(params), drawn]


def _read(field_value: str | None) -> tuple[list[str], str | None]:
    """The names of the parameters that a record's seal is over, and the seal; or nothing."""
    try:
        read = json.loads(field_value or "null")
        return list(map(str, read["params"])), str(read["mac"])
    except (ValueError, TypeError, KeyError):
        return [], field_value
