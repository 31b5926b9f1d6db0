"""A loader for Lightning's Trainer that begins where an attempt before has left it.

Invariant: the Trainer sees a loader without a state: what is kept of it is the callback's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from workers.trials.resumable_loader import END, ResumableLoader
from workers.trials.step_seeds import StepSeeds


class ResumingLoader:
    """The Trainer's loader, which can begin in the middle of an epoch.

    Args:
        loader: As the Trainer has it.
        seeds: The training's.
        trainer: Knows the epoch.
    """

    def __init__(self, loader: Any, seeds: StepSeeds, trainer: Any) -> None:
        self._given = loader
        self._trainer = trainer
        self._source = ResumableLoader(loader, seeds)
        self._resumed: dict[str, Any] | None = None
        #: batches of the epoch that training is done with
        self._num_trained = 0
        #: which pass of the epoch this is: the shorter one of two loaders is begun again
        self._pass = 0

    def note_trained(self, count: int) -> None:
        """Note how many batches of the epoch training is done with."""
        self._num_trained = count
        if not count:
            self._pass = 0

    def place(self) -> dict[str, Any]:
        """What a later attempt needs to go on after the batches that were trained on."""
        number = self._num_trained
        state = (
            self._source.state_before(number) if number else self._source.state_dict(is_over=True)
        )
        return {"number": number, "loader": state}

    def go_on_from(self, place: dict[str, Any]) -> None:
        """Have the next iteration go on from a place."""
        self._resumed = place

    def close(self) -> None:
        """End the loader's processes."""
        self._source.close()

    def __len__(self) -> int:
        return len(self._given)

    def __iter__(self) -> Iterator[Any]:
        place, self._resumed = self._resumed, None
        epoch = self._trainer.current_epoch + (self._pass << 32)
        self._pass += 1
        self._num_trained = 0 if place is None else place["number"]
        if place is not None and self._num_trained:
            self._source.resume(epoch, self._num_trained, place["loader"])
        else:
            if place is not None:
                self._source.skip(epoch, 0, place["loader"])
            self._source.begin(epoch)
        return self._read()

    def _read(self) -> Iterator[Any]:
        while (batch := self._source.read()) is not END:
            yield batch

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in {"state_dict", "load_state_dict"}:
            raise AttributeError(name)  # this callback's to save
        return getattr(self._given, name)
