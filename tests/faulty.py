"""The objective of the fault tests: a small real training that obeys a test's orders.

Imported by workers; a test leaves its orders in `orders.json` beside the copy of this file that
its fleet uses, and reads in `notes` what was done. Undisturbed or not, the result is the same.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workers.coordination.leases import TrialLeases
from workers.disk.outbox import Outbox
from workers.managers import DirectoryManager, get_data_manager, get_directory_manager
from workers.protocol.errors import DrainRequested
from workers.trials.handle import FleetTrial

HERE = Path(__file__).parent
STEPS = 12
CLIMB_STEPS = 9
EVERY = 3
PAUSE_SECONDS = 0.1


def train(trial: FleetTrial) -> float:
    """Fit a line for `STEPS` steps with a checkpoint every `EVERY`; the last loss."""
    training = Training(trial)
    note(trial, "starts", training.step)
    try:
        while training.step < STEPS:
            trial.progress(training.step)
            obey(trial, training)
            training.make_step()
            note(trial, "step", training.step)
            if training.step % EVERY == 0:
                training.save()
            time.sleep(PAUSE_SECONDS)
    except DrainRequested:
        training.save()
        note(trial, "drained", training.step)
        raise
    trial.report(training.loss, training.step)
    return training.loss


def climb(trial: FleetTrial) -> float:
    """Fit a line for nine steps and report each: the lower a trial's number, the better."""
    training = Training(trial)
    note(trial, "starts", training.step)
    try:
        while training.step < CLIMB_STEPS:
            trial.progress(training.step)
            obey(trial, training)
            training.make_step()
            note(trial, "step", training.step)
            if training.step % EVERY == EVERY - 1:
                training.save()
            trial.report(1000.0 * trial.number + training.loss, training.step)
    except DrainRequested:
        training.save()
        note(trial, "drained", training.step)
        raise
    return 1000.0 * trial.number + training.loss


def quick(trial: FleetTrial) -> float:
    """Nothing to train."""
    note(trial, "starts", 0)
    obey(trial, None)
    return 1.0


class Texts(torch.utils.data.Dataset[torch.Tensor]):
    """Rows that take a loader process some time each."""

    def __len__(self) -> int:
        return 10_000

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(0.01)
        return torch.full((64, 64), float(index))


def train_with_loaders(trial: FleetTrial) -> float:
    """`train`, with two loader processes busy all the while."""
    loader = torch.utils.data.DataLoader(
        Texts(), batch_size=4, num_workers=2, multiprocessing_context="spawn"
    )
    batches = iter(get_data_manager().registered(loader))
    next(batches)
    note(trial, "loads", 0)
    return train(trial)


def train_in_a_loop(trial: FleetTrial) -> float:
    """`train` as a loop of one's own, with loader processes that are started by the default."""
    training = Training(Afresh(), torch.optim.SGD)  # type: ignore[arg-type]
    training.trial = trial
    state = {"model": training.model, "optimizer": training.optimizer, "loss": 0.0}
    with trial.training(state, checkpoint_seconds=EVERY * PAUSE_SECONDS) as run:
        for _ in run.steps(torch.utils.data.DataLoader(Texts(), batch_size=4, num_workers=2)):
            training.step = run.step
            obey(trial, training)
            training.make_step()
            run.state["loss"] = training.loss
            note(trial, "step", training.step)
            time.sleep(PAUSE_SECONDS)
            if training.step == STEPS:
                break
    trial.report(run.state["loss"], STEPS)
    return float(run.state["loss"])


class Afresh:
    """Stands for a trial where nothing was saved."""

    @staticmethod
    def load_checkpoint() -> None:
        return None


class Momentum:
    """What `torch.optim.SGD` does, to the bit; that one takes each process seconds to import."""

    def __init__(
        self, parameters: Iterable[torch.nn.Parameter], lr: float, momentum: float
    ) -> None:
        self._parameters, self._lr, self._momentum = list(parameters), lr, momentum
        self._buffers: list[torch.Tensor] = []

    def zero_grad(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        gradients = [parameter.grad for parameter in self._parameters]
        if self._buffers:
            for buffer, gradient in zip(self._buffers, gradients, strict=True):
                buffer.mul_(self._momentum).add_(gradient)
        else:
            self._buffers = [gradient.clone() for gradient in gradients]
        for parameter, buffer in zip(self._parameters, self._buffers, strict=True):
            parameter.add_(buffer, alpha=-self._lr)

    def state_dict(self) -> dict[str, Any]:
        return {"buffers": self._buffers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._buffers = [buffer.clone() for buffer in state["buffers"]]


class Training:
    """Model, optimizer and position."""

    def __init__(self, trial: FleetTrial, optimizer: Callable[..., Any] = Momentum) -> None:
        torch.manual_seed(0)
        self.trial = trial
        self.model = torch.nn.Linear(8, 1)
        self.optimizer = optimizer(self.model.parameters(), lr=0.05, momentum=0.9)
        self.inputs, self.targets = torch.randn(64, 8), torch.randn(64, 1)
        self.step, self.loss = 0, 0.0
        state = trial.load_checkpoint()
        if state is not None:
            self.step, self.loss = state["step"], state["loss"]
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])

    def make_step(self) -> None:
        loss = torch.nn.functional.mse_loss(self.model(self.inputs), self.targets)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step, self.loss = self.step + 1, float(loss.detach())

    def save(self) -> None:
        if self.step:
            state = {
                "step": self.step,
                "loss": self.loss,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            }
            self.trial.save_checkpoint(self.step, state)


def note(trial: FleetTrial, what: str, step: int) -> None:
    """Write down what happens, in one line that no kill tears apart."""
    line = f"{trial.study_name} {trial.number} {trial.attempt} {os.getpid()} {what} {step}\n"
    descriptor = os.open(HERE / "notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, line.encode())
    os.close(descriptor)


def obey(trial: FleetTrial, training: Training | None) -> None:
    """Do what the test ordered for this study, trial, attempt and step (`*` stands for any)."""
    step = 0 if training is None else training.step
    try:
        orders = json.loads((HERE / "orders.json").read_text())
    except FileNotFoundError:
        return
    for study, attempt in itertools.product((trial.study_name, "*"), (trial.attempt, "*")):
        order = orders.get(f"{study}/{trial.number}/{attempt}/{step}")
        if order is not None:
            trial.await_checkpoint()  # what was saved is known to be, whatever comes now
            trial.settle_checkpoint(60.0)  # tests tell what a disturbed trial goes on from
            note(trial, order, step)
            ORDERS[order](training)


def kill(*_: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def die_while_saving(training: Training) -> None:
    def write_half(_state: Any, file: Any) -> None:
        file.write(b"half of a checkpoint")
        file.flush()
        kill()

    torch.save = write_half
    training.make_step()
    training.save()


def die_after_outbox(_: Any) -> None:
    write = Outbox.write

    def write_and_die(self: Outbox, entry: Any) -> None:
        write(self, entry)
        kill()

    Outbox.write = write_and_die  # type: ignore[method-assign]


def die_after_commit(_: Any) -> None:
    commit = TrialLeases.commit

    def commit_and_die(self: TrialLeases, *result: Any) -> str:
        commit(self, *result)
        return str(kill())

    TrialLeases.commit = commit_and_die  # type: ignore[method-assign]


def die_before_pause(_: Any) -> None:
    TrialLeases.park = kill  # type: ignore[method-assign,assignment]


def die_after_pause(_: Any) -> None:
    park = TrialLeases.park

    def park_and_die(self: TrialLeases, *pause: Any) -> str:
        park(self, *pause)
        return str(kill())

    TrialLeases.park = park_and_die  # type: ignore[method-assign]


def exhaust_address_space(_: Any) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, before[1]))
    try:
        np.ones(2**32, dtype=np.uint8)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def raise_memory_error(_: Any) -> None:
    raise MemoryError("ordered")


def wait_for_go(_: Any) -> None:
    while not (HERE / "go").exists():
        time.sleep(0.02)


def stay_until_go(training: Training) -> None:
    """Wait, and ask at each turn whether training may go on."""
    while not (HERE / "go").exists():
        training.trial.progress(training.step)
        time.sleep(0.02)


def leave_something(training: Training) -> None:
    training.trial.set_user_attr("made", training.step)
    training.trial.result_directory.mkdir(parents=True, exist_ok=True)
    (training.trial.result_directory / "made").write_text("something")


def make_scratch(training: Training) -> None:
    (HERE / "scratch").write_text(str(get_directory_manager().scratch()))
    wait_for_go(training)


def hang_at_exit(_: Any) -> None:
    DirectoryManager.close = lambda _: time.sleep(3600)  # type: ignore[method-assign,misc]


ORDERS = {
    "kill": kill,
    "die while saving": die_while_saving,
    "die after outbox": die_after_outbox,
    "die after commit": die_after_commit,
    "die before pause": die_before_pause,
    "die after pause": die_after_pause,
    "exit 0": lambda _: os._exit(0),
    "exit 3": lambda _: os._exit(3),
    "SystemExit": lambda _: sys.exit(4),
    "MemoryError": raise_memory_error,
    "RLIMIT_AS": exhaust_address_space,
    "segmentation fault": lambda _: ctypes.string_at(0),
    "stop": lambda _: os.kill(os.getpid(), signal.SIGSTOP),
    "hang at exit": hang_at_exit,
    "hang": lambda _: time.sleep(3600),
    "wait for go": wait_for_go,
    "stay until go": stay_until_go,
    "make scratch": make_scratch,
    "leave something": leave_something,
}
