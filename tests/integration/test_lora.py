"""LoRA: what is trained, what is saved of it, and what peft makes of that."""

from __future__ import annotations

import json
import random
import warnings

import peft
import pytest
import torch
from desk import as_the_first, assert_equal, resumed_after, run, study_of
from safetensors.torch import load_file
from torch._dynamo.utils import counters
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from workers.managers import ModelManager, TokenizerManager, adapters
from workers.protocol.errors import (
    InvalidInputError,
    UnfitStudyError,
    WorkerLacksError,
)

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
WORDS = ("red", "green", "blue", "one", "two", "six")
TAGS = {"red": "B-COL", "green": "B-COL", "one": "B-NUM", "six": "B-NUM"}


@pytest.fixture
def write(tmp_path):
    def write(task):
        path = tmp_path / f"{task}.csv"
        draw = random.Random(0)
        lines = ["text,label"]
        for _ in range(96):
            words = draw.choices(WORDS, k=4)
            label = {
                "text_classification": f"{words.count('red') > words.count('one')}",
                "regression": f"{words.count('red') - words.count('one') / 2}",
                "multi_label": "+".join(sorted({*words} & {"red", "one", "six"})),
                "token_classification": " ".join(TAGS.get(word, "O") for word in words),
            }.get(task, "")
            lines.append(f"{' '.join(words)},{label}")
        path.write_text("\n".join(lines))
        return path

    return write


@pytest.fixture
def base(container, tmp_path):
    """Makes a pretrained model with its tokenizer, and without a head but a masked one's."""

    def make(architecture, task="text_classification", **fields):
        tokenizers, folder = container.get(TokenizerManager), tmp_path / "base"
        tokenizer = tokenizers.load(tokenizers.train([" ".join(WORDS)], 80).path)
        config = AutoConfig.for_model(architecture, vocab_size=len(tokenizer), **fields)
        config.pad_token_id = tokenizer.pad_token_id
        torch.manual_seed(3)
        kind = AutoModelForMaskedLM if task == "masked_lm" else AutoModel
        kind.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


def lora_study(path, task, folder, **settings):
    study = study_of(path, task=task, dropout=0.1, learning_rate=2e-2, **settings)
    if task == "multi_label":
        study["config"]["data"]["label_separator"] = "+"
    study["config"] |= {"model": {"id": str(folder)}, "tokenizer": {}}
    study["config"].setdefault("lora", {"r": 4, "dropout": 0.1})
    return {**study, "metric": "loss", "direction": "minimize"}


CASES = {
    "text_classification": ("bert", {}),
    "regression": ("distilbert", {"gradient_checkpointing": True}),
    "multi_label": (
        "bert",
        {
            "objective": "best",
            "freeze": ["encoder.layer.0-0.attention"],
            "lora": {"target_modules": ["query", "value"], "use_rslora": True, "bias": "lora_only"},
        },
    ),
    "token_classification": ("bert", {"objective": "best", "lora": {"r": 4}}),
    "causal_lm": ("gpt2", {}),
    "masked_lm": ("bert", {}),
}


#: What the other cases, each with options of its own, do not show of the tasks alone.
FURTHER = {"text_classification", "token_classification", "masked_lm"}


@pytest.mark.parametrize(
    "task",
    [pytest.param(each, marks=[pytest.mark.long] if each in FURTHER else []) for each in CASES],
)
def test_adapters_are_trained_resumed_to_the_bit_and_left_for_peft(
    desk, container, write, base, task
):
    architecture, settings = CASES[task]
    lm = {"task": task} if task == "masked_lm" else {}
    folder = base(architecture, **lm, **SMALL)
    before = load_file(folder / "model.safetensors")
    place = desk(**lora_study(write(task), task, folder, **settings))
    trial = place.claim(0)
    whole = run(container, trial)
    losses = [each["loss"] for each in json.loads(metrics_of(trial))["evaluations"]]
    assert min(losses) < losses[0]

    resumed = resumed_after(place, 9)
    saved = resumed.load_checkpoint()
    assert run(container, resumed) == whole

    # the checkpoint holds what is trained: of the pretrained weights none
    trained = {name.replace(".default", "") for name in saved["model"]}
    assert any("lora_A" in name for name in trained)
    prefix = {"gpt2": "transformer."}.get(architecture, f"{architecture}.")
    assert not trained & {f"{'' if lm else prefix}{name}" for name in before}
    size = sum(value.numel() for value in saved["model"].values())
    assert size < 0.5 * sum(value.numel() for value in before.values())

    left = trial.result_directory / "model"
    assert {path.name for path in left.glob("*.safetensors")} == {"adapter_model.safetensors"}
    assert_equal(
        load_file(resumed.result_directory / "model" / "adapter_model.safetensors"),
        load_file(left / "adapter_model.safetensors"),
    )
    ours = container.get(ModelManager).load(left)
    assert_equal(load_file(folder / "model.safetensors"), before)
    theirs = loaded_by_peft(folder, left, ours)
    ids = torch.arange(5, 13).reshape(2, 4)
    with torch.inference_mode():
        torch.testing.assert_close(theirs(input_ids=ids).logits, ours(input_ids=ids).logits)
    # and it is a model to go on from
    further = desk(**lora_study(write(task), task, left, epochs=1))
    assert run(container, further.claim(2))["loss"] < losses[0]


def loaded_by_peft(folder, adapter, model):
    loaded = type(model).from_pretrained(folder, num_labels=model.config.num_labels)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        return peft.PeftModel.from_pretrained(loaded, adapter).eval()


def metrics_of(trial):
    return (trial.result_directory / "metrics.json").read_text()


def test_the_pristine_weights_are_shared_between_trials_and_changed_by_none(container, base):
    folder = base("bert", **SMALL)
    models = container.get(ModelManager)

    def build(**fields):
        torch.manual_seed(5)
        return models.sequence_classifier(str(folder), labels=["a", "b"], **fields)

    whole, first = build().state_dict(), build(lora={"r": 4, "alpha": 8})
    state = {name: value.clone() for name, value in adapters.trained_state(first).items()}
    ids = torch.arange(5, 13).reshape(2, 4)
    optimizer = torch.optim.SGD([w for w in first.parameters() if w.requires_grad], lr=0.1)
    first(input_ids=ids, labels=torch.tensor([0, 1])).loss.backward()
    optimizer.step()
    assert not torch.equal(
        adapters.trained_state(first)["classifier.bias"], state["classifier.bias"]
    )
    assert_equal(adapters.trained_state(build(lora={"r": 4, "alpha": 8})), state)
    assert_equal(build().state_dict(), whole)
    adapters.load_trained_state(first, state)
    assert_equal(adapters.trained_state(first), state)
    with pytest.raises(RuntimeError, match="other adapters: .*lora_A"):
        adapters.load_trained_state(build(lora={"target_modules": ["query"]}), state)


REFUSED = [
    ({"target_modules": ["value", "qurey"]}, "lora.target_modules: .* no 'qurey'; .* 'query'"),
    ({"target_modules": ["dropout"]}, "lora: peft does not take it so: .*Dropout"),
    ({"target_modules": "nothing"}, "lora: peft .*its linear layers are classifier, dense"),
    ({"modules_to_save": ["poller"]}, "lora.modules_to_save: .* no 'poller'; .* 'pooler'"),
    ({"task_type": "SEQ_CLS"}, "task_type: the fleet sets it"),
    ({"init_lora_weights": "pissa"}, "it would change the pretrained weights"),
    ({"r": 0}, "r = 0"),
    ({"use_rslorra": True}, "lora.use_rslorra: .* no such argument; did you mean 'use_rslora'"),
    ({"bias": "some"}, "lora"),
    ({"layers_to_transform": [9]}, "lora: "),
]


def test_what_peft_does_not_take_is_refused_by_name(container, base):
    folder = base("bert", **SMALL)
    build = container.get(ModelManager).sequence_classifier
    for lora, message in REFUSED:
        with pytest.raises(InvalidInputError, match=message):
            build(str(folder), labels=["a", "b"], lora=lora)


def test_a_head_of_a_language_model_that_was_not_saved_is_not_begun_anew(
    desk, container, write, base
):
    folder = base("bert", **SMALL)
    place = desk(**lora_study(write("masked_lm"), "masked_lm", folder))
    with pytest.raises(UnfitStudyError, match=r"saved without its masked .*cls.predictions.bias"):
        run(container, place.claim(0))


def test_without_peft_the_line_that_names_it_is_told(desk, container, write, base, monkeypatch):
    folder = base("bert", **SMALL)
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    place = desk(**lora_study(write("regression"), "regression", folder))
    with pytest.raises(WorkerLacksError, match=r"pip install 'trialfleet\[peft\]'"):
        run(container, place.claim(0))


@pytest.mark.long
def test_adapters_compile_in_half_precision_as_one_graph(desk, container, write, base, compile_by):
    compile_by("aot_eager")
    folder = base("bert", **{**SMALL, "num_hidden_layers": 1})
    study = lora_study(write("text_classification"), "text_classification", folder)
    study["config"] |= {"precision": "bf16", "dropout": 0.0, "epochs": 1}
    study["config"]["lora"] = {"r": 4}
    place = desk(**study)
    expected = run(container, place.claim(0))
    before = counters["stats"]["unique_graphs"]
    trial = as_the_first(place, place.claim(1, {"compile": True}))
    found = run(container, trial)
    assert counters["stats"]["unique_graphs"] - before == 2, "one to train, one to evaluate"
    assert found["loss"] == pytest.approx(expected["loss"], abs=0.02)
    left = trial.result_directory / "model"
    assert {path.name for path in left.glob("*.safetensors")} == {"adapter_model.safetensors"}
    loaded_by_peft(folder, left, container.get(ModelManager).load(left))
