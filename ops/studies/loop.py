"""Language identification in a plain PyTorch loop: three lines make it a trial that resumes.

It needs no network. What is the fleet's are `trial.training`, `run.epochs`, `run.steps`,
`run.evaluation` and `run.report`.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.utils.data import DataLoader

from workers.managers import CUDAManager, DataManager
from workers.managers.tokenized import PaddingCollator
from workers.trials.handle import FleetTrial


class Classifier(nn.Module):
    """Tells a text by the mean of its tokens' vectors."""

    def __init__(self, vocab_size: int, width: int, dropout: float, num_classes: int) -> None:
        super().__init__()
        self.vectors = nn.EmbeddingBag(vocab_size, width, mode="mean", padding_idx=0)
        self.layers = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, num_classes)
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Scores of the classes, of tokens in rows."""
        scores: torch.Tensor = self.layers(self.vectors(tokens))
        return scores


def objective(trial: FleetTrial, data: DataManager, cuda: CUDAManager) -> float:
    """Train a small classifier; its best accuracy on the held-out texts."""
    texts = data.text_classification(
        "cldr-language-id",
        vocab_size=trial.config["vocab_size"],
        max_length=trial.config["max_length"],
        progress=trial.preparing,
    )
    collate = PaddingCollator(texts.tokenizer.pad_token_id)
    loader = DataLoader(texts.train, batch_size=128, shuffle=True, collate_fn=collate)
    held_out = DataLoader(texts.validation, batch_size=512, collate_fn=collate)

    torch.manual_seed(trial.seed)
    model = Classifier(
        vocab_size=len(texts.tokenizer),
        width=trial.suggest_int("width", 32, 256, log=True),
        dropout=trial.suggest_float("dropout", 0.0, 0.5),
        num_classes=len(texts.classes),
    ).to(cuda.device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=trial.suggest_float("learning_rate", 1e-3, 3e-2, log=True)
    )
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)

    state = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "best": 0.0}
    with trial.training(state, checkpoint_seconds=trial.config["checkpoint_seconds"]) as run:
        for _epoch in run.epochs(trial.config["epochs"]):
            model.train()
            for batch in run.steps(loader):
                scores = model(batch["input_ids"].to(cuda.device))
                loss = nn.functional.cross_entropy(scores, batch["labels"].to(cuda.device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            scheduler.step()
            accuracy = measure(model, run.evaluation(held_out), cuda.device)
            run.state["best"] = max(run.state["best"], accuracy)
            run.report(accuracy)
    return float(run.state["best"])


@torch.inference_mode()
def measure(
    model: nn.Module, batches: Iterable[dict[str, torch.Tensor]], device: torch.device
) -> float:
    """The share of texts that are told right."""
    model.eval()
    hits, total = 0, 0
    for batch in batches:
        found = model(batch["input_ids"].to(device)).argmax(-1)
        hits += int((found == batch["labels"].to(device)).sum())
        total += len(found)
    return hits / total
