"""The code that a trial runs: its objective's file, commit and packages, the host, the GPU.

Invariant: it is found out once for each state of an objective's file, never once a trial; what
cannot be found out is None.
"""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from workers.logs import get_logger
from workers.objective_source import find_shipped, find_source, sha256_of
from workers.processes.registry import ProcessRecord
from workers.protocol.spec import StudySpec

log = get_logger(__name__)

#: The packages whose versions decide what a training computes.
_PACKAGES: Final = ("trialfleet", "torch", "transformers", "optuna")

#: How long git may take; of a working tree on a slow share nothing is told.
_GIT_SECONDS: Final = 5.0


class CodeThatRan:
    """What this process would run for a study, and whether that is what was submitted.

    Args:
        record: This process's entry in the registry, which tells where other code than the
            submitter's lies.
    """

    def __init__(self, record: ProcessRecord) -> None:
        self._record = record
        #: study -> the sum of what lies here, where it is not the submitter's
        self._other: dict[str, str] = {}

    def facts(self, spec: StudySpec, root: Path | None = None) -> dict[str, Any]:
        """What is recorded with a trial of a study.

        Args:
            spec: The study.
            root: Where the code lies that came with it, if it ships any.
        """
        file = find_source(spec.objective) if root is None else find_shipped(spec.objective, root)
        digest = None if file is None else sha256_of(file)
        is_here = file is not None and root is None
        commit, is_dirty = _git_state(file, digest) if file and is_here else (None, None)
        shown = file.relative_to(root) if file and root else file
        return {
            "file": None if shown is None else str(shown),
            "sha256": digest,
            **({} if root is None else {"package": spec.code.package}),
            "git_commit": commit,
            "git_dirty": is_dirty,
            **_versions(),
            "host": self._record.identity.host,
            "gpu": self._record.gpu,
        }

    def differs(self, spec: StudySpec) -> bool:
        """Whether the objective's file here is another one than the submitter's; said once.

        Raises:
            redis.RedisError: Redis is away.
        """
        other = _other_sum(spec)
        if other is not None:
            self._note(spec, other)
        elif self._other.pop(spec.name, None) is not None:
            self._record.update(other_code=dict(self._other))
        return other is not None

    def is_other(self, spec: StudySpec) -> bool:
        """The same, without a word."""
        return _other_sum(spec) is not None

    def _note(self, spec: StudySpec, here: str) -> None:
        if self._other.get(spec.name) == here:
            return
        self._other[spec.name] = here
        self._record.update(other_code=dict(self._other))
        log.warning(
            "objective_differs",
            study=spec.name,
            objective=spec.objective,
            submitted=spec.code.sha256,
            here=here,
            hint="its trials are left to other workers"
            if spec.code.must_match
            else "it runs what lies here; `code: {must_match: true}` would leave it to others",
        )


def _other_sum(spec: StudySpec) -> str | None:
    """The sum of the objective's file here, if it is another one than the submitter's."""
    file = find_source(spec.objective) if spec.code.sha256 is not None else None
    here = None if file is None else sha256_of(file)
    return None if here == spec.code.sha256 else here


@functools.cache
def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


@functools.lru_cache(maxsize=64)
def _git_state(file: Path, _digest: str | None) -> tuple[str | None, bool | None]:
    """The commit that a file is of, and whether it, or another file of that tree, was changed."""
    told = _git(file, "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*")
    if told is None:
        return None, None
    commit, _, dirty = told.partition("-")
    is_tracked = _git(file, "ls-files", "--error-unmatch", "--", file.name) is not None
    return commit, bool(dirty) or not is_tracked


def _git(file: Path, *arguments: str) -> str | None:
    """What git says in a file's folder; None where it says nothing."""
    program = shutil.which("git")
    if program is None:
        return None
    try:
        finished = subprocess.run(
            [program, "-C", str(file.parent), *arguments],
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_GIT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    text = finished.stdout.decode(errors="replace").strip()
    return text if finished.returncode == 0 and text else None
