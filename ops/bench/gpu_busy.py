"""The share of a stretch of time in which something ran on this process's GPU, by NVML."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from workers.processes.gpu_use import uses
from workers.processes.gpus import Gpu, visible_gpus

#: Between two looks; NVML's own figure is of the last sixth of a second to a second.
_SECONDS = 0.2


class GpuBusy:
    """Looks at the first visible GPU, in a thread, for as long as it is open."""

    def __init__(self) -> None:
        self._found: list[float] = []
        self._ended = threading.Event()

    @property
    def share(self) -> float | None:
        """The mean of all looks; None where there is no GPU, or it does not tell."""
        return round(statistics.mean(self._found), 3) if self._found else None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look from now on, to the end of the block."""
        gpus = visible_gpus()[:1]
        thread = threading.Thread(target=self._look, args=(gpus,), daemon=True)
        if gpus:
            thread.start()
        try:
            yield
        finally:
            self._ended.set()
            if gpus:
                thread.join()

    def _look(self, gpus: Sequence[Gpu]) -> None:
        while not self._ended.wait(_SECONDS):
            self._found += [use.utilisation for use in uses(gpus) if use.utilisation is not None]
