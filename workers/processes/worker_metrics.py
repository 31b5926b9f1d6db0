"""What a worker's main process tells Prometheus of its host: slots, losses, uploads, GPUs.

Invariant: it asks neither Redis nor a pool process; what it tells, the main process knows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from celery.worker import state as celery_state
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from workers.processes.gpu_use import uses
from workers.processes.gpus import Gpu
from workers.processes.uploader import Uploader


class WorkerMetrics(Collector):
    """Tells how a worker stands when it is asked.

    Args:
        num_slots: The worker's pool processes.
        gpus: Those that its trials run on.
        uploader: Its.
        standing: What the host agent knows, by name: `draining`, `redis_up`, `setbacks`.
        counted: What it has counted, by name: `beats`, `pool_processes_ended`.
    """

    def __init__(
        self,
        num_slots: int,
        gpus: Sequence[Gpu],
        uploader: Uploader,
        standing: Callable[[], Mapping[str, int]],
        counted: Counter[str],
    ) -> None:
        self._num_slots = num_slots
        self._gpus = gpus
        self._uploader = uploader
        self._standing = standing
        self._counted = counted

    def collect(self) -> Iterator[Any]:
        """What there is to tell now."""
        busy = min(self._num_slots, len(celery_state.active_requests))
        slots = GaugeMetricFamily("trialfleet_worker_slots", "Slots.", labels=["state"])
        slots.add_metric(["busy"], busy)
        slots.add_metric(["idle"], self._num_slots - busy)
        yield slots
        yield _counter("messages", "Messages taken.", sum(celery_state.total_count.values()))
        for name, told in _COUNTED.items():
            yield _counter(name, told, self._counted[name])
        for name, value in self._standing().items():
            yield GaugeMetricFamily(f"trialfleet_worker_{name}", _STANDING[name], value)
        yield from self._uploads()
        yield from self._gpu_use()

    def _uploads(self) -> Iterator[Any]:
        done = CounterMetricFamily(
            "trialfleet_uploads", "Errands in the store.", labels=["kind", "outcome"]
        )
        for labels, count in sorted(self._uploader.counted.items()):
            done.add_metric(labels, count)
        yield done
        waiting = "Errands of this home that wait to be done in the store."
        yield GaugeMetricFamily("trialfleet_uploads_waiting", waiting, self._uploader.num_waiting())

    def _gpu_use(self) -> Iterator[Any]:
        used, total, busy = (
            GaugeMetricFamily(f"trialfleet_gpu_{name}", told, labels=["gpu"])
            for name, told in _GPUS.items()
        )
        for each in uses(self._gpus):
            used.add_metric([each.uuid], each.used_bytes)
            total.add_metric([each.uuid], each.total_bytes)
            if each.utilisation is not None:
                busy.add_metric([each.uuid], each.utilisation)
        yield from (used, total, busy)


_COUNTED = {
    "beats": "Times that the worker renewed its own lease.",
    "pool_processes_ended": "Pool processes that ended before the worker shut down.",
}

_STANDING = {
    "draining": "Whether it takes no more trials.",
    "redis_up": "Whether Redis answers it, and lets it do what it must.",
    "setbacks": "Things that it could not do so far, and tries again.",
}

_GPUS = {
    "memory_used_bytes": "GPU memory in use, whoever uses it.",
    "memory_total_bytes": "GPU memory.",
    "utilization_ratio": "Share of the last moments in which the GPU was at work.",
}


def _counter(name: str, told: str, value: int) -> CounterMetricFamily:
    return CounterMetricFamily(f"trialfleet_worker_{name}", told, value)
