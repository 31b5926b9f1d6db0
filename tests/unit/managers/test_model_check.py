from __future__ import annotations

import json

import pytest
import torch
from pydantic import ValidationError
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    LlamaConfig,
    Qwen2Config,
    T5Config,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert import modeling_bert

from workers.managers import ModelManager, TokenizerManager, model_fit
from workers.managers.head import SEQUENCE_CLASSIFIER, Head
from workers.managers.model_check import find_problem, main
from workers.managers.text_format import TextFormat
from workers.protocol.errors import InvalidInputError, UnfitModelError, WorkerLacksError
from workers.protocol.finetune import FinetuneConfig, ModelConfig

TINY = {"hidden_size": 32, "num_hidden_layers": 1}


@pytest.fixture
def saved(container, tmp_path):
    """A pretrained BERT with its tokenizer, and that tokenizer alone."""
    tokenizers = container.get(TokenizerManager)
    tokenizer = tokenizers.load(tokenizers.train(["a word and another word"], 64).path)
    config = BertConfig(
        vocab_size=len(tokenizer), num_attention_heads=2, max_position_embeddings=64, **TINY
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "model"


def problem(model, max_length=32, **sections):
    config = {"model": model, "data": {"max_length": max_length}, **sections}
    return find_problem(FinetuneConfig.model_validate(config))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architecture": "bert", **TINY}, None),
        ({"architecture": "bart", **TINY}, None),
        ({"architecture": "roberta", "max_position_embeddings": 32, **TINY}, "positions for 31"),
        ({"architecture": "brt"}, "no such architecture"),
        ({"architecture": "bert", "hiden_size": 32}, "did you mean 'hidden_size'"),
        (
            {"architecture": "qwen3", "hidden_size": 64, "num_attention_heads": 3},
            "cannot be built so (hidden_size = 64, num_attention_heads = 3)",
        ),
        ({"architecture": "bert", "vocab_size": 100, **TINY}, "the tokenizer has 4000 entries"),
        # too large to be built here: what its shapes tell is told
        ({"architecture": "llama"}, None),
        (
            {"architecture": "bert", "hidden_size": 8190, "num_attention_heads": 64},
            "not a multiple",
        ),
    ],
)
def test_what_keeps_an_architecture_from_being_trained_is_found(fields, message):
    found = problem(fields)
    assert (message is None) is (found is None), found
    assert message is None or message in found


@pytest.mark.parametrize("architecture", ["bert", "deberta-v2"])
def test_attention_that_an_architecture_does_not_have_is_refused_by_name(architecture):
    model = {"architecture": architecture, **TINY}
    assert problem({**model, "attn_implementation": "eager"}) is None
    for name in ("sdpa", "flex_attention", "flash_attention_2"):
        found = problem({**model, "attn_implementation": name})
        if architecture == "bert":
            assert found is None
            section = ModelConfig(**model, attn_implementation=name)
            built = model_fit.configuration(
                section, TextFormat(64, 16), Head(SEQUENCE_CLASSIFIER, ("a", "b"))
            )
            assert built._attn_implementation == name
        else:
            assert found == (
                f"model.attn_implementation = {name!r}: deberta-v2 does not have it; take eager"
            )
    found = problem({**model, "attn_implementation": "spda"})
    assert "'spda': transformers has eager, " in found
    assert "; did you mean 'sdpa'?" in found


def test_attention_is_computed_as_it_was_asked_for(container, saved, monkeypatch):
    computed = []

    def noted(name, compute):
        return lambda *args, **options: computed.append(name) or compute(*args, **options)

    eager = noted("eager", modeling_bert.eager_attention_forward)
    monkeypatch.setattr(modeling_bert, "eager_attention_forward", eager)
    sdpa = noted("sdpa", ALL_ATTENTION_FUNCTIONS["sdpa"])
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", sdpa)
    build = container.get(ModelManager).sequence_classifier
    logits = {}
    for name in ("eager", "sdpa"):
        torch.manual_seed(0)
        model = build(str(saved), num_labels=2, attn_implementation=name).eval()
        computed.clear()
        logits[name] = model(torch.arange(4, 12)[None]).logits
        assert set(computed) == {name}
    torch.testing.assert_close(logits["eager"], logits["sdpa"])
    if not torch.cuda.is_available():
        for name in ("flex_attention", "flash_attention_2"):
            with pytest.raises(WorkerLacksError, match=f"{name}' takes a GPU, .* sdpa or eager"):
                build(str(saved), num_labels=2, attn_implementation=name)


def test_flash_attention_in_float32_is_refused():
    flash = {"architecture": "bert", "attn_implementation": "flash_attention_2", **TINY}
    for precision in ("fp32", "tf32"):
        with pytest.raises(ValidationError, match=f"half precision alone.* is {precision}; take"):
            problem(flash, precision=precision)
    assert problem(flash, precision="bf16") is None


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_no_generator_takes_is_refused(seed):
    with pytest.raises(ValidationError, match="seed"):
        problem({"architecture": "bert", **TINY}, seed=seed)


def test_adapters_that_the_model_or_peft_does_not_take_are_found(saved):
    name = {"id": str(saved)}
    good = {"r": 4, "target_modules": ["query", "value"], "use_dora": True}
    more = {"freeze": ["attention"], "gradient_checkpointing": True}
    assert problem(name, lora=good, **more) is None
    assert problem(name, lora={}, task="regression") is None
    assert "no 'qery'; did you mean 'query'" in problem(name, lora={"target_modules": ["qery"]})
    assert "no such argument; did you mean 'use_dora'" in problem(name, lora={"use_dra": True})
    nothing = ["attention", "intermediate", "output", "pooler", "classifier"]
    assert "nothing is left to train" in problem(name, lora=good, freeze=nothing)


def test_a_target_of_adapters_that_is_no_expression_is_refused(saved):
    with pytest.raises(ValidationError, match="no regular expression: unterminated character set"):
        problem({"id": str(saved)}, lora={"target_modules": ".*[query"})


def test_what_keeps_a_saved_model_from_being_trained_is_found(saved, tmp_path):
    name = {"id": str(saved)}
    assert problem(name, 64) is None
    assert problem(name, 64, task="regression") is None
    assert problem({"architecture": "bert", **TINY}, task="regression") is None
    assert "data.max_length = 65" in problem(name, 65)
    assert "has positions for 64 tokens" in problem(name, 65)
    assert problem({**name, "hidden_dropout_prob": 0.3}) is None
    assert "leave out those that change a shape" in problem({**name, "intermediate_size": 8})
    assert "leave out those that change a shape" in problem({**name, "num_hidden_layers": 2})
    assert "did you mean 'hidden_dropout_prob'" in problem({**name, "hidden_dropout_prb": 0.3})
    assert "does not load" in problem({"id": str(tmp_path / "nowhere")})


def test_a_tokenizer_that_a_saved_model_has_not_learnt_is_refused(container, saved, tmp_path):
    tokenizers, models = container.get(TokenizerManager), container.get(ModelManager)
    other = str(tokenizers.train(["quite some other texts, of other words"], 64).path)
    found = problem({"id": str(saved)}, tokenizer={"id": other})
    assert "has learnt other ids" in found
    for _ in range(2):
        with pytest.raises(UnfitModelError, match="has learnt other ids"):
            models.sequence_classifier(
                ModelConfig(id=str(saved)), labels=("a", "b"), tokenizer=tokenizers.load(other)
            )
    extended = tokenizers.load(tmp_path / "tokenizer")
    extended.add_tokens(["<url>"])
    extended.save_pretrained(tmp_path / "extended")
    assert problem({"id": str(saved)}, tokenizer={"id": str(tmp_path / "extended")}) is None
    models.sequence_classifier(
        ModelConfig(id=str(saved)),
        labels=("a", "b"),
        tokenizer=tokenizers.load(tmp_path / "extended"),
    )


def test_what_lies_on_a_hub_that_does_not_answer_is_left_to_the_trials(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert problem({"id": "somebody/some-model"}) is None
    assert problem({"architecture": "bert", **TINY}, tokenizer={"id": "somebody/some"}) is None


def test_a_tokenizer_without_a_token_to_pad_with_is_refused(saved, tmp_path):
    path = tmp_path / "tokenizer" / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    for token in ("pad_token", "unk_token", "eos_token"):
        settings.pop(token, None)
    path.write_text(json.dumps(settings))
    (tmp_path / "tokenizer" / "special_tokens_map.json").unlink(missing_ok=True)
    found = problem({"architecture": "bert", **TINY}, tokenizer={"id": str(tmp_path / "tokenizer")})
    assert "has no token to pad with" in found


@pytest.mark.parametrize("config", [BertConfig, GPT2Config, T5Config, LlamaConfig])
def test_a_tokenizer_whose_files_are_missing_is_refused(container, tmp_path, config):
    config().save_pretrained(tmp_path)
    with pytest.raises(InvalidInputError, match="has no vocabulary|does not load"):
        container.get(TokenizerManager).load(tmp_path)
    assert "tokenizer" in problem({"id": str(tmp_path)})


@pytest.mark.parametrize("config", [Qwen2Config, BertConfig])
def test_a_tokenizer_beside_a_model_splits_words_as_it_did(container, tmp_path, config):
    tokenizers = container.get(TokenizerManager)
    trained = tokenizers.load(tokenizers.train(["a word and another word"], 64).path)
    config().save_pretrained(tmp_path)
    trained.save_pretrained(tmp_path)
    text = "another word and a word"
    assert tokenizers.load(tmp_path)(text)["input_ids"] == trained(text)["input_ids"]


def test_the_first_problem_is_written_down_and_what_was_tried_last(tmp_path):
    request, answer = tmp_path / "request.json", tmp_path / "answer.json"
    good = {"model": {"architecture": "bert", **TINY}}
    request.write_text(json.dumps([good, {"model": {"architecture": "brt"}}, good]))
    main(request, answer)
    assert "'brt'" in json.loads(answer.read_text())["problem"]
    request.write_text(json.dumps([good]))
    main(request, answer)
    assert json.loads(answer.read_text()) == {}


def test_nothing_that_is_tried_draws_from_the_generator():
    state = torch.get_rng_state()
    problem({"id": "/no/such/model"})
    problem({"architecture": "qwen3", "hidden_size": 64, "num_attention_heads": 3})
    assert torch.equal(torch.get_rng_state(), state)


def test_texts_are_described_as_the_tokenizer_puts_them(container):
    tokenizers = container.get(TokenizerManager)
    tokenizer = tokenizers.load(tokenizers.train(["a word and another word"], 64).path)
    texts = TextFormat.of(tokenizer, 5)
    assert texts.vocab_size == len(tokenizer)
    assert texts.example[0] == texts.token_ids["bos_token_id"] == tokenizer.cls_token_id
    assert texts.example[-1] == texts.token_ids["eos_token_id"] == tokenizer.sep_token_id
    assert len(texts.example) == 5


def test_a_model_of_a_hub_is_read_at_its_commit_and_asked_for_again(hub, saved):
    repo = hub.repo("models", "me/tiny")
    files = {path.name: path.read_bytes() for path in saved.iterdir()}
    commit = repo.commit({name: text for name, text in files.items() if "safetensors" not in name})
    repo.commit({"config.json": '{"model_type": "vit"}'})
    pinned = {"id": "me/tiny", "commits": {"me/tiny": commit}}
    hub.faults += [503, "reset"]
    assert problem(pinned) is None
    assert "vit, which has no sequence classifier" in problem({"id": "me/tiny"})
    assert problem({"id": "me/none"}) is None, "what cannot be had here is left to the trials"
