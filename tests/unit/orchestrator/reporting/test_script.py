"""The report's own script, by Node.js: what it has plotly.js draw."""

from __future__ import annotations

import json
from importlib.resources import files

from node import told_by_node

#: One plot in the report, and a library that tells what it is to draw.
SCRIPT = """
import { readFileSync } from "node:fs";
const plot = { id: "plot-timeline", isConnected: true, style: {} };
const made = [];
Object.assign(document, {
  getElementById: () => ({ textContent: readFileSync("data.json", "utf8") }),
  querySelectorAll: () => [plot],
});
globalThis.addEventListener = () => {};
globalThis.matchMedia = () => ({ addEventListener: () => {} });
globalThis.Plotly = { react: (node, traces) => made.push(traces) };
await import("./whole.js");
console.log(JSON.stringify(made));
"""

RUNNING = {"id": 1, "trial": 0, "attempt": 1, "lane": "box CPU 0", "begun": 100.0, "end": "RUNNING"}


def test_a_trial_that_runs_has_a_bar_up_to_the_report(tmp_path):
    charts = files("orchestrator.dashboard.assets").joinpath("charts.js").read_text()
    script = files("orchestrator.reporting").joinpath("assets", "report.js").read_text()
    (tmp_path / "whole.js").write_text(charts + script)
    data = {
        "metrics": ["value"], "directions": ["minimize"], "logs": [], "front": [], "curves": [],
        "charts": {"states": "O", "values": [], "params": {}}, "timeline": [RUNNING],
    }  # fmt: skip
    for now, seconds in ((160.0, 60.0), (None, 0.05)):  # of a study that is over: where it was seen
        (tmp_path / "data.json").write_text(json.dumps({**data, "now": now}))
        (((bars,),),) = [told_by_node(tmp_path, SCRIPT)]
        assert bars["x"] == [seconds * 1000]
