"""Where a process tells Prometheus how it gets on, and what a worker tells there."""

from __future__ import annotations

import importlib.util
import json
import socket
import urllib.request
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from structlog.testing import capture_logs

from workers.metrics_endpoint import metrics_served
from workers.processes import gpu_use
from workers.processes.gpus import Gpu
from workers.processes.worker_metrics import WorkerMetrics
from workers.protocol.errors import InvalidInputError
from workers.settings import Settings


class Nothing(Collector):
    def collect(self):
        return ()


def scrape(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_nothing_listens_unless_it_is_asked_for():
    with metrics_served(Settings(), lambda: pytest.fail("made for nobody")), capture_logs() as told:
        assert told == []


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_it_listens_on_loopback_says_where_and_ends(host):
    said = []
    with metrics_served(Settings(metrics_port=0, metrics_host=host), Nothing, said.append):
        url = said[0].removeprefix("metrics: ")
        assert scrape(url)["process_resident_memory_bytes",] > 0
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url, timeout=10)


def test_a_port_that_is_taken_a_foreign_host_and_a_missing_package_are_one_line(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for host, reason in (("127.0.0.1", "in use"), ("203.0.113.1", "assign"), ("no.such", "")):
            said = []
            settings = Settings(metrics_port=port, metrics_host=host)
            with capture_logs() as told, metrics_served(settings, Nothing, said.append):
                pass
            assert [each["event"] for each in told] == ["metrics_not_served"]
            assert len(said) == 1
            assert f"{host}:{port}" in said[0]
            assert reason in said[0]
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with capture_logs() as told, metrics_served(Settings(metrics_port=0), Nothing):
        assert "trialfleet[metrics]" in told[0]["error"]


@pytest.mark.parametrize("port", ["-1", "65536", "x"])
def test_what_is_no_port_is_named(port):
    with pytest.raises(InvalidInputError, match=f"FLEET_METRICS_PORT.*{port}"):
        Settings.from_environment({"FLEET_METRICS_PORT": port})


def test_a_worker_tells_of_its_gpus_and_leaves_out_what_they_do_not_tell(monkeypatch):
    path = Path(__file__).parents[2] / "fake_nvml" / "pynvml.py"
    spec = importlib.util.spec_from_file_location("fake_pynvml", path)
    fake = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fake)
    monkeypatch.setattr(gpu_use, "pynvml", fake)
    monkeypatch.setenv("FAKE_NVML", json.dumps([["GPU-a", ["MIG-b"]], 9]))
    uploader = SimpleNamespace(counted=Counter({("result", "done"): 2}), num_waiting=lambda: 3)
    gpus = [Gpu("0", "GPU-a"), Gpu("MIG-b", "MIG-b"), Gpu("2", "GPU-gone")]
    standing = {"draining": False, "redis_up": True, "setbacks": 1}
    made = WorkerMetrics(2, gpus, uploader, lambda: standing, Counter(beats=4))
    said = []
    with metrics_served(Settings(metrics_port=0), lambda: made, said.append):
        found = scrape(said[0].removeprefix("metrics: "))
    assert found["trialfleet_gpu_memory_used_bytes", "GPU-a"] == 3 * 2**30
    assert found["trialfleet_gpu_utilization_ratio", "GPU-a"] == 0.75
    assert found["trialfleet_gpu_memory_total_bytes", "MIG-b"] == 8 * 2**30
    assert ("trialfleet_gpu_utilization_ratio", "MIG-b") not in found
    assert not [labels for labels in found if "GPU-gone" in labels]
    assert found["trialfleet_uploads_total", "result", "done"] == 2
    assert found["trialfleet_uploads_waiting",] == 3
    assert found["trialfleet_worker_beats_total",] == 4
    assert found["trialfleet_worker_slots", "idle"] == 2
    monkeypatch.setenv("FAKE_NVML", "9")
    assert gpu_use.uses(gpus) == []
