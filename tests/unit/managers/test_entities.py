from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from workers.managers.entities import EntityScores, are_parts_of_entities, entities, scores
from workers.managers.tags import WordTags
from workers.protocol.errors import InvalidInputError


@pytest.mark.parametrize(
    ("tags", "wanted"),
    [
        # the example of seqeval's `get_entities`
        ("B-PER I-PER O B-LOC", {("PER", 0, 1), ("LOC", 3, 3)}),
        ("", set()),
        ("O O", set()),
        ("I-PER I-PER", {("PER", 0, 1)}),  # IOB1
        ("I-PER I-LOC", {("PER", 0, 0), ("LOC", 1, 1)}),
        ("B-PER B-PER", {("PER", 0, 0), ("PER", 1, 1)}),
        ("B-PER I-LOC I-LOC O", {("PER", 0, 0), ("LOC", 1, 2)}),
        ("B-PER E-PER S-PER", {("PER", 0, 1), ("PER", 2, 2)}),  # IOBES
        ("B-A L-A U-A I-A", {("A", 0, 1), ("A", 2, 2), ("A", 3, 3)}),  # BILOU
        ("B-a-b I-a-b", {("a-b", 0, 1)}),
        ("B I O", {("", 0, 1)}),
        ("NOUN NOUN O-x", {("NOUN", 0, 0), ("NOUN", 1, 1), ("O-x", 2, 2)}),
    ],
)
def test_entities_are_read_as_conlleval_reads_them(tags, wanted):
    assert entities(tags.split()) == wanted


@pytest.mark.parametrize(
    ("classes", "are_parts"),
    [
        ("B-PER I-PER O", True),
        ("I-PER O", True),
        ("U-A O", True),
        ("B I O", True),
        ("I O", True),
        ("NOUN VERB O", False),
        ("B I E S L U", False),  # names of one letter
        ("B I O X", False),
        ("O-x NOUN", False),
        ("noun proper-noun", False),
        ("B-", False),
    ],
)
def test_classes_say_where_in_an_entity_a_word_is_or_are_the_entities(classes, are_parts):
    assert are_parts_of_entities(classes.split()) is are_parts


def test_classes_of_one_letter_are_told_apart():
    metric = EntityScores(["B", "E", "X"])
    found = torch.nn.functional.one_hot(torch.tensor([0, 1, 2]), 3).float()
    metric.update(found, torch.tensor([3 + 1, 1, 2]))
    assert float(metric.compute()["f1"]) == pytest.approx(2 / 3)


# what seqeval publishes
WANTED = ["O O O B-MISC I-MISC I-MISC O", "B-PER I-PER O"]
FOUND = ["O O B-MISC I-MISC I-MISC I-MISC O", "B-PER I-PER O"]


def test_the_scores_are_those_that_seqeval_publishes():
    pairs = [(one.split(), other.split()) for one, other in zip(FOUND, WANTED, strict=True)]
    assert scores(pairs) == {"precision": 0.5, "recall": 0.5, "f1": 0.5}
    assert scores([(["I-NP", "I-NP", "O"], ["B-NP", "I-NP", "O"])])["f1"] == 1.0
    assert scores([(["O"], ["O"])]) == {"precision": 0.0, "recall": 0.0, "f1": 0.0}


def test_the_metric_takes_batches_whose_texts_are_marked():
    classes = ("B-MISC", "B-PER", "I-MISC", "I-PER", "O")
    metric = EntityScores(classes)
    for found, wanted in zip(FOUND, WANTED, strict=True):
        numbers = torch.tensor([classes.index(tag) for tag in found.split()])
        labels = torch.tensor([classes.index(tag) for tag in wanted.split()])
        labels[0] += len(classes)
        metric.update(torch.nn.functional.one_hot(numbers, len(classes)).float(), labels)
    values = {name: float(value) for name, value in metric.compute().items()}
    assert values == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "accuracy": 0.8}


def spans_of(text, max_length):
    """Of a tokenizer that cuts words into pieces of two; blanks go with the word behind.

    It drops words that begin with `~`.
    """
    spans, at = [(0, 0)], 0
    for word in text.split(" "):
        for start in () if word.startswith("~") else range(at, at + len(word), 2):
            blank = 1 if start == at and start else 0
            spans.append((start - blank, min(start + 2, at + len(word))))
        at += len(word) + 1
    return spans[:max_length]


def tags_of(texts, tags, max_length):
    """The classes of the tokens of each text, and what is said of those that are lost."""
    spans = [spans_of(text, max_length) for text in texts]
    words = WordTags(SimpleNamespace(is_fast=True), tags, max_length)
    rows = []
    for start in range(0, len(texts), 2):
        own = spans[start : start + 2]
        lengths = np.array([len(each) for each in own])
        flat = np.array([span for each in own for span in each])
        found = words.of_tokens(start, texts[start : start + 2], lengths, flat)
        rows += np.split(found, np.cumsum(lengths)[:-1])
    return [row.tolist() for row in rows], words.finding("train")


def test_a_class_is_learned_at_the_first_token_of_its_word():
    texts = ["\N{GRINNING FACE}a bcd e", "abcdef g", "x"]
    rows, finding = tags_of(texts, [[1, 2, 3], [4, 5], [6]], 5)
    assert rows == [[-100, 1, 2, -100, 3], [-100, 4, -100, -100, 5], [-100, 6]]
    assert finding is None


def test_of_words_behind_the_last_token_it_is_said_how_many_they_are():
    rows, finding = tags_of(
        ["a b c d", "abcdef g", "x", "y z"], [[1, 2, 3, 4], [5, 6], [7], [8, 9]], 3
    )
    assert rows == [[-100, 1, 2], [-100, 5, -100], [-100, 7], [-100, 8, 9]]
    assert finding.startswith("train: 3 of 9 words, of 2 texts, are neither learned nor measured")
    assert "data.max_length = 3" in finding


def test_words_that_the_tokenizer_drops_are_not_told_as_cut_off():
    rows, finding = tags_of(
        ["a ~b c ~d", "~e f", "a ~b c d"], [[1, 2, 3, 4], [5, 6], [1, 2, 3, 4]], 3
    )
    assert rows == [[-100, 1, 3], [-100, 6], [-100, 1, 3]]
    assert finding.startswith(
        "train: 2 of 10 words, of 2 texts, are neither learned nor measured: a"
    )
    assert "; 3 of 10 words, such as '~b', are neither learned nor measured: the tok" in finding
    _, finding = tags_of(["a ~b c ~d", "~e f"], [[1, 2, 3, 4], [5, 6]], 9)
    assert finding.startswith("train: 3 of 6 words, such as '~b'")
    assert "max_length" not in finding


def test_a_slow_tokenizer_is_refused():
    with pytest.raises(InvalidInputError, match="does not tell where in a text a token stands"):
        WordTags(SimpleNamespace(is_fast=False, name_or_path="slow"), [], 9)
