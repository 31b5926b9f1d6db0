"""The objective's file as its submitter has it, so that workers can tell theirs from it."""

from __future__ import annotations

import sys
from pathlib import Path

from workers.objective_source import find_source, sha256_of
from workers.protocol.spec import StudySpec


def with_code(spec: StudySpec, import_directory: Path | None) -> StudySpec:
    """The study with the sum of its objective's file, if it has one here.

    Args:
        spec: The study.
        import_directory: Where the objective's module lies, beside the import path.
    """
    file = find_source(spec.objective, [str(import_directory or Path.cwd()), *sys.path])
    digest = None if file is None else sha256_of(file)
    if spec.code.sha256 is not None or digest is None:
        return spec
    return spec.model_copy(update={"code": spec.code.model_copy(update={"sha256": digest})})
