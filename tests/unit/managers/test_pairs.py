from __future__ import annotations

import pytest
import torch
from transformers import BertTokenizerFast

from workers.managers import AMPManager, BatchManager, DataManager, ModelManager, TokenizerManager
from workers.managers.tokenized import PaddingCollator, TokenizedTexts
from workers.protocol.finetune import DataConfig, ModelConfig, TokenizerConfig
from workers.trials.finetune.forward import Forward, inputs_of

BERT = ModelConfig(architecture="bert", hidden_size=32, num_hidden_layers=1)


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.csv"
    rows = [f"question {n % 40} of {n},{'long ' * (n % 9)}answer {n},{n % 2}" for n in range(200)]
    path.write_text("\n".join(["question,answer,label", *rows]))
    return DataConfig(source=str(path), text="question", text_pair="answer", max_length=16)


def test_pairs_are_tokenised_as_the_tokenizer_does_it_with_types_and_the_longer_cut_first(
    container, pairs
):
    data = container.get(DataManager).text_classification(
        pairs, TokenizerConfig(vocab_size=200), BERT
    )
    tokenizer = data.tokenizer
    ids, _, types = data.train[0]
    assert len(ids) == len(types) == data.train.lengths[0] <= 16
    assert set(types.tolist()) == {0, 1}
    assert tokenizer.decode(ids).count("[SEP]") == 2
    assert max(data.train.lengths) == 16
    batch = next(iter(container.get(DataManager).loader(data.train, [[0, 1, 2]], pad_id=0)))
    assert batch["token_type_ids"].shape == batch["input_ids"].shape
    assert batch["token_type_ids"].dtype is torch.int64
    lengths = data.train.lengths
    batches = container.get(BatchManager).training_batches(lengths, 8, seed=0, epoch=0)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))


@pytest.mark.parametrize("is_fast", [True, False])
def test_slow_and_fast_tokenizers_give_what_calling_them_gives(container, tmp_path, is_fast):
    texts, second = ["a b c d", "a", "b " * 30], ["c", "d " * 30, "a " * 30]
    path = container.get(TokenizerManager).train(["a b c d"], 60).path
    tokenizer = container.get(TokenizerManager).load(path)
    if not is_fast:
        vocabulary = tmp_path / "vocab.txt"
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "d"]
        vocabulary.write_text("\n".join(words))
        tokenizer = Slow(BertTokenizerFast(str(vocabulary)))
    written = TokenizedTexts.write(tmp_path, "a", tokenizer, texts, [0, 1, 0], 12, pairs=second)
    wanted = tokenizer(
        texts, second, truncation="longest_first", max_length=12, return_token_type_ids=True
    )
    for number, (ids, _, types) in enumerate(written):
        assert ids.tolist() == wanted["input_ids"][number]
        assert types.tolist() == wanted["token_type_ids"][number]


class Slow:
    """A tokenizer that cannot be asked for what is behind it, as those in Python."""

    is_fast = False

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def __call__(self, *texts, **options):
        return self._tokenizer(*texts, **options)


def test_single_texts_have_no_types(container, tmp_path):
    tokenizer = container.get(TokenizerManager).load(
        container.get(TokenizerManager).train(["a b"], 60).path
    )
    written = TokenizedTexts.write(tmp_path, "a", tokenizer, ["a", "b"], [0, 1], 8)
    assert len(written[0]) == 2
    assert "token_type_ids" not in PaddingCollator(0)([written[0], written[1]])


@pytest.mark.parametrize(
    ("architecture", "takes"), [("bert", True), ("roberta", True), ("distilbert", False)]
)
def test_types_are_given_to_models_that_know_them(container, architecture, takes):
    fields = {"hidden_size": 32, "num_hidden_layers": 1} if architecture != "distilbert" else {}
    config = ModelConfig(architecture=architecture, **fields)
    if architecture == "distilbert":
        config = ModelConfig(
            architecture="distilbert", dim=32, n_layers=1, n_heads=2, hidden_dim=64
        )
    model = container.get(ModelManager).sequence_classifier(config, num_labels=2, vocab_size=50)
    assert ("token_type_ids" in inputs_of(model)) is takes
    model.config.type_vocab_size = 1
    assert "token_type_ids" not in inputs_of(model)


@pytest.mark.parametrize(
    ("architecture", "fields"),
    [
        ("xlnet", {"d_model": 32, "n_layer": 1, "n_head": 2, "d_inner": 64}),
        ("funnel", {"d_model": 32, "n_head": 2, "d_head": 16, "d_inner": 64, "block_sizes": [2]}),
    ],
)
def test_models_that_compare_types_are_given_them(container, architecture, fields):
    config = ModelConfig(architecture=architecture, **fields)
    model = container.get(ModelManager).sequence_classifier(config, num_labels=2, vocab_size=50)
    policy = container.get(AMPManager).policy("fp32", "auto")
    forward = Forward(model.eval(), policy)
    ids = torch.arange(1, 13).reshape(1, 12)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    types = (torch.arange(12) > 5).long().reshape(1, 12)
    one = forward({**batch, "token_type_ids": torch.zeros_like(ids)})
    assert not torch.equal(forward({**batch, "token_type_ids": types}), one)
