from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch

from workers.managers import BatchManager
from workers.managers.passes import FittingRows


class Model:
    """Has dropout; more than `fits` tokens at once run out of its device's memory."""

    def __init__(self, fits, message="CUDA out of memory. Tried to allocate 2.00 GiB"):
        self.fits = fits
        self.message = message
        self.passes: list[tuple[int, ...]] = []
        self.num_shortages = 0
        torch.manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(3))

    def loss(self, part):
        hidden = torch.nn.functional.dropout(part["input_ids"].float(), 0.5)
        if part["input_ids"].numel() > self.fits:
            self.num_shortages += 1
            raise torch.OutOfMemoryError(self.message)
        self.passes.append(tuple(part["input_ids"].shape))
        return (hidden.sum(1, keepdim=True) * self.weight).square().mean()

    def gradient(self, accumulator, batch):
        torch.manual_seed(7)
        self.weight.grad = None

        def clear():
            self.weight.grad = None

        value = accumulator.run(batch, self.loss, torch.autograd.backward, clear)
        return value, self.weight.grad, torch.rand(1)


def texts(rows, length):
    ids = torch.arange(1, rows * length + 1).reshape(rows, length) % 7
    return {"input_ids": ids, "labels": torch.zeros(rows)}


def test_what_fits_is_known_by_length_and_longer_rows_take_no_more():
    fitting = FittingRows()
    assert fitting.limit(64) is None
    fitting.note(100, 8)
    assert [fitting.limit(length) for length in (1, 64, 65, 128, 129, 4096)] == [
        None,
        None,
        8,
        8,
        8,
        8,
    ]
    fitting.note(512, 16)
    assert fitting.limit(512) == 8
    fitting.note(512, 2)
    fitting.note(100, 32)
    assert (fitting.limit(100), fitting.limit(512)) == (8, 2), "a limit is never raised"


def test_the_next_with_such_a_model_begins_with_what_fits_and_comes_to_the_same_to_the_bit(
    container,
):
    batches = container.get(BatchManager)
    model, batch = Model(fits=100), texts(16, 20)
    first = model.gradient(batches.accumulator(model="bert in bf16"), batch)
    assert (model.num_shortages, model.passes) == (2, [(4, 20)] * 4)
    again = model.gradient(batches.accumulator(model="bert in bf16"), batch)
    assert model.num_shortages == 2, "it was remembered"
    for found, expected in zip(again, first, strict=True):
        assert torch.equal(found, expected), "losses, gradients, and what is drawn next"
    short = texts(16, 6)
    model.gradient(batches.accumulator(model="bert in bf16"), short)
    assert model.passes[-1] == (16, 6), "of shorter texts, more fit"
    for other in ("bert in fp32", None):
        before = model.num_shortages
        model.gradient(batches.accumulator(model=other), batch)
        assert model.num_shortages == before + 2, "that is another one"


def test_a_resumed_training_cuts_its_batches_as_before_on_another_device(container):
    batches = container.get(BatchManager)
    small, large, batch = Model(fits=100), Model(fits=10_000), texts(16, 20)
    before = batches.accumulator(model="on a small device")
    expected = small.gradient(before, batch)
    after = batches.accumulator(model="on a large device")
    after.load_state_dict(before.state_dict())
    for found, each in zip(large.gradient(after, batch), expected, strict=True):
        assert torch.equal(found, each)
    assert large.passes == small.passes
    assert batches.accumulator(model="on a large device").micro_batch_size is None, (
        "what another device has room for is not this one's"
    )


def test_an_evaluation_goes_on_with_smaller_parts_and_repeats_none(container):
    passes = container.get(BatchManager).passes("bert in bf16")
    batch, seen = texts(10, 4), []
    room = [16]

    def work(part):
        if part["input_ids"].numel() > room[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        seen.append(len(part["labels"]))
        if len(seen) == 2:
            room[0] = 8  # another process takes some
        return part["input_ids"]

    parts = list(passes.each(batch, work))
    assert torch.equal(torch.cat(parts), batch["input_ids"])
    assert seen == [2, 2, 2, 2, 2]
    assert container.get(BatchManager).passes("bert in bf16").micro_batch_size == 2
    room[0] = 3
    with pytest.raises(torch.OutOfMemoryError):
        list(passes.each(batch, work))


@pytest.mark.parametrize(
    ("error", "is_halved"),
    [
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (MemoryError(), True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
    ],
)
def test_what_is_no_shortage_of_memory_is_not_tried_again(container, error, is_halved):
    asked = []

    def work(part):
        asked.append(len(part["labels"]))
        if len(part["labels"]) > 4:
            raise error
        return 0

    def go():
        return list(container.get(BatchManager).passes().each(texts(8, 2), work))

    if is_halved:
        assert go() == [0, 0]
        assert asked == [8, 4, 4]
    else:
        with pytest.raises(RuntimeError, match="must match the size"):
            go()
        assert asked == [8]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs the size of a process")
def test_a_real_shortage_of_the_hosts_memory_halves_the_batch(container):
    accumulator = container.get(BatchManager).accumulator()
    weight = torch.nn.Parameter(torch.ones(()))
    batch = {"x": torch.ones(64, 1), "labels": torch.zeros(64)}

    def loss(part):
        big = part["x"].expand(-1, 4 * 2**20) * weight  # 16 MB a row
        return big[:, 0].mean()

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    room = pages * resource.getpagesize() + 400 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (room, hard))
    try:
        value = accumulator.run(batch, loss, torch.autograd.backward, lambda: None)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert float(value) == pytest.approx(1.0)
    assert float(weight.grad) == pytest.approx(1.0)
    assert 1 <= accumulator.micro_batch_size <= 16
