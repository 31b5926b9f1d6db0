"""Real texts that every Python carries: the docstrings and the source of its standard library."""

from __future__ import annotations

import ast
import json
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

#: Modules of which fewer docstrings are known tell nothing.
_FEWEST: Final = 60

#: What is no part of the library that people read.
_LEFT_OUT: Final = {"test", "tests", "idlelib", "site-packages", "lib2to3", "pydoc_data"}


def sources(limit: int | None = None) -> Iterator[tuple[str, str]]:
    """The top-level module and the text of each file, in a fixed order; `limit` files at most."""
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(path for path in root.rglob("*.py") if not _LEFT_OUT & {*path.parts})
    for path in files[:limit]:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        yield path.relative_to(root).parts[0].removesuffix(".py"), text


def write_docstrings(path: Path, limit: int | None = None) -> Path:
    """Which module is a docstring from? JSON lines with `text` and `label`, each text once."""
    found: dict[str, str] = {}
    for module, source in sources(limit):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                found.setdefault(ast.get_docstring(node) or "", module)
    counts = Counter(found.values())
    rows = [(text, label) for text, label in found.items() if text and counts[label] >= _FEWEST]
    lines = (json.dumps({"text": text, "label": label}) for text, label in rows)
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def write_sources(path: Path, limit: int | None = None) -> Path:
    """JSON lines with the `text` of each file, as far as it is not blank."""
    texts = (source for _, source in sources(limit) if source.strip())
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    return path
