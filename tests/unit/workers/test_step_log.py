from __future__ import annotations

import pytest
import torch

from workers.trials.finetune.step_log import StepLog


@pytest.fixture
def published():
    return []


def noted(published, every, losses, first=1, **named):
    steps = StepLog(
        every, torch.device("cpu"), lambda values, step: published.append((step, values)), **named
    )
    for step, loss in enumerate(losses, first):
        steps.note(step, 0.1 / step, torch.tensor(loss), torch.tensor(2.0 * loss), 100)
    return steps


def test_a_line_is_of_the_steps_since_the_one_before(published):
    noted(published, 3, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    assert [step for step, _ in published] == [3, 6]
    for (_, values), loss, step in zip(published, [2.0, 5.0], [3, 6], strict=True):
        assert values["train/loss"] == loss
        assert values["train/gradient_norm"] == 2 * loss
        assert values["train/learning_rate"] == 0.1 / step
        assert values["train/tokens_per_second"] > 0


def test_the_first_line_of_a_resumed_training_is_of_the_steps_since(published):
    noted(published, 3, [4.0, 6.0], first=5)
    assert published[0][0] == 6
    assert published[0][1]["train/loss"] == 5.0


def test_a_batch_that_is_left_out_is_in_no_mean_and_counted(published):
    noted(published, 4, [1.0, float("nan"), 3.0, float("inf"), 5.0, 5.0, 5.0, 5.0])
    assert [values["train/loss"] for _, values in published] == [2.0, 5.0]
    assert [values["train/gradient_norm"] for _, values in published] == [4.0, 10.0]
    assert [values.get("train/batches_left_out") for _, values in published] == [2, None]


def test_a_loss_counts_by_its_share_of_what_is_left(published):
    steps = noted(published, 3, [])
    one = torch.tensor(1.0)
    for step, (loss, share) in enumerate([(1.0, 1.0), (float("nan"), 1.0), (4.0, 0.5)], 1):
        steps.note(step, 0.1, torch.tensor(loss), one, 100, share)
    assert published[0][1]["train/loss"] == (1.0 + 4.0 * 0.5) / 1.5


def test_nothing_is_written_unless_it_is_asked_for(published):
    noted(published, None, [1.0] * 50)
    assert published == []


def test_between_two_lines_the_device_is_not_waited_for(published, monkeypatch):
    def wait(_):
        raise AssertionError("a value was read")

    for name in ("tolist", "item", "__float__", "__bool__"):
        monkeypatch.setattr(torch.Tensor, name, wait)
    noted(published, 100, [1.0] * 50)
    with pytest.raises(AssertionError, match="a value was read"):
        noted(published, 2, [1.0] * 2)


def test_what_is_no_training_does_not_slow_the_tokens_down(published):
    seconds = iter([0.0, 10.0, 40.0, 50.0, 50.0])
    steps = noted(published, 2, [1.0], clock=lambda: next(seconds))
    with steps.apart():
        pass
    steps.note(2, 0.1, torch.tensor(1.0), torch.tensor(1.0), 300)
    assert published[0][1]["train/tokens_per_second"] == 400 / 20
