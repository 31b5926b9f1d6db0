"""Language identification with `lightning.Trainer`, as a trial: two lines more than without.

It needs `pip install 'trialfleet[lightning]'` and no network.
"""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from workers.integrations.lightning import FleetCallback
from workers.managers import DataManager
from workers.managers.tokenized import PaddingCollator
from workers.trials.handle import FleetTrial


class Classifier(LightningModule):
    """Tells a text by the mean of its tokens' vectors."""

    def __init__(self, vocab_size: int, width: int, learning_rate: float, classes: int) -> None:
        super().__init__()
        self.vectors = nn.EmbeddingBag(vocab_size, width, mode="mean", padding_idx=0)
        self.layers = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Dropout(0.1), nn.Linear(width, classes)
        )
        self.learning_rate = learning_rate

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Scores of the classes, of tokens in rows."""
        scores: torch.Tensor = self.layers(self.vectors(tokens))
        return scores

    def training_step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The loss of a batch."""
        loss = nn.functional.cross_entropy(self(batch["input_ids"]), batch["labels"])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: dict[str, torch.Tensor]) -> None:
        """The share of a batch's texts that are told right."""
        hits = self(batch["input_ids"]).argmax(-1) == batch["labels"]
        self.log("val_accuracy", hits.double().mean(), batch_size=len(hits))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=self.learning_rate)


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
    model = Classifier(
        vocab_size=len(texts.tokenizer),
        width=trial.suggest_int("width", 32, 256, log=True),
        learning_rate=trial.suggest_float("learning_rate", 1e-3, 3e-2, log=True),
        classes=len(texts.classes),
    )
    fleet = FleetCallback(
        trial, metric="val_accuracy", checkpoint_seconds=trial.config["checkpoint_seconds"]
    )
    trainer = Trainer(
        max_epochs=trial.config["epochs"],
        callbacks=[fleet],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(
        model,
        DataLoader(texts.train, batch_size=128, shuffle=True, collate_fn=collate),
        DataLoader(texts.validation, batch_size=512, collate_fn=collate),
        ckpt_path=fleet.checkpoint,
    )
    return fleet.best_value
