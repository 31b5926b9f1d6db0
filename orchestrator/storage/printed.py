"""What a trial's attempts printed: from this machine's home, from Redis, from the store.

Invariant: nothing is changed, and each part is given with its place in all that was printed, so
that whoever follows shows nothing twice.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import redis
from pydantic import BaseModel

from workers.coordination.trial_output import KeptOutput, TrialOutput
from workers.disk.object_store import ObjectStore
from workers.disk.output_files import FoundOutput, OutputFile, outputs_of
from workers.disk.store_layout import outputs_of as keys_of
from workers.settings import Settings


class PrintedAttempt(BaseModel):
    """What is known of what one attempt printed."""

    attempt: int
    token: int
    source: Literal["home", "redis", "store"]
    is_over: bool
    """Whether it prints no more, as far as Redis tells."""
    end: int
    """Bytes that it has printed in all."""
    text: str
    """The last of it; of what a file has cut out, a line tells."""
    is_whole: bool
    """Whether that is all that is kept of it anywhere."""

    def after(self, end: int) -> str:
        """What it printed after so many bytes, as far as that is known."""
        content = self.text.encode()
        missing = max(0, self.end - end)
        return content[len(content) - min(missing, len(content)) :].decode(errors="ignore")


def printed_by(
    settings: Settings,
    client: redis.Redis | None,
    study: str,
    trial: int,
    generation: str | None = None,
    most_bytes: int | None = None,
) -> list[PrintedAttempt]:
    """What a trial's attempts printed, in their order; none of those that printed nothing.

    Args:
        settings: Name the home and the store.
        client: The fleet's Redis, if it answers.
        study: The study.
        trial: The trial's number.
        generation: The study's, by which the home and the store name what they have.
        most_bytes: Of each attempt, as much is read from the end of its file; by default, all.

    Raises:
        redis.RedisError: Redis went away.
        StoreAwayError: What is in neither home nor Redis, the store does not give.
    """
    found: dict[int, PrintedAttempt] = {
        each.token: _of_file(each, "home", most_bytes)
        for each in outputs_of(settings.home, study, trial, generation)
    }
    kept = [] if client is None else TrialOutput(client).of(study, trial)
    for each in kept:
        found[each.token] = _joined(found.get(each.token), each)
    is_whole = all(each.is_whole for each in found.values())
    if (not found or not is_whole) and (store := ObjectStore.of(settings)) is not None:
        keys = store.keys(keys_of(study, generation, trial))
        wanted = [key for key in keys if _is_wanted(key, found)]
        for stored in _of_store(store, wanted):
            before = found.get(stored.token)
            if before is None or stored.end >= before.end:
                found[stored.token] = stored
    return [found[token] for token in sorted(found)]


def _of_file(
    found: FoundOutput, source: Literal["home", "store"], most_bytes: int | None = None
) -> PrintedAttempt:
    if most_bytes is None:
        (text, end), is_whole = found.file.read(), True
    else:
        text, end, is_whole = found.file.read_end(most_bytes)
    return PrintedAttempt(
        attempt=found.attempt,
        token=found.token,
        source=source,
        is_over=source == "store",
        end=end,
        text=text,
        is_whole=is_whole,
    )


def _joined(file: PrintedAttempt | None, kept: KeptOutput) -> PrintedAttempt:
    """A file with what Redis has beyond it; or what Redis has, where there is no file."""
    size = len(kept.text.encode())
    if file is None:
        return PrintedAttempt(
            attempt=kept.attempt, token=kept.token, source="redis", is_over=kept.is_over,
            end=kept.end, text=kept.text, is_whole=size == kept.end,
        )  # fmt: skip
    beyond = kept.end - file.end
    told: dict[str, object] = {"is_over": kept.is_over}
    if 0 < beyond <= size:
        rest = kept.text.encode()[size - beyond :].decode(errors="ignore")
        told |= {"text": file.text + rest, "end": kept.end}
    return file.model_copy(update=told)


def _is_wanted(key: str, found: dict[int, PrintedAttempt]) -> bool:
    before = found.get(int(key.rpartition("-")[2]))
    return before is None or not before.is_whole


def _of_store(store: ObjectStore, keys: Iterable[str]) -> Iterator[PrintedAttempt]:
    for key in keys:
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "output"
            if store.get(key, target) and (target / "output.log").exists():
                attempt, _, token = key.rpartition("/")[2].partition("-")
                file = OutputFile(target / "output.log")
                yield _of_file(FoundOutput(int(attempt), int(token), file), "store")
