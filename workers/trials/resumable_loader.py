"""A user's loader, begun anew at a batch in the middle of an epoch, in the order it had.

| loader | how the batches before are passed over |
|---|---|
| a torch `DataLoader` over a map-style data set, also one of accelerate's | their indices are drawn, and nothing is read |
| one with `state_dict` and `load_state_dict` of its own | by these |
| all else that can be iterated over again, and streams of whatever kind | they are read again, and dropped |

What a loader and its samplers draw follows from the epoch and the batch (`step_seeds.py`); what
they keep themselves is put back as it was when the epoch began (`kept_state.py`).

Invariant: batch `k` of an epoch is the same, whether the batches before it were read or not; where
it may not be, that is said.
"""  # noqa: E501 - a table

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from torch.utils.data import DataLoader, IterableDataset

from workers.logs import get_logger
from workers.managers import get_data_manager
from workers.managers.loader_process import LoaderProcess, copy_loader
from workers.protocol.errors import NotInitializedError, ObjectiveError
from workers.protocol.plain import type_name
from workers.trials.batch_indices import Indices
from workers.trials.kept_state import KeptState
from workers.trials.step_seeds import StepSeeds
from workers.trials.training_state import is_stateful

log = get_logger(__name__)

#: What `read` gives in place of a batch when there is none.
END: Final = object()


class ResumableLoader:
    """One loader of a training, over its epochs.

    Args:
        loader: As the user gave it.
        seeds: The training's.

    Raises:
        ObjectiveError: It cannot be iterated over, or but once.
    """

    def __init__(self, loader: Any, seeds: StepSeeds) -> None:
        _refuse_what_is_read_once(loader)
        self.given = loader
        self._seeds = seeds
        self._is_stateful = _keeps_its_place(loader)
        self._loader, self._indices = loader, None
        if isinstance(loader, DataLoader) and not self._is_stateful:
            self._loader, self._indices = _with_indices(loader, seeds)
        self._passes_unread = self._indices is not None and not isinstance(
            loader.dataset, IterableDataset
        )
        self._look_through()
        self._batches: Iterator[Any] = iter(())
        self._epoch, self._number, self._is_just_resumed = 0, 0, False
        self._expected_sum: int | None = None
        self._sum, self._next_sum, self._is_in_order = 0, 0, True
        self._began: dict[str, Any] = {}
        self._before: dict[str, Any] = {}

    @property
    def doubts(self) -> list[str]:
        """Why a resumed training may not go on to the bit, in words."""
        found = []
        if not self._is_in_order:
            found.append("the loader's order is another one than in the attempt before")
        if _reads_ahead(self._loader):
            found += [f"{name} draws ahead of the step" for name in self._read.generators]
        if not getattr(self._loader, "num_workers", 0):
            return found
        if not getattr(self._loader, "in_order", True):
            found.append("the loader yields batches as they come (in_order=False)")
        if self._passes_unread:
            found += [f"{name} draws in loader processes" for name in self._read.generators]
        return found

    @property
    def length(self) -> int | None:
        """How many batches an epoch has, if the loader knows."""
        return length_of(self.given)

    def begin(self, epoch: int) -> None:
        """Begin an epoch at its first batch."""
        self._look_through()
        self._began = self._order_now()
        self._open(epoch, 0)

    def resume(self, epoch: int, number: int, saved: dict[str, Any]) -> None:
        """Begin an epoch at a batch in its middle, which is there."""
        self._look_through()
        self._began = saved["began"]
        self._put_order(self._began)
        if self._is_stateful:
            self._loader.load_state_dict(saved["loader"])
        self._open(epoch, number if self._passes_unread else 0)
        if not self._is_stateful and not self._passes_unread:
            self._pass_over(number)
        self._number, self._is_just_resumed = number, True
        self._read.put(saved["read"])
        self._expected_sum = saved["sum"]

    def skip(self, epoch: int, number: int, saved: dict[str, Any]) -> None:
        """Pass over an epoch of which all batches were read."""
        self._look_through()
        self._epoch, self._number = epoch, number
        self._began = saved["began"]
        self._put_order(saved["order"])
        self._read.put(saved["read"])
        if self._is_stateful:
            self._loader.load_state_dict(saved["loader"])

    def read(self) -> Any:
        """The next batch, or `END`.

        Raises:
            ObjectiveError: There are fewer batches than there were.
        """
        self._before = self._now()
        self._sow()
        batch = next(self._batches, END)
        was_just_resumed, self._is_just_resumed = self._is_just_resumed, False
        if batch is END and was_just_resumed:
            raise ObjectiveError(
                f"run.steps({type_name(self._loader)}): the trial's checkpoint is at batch"
                f" {self._number} of epoch {self._epoch}, and there are no more than that; each"
                " attempt has to read the same data"
            )
        if batch is not END and self._indices is not None:
            self._sum, self._next_sum = self._indices.take_sums()
            self._check_order()
        self._number += batch is not END
        return batch

    def state_dict(self, *, is_over: bool) -> dict[str, Any]:
        """What a later attempt needs to begin at the batch that was read last, or after the end."""
        now = self._now() if is_over else self._before
        return {
            "began": self._began,
            "sum": self._sum,
            **now,
            **({"order": self._order_now()} if is_over else {}),
        }

    def state_before(self, number: int) -> dict[str, Any]:
        """What a later attempt needs to begin at a batch: the one read last, or the next one."""
        if number < self._number:
            return self.state_dict(is_over=False)
        return {"began": self._began, "sum": self._next_sum, **self._now()}

    def close(self) -> None:
        """End the loader's processes."""
        batches, self._batches = self._batches, iter(())
        for each in (batches, getattr(self._loader, "_iterator", None)):
            shut_down = getattr(each, "_shutdown_workers", None)
            if shut_down is not None:
                shut_down()

    def _look_through(self) -> None:
        """Find what keeps a state; `set_epoch` may have made it anew."""
        read_by = self._roots_of_reading()
        self._read = KeptState(read_by)
        self._order = KeptState(
            self._roots_of_order(), leave_out=list(read_by.values()), has_counters=True
        )

    def _roots_of_reading(self) -> dict[str, Any]:
        """What is asked for the content of batches, where those before are not read again."""
        if not self._passes_unread:
            return {}
        return {"dataset": self._loader.dataset, "collate_fn": self._loader.collate_fn}

    def _roots_of_order(self) -> dict[str, Any]:
        """What says which batches come; of a DataLoader, not the DataLoader's own settings."""
        if not isinstance(self._loader, DataLoader):
            return {} if self._is_stateful else {"loader": self._loader}
        names = ["generator", "sampler", "batch_sampler", "synchronized_generator"]
        if self._indices is not None and not self._passes_unread:
            names += ["dataset", "collate_fn"]
        return {name: getattr(self._loader, name, None) for name in names}

    def _open(self, epoch: int, first: int) -> None:
        self._epoch, self._number, self._is_just_resumed = epoch, 0, False
        self._expected_sum, self._sum, self._next_sum = None, 0, 0
        if self._indices is not None:
            self._indices.begin(epoch, first)
        self._seeds.sow("order", epoch)
        self._batches = iter(self._loader)

    def _pass_over(self, number: int) -> None:
        log.info("batches_read_again", batches=number, loader=type_name(self._loader))
        while self._number < number:
            if self.read() is END:
                break

    def _sow(self) -> None:
        self._seeds.sow("read", self._epoch, self._number)

    def _order_now(self) -> dict[str, Any]:
        # accelerate's loaders count their epochs, and seed their samplers with that
        iteration = self._loader.iteration if _reads_ahead(self._loader) else None
        return {**self._order.take(), "iteration": iteration}

    def _put_order(self, saved: dict[str, Any]) -> None:
        self._order.put(saved)
        if saved["iteration"] is not None:
            self._loader.iteration = saved["iteration"]

    def _now(self) -> dict[str, Any]:
        place = self._loader.state_dict() if self._is_stateful else None
        return {"read": self._read.take(), "loader": place}

    def _check_order(self) -> None:
        """See whether the batches that were passed over are those that had been read."""
        expected, self._expected_sum = self._expected_sum, None
        self._is_in_order = expected in {None, self._sum}


def length_of(loader: Any) -> int | None:
    """How many batches a loader has, if it knows; one of a stream has a `__len__` that raises."""
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None


def _refuse_what_is_read_once(loader: Any) -> None:
    if hasattr(loader, "__next__"):
        raise ObjectiveError(
            f"run.steps({type_name(loader)}): it can be read but once, and a training that resumes"
            " reads it anew; give the loader itself, and put what wraps it around:"
            " `tqdm(run.steps(loader))`"
        )
    if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
        raise ObjectiveError(
            f"run.steps({type_name(loader)}): give something to iterate over, such as a DataLoader"
        )


def _reads_ahead(loader: Any) -> bool:
    """Whether a loader is one of accelerate's, which wraps another one, and reads a batch ahead."""
    return "base_dataloader" in getattr(loader, "__dict__", {})


def _keeps_its_place(loader: Any) -> bool:
    """Whether a loader can be put back by itself; accelerate's only where what it wraps can.

    The state of a stream is its rows' place, which begins later epochs in the middle, too.
    """
    inner = loader.base_dataloader if _reads_ahead(loader) else loader
    return is_stateful(inner) and not isinstance(inner, IterableDataset)


def _with_indices(loader: Any, seeds: StepSeeds) -> tuple[Any, Indices]:
    """A copy of a DataLoader that takes its indices from `Indices`."""
    if _reads_ahead(loader):
        copied, indices = _with_indices(loader.base_dataloader, seeds)
        return copy_loader(loader, base_dataloader=copied), indices
    name = "sampler" if loader.batch_sampler is None else "batch_sampler"
    indices = Indices(getattr(loader, name), seeds, are_sent=loader.num_workers > 0)
    return with_registered_processes(loader, **{name: indices}), indices


def with_registered_processes(loader: Any, **changes: Any) -> Any:
    """A copy of a DataLoader whose processes are registered and end with this one."""
    if _reads_ahead(loader):
        inner = with_registered_processes(loader.base_dataloader, **changes)
        return copy_loader(loader, base_dataloader=inner)
    try:
        registered = get_data_manager().registered(loader)
    except NotInitializedError:
        first = LoaderProcess(None, then=loader.worker_init_fn)
        registered = copy_loader(loader, worker_init_fn=first)
    return copy_loader(registered, **changes)
