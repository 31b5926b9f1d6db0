"""Texts of which each word has a class, and texts without any label: read and checked."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from workers.protocol.errors import InvalidInputError
from workers.protocol.finetune import DataConfig
from workers.texts.rows import read_rows
from workers.texts.split import split_rows

TAGGED = {"task": "token_classification", "label": "tags"}


def rows_of(path, **fields):
    config = DataConfig(source=str(path), **fields)
    return [(row.text, row.label) for row in read_rows(str(path), config, "data.source")]


def refusal(path, **fields):
    with pytest.raises(InvalidInputError) as error:
        split_rows(DataConfig(source=str(path), **fields), read_rows)
    return str(error.value)


def test_words_and_their_classes_are_lists_or_texts_with_blanks(tmp_path):
    wanted = [("Ada of London", ("B-PER", "O", "B-LOC")), ("a", ("O",))]
    path = tmp_path / "a.csv"
    path.write_text("text,tags\nAda of  London,B-PER O B-LOC\na,O\n")
    assert rows_of(path, **TAGGED) == wanted
    path = tmp_path / "a.jsonl"
    rows = [{"text": text.split(), "tags": list(tags)} for text, tags in wanted]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert rows_of(path, **TAGGED) == wanted
    path = tmp_path / "a.parquet"
    names = ["O", "B-PER", "B-LOC"]
    columns = {
        "text": pa.array([["Ada", "of", "London"], ["a"]]),
        "tags": pa.array([[1, 0, 2], [0]]),
    }
    feature = {"feature": {"names": names, "_type": "ClassLabel"}, "_type": "List"}
    about = json.dumps({"info": {"features": {"tags": feature}}})
    table = pa.table(columns).replace_schema_metadata({"huggingface": about})
    pyarrow.parquet.write_table(table, path)
    assert rows_of(path, **TAGGED) == wanted


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": ["a", "b"], "tags": ["O"]}, "line 2: 2 words in column 'text', and 1 classes"),
        ({"text": ["a b"], "tags": ["O"]}, "line 2: 'a b' in column 'text' holds a blank"),
        ({"text": [], "tags": []}, "line 2: no word in column 'text'; fill it in"),
        ({"text": [""], "tags": ["O"]}, "line 2: nothing in column 'text'; fill it in"),
        ({"text": ["a"], "tags": []}, "line 2: no class in column 'tags'"),
        ({"text": ["a"], "tags": None}, "line 2: nothing in column 'tags'"),
        ({"text": ["a"], "tags": [None]}, "line 2: nothing in column 'tags'"),
        ({"text": ["a"], "tags": [{"x": 1}]}, "line 2: an object in column 'tags'"),
    ],
)
def test_a_word_without_a_class_of_its_own_is_refused(tmp_path, row, message):
    path = tmp_path / "a.jsonl"
    rows = [{"text": ["x"], "tags": ["B-A"]}, row, {"text": ["y"], "tags": ["O"]}]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert message in refusal(path, **TAGGED)


def test_each_class_of_words_is_trained_and_one_alone_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"text": [f"w{n}", "x"], "tags": ["O", "B-A" if n % 9 else "B-B"]} for n in range(40)]
    path.write_text("\n".join(map(json.dumps, rows)))
    train, held_out = split_rows(DataConfig(source=str(path), **TAGGED), read_rows)
    assert {tag for tags in train.labels for tag in tags} == {"O", "B-A", "B-B"}
    assert len(train.texts) + len(held_out.texts) == 40
    path.write_text("\n".join(json.dumps({"text": f"w{n}", "tags": "O"}) for n in range(9)))
    assert "one class only, 'O'" in refusal(path, **TAGGED)


@pytest.mark.parametrize("task", ["causal_lm", "masked_lm"])
def test_texts_alone_are_read_from_every_format_and_split(tmp_path, task):
    texts = [f"a text, {number}\nof two lines" for number in range(20)]
    csv = tmp_path / "a.csv"
    csv.write_text("other,text\n" + "\n".join(f'1,"{text}"' for text in texts))
    narrow = tmp_path / "narrow.csv"
    narrow.write_text("text\n" + "\n".join(f'"{text}"' for text in texts))
    lines = tmp_path / "a.jsonl"
    lines.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    table = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pa.table({"n": range(20), "text": texts}), table)
    for path in (csv, narrow, lines, table):
        assert rows_of(path, task=task) == [(text, ()) for text in texts]
        train, held_out = split_rows(DataConfig(source=str(path), task=task), read_rows)
        assert (len(train.texts), len(held_out.texts)) == (17, 3)
    blank = tmp_path / "blank.jsonl"
    blank.write_text('{"text": "a"}\n{"text": " "}\n')
    assert "line 2: nothing in column 'text'" in refusal(blank, task=task)
