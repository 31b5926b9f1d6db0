"""Checkpoints on disk: one directory a token, complete or absent, never touched by another token.

Layout: `<root>/<study>/<number>/<token>/step-<step>/`, with `manifest.json`, what the trial's
attributes were at that step if it had some (`attributes.json`), and either `state.pt` or, of a
trainer that writes files of its own, `files/`. It is written under another name, flushed to disk,
then renamed.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from workers.coordination.trial_record import CheckpointRef
from workers.disk import durable
from workers.disk.checkpoint_content import (
    Kept,
    load_files,
    load_state,
    with_attributes,
    write_attributes,
    write_files,
    write_state,
)
from workers.disk.checkpoint_search import CheckpointSearch, StoredTrial
from workers.disk.manifests import MANIFEST, read_manifests
from workers.disk.object_store import ObjectStore
from workers.disk.store_layout import KEPT, checkpoint_folder, last_before, place_of
from workers.disk.uploads import Errand, Uploads
from workers.logs import get_logger

log = get_logger(__name__)

#: Between two looks at whether the store has something.
_LOOK_SECONDS: Final = 0.1


class CheckpointStore:
    """Saves and loads the checkpoints of all trials under one root directory.

    Args:
        root: The directory.
        uploads: Where it is noted what the store is to get and to lose.
        store: Where checkpoints of other homes are found.
    """

    def __init__(
        self, root: Path, uploads: Uploads | None = None, store: ObjectStore | None = None
    ) -> None:
        self._root = root
        self._uploads = uploads
        self._search = CheckpointSearch(root, store)

    def save(
        self,
        study: str,
        number: int,
        token: int,
        step: int,
        packed: Any,
        attributes: Mapping[str, Any] | None = None,
    ) -> CheckpointRef:
        """Write a checkpoint that is on disk, whole, when this returns.

        Args:
            study: The study's name.
            number: The trial's number.
            token: The attempt's fencing token.
            step: The step after which the state was taken.
            packed: What `state_packing.pack` made of it.
            attributes: The trial's, as plain JSON.

        Raises:
            OSError: The disk takes no more; what was there before still is.
        """
        return self._publish(
            study,
            number,
            token,
            step,
            lambda draft: write_state(draft, packed),
            attributes,
        )

    def save_files(
        self,
        study: str,
        number: int,
        token: int,
        step: int,
        paths: Sequence[Path],
        changing: Sequence[Path] = (),
        attributes: Mapping[str, Any] | None = None,
    ) -> CheckpointRef:
        """Keep files and folders as a checkpoint that is on disk, whole, when this returns.

        Those in `paths` are linked where the file system can, and copied where not: whoever wrote
        them may replace or remove them, and is not to change them in place.

        Args:
            study: The study's name.
            number: The trial's number.
            token: The attempt's fencing token.
            step: The step after which they were written.
            paths: Each is kept under its own name.
            changing: More of them, which may be changed in place, and so are copied.
            attributes: The trial's, as plain JSON.

        Raises:
            OSError: One is not there, or the disk takes no more; what was there before still is.
        """
        return self._publish(
            study,
            number,
            token,
            step,
            lambda draft: write_files(draft, paths, changing),
            attributes,
        )

    def _publish(
        self,
        study: str,
        number: int,
        token: int,
        step: int,
        write: Callable[[Path], str],
        attributes: Mapping[str, Any] | None,
    ) -> CheckpointRef:
        """Put a checkpoint in its place, and drop those of this attempt that it outdates.

        Of a step that the attempt has saved before, what it saved first stays.

        Args:
            study: The study's name.
            number: The trial's number.
            token: The attempt's fencing token.
            step: The step that it holds.
            write: Fills the new directory; the sum over what it wrote.
            attributes: The trial's.
        """
        final = checkpoint_folder(self._root, study, number, token, step)
        own = final.parent
        for saved in read_manifests(own.parent):
            if saved.uri == str(final):
                # Redis may point to it, by its sum: replaced, it would be taken for damaged
                log.warning("checkpoint_kept", step=step, hint="a step is saved once an attempt")
                return saved
        sha256 = ""

        def fill(draft: Path) -> None:
            nonlocal sha256
            draft.mkdir()
            sha256 = write(draft)
            if attributes:
                write_attributes(draft, attributes)
            (draft / MANIFEST).write_text(json.dumps({"step": step, "sha256": sha256}))

        durable.make_whole(final, fill)
        older = sorted(path for path in own.glob("step-*") if path != final)
        for old in older[: 1 - KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        return CheckpointRef(step, str(final), sha256)

    def prune(self, study: str, number: int, token: int, accepted: CheckpointRef) -> None:
        """Keep two checkpoints of a trial, of this attempt and of those before it.

        To be called when Redis has accepted a checkpoint of this attempt: until the next is, nobody
        else holds the trial. What later attempts have is theirs.

        Args:
            study: The study's name.
            number: The trial's number.
            token: The attempt's fencing token.
            accepted: What Redis has accepted: it stays, with the furthest before it. What is
                further could not be loaded, or is from before Redis lost its data.
        """
        folder = self._root / study / str(number)
        own = [ref for ref in read_manifests(folder) if _token_of(ref) <= token]
        stays = last_before(own, place_of(accepted), place_of)
        for ref in own:
            if ref not in stays:
                shutil.rmtree(ref.uri, ignore_errors=True)
        kept = {_token_of(ref) for ref in stays}
        for path in folder.iterdir():
            # an attempt before, of which at most a draft is left
            if path.name.isdecimal() and int(path.name) < token and int(path.name) not in kept:
                shutil.rmtree(path, ignore_errors=True)

    def offer(self, study: str, generation: str | None, number: int, ref: CheckpointRef) -> None:
        """Have a checkpoint that Redis has accepted brought to the store, if there is one."""
        if self._uploads is not None:
            step, token = place_of(ref)
            self._uploads.add(Errand("checkpoint", study, number, token, step, generation or ""))

    def await_upload(self, study: str, number: int, seconds: float) -> None:
        """Wait, at most so long, until the store has a trial's last checkpoint, or is away."""
        until = time.monotonic() + seconds
        while self._uploads is not None and self._uploads.is_waiting(study, number):
            if time.monotonic() > until:
                log.warning("upload_not_awaited", hint="the store is slow; it goes on")
                return
            time.sleep(_LOOK_SECONDS)

    def load_last(
        self, study: str, generation: str | None, number: int, ref: CheckpointRef
    ) -> Kept[dict[str, Any]] | None:
        """The state of `ref`, or, where it is not whole, of the last good one before it.

        Raises:
            TransientError: The store has one, maybe, and does not answer.
        """
        trial = StoredTrial(study, generation, number)
        return self._search.last(
            trial, ref, lambda found: with_attributes(found, load_state(found))
        )

    def load_last_files(
        self, study: str, generation: str | None, number: int, ref: CheckpointRef
    ) -> Kept[Path] | None:
        """The files of `ref`, or, where they are not whole, of the last good one before it.

        Raises:
            TransientError: The store has one, maybe, and does not answer.
        """
        trial = StoredTrial(study, generation, number)
        return self._search.last(
            trial, ref, lambda found: with_attributes(found, load_files(found))
        )

    def remove(self, study: str, generation: str | None, number: int) -> None:
        """Drop all checkpoints of a trial that has ended."""
        if self._uploads is not None:  # first: what is not here any more reminds nobody
            self._uploads.add(Errand("forget", study, number, generation=generation or ""))
        shutil.rmtree(self._root / study / str(number), ignore_errors=True)


def _token_of(ref: CheckpointRef) -> int:
    """The attempt that saved a checkpoint; by the layout of the files."""
    return place_of(ref)[1]
