"""Trials of every task and several architectures in one process, and what they leave there."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from held import Held
from mixed_trials import KINDS, mixed_trials

from workers.managers import TensorManager


@pytest.fixture
def trials(client, settings, container, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with mixed_trials(client, settings, container, tmp_path, texts=32, scale=1) as made:
        yield made
    torch.set_num_threads(before)


def test_trials_of_mixed_models_leave_nothing_in_their_process(trials, container):
    count = len(KINDS)
    ends = Counter(trials.run(number) for number in range(count))
    assert ends == {"COMPLETE": count - 1, "FAILED": 1}, "one diverges"
    before = Held.now()
    with container.get(TensorManager).measure_leak() as leak:
        for number in range(count, 2 * count):
            trials.run(number)
    after = Held.now()
    assert leak.tensors == []
    grown = after.grown_since(before)
    assert after.rss < 1.05 * before.rss, grown
    assert after.threads <= before.threads, grown
    assert after.files <= before.files + 4, grown
    assert after.maps <= before.maps + 8, grown
    # what is remembered of shapes and lengths; a model alone has hundreds of objects
    assert sum(grown.values()) < 200, grown
