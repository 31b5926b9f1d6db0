"""What the pages of the documentation say of files, headings, studies and code is so."""

from __future__ import annotations

import re
import textwrap
from urllib.parse import unquote

import pytest
import typer
import yaml
from guide import ROOT, blocks_of, pages

from orchestrator.cli import app
from orchestrator.submission.study import build_spec
from workers.coordination.rights import Role, user_line

PAGES = [ROOT / page for page in pages()]
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


#: What begins a line that is to be typed.
COMMAND = re.compile(
    r"\s*(?:(?:export )?FLEET_\w+=|celery -A |docker |pip install |python3? [-\w]|\./ops/|valkey-"
    rf"|trialfleet (?:--|(?:{'|'.join(typer.main.get_command(app).commands)})\b))"
)

#: Those of systemd, in whose place the runbook has others for everywhere else; and what commands
#: say of themselves, written from the code.
SHOWN = {ROOT / "ops/deploy/RUNBOOK.md", ROOT / "ops/guides/reference/commands.md"}


def typed(page):
    """Lines of a page that read like commands, outside of its blocks of commands."""
    for block in blocks_of(page):
        if block.language not in {"bash", "console"} or (
            block.language == "console" and page not in SHOWN
        ):
            yield from filter(COMMAND.match, block.text.splitlines())
    plain = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    yield from filter(COMMAND.match, plain.splitlines())
    yield from re.findall(r"^ {4,}\S.*", plain, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_command_of_a_page_stands_in_a_block_that_a_test_runs(page):
    assert list(typed(page)) == []


@pytest.mark.parametrize("role", Role)
def test_the_users_of_redis_are_shown_as_the_code_makes_them(role):
    shown = (ROOT / "workers" / "coordination" / "README.md").read_text()
    assert user_line(role, role.value) in shown
