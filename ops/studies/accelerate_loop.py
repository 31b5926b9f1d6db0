"""Language identification in a loop of `accelerate`: three lines make it a trial that resumes.

It needs `pip install 'trialfleet[transformers-trainer]'`, which brings accelerate, and no network.
What is the fleet's are `trial.training`, `run.epochs`, `run.steps`, `run.evaluation`, `run.report`.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from workers.managers import DataManager
from workers.managers.tokenized import PaddingCollator
from workers.trials.handle import FleetTrial


class Classifier(nn.Module):
    """Tells a text by the mean of its tokens' vectors."""

    def __init__(self, vocab_size: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.vectors = nn.EmbeddingBag(vocab_size, width, mode="mean", padding_idx=0)
        self.layers = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Dropout(0.1), nn.Linear(width, num_classes)
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Scores of the classes, of tokens in rows."""
        scores: torch.Tensor = self.layers(self.vectors(tokens))
        return scores


def objective(trial: FleetTrial, data: DataManager) -> float:
    """Train a small classifier; its best accuracy on the held-out texts."""
    texts = data.text_classification(
        "cldr-language-id",
        vocab_size=trial.config["vocab_size"],
        max_length=trial.config["max_length"],
        progress=trial.preparing,
    )
    collate = PaddingCollator(texts.tokenizer.pad_token_id)
    torch.manual_seed(trial.seed)
    accelerator = Accelerator(gradient_accumulation_steps=2)
    model = Classifier(
        len(texts.tokenizer), trial.suggest_int("width", 32, 256, log=True), len(texts.classes)
    )
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=trial.suggest_float("learning_rate", 1e-3, 3e-2, log=True)
    )
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.999)
    model, optimizer, scheduler, loader, held_out = accelerator.prepare(
        model,
        optimizer,
        scheduler,
        DataLoader(
            texts.train, batch_size=trial.config["batch_size"], shuffle=True, collate_fn=collate
        ),
        DataLoader(texts.validation, batch_size=512, collate_fn=collate),
    )

    # of an accelerator, all that it has prepared is saved
    state = {"prepared": accelerator, "best": 0.0}
    with trial.training(state, checkpoint_seconds=trial.config["checkpoint_seconds"]) as run:
        for _epoch in run.epochs(trial.config["epochs"]):
            model.train()
            for batch in run.steps(loader):
                with accelerator.accumulate(model):
                    loss = nn.functional.cross_entropy(model(batch["input_ids"]), batch["labels"])
                    accelerator.backward(loss)
                    optimizer.step()
                    scheduler.step()
                    optimizer.zero_grad()
            accuracy = measure(accelerator, model, run.evaluation(held_out))
            run.state["best"] = max(run.state["best"], accuracy)
            run.report(accuracy)
    return float(run.state["best"])


@torch.inference_mode()
def measure(
    accelerator: Accelerator, model: nn.Module, batches: Iterable[dict[str, torch.Tensor]]
) -> float:
    """The share of texts that are told right."""
    model.eval()
    hits, total = 0, 0
    for batch in batches:
        found = model(batch["input_ids"]).argmax(-1)
        found, labels = accelerator.gather_for_metrics((found, batch["labels"]))
        hits += int((found == labels).sum())
        total += len(labels)
    return hits / total
