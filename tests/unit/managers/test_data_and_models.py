from __future__ import annotations

import pickle

import pytest
import torch

from workers.managers import DataManager, ModelManager
from workers.managers.cldr import LANGUAGES, language_id_texts
from workers.managers.data import split
from workers.managers.targets import in_order
from workers.managers.tokenized import TokenizedTexts
from workers.protocol.errors import InvalidInputError
from workers.protocol.finetune import DataConfig, ModelConfig, TokenizerConfig

BERT = ModelConfig(architecture="bert", hidden_size=32, num_hidden_layers=1)


def test_the_language_texts_are_many_unambiguous_and_in_a_fixed_order():
    texts, languages = language_id_texts()
    assert 16_000 < len(texts) < 18_000
    assert len(set(texts)) == len(texts)
    assert set(languages) == set(LANGUAGES)
    assert language_id_texts() == (texts, languages)
    assert languages[texts.index("Englannin punta")] == "fi"


def test_no_text_lies_on_both_sides_of_the_split():
    train, held_out = split(DataConfig())
    assert not set(train.texts) & set(held_out.texts)
    share = len(held_out.texts) / (len(train.texts) + len(held_out.texts))
    assert 0.14 < share < 0.16
    other = split(DataConfig(seed=1))[1]
    assert set(other.texts) != set(held_out.texts)


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.csv"
    lines = [f"sentence number {index} NA,{index % 3}" for index in range(200)]
    path.write_text("\n".join(["text,label", *lines, *lines[:20]]))
    return path


def build(container, path, **fields):
    config = DataConfig(source=str(path), max_length=8, **fields)
    return container.get(DataManager).text_classification(
        config, TokenizerConfig(vocab_size=100), BERT
    )


def test_a_file_is_tokenised_once_a_host_and_mapped_once_a_process(container, rows):
    data = build(container, rows)
    assert build(container, rows) is data
    assert data.classes == ("0", "1", "2")
    assert len(data.train) + len(data.validation) == 220
    ids, label = data.train[0]
    assert len(ids) == data.train.lengths[0] <= 8
    assert label in {0, 1, 2}
    copy = pickle.loads(pickle.dumps(data.train))
    assert isinstance(copy, TokenizedTexts)
    assert (copy[3][0] == data.train[3][0]).all()
    assert len(pickle.dumps(data.train)) < 1000, "the tokens do not travel"


def test_a_file_that_changes_is_tokenised_anew(container, rows):
    before = build(container, rows)
    rows.write_text(rows.read_text() + "\na new sentence,3")
    assert build(container, rows).classes == ("0", "1", "2", "3")
    assert before.classes == ("0", "1", "2")


def test_a_second_file_may_hold_the_held_out_rows(container, rows, tmp_path):
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text('{"text": "another one", "label": 2}\n{"text": "and one", "label": 0}\n')
    data = build(container, rows, validation=str(held_out))
    assert (len(data.train), len(data.validation)) == (220, 2)
    assert list(data.validation.labels) == [2, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\na,1\n,2\n", "line 3: nothing in column 'text'"),
        ("text,label\n" + "".join(f"t{n},1\n" for n in range(50)), "holds one class only, '1'"),
        ("text,label\na,1\nb,2\n", "none is left for the"),
        ("text,class\na,1\n", r"has no such column \(it has text, class\)"),
    ],
)
def test_rows_that_cannot_be_used_are_named(container, tmp_path, content, message):
    path = tmp_path / "bad.csv"
    path.write_text(content)
    with pytest.raises(InvalidInputError, match=message):
        build(container, path)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_loader_pads_its_batches_in_this_process_or_another(container, rows, num_workers):
    data = build(container, rows)
    loader = container.get(DataManager).loader(
        data.train, [[0, 1, 2], [3]], pad_id=data.tokenizer.pad_token_id, num_workers=num_workers
    )
    first, second = list(loader)
    assert first["input_ids"].shape == first["attention_mask"].shape
    assert first["input_ids"].dtype is torch.int64
    assert first["labels"].tolist() == data.train.labels[:3].tolist()
    assert second["attention_mask"].sum() == data.train.lengths[3]
    assert (first["input_ids"][first["attention_mask"] == 0] == data.tokenizer.pad_token_id).all()


def test_a_loader_draws_nothing_from_the_trainings_generator(container, rows):
    data = build(container, rows)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    list(container.get(DataManager).loader(data.train, [[0]], pad_id=0))
    assert torch.equal(torch.get_rng_state(), state)


def classifier(container, config, **options):
    return container.get(ModelManager).sequence_classifier(
        config, num_labels=3, vocab_size=50, **options
    )


def test_where_only_the_width_is_given_the_rest_follows(container):
    model = classifier(container, ModelConfig(architecture="bert", hidden_size=128), max_length=600)
    assert model.config.num_attention_heads == 2
    assert model.config.intermediate_size == 512
    assert model.config.max_position_embeddings == 600
    assert model.config.vocab_size == 50
    assert model.training


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "roberta", "modernbert", "gpt2"])
def test_dropout_reaches_every_probability_of_an_architecture(container, architecture):
    small = {
        "distilbert": {"dim": 32, "hidden_dim": 64, "n_layers": 1, "n_heads": 1},
        "gpt2": {"n_embd": 32, "n_layer": 1, "n_head": 1},
    }.get(architecture, {"hidden_size": 64, "num_hidden_layers": 1})
    config = ModelConfig(architecture=architecture, **small)
    options = {"dropout": 0.25, "pad_token_id": 0}
    model = classifier(container, config, **options)
    found = [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    assert found or architecture == "modernbert"
    assert set(found) <= {0.25}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architecture": "brt"}, "model.architecture = 'brt': no such architecture.*did you mean"),
        (
            {"architecture": "bert", "hiden_size": 3},
            "model.hiden_size = 3: bert has no such setting; did you mean 'hidden_size'",
        ),
        (
            {"architecture": "bert", "hidden_size": 30, "num_attention_heads": 4},
            "model.architecture = 'bert' cannot be built so",
        ),
        ({"architecture": "vit"}, "model.architecture = 'vit' has no sequence classifier"),
        ({"id": "/no/such/model"}, "model.id = '/no/such/model' does not load"),
    ],
)
def test_a_model_that_cannot_be_is_named(container, fields, message):
    with pytest.raises(InvalidInputError, match=message):
        classifier(container, ModelConfig(**fields))


def test_a_saved_model_loads_as_it_was(container, tmp_path):
    models = container.get(ModelManager)
    model = classifier(container, BERT).eval()
    models.save(model, tmp_path / "model")
    models.save(model, tmp_path / "model")
    loaded = models.load(tmp_path / "model")
    ids = torch.tensor([[1, 2, 3]], device=model.device)
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_one_endless_word_does_not_hold_a_tokenizer_up(container, tmp_path):
    path = tmp_path / "rows.csv"
    lines = [f"sentence number {index},{index % 3}" for index in range(200)]
    path.write_text("\n".join(["text,label", *lines, "x" * 300_000 + ",1"]))
    data = build(container, path)
    assert max(data.train.lengths) <= 8


def test_labels_have_the_same_numbers_on_every_host():
    assert in_order({"10", "9", "1", "01", "001"}) == ["001", "01", "1", "9", "10"]
    assert in_order({"b", "10", "9"}) == ["10", "9", "b"]
