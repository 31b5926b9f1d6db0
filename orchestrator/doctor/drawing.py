"""What was found, for a terminal: a group a subject, a line a finding, its fix below it."""

from __future__ import annotations

from typing import Final

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from orchestrator.doctor.examination import Group
from orchestrator.doctor.findings import Finding, Level
from orchestrator.views.ps import printable

_SIGNS: Final = {
    Level.OK: Text("ok", style="green"),
    Level.WARNING: Text("warn", style="yellow"),
    Level.ERROR: Text("ERR", style="bold red"),
}


def draw_group(group: Group) -> RenderableType:
    """Draw what was found of one subject."""
    table = Table.grid(padding=(0, 1))
    table.add_column(width=4, no_wrap=True)
    table.add_column(overflow="fold")
    for finding in group.findings:
        table.add_row(_SIGNS[finding.level], _line(finding))
    return Lines(
        Text(printable(group.subject), style="bold"), Padding(table, (0, 0, 0, 2), expand=False)
    )


def summary(groups: list[Group]) -> Text:
    """The last line: how much is not fine."""
    levels = [finding.level for group in groups for finding in group.findings]
    errors, warnings = levels.count(Level.ERROR), levels.count(Level.WARNING)
    if not errors and not warnings:
        return Text(f"all {len(levels)} looks were fine", style="green")
    counted = [(errors, "error"), (warnings, "warning")]
    named = [f"{count} {word}{'s' * (count > 1)}" for count, word in counted if count]
    return Text(f"{' and '.join(named)} of {len(levels)} looks", style="yellow")


def _line(finding: Finding) -> Text:
    line = Text(f"{printable(finding.looked_at)}: ", style="bold" if finding.fix else "")
    line.append(printable(finding.told), style="none")
    if finding.fix is not None:
        line.append("\nfix: ", style="dim")
        line.append(printable(finding.fix), style="cyan")
    return line
