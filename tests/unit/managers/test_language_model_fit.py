from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from transformers import BertConfig, BertForTokenClassification, GPT2Config, GPT2LMHeadModel

from workers.managers import ModelManager, TokenizerManager, model_fit
from workers.managers.head import CAUSAL_LM, HEAD_KINDS, Head
from workers.managers.model_check import find_problem
from workers.managers.text_format import TextFormat
from workers.protocol.finetune import DataConfig, FinetuneConfig
from workers.protocol.tasks import TASKS

SMALL = {"hidden_size": 32, "num_hidden_layers": 1}


def problem(task, model, **data):
    fields = {"task": task, "model": {**SMALL, **model}, "data": data}
    return find_problem(FinetuneConfig.model_validate(fields))


@pytest.mark.parametrize(
    ("model", "rows", "blocks"),
    [
        ({"architecture": "gpt2"}, None, None),
        ({"architecture": "llama"}, None, None),
        ({"architecture": "qwen2"}, None, None),
        ({"architecture": "gpt_neox"}, None, None),
        ({"architecture": "opt", "word_embed_proj_dim": 32}, None, "'opt' does not keep the texts"),
        ({"architecture": "bloom"}, None, "'bloom' does not keep the texts of a block apart"),
        (
            {"architecture": "bert"},
            "'bert' sees the tokens that it is to predict; set model.is",
            "sees the",
        ),
        (
            {"architecture": "bert", "is_decoder": True},
            None,
            "does not keep the texts of a block apart",
        ),
        ({"architecture": "roberta"}, "'roberta' sees the tokens that it is", "sees the tokens"),
        ({"architecture": "modernbert"}, "no causal language model in transformers", "gpt2, llama"),
        ({"architecture": "distilbert"}, "'distilbert' has no causal language model", "no causal"),
        ({"architecture": "deberta-v2"}, "no causal language model", "no causal language model"),
    ],
    ids=lambda value: value.get("architecture") if isinstance(value, dict) else None,
)
def test_an_architecture_models_language_or_is_refused_by_name(model, rows, blocks):
    for data, wanted in [({"max_length": 16}, rows), ({"block_size": 16}, blocks)]:
        found = problem("causal_lm", model, **data)
        assert (found is None) == (wanted is None), found
        assert wanted is None or wanted in found, found
    if blocks and "apart" in blocks:
        assert "data.across_texts: true" in problem("causal_lm", model, block_size=16)
        assert problem("causal_lm", model, block_size=16, across_texts=True) is None


@pytest.mark.parametrize(
    "architecture",
    ["bert", "roberta", "modernbert", "deberta-v2", "distilbert", "electra", "gpt2", "llama"],
)
def test_an_architecture_learns_hidden_tokens_or_is_refused_by_name(architecture, tmp_path):
    found = problem("masked_lm", {"architecture": architecture}, max_length=16)
    if architecture not in {"gpt2", "llama"}:
        assert found is None
        return
    wanted = f"{architecture!r} has no masked language model in transformers; take one such as bert"
    assert wanted in str(found)


@pytest.mark.parametrize(
    "architecture",
    ["bert", "roberta", "modernbert", "deberta-v2", "distilbert", "gpt2", "llama", "bart", "ctrl"],
)
def test_an_architecture_classifies_tokens_or_is_refused_by_name(architecture):
    found = problem("token_classification", {"architecture": architecture}, max_length=16)
    if architecture not in {"bart", "ctrl"}:
        assert found is None
        return
    wanted = f"{architecture!r} has no token classifier in transformers; take one such as bert, dis"
    assert wanted in str(found)


def test_flash_attention_does_not_keep_the_texts_of_a_block_apart():
    flash = {"architecture": "gpt2", "attn_implementation": "flash_attention_2"}
    found = problem("causal_lm", flash, block_size=16)
    assert "'flash_attention_2' does not keep the texts of a block apart; take sdpa" in found
    assert problem("causal_lm", {**flash, "attn_implementation": "sdpa"}, block_size=16) is None
    assert problem("causal_lm", flash, block_size=16, across_texts=True) is None
    assert problem("causal_lm", flash, max_length=16) is None


def test_texts_are_kept_apart_in_each_row_of_a_batch():
    class OneRowAlone(GPT2LMHeadModel):
        """As what `transformers` computes by `flash_attn`."""

        def forward(self, input_ids, **inputs):
            if len(input_ids) > 1:
                inputs["attention_mask"] = torch.ones_like(input_ids)
            return super().forward(input_ids=input_ids, **inputs)

    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2)
    texts = TextFormat(64, 16, (("pad_token_id", 0),), tuple(range(4, 9)), is_packed=True)
    model_fit.try_text(GPT2LMHeadModel(config), texts, 8, CAUSAL_LM)
    with pytest.raises(model_fit.UnsuitedError, match="does not keep the texts of a block apart"):
        model_fit.try_text(OneRowAlone(config), texts, 8, CAUSAL_LM)


@pytest.mark.parametrize("task", ["causal_lm", "token_classification"])
def test_a_pretrained_model_takes_a_tokenizer_with_tokens_that_were_added(
    container, tmp_path, task
):
    tokenizers = container.get(TokenizerManager)
    tokenizer = tokenizers.load(tokenizers.train(["a word and another word"], 64).path)
    size = {"vocab_size": len(tokenizer), "pad_token_id": None}
    if task == "causal_lm":
        model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, **size))
    else:
        shape = {"num_attention_heads": 2, **SMALL}
        model = BertForTokenClassification(BertConfig(**size, **shape))
    model.save_pretrained(tmp_path / "model")
    tokenizer.add_special_tokens({"pad_token": "[PADDING]"})
    tokenizer.save_pretrained(tmp_path / "model")
    fields = {"model": {"id": str(tmp_path / "model")}, "data": {"max_length": 16}}
    assert find_problem(FinetuneConfig.model_validate({"task": task, **fields})) is None
    labels = () if task == "causal_lm" else ("a", "b")
    built = container.get(ModelManager).with_head(
        Head(HEAD_KINDS[TASKS[task].head], labels),
        str(tmp_path / "model"),
        tokenizer=tokenizer,
        data=DataConfig(task=task, max_length=16),
    )
    assert built.get_input_embeddings().num_embeddings > tokenizer.pad_token_id


def test_what_is_too_long_is_told_by_the_setting_that_says_so(container, tmp_path):
    fields = {"architecture": "gpt2", "n_positions": 16, "max_position_embeddings": 16}
    assert "data.block_size = 32: " in problem("causal_lm", fields, block_size=32)
    assert "positions for 16 tokens; make blocks of so many" in problem(
        "causal_lm", fields, block_size=32
    )
    assert "data.max_length = 32: " in problem("causal_lm", fields, max_length=32)
    gpt2 = {"task": "causal_lm", "model": {"architecture": "gpt2"}, "data": {"block_size": 32}}
    for name in ("batch_tokens", "eval_batch_tokens"):
        with pytest.raises(ValidationError, match=f"`{name}` = 16 is less than data.block_size"):
            FinetuneConfig.model_validate({**gpt2, name: 16})
        FinetuneConfig.model_validate({**gpt2, name: 32})
