"""When a training is said to have diverged, and when not."""

from __future__ import annotations

import math

import pytest
import torch

from workers.managers.amp import PrecisionPolicy
from workers.trials.divergence import Diverged, LossWatch

CPU = torch.device("cpu")
#: Stands for a GPU: what lies there is looked at some dozens at a time.
FAR = torch.device("meta")


def note(watch, step, loss, norm=1.0):
    watch.note(step, 0.25, torch.tensor(loss), torch.tensor(norm))


@pytest.mark.parametrize(
    ("loss", "norm", "text"),
    [
        (math.nan, 1.0, "the loss is nan at step 2 "),
        (math.inf, 1.0, "the loss is inf at step 2 "),
        (0.5, math.inf, "the loss is 0.5, and the norm of its gradients inf, at step 2 "),
        (0.5, math.nan, "the loss is 0.5, and the norm of its gradients nan, at step 2 "),
    ],
)
def test_the_step_the_rate_and_the_loss_before_are_told(loss, norm, text):
    watch = LossWatch(CPU)
    note(watch, 1, 1.5)
    with pytest.raises(Diverged) as caught:
        note(watch, 2, loss, norm)
    assert str(caught.value) == f"{text}(learning rate 0.25; loss before: 1.5)"
    with pytest.raises(Diverged, match="no loss was finite before"):
        note(LossWatch(CPU), 1, math.nan)


def test_far_losses_are_looked_at_together_and_before_their_mean_is_taken():
    watch = LossWatch(FAR)
    for step in range(1, 32):
        note(watch, step, math.nan if step > 3 else float(step))
    for look in (lambda: note(watch, 32, 1.0), watch.look, watch.mean):
        with pytest.raises(Diverged, match=r"at step 4 .*loss before: 3\)"):
            look()
        for step in range(1, 5):
            note(watch, step, math.nan if step > 3 else float(step))


def test_batches_are_left_out_of_the_mean_up_to_a_number_in_a_row():
    watch = LossWatch(CPU, max_left_out=2)
    losses = [1.0, math.nan, math.inf, 3.0, math.nan, math.nan]
    for step, loss in enumerate(losses, 1):
        note(watch, step, loss)
    assert (watch.mean(), watch.num_left_out) == (2.0, 4)
    saved = watch.state_dict()
    for resumed in (watch, LossWatch(CPU, max_left_out=2)):
        resumed.load_state_dict(saved)
        with pytest.raises(Diverged, match="as in the 2 batches before, which were left out"):
            note(resumed, 7, math.nan)
    watch.load_state_dict(saved)
    watch.forget_mean()
    note(watch, 7, 5.0)
    assert watch.mean() == 5.0


def test_steps_that_a_scaler_leaves_out_are_no_divergence_unless_it_goes_on_for_ever():
    watch = LossWatch(CPU, is_scaled=True)
    for step in range(1, 200):
        note(watch, step, 1.0, math.inf if step % 40 else 1.0)
    with pytest.raises(Diverged, match="the loss is nan at step 200"):
        note(watch, 200, math.nan, math.nan)
    watch.load_state_dict({})
    for step in range(1, 41):
        note(watch, step, 1.0, math.inf)
    with pytest.raises(
        Diverged, match=r"overflow fp16 at any scale, 41 times in a row, at step 41"
    ):
        note(watch, 41, 1.0, math.inf)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_that_is_left_out_changes_neither_weights_nor_the_optimizer(precision, bad):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    policy = PrecisionPolicy(precision, CPU)

    def train(factor):
        loss = model(torch.ones(1, 4)).sum() * factor
        policy.backward(loss)
        policy.step(optimizer, model.parameters(), 1.0, guard=loss.detach())
        states = [value for state in optimizer.state.values() for value in state.values()]
        return [each.detach().clone() for each in [*model.parameters(), *states]]

    after_good = train(1.0)
    after_bad = train(bad)
    assert all(map(torch.equal, after_good, after_bad))
    assert not any(map(torch.equal, train(1.0), after_good))
