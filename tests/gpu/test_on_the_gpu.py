"""What only a CUDA device can show; run with `./ops/test tests/gpu` on a box that has one."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.gpu


@pytest.fixture
def container(tmp_path, monkeypatch):
    from workers.containers import Container
    from workers.managers import MANAGERS
    from workers.processes.registry import ProcessRecord
    from workers.settings import Settings

    monkeypatch.setenv("WANDB_MODE", "disabled")
    with Container(MANAGERS, [Settings(home=tmp_path / "home"), ProcessRecord()]) as opened:
        yield opened


def test_the_device_is_found_and_its_memory_told(container):
    from workers.managers import CUDAManager

    cuda = container.get(CUDAManager)
    assert cuda.device.type == "cuda"
    memory = cuda.memory()
    assert 0 < memory.free <= memory.total


def test_tensors_are_staged_and_their_memory_is_given_back(container):
    import torch

    from workers.managers import TensorManager

    tensors = container.get(TensorManager)
    with tensors.measure_leak() as leak:
        moved = tensors.to_device({"a": [torch.arange(1_000_000)]})
        assert moved["a"][0].is_cuda
        assert torch.equal(tensors.to_cpu(moved)["a"][0], torch.arange(1_000_000))
        del moved
    assert leak.bytes == 0


def test_auto_takes_the_best_precision_and_parameters_stay_in_float32(container):
    import torch

    from workers.managers import AMPManager, CUDAManager, ModelManager
    from workers.protocol.finetune import ModelConfig

    policy = container.get(AMPManager).policy("auto")
    expected = "bf16" if container.get(CUDAManager).supports_bf16() else "fp16"
    assert policy.name == expected
    model = container.get(ModelManager).sequence_classifier(
        ModelConfig(architecture="bert", hidden_size=64, num_hidden_layers=1),
        num_labels=3,
        vocab_size=50,
    )
    with policy.autocast():
        logits = model(torch.ones(2, 5, dtype=torch.long, device="cuda")).logits
    assert logits.dtype is not torch.float32
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("precision", ["bf16", "fp16", "tf32", "fp32"])
def test_a_step_in_every_precision_learns(container, precision):
    import torch

    from workers.managers import AMPManager

    policy = container.get(AMPManager).policy(precision)
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 1).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    inputs = torch.randn(256, 64, device="cuda")
    losses = []
    for _ in range(50):
        with policy.autocast():
            loss = (model(inputs).float() - 1.0).pow(2).mean()
        policy.backward(loss)
        policy.step(optimizer, model.parameters(), max_grad_norm=10.0)
        losses.append(float(loss))
    assert losses[-1] < losses[0] / 2


def test_batches_that_a_thread_copies_beside_computing_arrive_whole(container):
    import torch

    from workers.managers import TensorManager
    from workers.managers.device_copies import DeviceCopies
    from workers.managers.prefetch import Prefetch

    device = container.get(TensorManager).device
    copies = DeviceCopies(device, lambda: None)
    big = torch.randn(4096, 4096, device=device)

    def make():
        for number in range(60):
            yield copies.send({"x": torch.full((1_000_000,), number)})

    sums = []
    with Prefetch(make) as ahead:
        for sent in ahead:
            big @ big  # the device is behind: copies overtake it, and their memory is not reused
            sums.append(copies.receive(sent)["x"].sum())
    assert torch.stack(sums).tolist() == [number * 1_000_000 for number in range(60)]


def test_a_real_shortage_of_memory_halves_the_batch(container):
    import torch

    from workers.managers import BatchManager, CUDAManager

    total = container.get(CUDAManager).memory().total
    rows, width = 64, 1024
    # one row takes a sixteenth of the device: no more than some of the 64 fit at once
    columns = total // 16 // 4 // width

    def loss(part):
        big = torch.ones(len(part["labels"]), width, columns, device="cuda")
        return (big.mean(dim=(1, 2)) * part["x"]).mean()

    weight = torch.ones(rows, device="cuda", requires_grad=True)
    batch = {"x": weight * 1.0, "labels": torch.zeros(rows, device="cuda")}
    accumulator = container.get(BatchManager).accumulator()
    value = accumulator.run(
        batch, loss, lambda part: part.backward(retain_graph=True), lambda: None
    )
    assert float(value) == pytest.approx(1.0)
    assert accumulator.micro_batch_size <= 8


ASSERTS = """

def embeds(trial):
    '''The first trial has an index beyond the embedding.'''
    note(trial, "starts", 0)
    embedding = torch.nn.Embedding(10, 4).cuda()
    largest = 10 if trial.number == 0 else 9
    loss = embedding(torch.tensor([0, largest], device="cuda")).sum()
    return float(loss)
"""


@pytest.fixture
def fleet(tmp_path):
    from fault_fleet import FaultFleet

    made = FaultFleet(tmp_path)
    made.start()
    path = tmp_path / "faulty.py"
    path.write_text(path.read_text() + ASSERTS)
    yield made
    made.stop()
    made.assert_nothing_left()


@pytest.mark.timeout(300)
def test_a_process_that_a_real_assert_broke_is_replaced_and_the_next_trial_runs(fleet):
    fleet.submit(3, "embeds")
    fleet.serve()
    worker = fleet.worker(1, CUDA_VISIBLE_DEVICES="0")
    fleet.await_over(240)
    states = [trial.user_attrs["trialfleet:state"] for trial in fleet.trials()]
    assert states == ["FAILED", "COMPLETE", "COMPLETE"]
    assert "most often a label" in fleet.trials()[0].user_attrs["trialfleet:error"]
    broken = fleet.events("cuda_broken")
    assert [event["kind"] for event in broken] == ["device-side assert"] * 2
    first, second = (event["pid"] for event in broken)
    assert first != second, "each time in a process of its own"
    fine = {note.pid for note in fleet.notes("starts") if note.number != 0}
    assert second not in fine or fleet.events("claimed")[-1]["pid"] not in {first, second}
    assert fleet.events("slot_refused") == []
    assert worker.poll() is None


def test_a_broken_context_is_noticed_whatever_an_objective_made_of_it(tmp_path):
    """In a process of its own, which is of no use after it."""
    import subprocess
    import sys

    program = (
        "import torch\n"
        "from workers.managers.cuda import CUDAManager\n"
        "from workers.settings import Settings\n"
        "from workers.trials.cuda_errors import cuda_trouble\n"
        "cuda = CUDAManager(Settings())\n"
        "cuda.open()\n"
        "assert cuda.check() is None\n"
        "try:\n"
        "    torch.nn.Embedding(4, 2).cuda()(torch.tensor([7], device='cuda')).sum().item()\n"
        "except RuntimeError as error:\n"
        "    assert cuda_trouble(error).kind == 'device-side assert', error\n"
        "assert 'CUDA does not work here' in cuda.check()\n"
        "print('noticed')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert ended.stdout.strip().endswith("noticed"), ended.stderr[-3000:]


@pytest.mark.parametrize("precision", ["bf16", "fp16", "tf32", "fp32"])
def test_no_step_waits_for_the_gpu_to_learn_whether_it_diverged(container, precision):
    import torch

    from workers.managers import AMPManager
    from workers.trials.divergence import Diverged, LossWatch

    policy = container.get(AMPManager).policy(precision)
    model = torch.nn.Linear(64, 1).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    watch = LossWatch(torch.device("cuda"), max_left_out=2, is_scaled=policy.is_scaled)
    inputs = torch.randn(8, 64, device="cuda")
    factors = torch.tensor([1.0, torch.nan, 1.0, torch.inf, torch.nan, torch.nan], device="cuda")

    def train(step):
        with policy.autocast():
            loss = model(inputs).float().mean() * factors[step]
        policy.backward(loss)
        norm = policy.step(optimizer, model.parameters(), 1.0, guard=loss.detach())
        watch.note(step + 1, 0.01, loss.detach(), norm)

    train(0)  # makes the optimizer's state
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(1, len(factors)):
            train(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with pytest.raises(Diverged, match="the loss is nan, as in the 2 batches before"):
        watch.look()
    assert all(weight.isfinite().all() for weight in model.parameters())
