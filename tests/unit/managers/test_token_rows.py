from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

from workers.managers.token_rows import Rows
from workers.managers.tokenized import PaddingCollator, TokenizedTexts


@pytest.fixture(params=["texts", "pairs"])
def texts(request, tmp_path):
    """Texts of 0 to 9 tokens; of pairs, with types."""
    draw = np.random.default_rng(3)
    lengths = draw.integers(0, 10, 60)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    draw.integers(1, 99, offsets[-1], dtype=np.int32).tofile(tmp_path / "a.ids")
    offsets.astype(np.int64).tofile(tmp_path / "a.offsets")
    with (tmp_path / "a.labels").open("wb") as file:
        np.save(file, draw.integers(0, 2, (60, 3), dtype=np.uint8))
    if request.param == "pairs":
        draw.integers(0, 2, offsets[-1], dtype=np.int8).tofile(tmp_path / "a.types")
    return TokenizedTexts(tmp_path, "a")


BATCHES = [[5], [9, 2, 2, 59], list(range(59, -1, -1)), [0, 1, 2]]


def padded_one_by_one(texts, numbers, multiple):
    """What a batch is, by the plainest of loops."""
    rows = [texts[number] for number in numbers]
    length = -(-max(len(row[0]) for row in rows) // multiple) * multiple
    return {
        "input_ids": [row[0].tolist() + [7] * (length - len(row[0])) for row in rows],
        "attention_mask": [[1] * len(row[0]) + [0] * (length - len(row[0])) for row in rows],
        "labels": [row[1].tolist() for row in rows],
        **(
            {"token_type_ids": [r[2].tolist() + [0] * (length - len(r[0])) for r in rows]}
            if len(rows[0]) > 2
            else {}
        ),
    }


@pytest.mark.parametrize("multiple", [1, 8])
def test_a_batch_taken_at_once_is_what_padding_row_by_row_makes(texts, multiple):
    collate = PaddingCollator(7, multiple)
    subset = Subset(texts, list(range(60)))
    for source in (texts, subset):
        loader = DataLoader(source, batch_sampler=BATCHES, collate_fn=collate)
        for numbers, batch in zip(BATCHES, loader, strict=True):
            wanted = padded_one_by_one(texts, numbers, multiple)
            assert {name: each.tolist() for name, each in batch.items()} == wanted
            assert batch["input_ids"].dtype == batch["attention_mask"].dtype == torch.int64
            assert batch["labels"].dtype == torch.uint8
            one_by_one = collate([texts[number] for number in numbers])
            assert all(torch.equal(one_by_one[name], batch[name]) for name in batch)


def test_rows_taken_at_once_are_a_sequence_of_rows(texts):
    numbers = [9, 2, 59, 2]
    rows = texts.__getitems__(numbers)
    assert isinstance(rows, Rows)
    assert len(rows) == 4
    for row, number in zip(rows, numbers, strict=True):
        for found, wanted in zip(row, texts[number], strict=True):
            assert np.array_equal(found, wanted)
    assert np.array_equal(rows[-1][0], texts[2][0])
    assert [len(row[0]) for row in rows[1:3]] == texts.lengths[[2, 59]].tolist()
    with pytest.raises(IndexError):
        rows[4]


def test_no_row_of_a_batch_is_taken_by_itself(texts, monkeypatch):
    def refuse(*_):
        raise AssertionError("a loop over the rows of a batch")

    monkeypatch.setattr(TokenizedTexts, "__getitem__", refuse)
    monkeypatch.setattr(Rows, "__getitem__", refuse)
    loader = DataLoader(texts, batch_sampler=BATCHES, collate_fn=PaddingCollator(0))
    assert [len(batch["labels"]) for batch in loader] == [1, 4, 60, 3]
