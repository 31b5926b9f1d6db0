"""Language identification with `transformers.Trainer`, as a trial: two lines more than without.

It needs `pip install 'trialfleet[transformers-trainer]'` and no network.
"""

from __future__ import annotations

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from workers.integrations.transformers import FleetCallback
from workers.managers import DataManager
from workers.managers.data import Examples
from workers.managers.tokenized import PaddingCollator
from workers.trials.handle import FleetTrial


def objective(trial: FleetTrial, data: DataManager) -> float:
    """Train a small BERT; its best accuracy on the held-out texts."""
    texts = data.text_classification(
        "cldr-language-id",
        vocab_size=trial.config["vocab_size"],
        max_length=trial.config["max_length"],
        progress=trial.preparing,
    )
    torch.manual_seed(trial.seed)
    fleet = FleetCallback(
        trial, metric="accuracy", checkpoint_seconds=trial.config["checkpoint_seconds"]
    )
    trainer = Trainer(
        small_bert(texts),
        arguments(trial),
        train_dataset=texts.train,
        eval_dataset=texts.validation,
        data_collator=PaddingCollator(texts.tokenizer.pad_token_id),
        compute_metrics=accuracy,
        callbacks=[fleet],
    )
    trainer.train(resume_from_checkpoint=fleet.resume_from_checkpoint)
    trainer.save_model()
    return fleet.best_value


def small_bert(texts: Examples) -> BertForSequenceClassification:
    """A model for these texts, drawn from torch's generator."""
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=len(texts.tokenizer),
            hidden_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=128,
            num_labels=len(texts.classes),
        )
    )


def arguments(trial: FleetTrial) -> TrainingArguments:
    """How it is trained, the learning rate being searched."""
    return TrainingArguments(
        learning_rate=trial.suggest_float("learning_rate", 3e-4, 1e-2, log=True),
        per_device_train_batch_size=64,
        per_device_eval_batch_size=256,
        num_train_epochs=trial.config["epochs"],
        max_steps=trial.config.get("max_steps", -1),
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        logging_steps=20,
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=trial.seed,
        report_to=trial.config.get("report_to", "none"),
    )


def accuracy(found: tuple[torch.Tensor, torch.Tensor]) -> dict[str, float]:
    """The share of texts that are told right."""
    logits, labels = found
    return {"accuracy": float((logits.argmax(-1) == labels).mean())}
