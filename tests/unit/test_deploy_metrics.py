"""The dashboard and the alert rules of `ops/deploy` ask for metrics that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from orchestrator.views.metrics import FleetMetrics
from workers.processes.worker_metrics import WorkerMetrics

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "ops" / "deploy"
RULES = DEPLOY / "prometheus" / "alerts.yml"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "trialfleet.json"

#: How the samples of a family may be called.
ENDINGS = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}


def served() -> set[str]:
    """The names of all samples that an orchestrator and a worker tell."""
    uploader = SimpleNamespace(counted={}, num_waiting=lambda: 0)
    standing = {"draining": 0, "redis_up": 1, "setbacks": 0}
    worker = WorkerMetrics(1, (), uploader, lambda: standing, Counter())
    return {
        family.name + ending
        for collector in (FleetMetrics(), worker)
        for family in collector.collect()
        for ending in ENDINGS[family.type]
    }


def rules():
    return [
        rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
    ]


def expressions() -> list[str]:
    dashboard = json.loads(DASHBOARD.read_text())
    panels = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    variables = [each["query"]["query"] for each in dashboard["templating"]["list"]]
    return [*(rule["expr"] for rule in rules()), *panels, *variables]


def test_each_metric_of_the_dashboard_and_the_rules_is_served():
    asked = {name for each in expressions() for name in re.findall(r"trialfleet_[a-z_]+", each)}
    assert len(asked) > 20
    assert asked <= served(), asked - served()


def test_each_metric_that_is_served_is_shown_or_watched():
    asked = " ".join(expressions())
    unseen = {
        name for name in served() if name not in asked and not name.endswith(("_sum", "_count"))
    }
    # each is a part of one that is shown
    assert unseen <= {
        "trialfleet_studies", "trialfleet_trials_wanted", "trialfleet_worker_messages_total",
        "trialfleet_worker_beats_total",
    }, unseen  # fmt: skip


def test_the_guide_lists_each_metric():
    text = (ROOT / "ops" / "guides" / "watching.md").read_text()
    listed = set()
    for line in re.findall(r"^\| (`trialfleet_.*?) \|", text, re.MULTILINE):
        first, *others = re.findall(r"`(\w+)`", line)
        # `_x` after `trialfleet_a_b` is `trialfleet_a_x` or `trialfleet_x`
        stems = [first.rsplit("_", count)[0] for count in range(1, first.count("_") + 1)]
        listed |= {first, *(stem + other for stem in stems for other in others)}
    plain = {re.sub("_(bucket|count|sum)$", "", name) for name in served()}
    assert plain <= listed, plain - listed


def test_each_alert_says_how_bad_it_is_and_what_it_means():
    alerts = [rule for rule in rules() if "alert" in rule]
    assert len({rule["alert"] for rule in alerts}) == len(alerts)
    for rule in alerts:
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert len(rule["annotations"]["summary"]) > 20


def test_promtool_takes_the_rules_and_the_configuration():
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool on the PATH: apt install prometheus")
    for what, path in (("rules", RULES), ("config", DEPLOY / "prometheus" / "prometheus.yml")):
        subprocess.run([promtool, "check", what, path], check=True, capture_output=True)
