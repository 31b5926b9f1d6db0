from __future__ import annotations

import gc
import math

import numpy as np
import pytest
import torch

from workers.managers import (
    AMPManager,
    BatchManager,
    CUDAManager,
    DirectoryManager,
    MetricsManager,
    ModelManager,
    TensorManager,
    TokenizerManager,
    model,
)
from workers.managers.heap import Heap
from workers.managers.memory_use import MemoryUse
from workers.managers.surroundings import Surroundings
from workers.processes.cores import count_cores
from workers.protocol.errors import InvalidInputError, ObjectiveError
from workers.protocol.finetune import FinetuneConfig
from workers.settings import Settings
from workers.trials.step_seeds import seed_generators


def test_the_slots_of_a_cpu_box_share_its_cores(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = torch.get_num_threads()
    try:
        manager = CUDAManager(Settings(slots=count_cores()))
        assert manager.device.type == "cpu"
        assert manager.num_threads == 1
    finally:
        torch.set_num_threads(before)


def test_outside_a_fleet_the_threads_are_left_alone():
    before = torch.get_num_threads()
    assert CUDAManager(Settings()).device
    assert torch.get_num_threads() == before


def test_a_seed_makes_all_generators_repeat_and_states_can_be_restored(container):
    cuda = container.get(CUDAManager)
    cuda.seed(5)
    first = torch.rand(3), np.random.rand(3)
    cuda.seed(5)
    assert torch.equal(torch.rand(3), first[0])
    assert np.array_equal(np.random.rand(3), first[1])
    state = cuda.rng_state()
    wanted = torch.rand(3)
    cuda.set_rng_state(state)
    assert torch.equal(torch.rand(3), wanted)


def test_what_an_objective_draws_on_an_apple_gpu_follows_from_the_seed(container, monkeypatch):
    seeds = []
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)  # stands for such a GPU
    monkeypatch.setattr(torch.mps, "manual_seed", seeds.append)
    container.get(CUDAManager).seed(5)
    seed_generators(6)
    assert seeds == [5, 6]


def test_tensors_go_to_the_cpu_cut_from_their_graph_in_any_nesting(container):
    tensors = container.get(TensorManager)
    weight = torch.ones(2, requires_grad=True)
    nested = {"a": [weight * 2, (weight, 3)], "b": None}
    copied = tensors.to_cpu(nested)
    assert torch.equal(copied["a"][0], torch.full((2,), 2.0))
    assert not copied["a"][0].requires_grad
    assert copied["a"][1][0].data_ptr() != weight.data_ptr()
    assert (copied["a"][1][1], copied["b"]) == (3, None)
    assert tensors.to_device(weight) is weight or weight.device != tensors.device


def test_what_a_block_leaves_alive_is_measured(container):
    tensors = container.get(TensorManager)
    kept = []
    with tensors.measure_leak() as clean:
        torch.zeros(1000)
    assert (clean.bytes, clean.tensors) == (0, [])
    with tensors.measure_leak() as leak:
        kept.append(torch.zeros(10, 100))
    assert leak.bytes == 4000
    assert leak.tensors == ["float32[10, 100] on cpu, 4000 bytes"]


def test_circular_references_are_freed(container):
    tensors = container.get(TensorManager)
    gc.disable()
    try:
        with tensors.measure_leak() as leak:
            circle: dict = {"tensor": torch.zeros(10)}
            circle["self"] = circle
            del circle
    finally:
        gc.enable()
    assert leak.bytes == 0


@pytest.mark.parametrize("has_gpu", [True, False])
def test_pinned_memory_that_torch_keeps_goes_with_what_a_gpu_was_used_for(monkeypatch, has_gpu):
    given_back = []
    cuda = CUDAManager(Settings())
    monkeypatch.setattr(CUDAManager, "holds_memory", property(lambda _: has_gpu))
    monkeypatch.setattr(MemoryUse, "is_worth_tidying", lambda _: True)
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda *_: {})
    monkeypatch.setattr(
        torch.accelerator, "empty_host_cache", lambda: given_back.append(1), raising=False
    )
    assert TensorManager(cuda).tidy()
    assert len(given_back) == has_gpu


def test_freed_memory_that_had_to_wait_goes_back_after_a_trial_that_used_none(monkeypatch):
    seconds, rss = 0.0, 500 << 20
    heap = Heap(lambda: seconds, lambda: rss)
    if heap._trim is None:
        pytest.skip("this C library keeps what it likes")
    monkeypatch.setattr(heap, "_trim", lambda _: trimmed.append(seconds))
    monkeypatch.setattr(MemoryUse, "is_worth_tidying", lambda _: False)
    monkeypatch.setattr(MemoryUse, "rss", property(lambda _: rss))
    tensors = TensorManager(CUDAManager(Settings()))
    monkeypatch.setattr(tensors, "_heap", heap)
    trimmed = []
    rss += 100 << 20
    for now in (1.0, 4.0, 6.0, 7.0):
        seconds = now
        assert not tensors.tidy()
    assert trimmed == [6.0]


def test_a_file_is_written_whole_or_not_at_all(container, tmp_path):
    directories = container.get(DirectoryManager)
    path = tmp_path / "a" / "file.json"
    directories.atomic_write(path, "one")
    directories.atomic_write(path, b"two")
    assert path.read_text() == "two"
    assert [each.name for each in path.parent.iterdir()] == ["file.json"]


def test_a_tokenizer_is_trained_once_and_equal_texts_train_equal_ones(container):
    tokenizers = container.get(TokenizerManager)
    texts = ["Englannin punta", "livre sterling", "Pfund Sterling"] * 20
    path = tokenizers.train(texts, 100).path
    assert tokenizers.train(texts, 100).path == path
    assert tokenizers.train(texts, 90).path != path
    tokenizer = tokenizers.load(path)
    assert tokenizers.load(path) is tokenizer
    ids = tokenizer("Englannin punta")["input_ids"]
    assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Englannin punta"


def test_of_very_many_shapes_of_models_a_process_remembers_few(container, monkeypatch):
    monkeypatch.setattr(model, "_MOST_TRIED", 3)
    tokenizers, models = container.get(TokenizerManager), container.get(ModelManager)
    tokenizer = tokenizers.load(tokenizers.train(["one two three"] * 20, 50).path)
    for width in range(1, 8):
        shape = {"architecture": "bert", "hidden_size": 12 * width, "num_hidden_layers": 1}
        models.sequence_classifier(**shape, num_labels=2, tokenizer=tokenizer, max_length=8)
        assert 1 <= len(models._tried) <= 3


def test_a_tokenizer_that_is_not_there_is_named(container, tmp_path):
    with pytest.raises(InvalidInputError, match="tokenizer '.*nowhere' does not load"):
        container.get(TokenizerManager).load(tmp_path / "nowhere")


def test_on_the_cpu_auto_is_fp32_and_what_needs_a_gpu_is_refused(container):
    amp = container.get(AMPManager)
    if container.get(CUDAManager).is_cuda:
        pytest.skip("there is a GPU")
    assert amp.policy("auto").name == "fp32"
    with pytest.raises(InvalidInputError, match="precision = 'fp16': there is no GPU"):
        amp.policy("fp16")
    with amp.policy("bf16").autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.bfloat16


def test_a_step_clips_the_gradients_and_clears_them(container):
    policy = container.get(AMPManager).policy("fp32")
    weight = torch.nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    policy.backward((weight * 100).sum())
    norm = policy.step(optimizer, [weight], max_grad_norm=1.0)
    assert float(norm) == pytest.approx(200.0)
    assert float(weight.detach().norm()) == pytest.approx(1.0, rel=1e-4)
    assert weight.grad is None


def test_batches_hold_every_row_once_of_similar_length_and_repeat_by_seed_and_epoch(container):
    batches = container.get(BatchManager)
    lengths = np.random.default_rng(0).integers(3, 200, size=5000)
    planned = batches.training_batches(lengths, 32, seed=1, epoch=0)
    assert sorted(row for batch in planned for row in batch) == list(range(5000))
    assert len(planned) == -(-5000 // 32)
    assert planned == batches.training_batches(lengths, 32, seed=1, epoch=0)
    assert planned != batches.training_batches(lengths, 32, seed=1, epoch=1)
    assert planned != batches.training_batches(lengths, 32, seed=2, epoch=0)
    padded = sum(lengths[batch].max() * len(batch) for batch in planned)
    assert padded < 1.1 * lengths.sum(), "buckets waste under a tenth on padding"


def test_evaluation_goes_through_all_rows_once_the_longest_first(container):
    planned = container.get(BatchManager).evaluation_batches(np.array([5, 1, 3]), 2)
    assert planned == [[0], [1, 2]]


def gradients(container, micro_batch_size, fits=None):
    """The gradient of a mean over ten rows; passes of more than `fits` rows run out of memory."""
    weight = torch.nn.Parameter(torch.ones(3))
    batch = {"x": torch.arange(30.0).reshape(10, 3), "labels": torch.zeros(10)}
    sizes = []

    def loss(part):
        if fits is not None and len(part["x"]) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(part["x"]))
        return (part["x"] @ weight).mean()

    accumulator = container.get(BatchManager).accumulator(micro_batch_size)
    value = accumulator.run(
        batch, loss, lambda part: part.backward(), lambda: setattr(weight, "grad", None)
    )
    return weight.grad, float(value), sizes, accumulator.micro_batch_size


def test_micro_batches_make_the_same_gradient(container):
    whole = gradients(container, None)
    parts = gradients(container, 4)
    assert parts[2] == [4, 4, 2]
    torch.testing.assert_close(parts[0], whole[0])
    assert parts[1] == pytest.approx(whole[1])


def test_when_memory_runs_out_the_batch_is_halved_until_it_fits_and_the_size_is_kept(container):
    whole = gradients(container, None)
    small = gradients(container, None, fits=3)
    torch.testing.assert_close(small[0], whole[0])
    assert (small[2], small[3]) == ([2, 2, 2, 2, 2], 2)


def test_when_not_even_one_row_fits_the_error_is_the_devices(container):
    with pytest.raises(torch.OutOfMemoryError):
        gradients(container, None, fits=0)


@pytest.mark.parametrize(
    ("asked", "matmul", "convolution"),
    [("auto", "highest", "ieee"), ("high", "high", "tf32"), ("medium", "medium", "tf32")],
)
def test_how_float32_is_multiplied_is_the_trials_setting_whatever_ran_before(
    container, asked, matmul, convolution
):
    surroundings = Surroundings()
    for left_behind in ("medium", "highest"):
        torch.set_float32_matmul_precision(left_behind)
        container.get(AMPManager).policy("fp32", asked)
        assert torch.get_float32_matmul_precision() == matmul
        assert torch.backends.cudnn.conv.fp32_precision == convolution
    assert not surroundings.restore()
    with pytest.raises(ValueError, match="precision: tf32 is float32_matmul_precision: high"):
        FinetuneConfig(precision="tf32", float32_matmul_precision="highest")


def test_classification_is_measured_as_by_hand(container):
    meter = container.get(MetricsManager).classification(3)
    logits = torch.eye(3)[[0, 1, 2, 0]]
    meter.update(logits, torch.tensor([0, 1, 2, 1]), torch.tensor(2.0))
    meter.update(logits[:1], torch.tensor([0]), torch.tensor(7.0))
    found = meter.compute()
    assert found["accuracy"] == pytest.approx(4 / 5)
    assert found["loss"] == pytest.approx((4 * 2.0 + 7.0) / 5)
    assert found["f1"] == pytest.approx((4 / 5 + 2 / 3 + 1) / 3)


def test_one_nan_among_the_logits_makes_every_measure_nan(container):
    meter = container.get(MetricsManager).classification(3)
    good, labels = torch.eye(3), torch.arange(3)
    bad = good.clone()
    bad[1, 2] = torch.nan
    for batches in ([bad, good], [good, bad]):
        for logits in batches:
            meter.update(logits, labels, torch.nn.functional.cross_entropy(logits, labels))
        assert all(math.isnan(value) for value in meter.compute().values())
    meter.update(good, labels, torch.tensor(torch.nan))
    assert math.isnan(meter.compute()["loss"]), "a loss is not left out"
    meter.update(bad, labels, torch.tensor(1.0))
    meter.reset()
    masked = good.masked_fill(good == 0, -torch.inf)
    meter.update(masked, labels, torch.tensor(1.0))
    assert set(meter.compute().values()) == {1.0}


def test_measures_of_nothing_are_none(container):
    meter = container.get(MetricsManager).classification(3)
    with pytest.raises(ObjectiveError, match="metrics of no rows"):
        meter.compute()


def test_the_best_value_is_never_nan(container):
    tracker = container.get(MetricsManager).best("minimize")
    assert not tracker.update(math.nan)
    assert tracker.update(2.0)
    assert not tracker.update(math.nan)
    assert tracker.is_better(1.0, than=math.nan)


def test_the_best_value_follows_the_direction(container):
    metrics = container.get(MetricsManager)
    for direction, best in (("maximize", 3.0), ("minimize", 1.0)):
        tracker = metrics.best(direction)
        for value in (2.0, 3.0, 1.0):
            tracker.update(value)
        assert tracker.value == best
