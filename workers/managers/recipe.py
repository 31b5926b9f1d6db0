"""Which code builds what is cached: what an earlier release built otherwise is not taken for it."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Final

_PACKAGE: Final = Path(__file__).parents[1]


@functools.cache
def code_digest(*patterns: str, package: Path = _PACKAGE) -> str:
    """Changes with what is in some files of code.

    Args:
        patterns: Which ones, as paths within the package; `texts/*.py` are several.
        package: By default `workers`.
    """
    digest = hashlib.sha256()
    for path in sorted(path for pattern in patterns for path in package.glob(pattern)):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
