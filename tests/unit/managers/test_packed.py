from __future__ import annotations

import pickle
import random

import numpy as np
import pytest

from workers.managers.packed import PackedTexts
from workers.managers.token_rows import Rows
from workers.managers.tokenized import PaddingCollator, TokenizedTexts


class Numbers:
    """A tokenizer whose tokens are the numbers that a text holds."""

    is_fast = False

    def __call__(self, texts, _pairs=None, *, truncation, max_length, **_):
        ids = [[int(number) for number in text.split()] for text in texts]
        return {"input_ids": [each[:max_length] if truncation else each for each in ids]}


@pytest.fixture
def write(tmp_path):
    def write(texts, **options):
        lines = [" ".join(map(str, text)) for text in texts]
        options = {"max_length": None, **options}
        labels = np.zeros(len(texts), dtype=np.uint8)
        return TokenizedTexts.write(tmp_path, "train", Numbers(), lines, labels, **options)

    return write


def test_blocks_hold_every_token_once_and_say_where_its_text_begins(write):
    draw = random.Random(7)
    for trial in range(30):
        texts = [
            [draw.randrange(9) for _ in range(draw.choice([0, 1, 2, 5, 17]))]
            for _ in range(draw.randrange(1, 9))
        ]
        texts.append([1, 2])
        size = draw.randrange(4, 12)
        packed = PackedTexts(write(texts), size)
        stream = [token for text in texts for token in text]
        places = [place for text in texts for place in range(len(text))]
        # position by position, as a reader of the docstring would
        wanted = [min(place, at % size) for at, place in enumerate(places)]
        order = draw.sample(range(len(packed)), len(packed))
        rows = packed.__getitems__(order)
        assert sorted(packed.lengths.tolist(), reverse=True) == packed.lengths.tolist()
        for number, block in zip(order, rows, strict=True):
            assert block[0].tolist() == stream[number * size : (number + 1) * size], trial
            ids, positions = packed[number]
            assert ids.tolist() == block[0].tolist()
            assert positions.tolist() == wanted[number * size : (number + 1) * size], trial


def test_joined_texts_are_one_and_blocks_travel_to_a_loader(write):
    packed = PackedTexts(write([[1, 2, 3], [4, 5], [6, 7, 8]]), 5, is_joined=True)
    again = pickle.loads(pickle.dumps(packed))
    for each in (packed, again):
        assert [each[number][1].tolist() for number in range(2)] == [[0, 1, 2, 3, 4], [0, 1, 2]]
    assert PaddingCollator(0)(again.__getitems__([0, 1]))["input_ids"].shape == (2, 5)


def test_a_text_that_is_not_cut_ends_with_the_end_token_once(write):
    texts = write([[1, 2], [3, 9], [4, 5, 6, 7], []], max_length=3, end_id=9)
    assert [texts[number][0].tolist() for number in range(4)] == [[1, 2, 9], [3, 9], [4, 5, 6], [9]]
    assert isinstance(texts.__getitems__([0]), Rows)
