"""What is to be done in the store: a folder of empty files, each of which names one errand.

Invariant: an errand outlives the process that left it, and is forgotten when it is done.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final, Literal, NamedTuple, get_args

Kind = Literal["checkpoint", "result", "forget", "delete"]

_KINDS: Final = get_args(Kind)

#: What says that the store is away, for those who would wait for it.
_AWAY: Final = "away"


class Errand(NamedTuple):
    """Something to be done in the store."""

    kind: Kind
    """To upload a checkpoint or a result; to forget a trial's checkpoints; to delete a study."""
    study: str
    number: int = 0
    token: int = 0
    step: int = 0
    generation: str = ""
    """The study's; empty for one without."""

    @property
    def name(self) -> str:
        """What its file is called; no study's name holds an `@`."""
        return "@".join(map(str, self))

    @classmethod
    def named(cls, name: str) -> Errand | None:
        """The errand of a file, if it is one's."""
        kind, *rest = name.split("@")
        if kind not in _KINDS or len(rest) != 5 or not all(map(str.isdecimal, rest[1:4])):
            return None
        number, token, step = map(int, rest[1:4])
        return cls(kind, rest[0], number, token, step, rest[4])  # type: ignore[arg-type]  # of _KINDS


class Uploads:
    """The errands of one home.

    Args:
        home: The home.
        has_store: Whether there is a store; where not, nothing is noted.
    """

    def __init__(self, home: Path, *, has_store: bool) -> None:
        self.folder = home / "uploads"
        self._has_store = has_store

    def add(self, errand: Errand) -> None:
        """Note an errand; a disk that takes no more costs the upload, and not the training."""
        if not self._has_store:
            return
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / errand.name).touch()

    def waiting(self) -> list[Errand]:
        """What is to be done; of a trial's checkpoints the newest alone."""
        found = [errand for path in self.folder.glob("*@*") if (errand := Errand.named(path.name))]
        newest = {
            (errand.study, errand.generation, errand.number): errand
            for errand in sorted(found, key=lambda errand: (errand.token, errand.step))
            if errand.kind == "checkpoint"
        }
        kept = set(newest.values())
        for errand in found:
            if errand.kind == "checkpoint" and errand not in kept:
                self.done(errand)
        return [errand for errand in found if errand.kind != "checkpoint"] + list(newest.values())

    def done(self, errand: Errand) -> None:
        """Forget an errand."""
        (self.folder / errand.name).unlink(missing_ok=True)

    def is_waiting(self, study: str, number: int) -> bool:
        """Whether a checkpoint of a trial is to be uploaded, by a store that is not away."""
        pattern = f"checkpoint@{study}@{number}@*"
        return any(self.folder.glob(pattern)) and not (self.folder / _AWAY).exists()

    def note_away(self, *, is_away: bool) -> None:
        """Say whether the store is away."""
        with suppress(OSError):
            if is_away:
                (self.folder / _AWAY).touch()
            else:
                (self.folder / _AWAY).unlink(missing_ok=True)
