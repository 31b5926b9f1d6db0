"""Snapshots: a packed state as it is now, in host memory, to be written while training goes on.

The buffers of a snapshot are used again for the next one: fresh memory takes several times as long
to fill as memory that was touched before, and pinned memory is dear to make.

Invariant: what is written of a snapshot is what would have been written of the state itself, then;
tensors that share memory share it in the copy. There is one snapshot's worth of memory, not two.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil

if TYPE_CHECKING:
    import torch

#: How much of the memory that is free the snapshots of a host may take: the rest is the trainings'.
_SHARE: Final = 0.5

#: Where a container's memory has its limit, its use, and in that the files that the kernel would
#: drop: of cgroup 2, and of cgroup 1.
_LIMITS: Final = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)


class HostMemory:
    """Takes snapshots of one training, one at a time, in buffers that it keeps.

    Args:
        num_slots: How many trainings this host runs; each takes its part of the memory.
    """

    def __init__(self, num_slots: int = 1) -> None:
        self._share = _SHARE / num_slots
        self._kept: dict[tuple[int, bool], list[torch.Tensor]] = {}

    def snapshot(self, packed: Any) -> Any | None:
        """A copy of a packed state on the host, or None where there is no memory for one.

        The snapshot before is not to be used any more.

        Args:
            packed: What `state_packing.pack` made.
        """
        taking = _Snapshot(self._kept, self._share)
        import torch

        try:
            # a buffer made in inference mode could not be written to outside of it
            with torch.inference_mode(mode=False), torch.no_grad():
                taking.reserve(packed)
                copied = taking.copy(packed)
                taking.wait()
        except (MemoryError, RuntimeError) as error:  # torch's own for memory that it cannot get
            self._kept = {}
            if isinstance(error, RuntimeError) and "memory" not in str(error):
                raise
            return None
        self._kept = taking.buffers
        return copied


class _Snapshot:
    """One snapshot while it is taken."""

    def __init__(self, kept: dict[tuple[int, bool], list[torch.Tensor]], share: float) -> None:
        self._share = share
        self._kept = {size: list(buffers) for size, buffers in kept.items()}
        #: what this snapshot uses, by size and by whether it is pinned
        self.buffers: dict[tuple[int, bool], list[torch.Tensor]] = defaultdict(list)
        self._copies: dict[int, torch.Tensor] = {}
        self._devices: set[torch.device] = set()

    def reserve(self, packed: Any) -> None:
        """Return if there is memory for what no kept buffer is large enough for.

        Raises:
            MemoryError: There is not.
        """
        sizes: dict[tuple[int, bool], set[int]] = defaultdict(set)
        for tensor in _tensors_in(packed):
            if _is_plain(tensor):
                storage = tensor.untyped_storage()
                sizes[storage.nbytes(), tensor.is_cuda].add(storage._cdata)
        wanted = sum(
            _taken(size, is_pinned=is_pinned)
            * max(0, len(storages) - len(self._kept.get((size, is_pinned), ())))
            for (size, is_pinned), storages in sizes.items()
        )
        if wanted > self._share * free_memory():
            raise MemoryError(f"a snapshot takes {wanted} bytes more")

    def copy(self, packed: Any) -> Any:
        """A tree with its tensors copied; those on a GPU are not there before `wait`."""
        import torch

        if isinstance(packed, torch.Tensor):
            return self._copy_tensor(packed)
        if type(packed) is dict:
            return {key: self.copy(item) for key, item in packed.items()}
        if type(packed) is list or type(packed) is tuple:
            return type(packed)(self.copy(item) for item in packed)
        return packed

    def wait(self) -> None:
        """Wait for what is still being copied."""
        import torch

        for device in self._devices:
            torch.cuda.current_stream(device).synchronize()

    def _copy_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        import torch

        bare = tensor.detach()
        if _is_plain(tensor):
            place = (tensor.storage_offset(), tensor.size(), tensor.stride())
            host = torch.empty(0, dtype=tensor.dtype, device="cpu")
            copied = host.set_(self._copy_storage(bare).untyped_storage(), *place)
        else:
            copied = bare.clone() if tensor.device.type in {"cpu", "meta"} else bare.cpu()
        if isinstance(tensor, torch.nn.Parameter):
            return torch.nn.Parameter(copied, tensor.requires_grad)
        return copied.requires_grad_(tensor.requires_grad)

    def _copy_storage(self, tensor: torch.Tensor) -> torch.Tensor:
        """The bytes of a tensor's storage, copied once however many tensors are views of it."""
        import torch

        storage = tensor.untyped_storage()
        if storage._cdata in self._copies:
            return self._copies[storage._cdata]
        source = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
        buffer = self._buffer(storage.nbytes(), is_pinned=tensor.is_cuda)
        buffer.copy_(source, non_blocking=tensor.is_cuda)
        if tensor.is_cuda:
            self._devices.add(tensor.device)
        self._copies[storage._cdata] = buffer
        return buffer

    def _buffer(self, size: int, *, is_pinned: bool) -> torch.Tensor:
        import torch

        kept = self._kept.get((size, is_pinned)) or [
            torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=is_pinned)
        ]
        buffer = kept.pop()
        self.buffers[size, is_pinned].append(buffer)
        return buffer


def _taken(size: int, *, is_pinned: bool) -> int:
    """Bytes that a buffer takes: torch rounds pinned memory up to a power of two."""
    return 1 << (size - 1).bit_length() if is_pinned and size else size


def free_memory(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this process can take, by the machine and by the limit of its container.

    Args:
        groups: Where control groups are mounted.
    """
    free = psutil.virtual_memory().available
    for limit, used, details, dropped in _LIMITS:
        try:
            most = (groups / limit).read_text().strip()
            taken = int((groups / used).read_text())
            lines = (groups / details).read_text().splitlines()
        except (OSError, ValueError):
            continue
        cached = sum(int(line.split()[1]) for line in lines if line.startswith(f"{dropped} "))
        if most != "max":
            free = min(free, int(most) - taken + cached)
    return max(0, int(free))


def _tensors_in(packed: Any) -> list[torch.Tensor]:
    import torch

    found, waiting = [], [packed]
    while waiting:
        each = waiting.pop()
        if isinstance(each, torch.Tensor):
            found.append(each)
        elif type(each) is dict:
            waiting.extend(each.values())
        elif type(each) is list or type(each) is tuple:
            waiting.extend(each)
    return found


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a view of a storage on the CPU or on a GPU, and nothing more."""
    import torch

    return (
        tensor.layout is torch.strided
        and tensor.device.type in {"cpu", "cuda"}
        and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg() or tensor.is_nested)
    )
