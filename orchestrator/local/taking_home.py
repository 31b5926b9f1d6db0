"""Taking a trial home: its files, what is known of it, and a study file of its parameters.

Invariant: the folder is there whole, or not at all; what was in it before is never touched.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workers.disk import durable
from workers.protocol.errors import FleetError, InvalidInputError


def check_target(folder: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        InvalidInputError: It does, or it is none.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InvalidInputError(f"--copy {folder}: it is no folder; name one that is new or empty")
    if folder.is_dir() and any(folder.iterdir()):
        raise InvalidInputError(
            f"--copy {folder}: the folder is not empty; name one that is new or empty"
        )


def take_home(folder: Path, files: Path | None, about: Mapping[str, Any], study_file: str) -> None:
    """Make a folder with a trial in it.

    A file of the trial's that has the name of one of ours is `own-NAME` there.

    Args:
        folder: New, or empty.
        files: What the trial left, if it left something.
        about: Becomes `trial.json`.
        study_file: Becomes `study.yaml`.

    Raises:
        InvalidInputError: The folder holds something.
        FleetError: The disk takes no more, or what was to be copied is not there any more.
    """
    check_target(folder)
    told = json.dumps(about, indent=2, ensure_ascii=False, allow_nan=False)
    ours = {"trial.json": f"{told}\n", "study.yaml": study_file}

    def fill(draft: Path) -> None:
        if files is None:
            draft.mkdir()
        else:
            shutil.copytree(files, draft)
        for name, text in ours.items():
            if os.path.lexists(draft / name):  # which the objective left there
                (draft / name).rename(draft / f"own-{name}")
            (draft / name).write_text(text)

    try:
        is_ours = durable.make_once(folder.absolute(), fill)
    except shutil.Error as error:
        problem = error.args[0][0][2] if isinstance(error.args[0], list) else error
        raise FleetError(f"--copy {folder}: {problem}; nothing was copied") from error
    except OSError as error:
        raise FleetError(f"--copy {folder}: {error}; nothing was copied") from error
    if not is_ours:
        check_target(folder)  # somebody was faster
