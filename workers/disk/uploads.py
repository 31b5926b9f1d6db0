"""What is to be done in the store: a folder of files, each of which names one errand.

A file is empty until its errand failed, and then says why.

Invariant: an errand outlives the process that left it, and is forgotten when it is done.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final, Literal, NamedTuple, get_args

from workers.logs import get_logger

log = get_logger(__name__)

Kind = Literal["checkpoint", "result", "output", "forget", "delete"]

_KINDS: Final = get_args(Kind)

#: What says that the store is away, for those who would wait for it.
_AWAY: Final = "away"


class Errand(NamedTuple):
    """Something to be done in the store."""

    kind: Kind
    """To upload a checkpoint, a result or what an attempt printed; to forget a trial's checkpoints;
    to delete a study."""
    study: str
    number: int = 0
    token: int = 0
    step: int = 0
    """Of a checkpoint; of what an attempt printed, the attempt's number."""
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
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / errand.name).touch()
        except OSError as error:
            log.warning(
                "upload_not_noted",
                errand=errand.name,
                error=str(error),
                hint="make room on the disk",
            )

    def waiting(self) -> list[Errand]:
        """What is to be done, checkpoints last: which of a trial's is wanted, its record says."""
        found = [errand for path in self.folder.glob("*@*") if (errand := Errand.named(path.name))]
        return sorted(found, key=lambda errand: errand.kind == "checkpoint")

    def done(self, errand: Errand) -> None:
        """Forget an errand."""
        (self.folder / errand.name).unlink(missing_ok=True)

    def failed(self, errand: Errand, why: str) -> None:
        """Have nobody wait for an errand that cannot be done now."""
        with suppress(OSError):
            (self.folder / errand.name).write_text(why)

    def is_waiting(self, study: str, number: int) -> bool:
        """Whether a checkpoint of a trial is about to be uploaded: nothing was in its way yet."""
        if not self._has_store or (self.folder / _AWAY).exists():
            return False
        return any(map(_is_empty, self.folder.glob(f"checkpoint@{study}@{number}@*")))

    def note_away(self, *, is_away: bool) -> None:
        """Say whether the store is away."""
        with suppress(OSError):
            if is_away:
                (self.folder / _AWAY).touch()
            else:
                (self.folder / _AWAY).unlink(missing_ok=True)


def _is_empty(path: Path) -> bool:
    try:
        return path.stat().st_size == 0
    except FileNotFoundError:
        return False  # done meanwhile
