"""What the pages of the documentation say of files, headings, studies and code is so."""

from __future__ import annotations

import re
import subprocess
import textwrap
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from guide import blocks_of

from orchestrator.submission.study import build_spec

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    ROOT / line
    for line in subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    ).stdout.splitlines()
)  # fmt: skip
GUIDES = [page for page in PAGES if page.is_relative_to(ROOT / "ops" / "guides")]


def anchors(page):
    """What GitHub makes of a page's headings."""
    lines = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", lines, re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_link_leads_somewhere(page):
    broken = []
    text = re.sub(r"`[^`\n]*`", "", page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_fragment_of_a_guide_is_python_or_part_of_a_study(page):
    for block in blocks_of(page):
        if block.mark:
            continue
        if block.language == "python":
            compile(f"def fragment():\n{textwrap.indent(block.text, ' ')}", str(page), "exec")
        if block.language == "yaml" and block.file is None:
            fields = {"name": "part", "objective": "a:b", **yaml.safe_load(block.text)}
            build_spec(fields, str(page), base=page.parent)
