"""The managers of a process, and their public face: initialise once, get by name, clean up."""

from __future__ import annotations

from typing import Any, Final

from workers.managers.amp import AMPManager
from workers.managers.base import BaseManager, BaseProcessManager
from workers.managers.batch import BatchManager
from workers.managers.cuda import CUDAManager
from workers.managers.data import DataManager
from workers.managers.hub import HubManager
from workers.managers.metrics import MetricsManager
from workers.managers.model import ModelManager
from workers.managers.process_init import (
    cleanup_managers,
    current_container,
    ensure_process_initialized,
    initialize_factory,
)
from workers.managers.run_directories import DirectoryManager
from workers.managers.tensor import TensorManager
from workers.managers.tokenizer import TokenizerManager
from workers.managers.wandb import WandbManager

#: All that a container of managers provides; each names what it needs in its constructor.
MANAGERS: Final[tuple[type[Any], ...]] = (
    DirectoryManager,
    HubManager,
    CUDAManager,
    TensorManager,
    TokenizerManager,
    DataManager,
    ModelManager,
    AMPManager,
    BatchManager,
    MetricsManager,
    WandbManager,
)

__all__ = [
    "MANAGERS",
    "AMPManager",
    "BaseManager",
    "BaseProcessManager",
    "BatchManager",
    "CUDAManager",
    "DataManager",
    "DirectoryManager",
    "HubManager",
    "MetricsManager",
    "ModelManager",
    "TensorManager",
    "TokenizerManager",
    "WandbManager",
    "cleanup_managers",
    "ensure_process_initialized",
    "get_amp_manager",
    "get_batch_manager",
    "get_cuda_manager",
    "get_data_manager",
    "get_directory_manager",
    "get_hub_manager",
    "get_metrics_manager",
    "get_model_manager",
    "get_tensor_manager",
    "get_tokenizer_manager",
    "get_wandb_manager",
    "initialize_factory",
]


def get_directory_manager() -> DirectoryManager:
    """This process's `DirectoryManager`."""
    return current_container().get(DirectoryManager)


def get_hub_manager() -> HubManager:
    """This process's `HubManager`."""
    return current_container().get(HubManager)


def get_cuda_manager() -> CUDAManager:
    """This process's `CUDAManager`."""
    return current_container().get(CUDAManager)


def get_tensor_manager() -> TensorManager:
    """This process's `TensorManager`."""
    return current_container().get(TensorManager)


def get_tokenizer_manager() -> TokenizerManager:
    """This process's `TokenizerManager`."""
    return current_container().get(TokenizerManager)


def get_data_manager() -> DataManager:
    """This process's `DataManager`."""
    return current_container().get(DataManager)


def get_model_manager() -> ModelManager:
    """This process's `ModelManager`."""
    return current_container().get(ModelManager)


def get_amp_manager() -> AMPManager:
    """This process's `AMPManager`."""
    return current_container().get(AMPManager)


def get_batch_manager() -> BatchManager:
    """This process's `BatchManager`."""
    return current_container().get(BatchManager)


def get_metrics_manager() -> MetricsManager:
    """This process's `MetricsManager`."""
    return current_container().get(MetricsManager)


def get_wandb_manager() -> WandbManager:
    """This process's `WandbManager`."""
    return current_container().get(WandbManager)
