"""Stands for NVML's Python binding, on a host of which `FAKE_NVML` tells.

It holds `[[uuid, [uuid of a MIG instance, ...]], ...]`; null for a GPU that cannot be partitioned,
and the number of an error for one that does not answer, or for all of it.
With `FAKE_CUDA` set, the CUDA of these GPUs seems to work, too: what runs on them runs on the CPU.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from importlib.abc import MetaPathFinder
from types import SimpleNamespace
from typing import Any

NVML_ERROR_NOT_SUPPORTED = 3
NVML_ERROR_NOT_FOUND = 6
NVML_ERROR_DRIVER_NOT_LOADED = 9
NVML_ERROR_LIBRARY_NOT_FOUND = 12


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(value)
        self.value = value


def _boards() -> Any:
    return json.loads(os.environ.get("FAKE_NVML", "[]"))


def nvmlInit() -> None:
    if isinstance(_boards(), int):
        raise NVMLError(_boards())
    if not _boards():
        raise NVMLError(NVML_ERROR_LIBRARY_NOT_FOUND)


def nvmlShutdown() -> None:
    pass


def nvmlDeviceGetCount() -> int:
    return len(_boards())


def nvmlDeviceGetHandleByIndex(index: int) -> Any:
    if isinstance(_boards()[index], int):
        raise NVMLError(_boards()[index])
    return _boards()[index]


def nvmlDeviceGetUUID(handle: Any) -> str:
    return handle if isinstance(handle, str) else handle[0]


def nvmlDeviceGetMigMode(handle: Any) -> list[int]:
    if handle[1] is None:
        raise NVMLError(NVML_ERROR_NOT_SUPPORTED)
    return [int(bool(handle[1]))] * 2


def nvmlDeviceGetMaxMigDeviceCount(_handle: Any) -> int:
    return 7


def nvmlDeviceGetMigDeviceHandleByIndex(handle: Any, index: int) -> Any:
    if index >= len(handle[1]):
        raise NVMLError(NVML_ERROR_NOT_FOUND)
    return handle[1][index]


def nvmlDeviceGetHandleByUUID(uuid: str) -> Any:
    for board in _boards():
        if not isinstance(board, int) and uuid in {board[0], *(board[1] or ())}:
            return board if uuid == board[0] else uuid
    raise NVMLError(NVML_ERROR_NOT_FOUND)


def nvmlDeviceGetMemoryInfo(_handle: Any) -> Any:
    return SimpleNamespace(used=3 * 2**30, total=8 * 2**30)


def nvmlDeviceGetUtilizationRates(handle: Any) -> Any:
    if isinstance(handle, str):  # an instance's are not told
        raise NVMLError(NVML_ERROR_NOT_SUPPORTED)
    return SimpleNamespace(gpu=75)


class _WorkingCuda(MetaPathFinder):
    """Has `CUDAManager` find nothing wrong with a GPU that is not there."""

    def find_spec(self, name: str, *_: Any) -> Any:
        if name != "workers.managers.cuda":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_change(module: Any) -> None:
            execute(module)
            module.CUDAManager._choose = lambda _: module.torch.device("cpu")

        spec.loader.exec_module = execute_and_change  # type: ignore[method-assign]
        return spec


if os.environ.get("FAKE_CUDA"):
    sys.meta_path.insert(0, _WorkingCuda())
