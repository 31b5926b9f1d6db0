"""A training of some steps by compiled code, in a process of its own; prints what it came to."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from structlog.testing import capture_logs

from workers.containers import Container
from workers.managers import MANAGERS, CUDAManager, DirectoryManager, ModelManager
from workers.managers.compilation import Compilation
from workers.processes.registry import ProcessRecord
from workers.settings import Settings

SMALL = {"architecture": "bert", "hidden_size": 32, "num_hidden_layers": 1}


def train(folder: Path, from_step: int) -> dict[str, object]:
    """Some steps of a small model, from nothing or from what another process saved."""
    settings = Settings(home=folder / "home", cache=folder / "cache")
    with Container(MANAGERS, [settings, ProcessRecord()]) as container, capture_logs() as logs:
        cuda = container.get(CUDAManager)
        cuda.seed(1)
        model = container.get(ModelManager).sequence_classifier(
            **SMALL, num_attention_heads=2, vocab_size=50, num_labels=2, dropout=0.2
        )
        compiled = Compilation(model, "default", "fp32", cuda, container.get(DirectoryManager))
        saved = folder / "state.pt"
        if from_step:
            state = torch.load(saved)
            model.load_state_dict(state["model"])
            torch.set_rng_state(state["rng"])
        losses = []
        with compiled.open():
            for step in range(from_step, 5):
                if step == 2 and not from_step:
                    torch.save({"model": model.state_dict(), "rng": torch.get_rng_state()}, saved)
                losses.append(train_step(model, compiled, step))
            model.eval()
            with torch.inference_mode():
                for length in (8, 24):
                    compiled(**batch_of(5, length))
        [counted] = [each for each in logs if each["event"] == "compiled"]
        return {**counted, "losses": losses}


def train_step(model, compiled, step):
    batch = batch_of(3 + step, 8 * (1 + step))
    loss = compiled(**batch).logits.square().mean()
    loss.backward()
    with torch.no_grad():
        for weight in model.parameters():
            weight.sub_(0.1 * weight.grad)
            weight.grad = None
    return float(loss)


def batch_of(rows, length):
    ids = torch.arange(rows * length).reshape(rows, length) % 50
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0
    return {"input_ids": ids, "attention_mask": mask}


if __name__ == "__main__":
    print(json.dumps(train(Path(sys.argv[1]), int(sys.argv[2]))))
