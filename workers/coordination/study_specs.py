"""The specifications of studies in Redis: read, signed, and changed.

Invariant: a study's specification changes only in what may be extended; its name is for ever.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from workers.coordination import keys
from workers.coordination.scripts import Value, call
from workers.coordination.study_names import StudyNames
from workers.coordination.submitted import ending, speaking_of
from workers.protocol.errors import InvalidInputError, UnsealedError
from workers.protocol.plain import describe_error
from workers.protocol.seals import UNSEALED, Seal
from workers.protocol.spec import StudySpec
from workers.protocol.states import Wish


@dataclass(frozen=True)
class StudySpecs(StudyNames):
    """The specifications of the studies that this Redis knows."""

    #: Who drives the studies of which it writes, of an orchestrator: one that does not writes none.
    leader: str = ""
    #: Signs specifications, and refuses those that are not signed; whoever only looks takes all.
    seal: Seal = UNSEALED

    def spec(self, name: str) -> StudySpec:
        """A study's specification.

        Raises:
            InvalidInputError: There is no such study, or what lies there is no specification.
            UnsealedError: It is not signed.
        """
        return self.spec_and_sha1(name)[0]

    def spec_and_sha1(self, name: str) -> tuple[StudySpec, str]:
        """A study's specification, and the sum of its text by which a claim knows it again.

        Raises:
            InvalidInputError: There is no such study, or what lies there is no specification.
            UnsealedError: It is not signed.
        """
        text, seal = self.client.hmget(keys.study(name), "spec", "seal")
        spec = self._read_spec(name, text, seal)
        return spec, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    def text(self, name: str) -> str | None:
        """A study's specification as it lies there; None if there is no such study."""
        found: str | None = self.client.hget(keys.study(name), "spec")
        return found

    def is_sealed(self, name: str) -> bool:
        """Whether a study was signed, by whatever secret."""
        return bool(self.client.hexists(keys.study(name), "seal"))

    def renew_seal(self, name: str) -> None:
        """Have a specification be signed by the secret that signs now; orchestrator only.

        Raises:
            InvalidInputError: There is no such study.
            UnsealedError: It is not signed by one that is accepted.
        """
        text, seal = self.client.hmget(keys.study(name), "spec", "seal")
        if text is not None and not self.seal.is_latest(seal, "study", name, text):
            self.rewrite(name, lambda spec: spec)

    def _sealed(self, name: str, text: str) -> str:
        return self.seal.put("study", name, text)

    def refuse_to_unseal(self, name: str) -> None:
        """Refuse to hand in a study without a secret that was handed in with one.

        Raises:
            UnsealedError: So it is.
        """
        if not self.seal and self.is_sealed(name):
            raise UnsealedError(
                f"study {name!r} is signed, and there is no FLEET_SECRET here: set the one that it"
                " was handed in with"
            )

    def _read_spec(self, name: str, text: str | None, seal: str | None) -> StudySpec:
        if text is None:
            raise self.unknown(name)
        what = f"the specification of study {name!r}"
        way = "hand it in again (`trialfleet submit`) with this FLEET_SECRET"
        self.seal.check(seal, "study", name, text, what=what, way=way)
        return self.read_text(name, text)

    def read_text(self, name: str, text: str) -> StudySpec:
        """A specification as it lies in Redis, whoever has signed it.

        Raises:
            InvalidInputError: It is none.
        """
        try:
            return StudySpec.read(text)
        except ValueError as error:
            raise InvalidInputError(
                f"study {name!r}: its specification in Redis cannot be read"
                f" ({describe_error(error, 200)}); submit it again, with this release"
            ) from error

    def change_spec(self, name: str, change: Callable[[StudySpec], StudySpec]) -> StudySpec:
        """Change a study's specification, whoever else changes it at the same time.

        Args:
            name: The study.
            change: Gives the new specification for the one that there is; may be called again.

        Raises:
            InvalidInputError: There is no such study, or its end was asked for.
            UnsealedError: It is not signed by a secret that there is here.
        """
        self.refuse_to_unseal(name)
        return self._change_spec(name, change, by_people=True)

    def rewrite(self, name: str, change: Callable[[StudySpec], StudySpec]) -> StudySpec:
        """Bring a specification to what the storage has, whatever is wanted; orchestrator only.

        Args:
            name: The study.
            change: As in `change_spec`.

        Raises:
            InvalidInputError: There is no such study.
        """
        return self._change_spec(name, change, by_people=False)

    def _change_spec(
        self, name: str, change: Callable[[StudySpec], StudySpec], *, by_people: bool
    ) -> StudySpec:
        while True:
            read, seal = self.client.hmget(keys.study(name), "spec", "seal")
            spec = change(self._read_spec(name, read, seal))
            written = spec.model_dump_json()
            arguments: dict[str, Value] = {
                "name": name,
                "read": read,
                "written": written,
                "seal": self._sealed(name, written),
                "is_asked": int(by_people),
            }
            status, *rest = call(self.client, "respec", speaking_of(name), arguments)
            if status == "OK":
                return spec
            if status == "UNKNOWN":
                raise self.unknown(name)
            if status == "ENDING":
                raise ending(name, Wish(rest[0]))
