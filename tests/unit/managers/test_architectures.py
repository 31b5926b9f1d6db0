from __future__ import annotations

import shutil

import pytest
import torch
import transformers

from workers.managers import ModelManager, TokenizerManager
from workers.managers.model_fit import num_positions
from workers.protocol.errors import InvalidInputError
from workers.protocol.finetune import ModelConfig

CLASSIFIERS = list(
    dict.fromkeys(
        config.model_type for config in transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    )
)

#: One of each kind of trouble: names that are mapped, widths of heads, shared heads, experts, two
#: halves, lists of layers, positions behind an offset, none at all.
SAMPLE = ("distilbert", "gemma2", "qwen3", "mixtral", "bart", "modernbert", "roberta", "gpt_neo")

#: What `hidden_size` and `num_hidden_layers` alone do not make: the fields to give instead, and
#: what the refusal says. None: it is no model for texts.
NEEDED = {
    "cohere_compass_text": (
        {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
        "give rope_parameters",
    ),
    "deepseek_v2": ({"num_experts_per_tok": 2}, "give num_experts_per_tok"),
    "funnel": ({"num_hidden_layers": None, "block_sizes": [1, 1]}, "give block_sizes"),
    "gemma3": (None, "take its text part, gemma3_text"),
    "layoutlmv2": (None, "it reads pages as images"),
    "layoutlmv3": ({"hidden_size": 96}, "give a hidden_size that 6 divides"),
    "lilt": ({"hidden_size": 96}, "give a hidden_size that 6 divides"),
    "modernvbert": (None, "take its text part, modernbert"),
    "perceiver": (
        {
            "hidden_size": None,
            "num_hidden_layers": None,
            "d_model": 64,
            "d_latents": 64,
            "num_latents": 16,
            "num_self_attends_per_block": 2,
        },
        "give d_latents, num_latents",
    ),
    "qwen3_5": (None, "take its text part, qwen3_5_text"),
    "reformer": (
        {"num_hidden_layers": None, "attn_layers": ["local", "lsh"], "axial_pos_embds": False},
        "give attn_layers",
    ),
    "t5gemma": (
        {
            "hidden_size": None,
            "num_hidden_layers": None,
            "encoder": {"hidden_size": 64, "num_hidden_layers": 2},
            "decoder": {"hidden_size": 64, "num_hidden_layers": 2},
        },
        "its fields are in encoder and decoder",
    ),
    "t5gemma2": (None, "its fields are in encoder and decoder"),
    "ultravbert": (None, "take its text part, ultrabert"),
    "zamba": ({"num_hidden_layers": 8}, "it has 8 layers at least"),
    "zamba2": ({"layers_block_type": ["linear_attention", "hybrid"]}, "give layers_block_type"),
}

#: Other vocabularies, whose size no study of texts cares for.
SMALLER = {"luke": {"entity_vocab_size": 10}, "roc_bert": {"pronunciation_vocab_size": 10}}

#: Positions that a short text uses up to the last.
MAX_LENGTH = 24


@pytest.fixture
def tokenizer(container):
    tokenizers = container.get(TokenizerManager)
    return tokenizers.load(tokenizers.train(["a word and another word"], vocab_size=64).path)


def fields_of(architecture, **more):
    base = {"hidden_size": 128, "num_hidden_layers": 2, **SMALLER.get(architecture, {})}
    return {name: value for name, value in {**base, **more}.items() if value is not None}


def build(container, tokenizer, architecture, fields, max_length=MAX_LENGTH):
    return container.get(ModelManager).sequence_classifier(
        ModelConfig(architecture=architecture, **fields),
        labels=("a", "b", "c"),
        tokenizer=tokenizer,
        max_length=max_length,
    )


def two_steps(model, tokenizer, length=MAX_LENGTH):
    """Train on texts that are as long as they may be, and on shorter ones."""
    torch.manual_seed(1)
    start, end = tokenizer.cls_token_id, tokenizer.sep_token_id
    ids = torch.full((3, length), tokenizer.pad_token_id)
    for row, num_tokens in enumerate((length, length // 2, 3)):
        ids[row, :num_tokens] = torch.randint(5, len(tokenizer), (num_tokens,))
        ids[row, 0], ids[row, num_tokens - 1] = start, end
    mask = (ids != tokenizer.pad_token_id).long()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    before = [weight.detach().clone() for weight in model.parameters()]
    for _ in range(2):
        logits = model(input_ids=ids, attention_mask=mask).logits
        assert logits.shape == (3, 3)
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2]))
        assert torch.isfinite(loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    pairs = zip(before, model.parameters(), strict=True)
    assert any(not torch.equal(old, new) for old, new in pairs)


@pytest.mark.parametrize("architecture", SAMPLE)
def test_a_width_and_a_number_of_layers_make_a_model_that_trains(
    container, tokenizer, architecture
):
    two_steps(build(container, tokenizer, architecture, fields_of(architecture)), tokenizer)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_every_sequence_classifier_trains_or_is_refused_with_what_it_needs(container, tokenizer):
    def check(architecture):
        more, message = NEEDED.get(architecture, ({}, None))
        if message is not None:
            with pytest.raises(InvalidInputError, match=message):
                build(container, tokenizer, architecture, fields_of(architecture))
        if more is not None:
            fields = fields_of(architecture, **more)
            two_steps(build(container, tokenizer, architecture, fields), tokenizer)

    for_each_classifier(check)


def for_each_classifier(check):
    """Look at all, and tell all that fail."""
    failed = {}
    for architecture in CLASSIFIERS:
        try:
            check(architecture)
        except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 - all are to be told
            failed[architecture] = f"{type(error).__name__}: {error}"
    assert not failed, "\n".join(f"{name}: {what}" for name, what in failed.items())


@pytest.mark.long
@pytest.mark.timeout(900)
def test_every_saved_classifier_keeps_its_head_for_classes_in_another_order(
    container, tokenizer, tmp_path
):
    models = container.get(ModelManager)

    def check(architecture):
        more = NEEDED.get(architecture, ({}, None))[0]
        if more is None:
            return
        saved = build(container, tokenizer, architecture, fields_of(architecture, **more))
        models.save(saved, tmp_path / "model")
        try:
            kept = models.sequence_classifier(
                ModelConfig(id=str(tmp_path / "model")),
                labels=("c", "b", "a"),
                tokenizer=tokenizer,
                max_length=MAX_LENGTH,
            )
        finally:
            shutil.rmtree(tmp_path / "model")
        torch.testing.assert_close(logits_of(kept), logits_of(saved).flip(1))

    for_each_classifier(check)


@torch.no_grad()
def logits_of(model):
    torch.manual_seed(1)  # a reformer hashes at random
    ids = torch.tensor([[2, 7, 8, 9, 10, 11, 12, 3], [2, 12, 11, 10, 9, 8, 7, 3]])
    return model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def test_the_rest_of_a_model_keeps_its_proportions(container, tokenizer):
    model = build(container, tokenizer, "qwen3", {"hidden_size": 256, "num_attention_heads": 8})
    assert model.config.head_dim == 32
    assert model.config.intermediate_size == 256 * 22016 // 4096
    model = build(container, tokenizer, "mistral", {"hidden_size": 256, "num_hidden_layers": 1})
    assert (model.config.num_attention_heads, model.config.num_key_value_heads) == (4, 1)
    model = build(container, tokenizer, "modernbert", {"num_hidden_layers": 4, "hidden_size": 64})
    assert len(model.config.layer_types) == 4


def test_common_names_and_an_architectures_own_are_one_field(container, tokenizer):
    own = build(container, tokenizer, "gpt2", {"n_embd": 64, "n_layer": 1})
    common = build(container, tokenizer, "gpt2", {"hidden_size": 64, "num_hidden_layers": 1})
    assert own.config.to_dict() == common.config.to_dict()
    with pytest.raises(InvalidInputError, match="gpt2 has it under the name '.*', too, as"):
        build(container, tokenizer, "gpt2", {"n_embd": 64, "hidden_size": 32})


def test_the_special_tokens_are_the_tokenizers(container, tokenizer):
    config = build(container, tokenizer, "llama", fields_of("llama")).config
    assert config.pad_token_id == tokenizer.pad_token_id
    assert config.eos_token_id == tokenizer.sep_token_id
    assert config.vocab_size == len(tokenizer)


def test_dropout_leaves_alone_what_is_given_by_name(container):
    model = container.get(ModelManager).sequence_classifier(
        ModelConfig(architecture="bert", attention_probs_dropout_prob=0.5, **fields_of("bert")),
        labels=("a", "b"),
        vocab_size=50,
        dropout=0.25,
    )
    assert model.config.hidden_dropout_prob == 0.25
    assert model.config.attention_probs_dropout_prob == 0.5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"architecture": "funnel", "num_hidden_layers": 2},
            "model.num_hidden_layers = 2: funnel has no such setting; give block_sizes",
        ),
        (
            {"architecture": "mt5", "n_layers": 2},
            "model.n_layers = 2: mt5 has no such setting; did you mean 'num_layers'",
        ),
        (
            {"architecture": "bert", "depth": 2},
            r"bert has no such setting \(its sizes are vocab_size, hidden_size, num_hidden_layers",
        ),
        (
            {"architecture": "bert", "hidden_size": 64.5},
            r"cannot be built so \(hidden_size = 64.5\): Field 'hidden_size' expected int",
        ),
        (
            {"architecture": "llama", "hidden_size": 64, "num_attention_heads": 3},
            r"cannot be built so \(hidden_size = 64, num_attention_heads = 3\): ",
        ),
        (
            {"architecture": "llama", "hidden_size": 66, "num_attention_heads": 2},
            r"cannot be built so \(hidden_size = 66, num_attention_heads = 2\): ",
        ),
        (
            {"architecture": "bert", "hidden_size": 64, "max_position_embeddings": 16},
            r"data.max_length = 24: model.architecture = 'bert' has positions for 16 tokens",
        ),
        (
            {"architecture": "roberta", "hidden_size": 64, "max_position_embeddings": 24},
            r"data.max_length = 24: model.architecture = 'roberta' has positions for 23 tokens",
        ),
        (
            {"architecture": "bert", "hidden_size": 64, "vocab_size": 10},
            r"model.vocab_size = 10: the tokenizer has \d+ entries; leave it out",
        ),
        (
            {"architecture": "bert", "hidden_size": 64, "pad_token_id": 3},
            "model.pad_token_id = 3: the tokenizer's is 0; leave it out",
        ),
        (
            {"architecture": "layoutlmv2"},
            "model.architecture = 'layoutlmv2': it reads pages as images; take layoutlm",
        ),
        ({"architecture": "vit"}, "has no sequence classifier in transformers; take one such"),
    ],
)
def test_fields_that_make_no_model_for_the_texts_are_refused(container, tokenizer, fields, message):
    with pytest.raises(InvalidInputError, match=message) as error:
        container.get(ModelManager).sequence_classifier(
            ModelConfig(**fields),
            labels=("a", "b"),
            tokenizer=tokenizer,
            max_length=MAX_LENGTH,
        )
    assert "\n" not in str(error.value)


def test_a_saved_model_of_pages_is_refused_whatever_is_installed(container, tokenizer, tmp_path):
    transformers.LayoutLMv2Config().save_pretrained(tmp_path)
    with pytest.raises(InvalidInputError, match="it reads pages as images"):
        container.get(ModelManager).sequence_classifier(
            ModelConfig(id=str(tmp_path)),
            labels=("a", "b"),
            tokenizer=tokenizer,
            max_length=MAX_LENGTH,
        )


def test_a_refusal_leaves_the_generator_and_the_process_as_they_were(container, tokenizer):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    fields = {"hidden_size": 66, "num_attention_heads": 2}
    for _ in range(2):
        with pytest.raises(InvalidInputError, match="cannot be built so"):
            build(container, tokenizer, "llama", fields)
    assert not torch.is_inference_mode_enabled()
    assert torch.get_default_dtype() is torch.float32
    torch.manual_seed(1)
    build(container, tokenizer, "bert", fields_of("bert"))
    warm = torch.get_rng_state()
    torch.manual_seed(1)
    build(container, tokenizer, "bert", fields_of("bert"))
    assert torch.equal(warm, torch.get_rng_state())
    assert not torch.equal(warm, state)


#: Of 2,048 positions, each of which is computed.
SLOW = ["opt", "gptj"]


@pytest.mark.parametrize(
    "architecture",
    [
        "bert",
        "roberta",
        "nystromformer",
        *(pytest.param(each, marks=pytest.mark.long) for each in SLOW),
    ],
)
def test_a_pretrained_model_takes_texts_as_long_as_its_positions_and_no_longer(
    container, tokenizer, tmp_path, architecture
):
    models = container.get(ModelManager)
    models.save(build(container, tokenizer, architecture, fields_of(architecture)), tmp_path / "m")
    config = ModelConfig(id=str(tmp_path / "m"))
    positions = num_positions(models.load(tmp_path / "m"))
    options = {"labels": ("a", "b", "c"), "tokenizer": tokenizer}
    model = models.sequence_classifier(config, max_length=positions, **options)
    two_steps(model, tokenizer, positions)
    with pytest.raises(InvalidInputError, match=f"{positions + 1}: .* for {positions} tokens"):
        models.sequence_classifier(config, max_length=positions + 1, **options)


def test_entries_added_to_a_tokenizer_are_embedded_too(container, tokenizer, tmp_path):
    models = container.get(ModelManager)
    saved = build(container, tokenizer, "bert", fields_of("bert"))
    models.save(saved, tmp_path / "m")
    before = len(tokenizer)
    tokenizer.add_tokens(["<extra>"])
    config = ModelConfig(id=str(tmp_path / "m"))
    model = models.sequence_classifier(config, labels=("a", "b", "c"), tokenizer=tokenizer)
    weight = model.get_input_embeddings().weight
    assert len(weight) == before + 1
    assert torch.equal(weight[:before], saved.get_input_embeddings().weight)
    assert model.config.vocab_size == before + 1
