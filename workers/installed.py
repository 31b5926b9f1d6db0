"""What of the packages that run trials is installed here, found without importing any.

A host that only submits and orchestrates needs none of them.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

from workers.protocol.errors import InvalidInputError

#: The packages of the extra `worker`, by the names that they are imported by.
TRAINING: Final = (
    "torch", "transformers", "tokenizers", "safetensors", "datasets", "torchmetrics", "babel",
    "wandb", "pynvml",
)  # fmt: skip


def missing() -> list[str]:
    """Those of `TRAINING` that are not installed here."""
    return [name for name in TRAINING if find_spec(name) is None]


def refuse_if_missing(extra: str = "worker", otherwise: str = "") -> None:
    """Refuse to run trials where what runs them is not installed.

    Args:
        extra: Of the package; what to install.
        otherwise: What else can be done.

    Raises:
        InvalidInputError: It is not; it says what is missing, and the way out.
    """
    absent = missing()
    if absent:
        raise InvalidInputError(
            f"trials cannot run in this environment, which lacks {', '.join(absent)}:"
            f" pip install 'trialfleet[{extra}]'{otherwise}"
        )
