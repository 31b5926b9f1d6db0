"""Reads a page of the documentation as its reader follows it: files, commands, fragments.

A fence after a paragraph that names a file and ends in a colon is that file. An HTML comment right
above a fence says what else is true of it: `in the background`, or `elsewhere: why it is not run`.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]

_FILE: Final = re.compile(r"`([\w./-]+\.\w+)`")
_MARK: Final = re.compile(r"<!-- (in the background|elsewhere: .+?) -->")


@dataclass(frozen=True)
class Block:
    """A fence of a page."""

    language: str
    text: str
    file: str | None
    """The file that it is."""
    mark: str
    """What is said of it above it, or nothing."""

    @property
    def is_elsewhere(self) -> bool:
        """Whether it cannot be run here; why not, its mark says."""
        return self.mark.startswith("elsewhere")

    @property
    def is_to_be_run(self) -> bool:
        """Whether it is commands that a test has to run."""
        return self.language == "bash" and not self.is_elsewhere


def pages() -> list[Path]:
    """The pages of the documentation, from the repository's root."""
    asked = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    listed = subprocess.run(asked, capture_output=True, text=True, check=True, cwd=ROOT)
    return [
        page for page in map(Path, sorted(listed.stdout.split("\n"))) if (ROOT / page).is_file()
    ]


def blocks_of(page: Path) -> list[Block]:
    """The fences of a page, in order."""
    return list(_blocks(page.read_text().splitlines()))


def _blocks(lines: list[str]) -> Iterator[Block]:
    before: list[str] = []
    rest = iter(lines)
    for line in rest:
        if not line.startswith("```"):
            before.append(line)
            continue
        text: list[str] = []
        for inner in rest:
            if inner == "```":
                break
            text.append(inner)
        yield _block(line.removeprefix("```"), "\n".join(text) + "\n", before)
        before = []


def _block(language: str, text: str, before: list[str]) -> Block:
    paragraph = "\n".join(before).strip().rpartition("\n\n")[2]
    mark = _MARK.fullmatch(paragraph.rpartition("\n")[2])
    names = _FILE.findall(paragraph) if paragraph.endswith(":") else []
    return Block(language, text, names[-1] if names else None, mark[1] if mark else "")
