"""What a model's weights are: read in float32, or drawn by the seed alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification

from workers.managers import AMPManager, CUDAManager, ModelManager, weights
from workers.protocol.errors import InvalidInputError
from workers.protocol.finetune import FinetuneConfig, ModelConfig
from workers.trials.finetune.optimizer import build_optimizer

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "vocab_size": 60,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "num_labels": 3,
    # the same in other families' words
    "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "d_model": 32, "d_ff": 48,
    "num_layers": 2, "num_heads": 4, "d_kv": 8, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "d_inner": 48, "d_head": 8,
    "embedding_size": 16, "num_experts": 2, "num_local_experts": 2, "moe_intermediate_size": 16,
}  # fmt: skip

#: Tied weights, rotary and relative positions, buffers, convolutions, experts, two stacks; of
#: openai-gpt, `transformers` leaves weights as they lie in memory.
ARCHITECTURES = [
    "albert", "bart", "bert", "convbert", "deberta-v2", "electra", "esm", "funnel", "gemma3_text",
    "gpt2", "llama", "mixtral", "modernbert", "mpnet", "openai-gpt", "qwen3", "roberta", "t5",
    "xlnet", "mpt", "falcon", "nystromformer",
]  # fmt: skip


def tiny(architecture):
    config = AutoConfig.for_model(architecture)
    known = {*config.to_dict(), *config.attribute_map, "num_labels", "pad_token_id"}
    fields = {name: value for name, value in TINY.items() if name in known}
    return AutoConfig.for_model(architecture, **fields)


def all_tensors(model):
    return dict(
        [
            *model.named_parameters(remove_duplicate=False),
            *model.named_buffers(remove_duplicate=False),
        ]
    )


@pytest.fixture
def base_model(tmp_path):
    """A function that saves a tiny pretrained BERT without a head; returns its folder."""

    def save(dtype=torch.float32, **fields):
        torch.manual_seed(5)
        config = AutoConfig.for_model("bert", **{**TINY, **fields})
        config.architectures = None
        folder = tmp_path / f"{dtype}-{len(fields)}"
        AutoModelForSequenceClassification.from_config(config).bert.to(dtype).save_pretrained(
            folder
        )
        return folder

    return save


def build(container, folder, *, seed=1, num_labels=3, **fields):
    container.get(CUDAManager).seed(seed)
    return container.get(ModelManager).sequence_classifier(
        ModelConfig(id=str(folder), **fields), num_labels=num_labels, vocab_size=60
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_gradients_and_optimizer_are_float32_whatever_was_saved(
    container, base_model, dtype
):
    folder = base_model(dtype)
    for warm in (False, True):
        model = build(container, folder)
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}, warm
    assert model.config.dtype is torch.float32
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer = build_optimizer(model, FinetuneConfig(learning_rate=1e-5))
    policy = container.get(AMPManager).policy("fp32")
    ids = torch.randint(1, 60, (8, 12))
    policy.backward(model(input_ids=ids, labels=torch.arange(8) % 3).loss)
    assert {weight.grad.dtype for weight in model.parameters()} == {torch.float32}
    policy.step(optimizer, model.parameters(), max_grad_norm=1.0)
    states = [value for state in optimizer.state.values() for value in state.values()]
    assert {value.dtype for value in states} == {torch.float32}
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    moved = (dict(model.named_parameters())[name] != before[name]).float().mean()
    assert moved > 0.99, "in bfloat16 most steps of 1e-5 are rounded away"


def test_a_trained_model_is_saved_in_float32(container, base_model, tmp_path):
    models = container.get(ModelManager)
    models.save(build(container, base_model(torch.bfloat16)), tmp_path / "model")
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.float32}
    assert AutoConfig.from_pretrained(tmp_path / "model").dtype is torch.float32
    folder = base_model(torch.bfloat16)
    assert {each.dtype for each in models.load(folder).parameters()} == {torch.float32}


def test_a_dtype_for_the_weights_is_refused_with_the_setting_to_use():
    for name in ("dtype", "torch_dtype"):
        with pytest.raises(ValueError, match=r"train in float32; `precision: bf16`"):
            ModelConfig(architecture="bert", **{name: "bfloat16"})


def test_a_new_head_follows_the_seed_whatever_was_built_before(container, base_model):
    folder = base_model()
    cold = build(container, folder, seed=1).state_dict()
    other = build(container, folder, seed=2).state_dict()
    build(container, folder, seed=3, num_labels=7)
    warm = build(container, folder, seed=1).state_dict()
    differs = {name for name in cold if not torch.equal(cold[name], other[name])}
    assert differs == {"classifier.weight"}
    assert all(torch.equal(cold[name], warm[name]) for name in cold)


def test_another_process_draws_the_same_head(container, base_model):
    folder = base_model()
    code = f"""
import torch
from workers.managers import weights
torch.manual_seed(1)
checkpoint = weights.read({str(folder)!r})
print(weights.build(checkpoint.config, checkpoint).classifier.weight.double().sum().item())
"""
    cold = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    build(container, folder, seed=2)
    warm = build(container, folder, seed=1)
    assert float(cold.stdout.splitlines()[-1]) == warm.classifier.weight.double().sum().item()


def test_what_is_drawn_leaves_the_generator_the_same_warm_and_cold(container, base_model):
    folder, drawn = base_model(), []
    for _ in range(2):
        build(container, folder)
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)


def test_a_pretrained_model_is_the_one_that_the_library_loads(container, base_model):
    folder = base_model()
    for _ in range(2):
        ours = all_tensors(build(container, folder, seed=4, num_labels=5))
        torch.manual_seed(4)
        theirs = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=5)
        assert all(torch.equal(ours[name], value) for name, value in all_tensors(theirs).items())


def test_a_head_of_another_size_is_drawn_and_the_saved_one_stays(container, base_model, tmp_path):
    saved = build(container, base_model(), num_labels=4)
    container.get(ModelManager).save(saved, tmp_path / "model")
    three = build(container, tmp_path / "model", num_labels=3)
    assert three.classifier.weight.shape == (3, 32)
    four = build(container, tmp_path / "model", num_labels=4)
    assert torch.equal(four.classifier.weight, saved.classifier.weight)


def test_a_pretrained_model_is_read_once_fresh_each_time_and_anew_when_it_changed(
    container, base_model
):
    folder = base_model()
    file = folder / "model.safetensors"
    first = build(container, folder)
    before = first.state_dict()["bert.pooler.dense.weight"].clone()
    with torch.no_grad():
        first.bert.pooler.dense.weight.add_(1.0)
    status = file.stat()
    file.write_bytes(b"x" * status.st_size)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    second = build(container, folder, hidden_dropout_prob=0.5)
    assert torch.equal(second.state_dict()["bert.pooler.dense.weight"], before)
    assert second.config.hidden_dropout_prob == 0.5
    file.touch()
    with pytest.raises(InvalidInputError, match=r"does not load .*; give a hub id"):
        build(container, folder)


def test_kept_weights_are_bounded(base_model):
    folders = [str(base_model()), str(base_model(torch.bfloat16))]
    size = weights.read(folders[0]).num_bytes
    for limit, kept in [(size // 2, 0), (size, 1), (2 * size, 2)]:
        checkpoints = weights.KeptCheckpoints(limit)
        first = [checkpoints.get(folder) for folder in folders]
        again = [checkpoints.get(folder) for folder in reversed(folders)]
        assert sum(a is b for a, b in zip(first, reversed(again), strict=True)) == kept


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"hidden_size": 64}, "bert.embeddings.LayerNorm.bias, "),
        ({"num_hidden_layers": 3}, r"bert.encoder.layer.2\..* and 13 more would be drawn anew"),
        ({"vocab_size": 61}, r"\(bert.embeddings.word_embeddings.weight would be"),
    ],
)
def test_fields_that_would_have_the_pretrained_part_begin_from_nothing_are_refused(
    container, base_model, fields, named
):
    with pytest.raises(InvalidInputError, match=named):
        build(container, base_model(), **fields)


def test_a_file_with_weights_of_another_model_is_refused(container, base_model):
    folder = base_model()
    save_file({"layers.0.weight": torch.ones(3)}, folder / "model.safetensors")
    with pytest.raises(InvalidInputError, match="holds no weights of a bert"):
        build(container, folder)


def test_a_quantised_model_is_refused_before_its_library_is_asked_for(container, base_model):
    folder = base_model()
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidInputError, match=r"is quantised \(gptq\) and cannot be trained"):
        build(container, folder)


def lacking_nearly_all(architecture):
    """A checkpoint that holds one weight, so that a model of it is drawn but for that."""
    model = AutoModelForSequenceClassification.from_config(tiny(architecture))
    name = next(iter(model.state_dict()))
    return weights.Checkpoint(
        architecture,
        tiny(architecture),
        {name: model.state_dict()[name]},
        frozenset(model.state_dict()) - {name},
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_a_checkpoint_lacks_is_drawn_as_its_architecture_draws_it(architecture):
    checkpoint = lacking_nearly_all(architecture)
    torch.manual_seed(7)
    ours = weights.build(tiny(architecture), checkpoint)
    torch.manual_seed(7)
    again, other = (weights.build(tiny(architecture), checkpoint) for _ in range(2))
    theirs = all_tensors(
        AutoModelForSequenceClassification.from_config(tiny(architecture), dtype=torch.float32)
    )
    found, same, different = (all_tensors(model) for model in (ours, again, other))
    assert found.keys() == theirs.keys()
    buffers = {name for name, _ in ours.named_buffers()}
    held = {found[name].data_ptr() for name in checkpoint.weights}  # tied ones, too
    for name, value in found.items():
        assert value.device.type == "cpu"
        assert torch.equal(value, same[name]), name
        assert (value.shape, value.dtype) == (theirs[name].shape, theirs[name].dtype)
        if name in buffers or value.unique().numel() == 1:
            assert torch.equal(value, theirs[name]), name
        elif value.numel() > 200:
            # four standard errors of a mean, and as much of a spread
            spread, error = theirs[name].std(), 4 * theirs[name].std() / value.numel() ** 0.5
            assert abs(value.mean() - theirs[name].mean()) < 2 * error, name
            assert abs(value.std() - spread) < 0.25 * spread, name
            assert torch.equal(value, different[name]) is (value.data_ptr() in held), name
    shared = {name: value.data_ptr() for name, value in found.items()}
    for name, value in theirs.items():
        twins = [each for each in theirs if theirs[each].data_ptr() == value.data_ptr()]
        assert len({shared[each] for each in twins}) == 1, f"{name} is tied"


def test_a_model_without_a_checkpoint_is_the_librarys_to_the_bit():
    torch.manual_seed(7)
    ours, other = weights.build(tiny("bert")), weights.build(tiny("bert"))
    torch.manual_seed(7)
    theirs = all_tensors(AutoModelForSequenceClassification.from_config(tiny("bert")))
    assert all(torch.equal(value, theirs[name]) for name, value in all_tensors(ours).items())
    name = "bert.pooler.dense.weight"
    assert not torch.equal(theirs[name], all_tensors(other)[name])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_checkpoint_of_each_architecture_comes_back_whole_and_in_float32(architecture, tmp_path):
    torch.manual_seed(7)
    saved = weights.build(tiny(architecture))
    fixed = {name: value.clone() for name, value in saved.named_buffers()}
    fixed = {name: value for name, value in fixed.items() if name not in saved.state_dict()}
    saved.bfloat16().save_pretrained(tmp_path)
    checkpoint = weights.read(str(tmp_path))
    assert not checkpoint.lacking
    torch.manual_seed(8)
    built = all_tensors(weights.build(checkpoint.config, checkpoint))
    for name, value in all_tensors(saved).items():
        if name in fixed:  # such as rotary frequencies, which are not saved
            assert torch.equal(built[name], fixed[name]), name
        else:
            assert torch.equal(value, built[name].to(value.dtype)), name
        assert not value.is_floating_point() or built[name].dtype is torch.float32, name
    kept = {value.data_ptr() for value in checkpoint.weights.values()}
    assert not kept & {value.data_ptr() for value in built.values()}


@pytest.mark.parametrize(
    ("mend", "named"),
    [
        (lambda name, weight: (name.replace(".layer.1.", ".layers.1."), weight), "layer.1.* more"),
        (lambda name, weight: (name, weight[:7] if "word_emb" in name else weight), "word_embed"),
    ],
)
def test_a_file_that_lacks_a_layer_or_has_one_of_another_shape_is_refused(
    container, base_model, mend, named
):
    folder = base_model()
    saved = load_file(folder / "model.safetensors")
    changed = dict(mend(name, weight.clone()) for name, weight in saved.items())
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidInputError, match=f"lacks weights of the bert .*{named}.* anew"):
        build(container, folder)


def test_a_file_without_what_pools_the_outputs_is_taken(container, base_model):
    folder = base_model()
    saved = load_file(folder / "model.safetensors")
    saved = {name: weight for name, weight in saved.items() if "pooler" not in name}
    save_file(saved, folder / "model.safetensors", metadata={"format": "pt"})
    assert build(container, folder) is not None
