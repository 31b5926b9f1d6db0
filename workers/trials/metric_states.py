"""What metrics of torchmetrics have counted, which they leave out of their `state_dict`.

Invariant: nothing is changed by looking; torchmetrics is imported by whoever made the metrics.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch


def metrics_of(value: Any) -> list[Any]:
    """The metrics that a module is, or holds, in their order."""
    library: Any = sys.modules.get("torchmetrics")
    if library is None or not isinstance(value, torch.nn.Module):
        return []
    modules = list(value.modules())
    for each in modules:
        if isinstance(each, library.MetricCollection):
            each.values(copy_state=False)  # those of a group share what one of them has counted
    return [each for each in modules if isinstance(each, library.Metric)]


def take_counts(metrics: Sequence[Any]) -> list[dict[str, Any]]:
    """What each has counted, as data."""
    return [{"updates": each._update_count, "states": each.metric_state} for each in metrics]


def put_counts(metrics: Sequence[Any], counts: Sequence[dict[str, Any]]) -> None:
    """Have each go on from what it had counted."""
    for metric, counted in zip(metrics, counts, strict=True):
        for name, state in counted["states"].items():
            setattr(metric, name, _placed(state, metric.device))
        metric._update_count, metric._computed = counted["updates"], None


def _placed(state: Any, device: torch.device) -> Any:
    if isinstance(state, torch.Tensor):
        return state.to(device, copy=True)
    return [_placed(each, device) for each in state] if isinstance(state, list) else state
