from __future__ import annotations

import pytest

from workers.managers.model_check import find_problem
from workers.protocol.finetune import FinetuneConfig

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
