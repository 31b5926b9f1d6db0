"""What runs in the child processes of the tests of the managers' public face."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch.utils.data import Dataset

from workers.managers import get_data_manager, get_directory_manager, get_model_manager
from workers.managers.process_init import ensure_process_initialized
from workers.protocol.errors import NotInitializedError


def face(config: Any) -> dict[str, Any]:
    """Ask for managers before and after the process is initialised."""
    try:
        get_model_manager()
    except NotInitializedError as error:
        refusal = f"{type(error).__name__}: {error}"
    else:
        refusal = ""
    first = ensure_process_initialized(config)
    scratch = get_directory_manager().scratch()
    return {
        "refusal": refusal,
        "is_idempotent": ensure_process_initialized(config) is first,
        "pid": os.getpid(),
        "scratch": str(scratch),
        "scratch_exists": scratch.exists(),
        "managers": [type(get_model_manager()).__name__, type(get_data_manager()).__name__],
    }


def send_face(config: Any, pipe: Any) -> None:
    pipe.send(face(config))


class FaceDataset(Dataset[Any]):
    """Each row is what a loader process sees."""

    def __init__(self, config: Any) -> None:
        self._config = config

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        return {**face(self._config), "tensor": torch.tensor([index])}


def first_row(rows: list[Any]) -> Any:
    return rows[0]
