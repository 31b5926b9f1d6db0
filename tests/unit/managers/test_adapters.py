"""What a model becomes that is built from adapters of another one."""

from __future__ import annotations

import json
import warnings

import peft
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from workers.managers import ModelManager, TokenizerManager
from workers.managers.adapters import load_trained_state, trained_state
from workers.managers.head import MASKED_LM, Head
from workers.managers.model_check import find_problem
from workers.managers.weights import KeptCheckpoints
from workers.protocol.errors import InvalidInputError
from workers.protocol.finetune import DataConfig, FinetuneConfig

#: As nobody has named them, which a head that was drawn must not be taken for.
CLASSES = ["0", "1"]


@pytest.fixture
def tokenizer(container):
    tokenizers = container.get(TokenizerManager)
    return tokenizers.load(tokenizers.train(["a word and another word"], 64).path)


@pytest.fixture
def save_base(tokenizer, tmp_path):
    """Saves a pretrained model with its tokenizer."""

    def save(cls, seed=0, **fields):
        torch.manual_seed(seed)
        shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = cls(BertConfig(vocab_size=len(tokenizer), **shape, **fields))
        model.save_pretrained(tmp_path / "base")
        tokenizer.save_pretrained(tmp_path / "base")
        return model

    return save


def fresh(container, folder, seed):
    torch.manual_seed(seed)
    model = container.get(ModelManager).sequence_classifier(str(folder), labels=CLASSES)
    return {name: value.clone() for name, value in model.state_dict().items()}


def forget(container):
    """Have read nothing, as another process."""
    container.get(ModelManager)._checkpoints = KeptCheckpoints()


def saved_by_peft(model, folder, **options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        model.name_or_path = str(folder.with_name("base"))
        config = peft.LoraConfig(target_modules=["query"], init_lora_weights=False, **options)
        peft.get_peft_model(model, config).save_pretrained(folder)


def test_a_head_that_adapters_do_not_hold_is_drawn_by_the_seed_whatever_was_read_before(
    container, save_base, tokenizer, tmp_path
):
    save_base(BertForMaskedLM)
    models, folder = container.get(ModelManager), tmp_path / "adapters"
    model = models.with_head(
        Head(MASKED_LM),
        str(tmp_path / "base"),
        tokenizer=tokenizer,
        data=DataConfig(task="masked_lm"),
        lora={"r": 2},
    )
    models.save(model, folder)
    forget(container)
    one, other = fresh(container, folder, 1), fresh(container, folder, 2)
    assert not torch.equal(one["classifier.weight"], other["classifier.weight"])
    forget(container)
    again = fresh(container, folder, 2)
    assert all(torch.equal(again[name], value) for name, value in other.items())


@pytest.mark.parametrize("num_labels", [2, 3])
def test_a_head_that_adapters_hold_is_kept(container, save_base, tmp_path, num_labels):
    model = save_base(BertForSequenceClassification, num_labels=num_labels)
    saved_by_peft(model, tmp_path / "adapters", modules_to_save=["classifier"])
    weight = model.state_dict()["classifier.modules_to_save.default.weight"]
    states = [fresh(container, tmp_path / "adapters", seed) for seed in (1, 2)]
    kept = [torch.equal(state["classifier.weight"], weight[:2]) for state in states]
    assert kept == [True, True]


def test_adapters_as_peft_saves_them_are_taken(container, save_base, tokenizer, tmp_path):
    folder = tmp_path / "adapters"
    saved_by_peft(save_base(BertForSequenceClassification), folder, task_type="SEQ_CLS")
    assert not (folder / "config.json").exists()
    tokenizer.save_pretrained(folder)
    fields = {"model": {"id": str(folder)}, "data": {"max_length": 16}}
    assert find_problem(FinetuneConfig.model_validate(fields)) is None
    model = container.get(ModelManager).load(folder)
    assert isinstance(model, BertForSequenceClassification)
    fresh(container, folder, 0)
    base = {"id": str(folder), "num_hidden_layers": 2}
    found = find_problem(FinetuneConfig.model_validate({**fields, "model": base}))
    assert "change a shape or add layers" in str(found)


def test_the_model_that_adapters_are_of_is_read_again_when_it_was_changed(
    container, save_base, tmp_path
):
    model = save_base(BertForSequenceClassification)
    saved_by_peft(model, tmp_path / "adapters", modules_to_save=["classifier"])
    name = "bert.encoder.layer.0.output.dense.weight"
    before = fresh(container, tmp_path / "adapters", 0)[name]
    changed = save_base(BertForSequenceClassification, seed=1).state_dict()[name]
    assert not torch.equal(before, changed)
    assert torch.equal(fresh(container, tmp_path / "adapters", 0)[name], changed)


def test_adapters_of_themselves_are_refused(container, save_base, tmp_path):
    folder = tmp_path / "adapters"
    saved_by_peft(save_base(BertForSequenceClassification), folder)
    path = folder / "adapter_config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": str(folder)})
    )
    with pytest.raises(InvalidInputError, match=r"of themselves .*adapter_config\.json"):
        fresh(container, folder, 0)


@pytest.mark.parametrize("options", [
    {"bias": "all"},
    {"bias": "lora_only"},
    {"use_dora": True},
    {"use_rslora": True},
    {"modules_to_save": ["pooler"]},
    {"bias": "all", "modules_to_save": ["pooler"]},
    {"target_modules": "all-linear", "bias": "all"},
])  # fmt: skip
def test_adapters_are_saved_as_peft_reads_them_whatever_is_trained_with_them(
    container, save_base, tmp_path, options
):
    save_base(BertForMaskedLM)
    models, folder = container.get(ModelManager), tmp_path / "adapters"
    lora = {"r": 2, "target_modules": ["query"], **options}
    model = models.sequence_classifier(str(tmp_path / "base"), labels=CLASSES, lora=lora).eval()
    with torch.no_grad():
        for weight in filter(lambda each: each.requires_grad, model.parameters()):
            weight.add_(torch.randn_like(weight))
    models.save(model, folder)
    ids = torch.arange(6).reshape(2, 3)
    expected = model(input_ids=ids).logits
    forget(container)
    ours = models.sequence_classifier(str(folder), labels=CLASSES).eval()
    torch.testing.assert_close(ours(input_ids=ids).logits, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = BertForSequenceClassification.from_pretrained(tmp_path / "base")
        theirs = peft.PeftModel.from_pretrained(base, folder).eval()
    torch.testing.assert_close(theirs(input_ids=ids).logits, expected)
    again = models.sequence_classifier(str(tmp_path / "base"), labels=CLASSES, lora=lora).eval()
    load_trained_state(again, {k: v.clone() for k, v in trained_state(model).items()})
    torch.testing.assert_close(again(input_ids=ids).logits, expected)
