"""A desk at which a test claims trials and holds their leases, as a pool process does."""

from __future__ import annotations

import threading

import pytest
import torch

from workers.coordination.clock import lease_clock
from workers.coordination.grants import Grant
from workers.coordination.inbox import Inbox
from workers.coordination.studies import Studies
from workers.disk.checkpoints import CheckpointStore
from workers.disk.object_store import ObjectStore
from workers.disk.uploads import Uploads
from workers.managers import DirectoryManager
from workers.protocol.errors import DrainRequested
from workers.times import Times
from workers.trials.finetune import finetune
from workers.trials.handle import FleetTrial
from workers.trials.held_lease import HeldLease
from workers.trials.lease_keeper import LeaseKeeper
from workers.trials.objectives import call_objective

#: These leases are not renewed, and must outlast several trainings on a slow machine.
UNRENEWED = Times().scaled(10.0)


class Desk:
    """Claims trials of one study and holds their leases, as a pool process does."""

    def __init__(self, client, settings, container, spec):
        self.client = client
        self.settings = settings
        self.container = container
        self.spec = spec
        self.studies = Studies(client)
        self.studies.submit(spec)
        self.leases = self.studies.leases(spec.name)
        self.drain = threading.Event()
        self.keeper = LeaseKeeper()
        self.trial: FleetTrial | None = None

    def claim(self, number=0, params=None) -> FleetTrial:
        self.leases.enqueue(number, params or {})
        return self.hold(number)

    def hold(self, number) -> FleetTrial:
        if self.trial is not None:
            self.trial.settle_checkpoint(60.0)  # as the end of its attempt would have
        sent_at = lease_clock()
        grant = self.leases.claim(number, "desk", UNRENEWED.lease)
        assert isinstance(grant, Grant)
        directories = self.container.get(DirectoryManager)
        self.held = HeldLease(
            self.leases,
            number,
            grant,
            sent_at=sent_at,
            times=UNRENEWED,
            keeper=self.keeper,
            is_draining=self.drain.is_set,
        )
        self.trial = FleetTrial(
            self.spec,
            self.held,
            self.studies,
            CheckpointStore(
                directories.checkpoints,
                Uploads(self.settings.home, has_store=self.settings.store is not None),
                ObjectStore.of(self.settings),
            ),
            directories.draft_directory(self.spec.name, number, grant.token),
            verdict_seconds=2.0,
        )
        return self.trial

    def inbox(self):
        inbox = Inbox(self.client, "desk")
        return inbox.join(self.spec.name) + [e for _, e in inbox.read([self.spec.name], 10)]


def study_of(texts, **config):
    return {
        "direction": "maximize",
        "metric": "accuracy",
        "config": {
            "data": {"source": str(texts), "max_length": 12, "validation_fraction": 0.3},
            "tokenizer": {"vocab_size": 80},
            "model": {"architecture": "bert", "hidden_size": 32, "num_hidden_layers": 1},
            "epochs": 3,
            "batch_size": 16,
            "learning_rate": 3e-3,
            "dropout": 0.2,
            "evaluations_per_epoch": 2,
            **config,
        },
    }


class StepTrial:
    """Lets a test act when a trial is about to make a step."""

    def __init__(self, trial, step, act):
        self._trial, self._step, self._act = trial, step, act

    def __getattr__(self, name):
        return getattr(self._trial, name)

    def progress(self, step, **told):
        if step == self._step:
            self._act()
        self._trial.progress(step, **told)


def as_the_first(place, trial):
    """A trial that draws what trial 0 draws."""
    trial.seed = place.spec.trial_seed(0)
    return trial


def resumed_after(place, step, params=None):
    """The second attempt at trial 1, as if it were trial 0; the first was drained at a step."""
    drained = as_the_first(place, place.claim(1, params))
    with pytest.raises(DrainRequested):
        run(place.container, StepTrial(drained, step, place.drain.set))
    place.drain.clear()
    assert place.leases.release(1, place.held.token)
    torch.manual_seed(999)  # whatever ran in between
    return as_the_first(place, place.hold(1))


def assert_equal(weights, expected):
    assert weights.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(weights[name], weight), name


class Lost(BaseException):
    """The end of an attempt that can do nothing more."""


def value_after_a_loss(container, place):
    """What trial 0 ends with when its process is lost between two checkpoints."""

    def lose():
        raise Lost

    again = as_the_first(place, place.claim(1))
    with pytest.raises(Lost):
        run(container, StepTrial(again, 3, lose))
    assert place.leases.release(1, place.held.token)
    torch.manual_seed(999)  # whatever ran in between
    resumed = as_the_first(place, place.hold(1))
    assert resumed.load_checkpoint()["step"] == 2
    return run(container, resumed)


def run(container, trial):
    try:
        return call_objective(finetune, trial, container)
    finally:
        trial.await_checkpoint()  # as whoever runs an attempt does
