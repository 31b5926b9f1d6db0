"""A report as one HTML file: its styles, its scripts and plotly.js are in it.

Invariant: the file loads nothing, and runs no script but its own two: what users named is text,
escaped by the template, and the file's policy refuses all else.
"""

from __future__ import annotations

import base64
import datetime as dt
import gzip
import hashlib
from importlib.resources import files
from typing import Any, Final, cast

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from orchestrator.reporting.document import Report
from orchestrator.views.explain import span
from workers.protocol.plain import strict_json

_OWN: Final = files("orchestrator.reporting").joinpath("assets")
_PAGE: Final = files("orchestrator.dashboard").joinpath("assets")
_PLOTLY: Final = "plotly-4.1.1.min.js.gz"

#: What a report's charts are drawn from; the rest stands in its text.
_DRAWN: Final = {"study", "metrics", "logs", "charts", "curves", "importances", "timeline", "front"}

#: Parts of slot time: their names, and the colours of the page that they have.
_PARTS: Final = (
    ("trained", "trained, and it counts", "complete"),
    ("warming", "getting ready", "pruned"),
    ("lost", "lost, or made again", "dead"),
    ("running", "of attempts that run", "running"),
    ("idle", "idle", "faint"),
)


def page(report: Report) -> bytes:
    """The file."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}  # in the order that it has
    environment.filters["span"] = span
    template = environment.from_string(_read("report.html.jinja"))
    library = gzip.decompress(_PAGE.joinpath(_PLOTLY).read_bytes()).decode()
    # one module: the report's own script calls what the charts of the page export
    script = _PAGE.joinpath("charts.js").read_text() + _read("report.js")
    text = template.render(
        report=report,
        made_at=dt.datetime.fromtimestamp(report.made_at, dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        parts=_parts(report),
        data=_data(report),
        styles=Markup(  # noqa: S704 - files of this package
            "\n".join(_PAGE.joinpath(name).read_text() for name in ("page.css", "plotly.css"))
            + _read("report.css")
        ),
        library=Markup(library),  # noqa: S704 - likewise
        script=Markup(script),  # noqa: S704 - likewise
        policy=_policy(library, script),
    )
    return text.encode("utf-8", "backslashreplace")


def _policy(*scripts: str) -> str:
    sums = (base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in scripts)
    allowed = " ".join(f"'sha256-{each}'" for each in sums)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline';"
        " img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _data(report: Report) -> Any:
    document = strict_json(report.model_dump(mode="json", include=_DRAWN))
    return {
        **cast("dict[str, Any]", document),
        "directions": list(report.status.directions),
        "now": None if report.status.is_over else report.made_at,
    }


def _parts(report: Report) -> list[dict[str, Any]]:
    spent = report.slot_time
    found = [(said, hue, getattr(spent, name)) for name, said, hue in _PARTS]
    return [
        {"said": said, "hue": hue, "seconds": seconds, "share": seconds / spent.total}
        for said, hue, seconds in found
        if seconds > 0
    ]


def _read(name: str) -> str:
    return _OWN.joinpath(name).read_text()
