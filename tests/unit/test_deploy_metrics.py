"""The dashboard and the alert rules of `ops/deploy` ask for metrics that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from orchestrator.status import StudyStatus
from orchestrator.views.metrics import FleetMetrics
from workers.coordination.identity import ProcessIdentity
from workers.processes.registry import ProcessEntry
from workers.processes.worker_metrics import WorkerMetrics
from workers.protocol.states import ProcessKind, StudyState

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


def promtool(*command: object) -> None:
    beside = Path(sys.executable).with_name("promtool")
    found = str(beside) if beside.exists() else shutil.which("promtool")
    if found is None:
        pytest.skip("no promtool on the PATH: apt install prometheus")
    asked = [found, *map(str, command)]
    ended = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_promtool_takes_the_rules_and_the_configuration():
    promtool("check", "rules", RULES)
    promtool("check", "config", DEPLOY / "prometheus" / "prometheus.yml")


def entry(kind: ProcessKind, pid: int, **fields) -> ProcessEntry:
    return ProcessEntry(identity=ProcessIdentity("host", "boot", pid, 1), kind=kind, **fields)


def waiting(name: str) -> StudyStatus:
    """A study with two trials that wait."""
    return StudyStatus(
        study=name, state=StudyState.RUNNING, objective="finetune", metrics=["x"],
        directions=["minimize"], wanted=9, trials={"queued": 2}, wall_seconds=1, busy_seconds=1,
        slots=1, as_of=1.0,
    )  # fmt: skip


#: A worker of two queues with a busy slot, one put aside, and two that are idle.
PROCESSES = (
    entry(ProcessKind.MAIN, 1, slots=4, queues=["a", "b"]),
    entry(ProcessKind.TRIAL, 2, parent=1, study="s"),
    entry(ProcessKind.TRIAL, 3, parent=1, aside="CUDA broke"),
)


def series_of(driven: dict[str, str], instance: str, minutes: int = 30) -> list[dict[str, str]]:
    """What an orchestrator tells for so long, as promtool takes it.

    Args:
        driven: The studies that it drives, and the queue of each.
        instance: Its own name.
        minutes: For how long nothing changes.
    """
    metrics = FleetMetrics()
    metrics.saw_fleet([(waiting(name), queue) for name, queue in driven.items()], PROCESSES)
    found = []
    for family in metrics.collect():
        for sample in family.samples:
            labels = {**sample.labels, "instance": instance, "job": "trialfleet-orchestrator"}
            text = ", ".join(f"{name}={json.dumps(value)}" for name, value in labels.items())
            values = f"{sample.value}x{minutes}"
            found.append({"series": f"{sample.name}{{{text}}}", "values": values})
    return found


def test_two_orchestrators_beside_a_worker_of_two_queues_alert_for_the_queue_that_nobody_reads(
    tmp_path,
):
    wanted = [
        {
            "exp_labels": {"queue": queue, "severity": "warning"},
            "exp_annotations": {"summary": summary.format(queue)},
        }
        for queue, summary in [
            ("c", "Trials wait in queue {}, and no worker reads it."),
            ("a", "A GPU of queue {} takes no trials; trialfleet ps says why."),
            ("b", "A GPU of queue {} takes no trials; trialfleet ps says why."),
        ]
    ]
    panels = {each["title"]: each for each in json.loads(DASHBOARD.read_text())["panels"]}
    slots = {"busy": 1, "idle": 2, "put_aside": 1, "draining": 0}
    expected = {
        "Slots": {f'{{state="{state}"}}': count for state, count in slots.items()},
        "Trials that wait, by queue": {'{queue="a"}': 2, '{queue="c"}': 4},
    }
    one, other = {"r": "a", "s": "c"}, {"t": "c"}
    case = {
        "interval": "1m",
        "input_series": [*series_of(one, "one"), *series_of(other, "other")],
        "alert_rule_test": [
            {"eval_time": "20m", "alertname": f"Trialfleet{name}", "exp_alerts": alerts}
            for name, alerts in [
                ("NobodyTakesTrials", wanted[:1]),
                ("SlotPutAside", wanted[1:]),
                ("OrchestratorStandsStill", []),
            ]
        ],
        "promql_expr_test": [
            {
                "expr": panels[title]["targets"][0]["expr"],
                "eval_time": "20m",
                "exp_samples": [{"labels": key, "value": value} for key, value in found.items()],
            }
            for title, found in expected.items()
        ],
    }
    asked = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [case]}
    (tmp_path / "case.yml").write_text(yaml.safe_dump(asked))
    promtool("test", "rules", tmp_path / "case.yml")
