"""Which side of a metric is the better one, where everybody knows: `accuracy` up, `loss` down."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from workers.protocol.spec import Direction, StudySpec

_UP: Final = frozenset(
    {
        "accuracy", "acc", "f1", "f1_macro", "f1_micro", "f1_weighted", "precision", "recall",
        "auc", "auroc", "auprc", "roc_auc", "map", "mcc", "kappa", "r2", "bleu", "rouge", "rouge1",
        "rouge2", "rougel", "meteor", "iou", "miou", "dice", "ndcg", "mrr", "hit_rate", "pearson",
        "spearman", "spearmanr", "throughput", "reward", "exact_match", "psnr", "ssim",
    }
)  # fmt: skip
_DOWN: Final = frozenset(
    {
        "loss", "perplexity", "ppl", "error", "error_rate", "mse", "rmse", "mae", "mape", "msle",
        "wer", "cer", "ter", "nll", "cross_entropy", "kl", "fid", "latency", "brier", "hinge",
        "regret",
    }
)  # fmt: skip

_SIDE: Final = re.compile(r"^(eval|val|valid|validation|test|train|best|mean|avg|final)[_/.-]+")


def better_side(metric: str) -> Direction | None:
    """The direction of a metric, by its name; None where it does not tell."""
    name = metric.lower().replace("-", "_").replace(" ", "_")
    while (bare := _SIDE.sub("", name)) != name:
        name = bare
    return "maximize" if name in _UP else "minimize" if name in _DOWN else None


def with_direction(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a study with the direction of its metric, where they name none and it is known."""
    metric = fields.get("metric")
    if metric is None or fields.get("direction") or fields.get("directions"):
        return dict(fields)
    names = [metric] if isinstance(metric, str) else metric
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        return dict(fields)  # refused by its type
    sides = [better_side(name) for name in names]
    if not sides or None in sides:
        return dict(fields)
    if isinstance(metric, str):
        return {**fields, "direction": sides[0]}
    return {**fields, "directions": sides}


def say_direction(spec: StudySpec) -> str:
    """What a study is after, in words."""
    names = spec.metrics or [f"value {index + 1}" for index in range(len(spec.all_directions))]
    if names == ["value 1"]:
        names = ["value"]
    pairs = zip(spec.all_directions, names, strict=True)
    return ", ".join(f"{direction} {name}" for direction, name in pairs)
