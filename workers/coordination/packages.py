"""Packages in Redis: the code that studies ship, by its digest, once for all that ship the same.

Invariant: a package is there for as long as a study names it, and what `fetch` returns was signed
for that very study by a secret of this fleet, if there is one here. Its digest is checked by
whoever unpacks it.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Final

import redis

from workers.coordination import keys
from workers.coordination.scripts import call
from workers.protocol.errors import PackageError
from workers.protocol.packages import Package
from workers.protocol.seals import UNSEALED, Seal

#: The fields of a package's hash: its content, and by study, the seal that lets that study run it.
_CONTENT: Final = "content"
_STUDY: Final = "study:"


@dataclass(frozen=True)
class Packages:
    """The packages that this Redis holds.

    Args:
        client: The Redis.
        seal: Signs packages, and refuses those that are not signed.
    """

    client: redis.Redis
    seal: Seal = UNSEALED

    def ship(self, study: str, package: Package) -> None:
        """Have a package be there for a study; before the study is."""
        seal = self.seal.put("package", study, package.digest)
        arguments = {"study": study, "seal": seal, "content": _encoded(package)}
        call(self.client, "ship", {"code": keys.code(package.digest)}, arguments)

    def drop(self, study: str, digest: str) -> None:
        """Have a study name a package no more; the last one takes it along."""
        call(self.client, "unship", {"code": keys.code(digest)}, {"study": study})

    def is_latest(self, study: str, package: Package) -> bool:
        """Whether a package is there for a study as it is, signed by the secret that signs now."""
        fields = [f"{_STUDY}{study}", _CONTENT]
        seal, content = self.client.hmget(keys.code(package.digest), fields)
        if seal is None or content != _encoded(package):
            return False
        return self.seal.is_latest(seal, "package", study, package.digest)

    def check(self, study: str, digest: str) -> None:
        """Refuse a package that is not there for a study, or not signed for it.

        Raises:
            PackageError: It is not there.
            UnsealedError: It is not signed.
        """
        seal = self.client.hget(keys.code(digest), f"{_STUDY}{study}")
        if seal is None:
            raise _missing(study, digest)
        what = f"package {digest[:12]} of study {study!r}"
        way = "hand the study in again (`trialfleet submit`) with this FLEET_SECRET"
        self.seal.check(seal, "package", study, digest, what=what, way=way)

    def fetch(self, study: str, digest: str) -> Package:
        """A package as it lies there; whoever unpacks it checks its digest.

        Raises:
            PackageError: It is not there.
            UnsealedError: It is not signed for this study.
        """
        self.check(study, digest)
        text = self.client.hget(keys.code(digest), _CONTENT)
        if text is None:
            raise _missing(study, digest)
        try:
            return Package(digest, base64.b64decode(text, validate=True))
        except binascii.Error as error:
            raise PackageError(f"package {digest[:12]} of study {study!r}: {error}") from error


def _encoded(package: Package) -> str:
    return base64.b64encode(package.content).decode()


def _missing(study: str, digest: str) -> PackageError:
    return PackageError(
        f"package {digest[:12]} of study {study!r} is not in Redis: hand the study in again, with"
        " its files"
    )
