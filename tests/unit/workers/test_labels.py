"""Labels that are numbers, or any number of classes: read, checked and split."""

from __future__ import annotations

import json
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet
import pytest

from workers.protocol.errors import InvalidInputError
from workers.protocol.finetune import DataConfig
from workers.texts.labels import read_label
from workers.texts.rows import read_rows
from workers.texts.split import split_rows
from workers.texts.values import MissingError, UnusableError

NUMBERS = DataConfig(task="regression")
CLASSES = DataConfig(task="multi_label")
TAGS = DataConfig(task="token_classification")
FLAGS = DataConfig(task="multi_label", labels=["rude", "loud"])


@pytest.mark.parametrize(
    ("config", "values", "label"),
    [
        (NUMBERS, ["3.5"], 3.5),
        (NUMBERS, [" -2 "], -2.0),
        (NUMBERS, ["1e-3"], 0.001),
        (NUMBERS, [Decimal("0.25")], 0.25),
        (NUMBERS, [4], 4.0),
        (CLASSES, ["b, a,b"], ("a", "b")),
        (CLASSES, [""], ()),
        (CLASSES, [["b", "a", 1]], ("1", "a", "b")),
        (CLASSES, [[]], ()),
        (CLASSES, [7], ("7",)),
        (CLASSES, ["[serious]"], ("[serious]",)),
        (CLASSES, ["[a],[b]"], ("[a]", "[b]")),
        (TAGS, ["[x] [y]"], ("[x]", "[y]")),
        (FLAGS, ["1", "0"], ("rude",)),
        (FLAGS, [True, 1.0], ("loud", "rude")),
        (FLAGS, ["FALSE", "0"], ()),
    ],
)
def test_a_label_is_read_as_the_task_learns_it(config, values, label):
    assert read_label(values, config) == label


@pytest.mark.parametrize(
    ("config", "values", "error", "message"),
    [
        (NUMBERS, ["good"], UnusableError, "'good' in column 'label' is no number; write it as"),
        (NUMBERS, ["3,5"], UnusableError, "is no number"),
        (NUMBERS, ["1_000"], UnusableError, "is no number"),
        (NUMBERS, ["inf"], UnusableError, "is no number"),
        (NUMBERS, [float("inf")], UnusableError, "is no number"),
        (NUMBERS, [True], UnusableError, "'True' in column 'label' is no number"),
        (NUMBERS, ["٣"], UnusableError, "is no number"),
        (NUMBERS, ["1e39"], UnusableError, "too large for float32"),
        (NUMBERS, ["-2e18"], UnusableError, "too large for float32, in which squares of errors"),
        (NUMBERS, [""], MissingError, "nothing in column 'label'"),
        (CLASSES, ["['a', 'b']"], UnusableError, "a list that was written as text; write classes"),
        (CLASSES, ["[a, b]"], UnusableError, "a list that was written as text"),
        (CLASSES, ['["a"]'], UnusableError, "a list that was written as text"),
        (CLASSES, ["[]"], UnusableError, "a list that was written as text"),
        (TAGS, ["['B-x', 'O']"], UnusableError, "with blanks between them, and nothing else"),
        (TAGS, ["['O' 'O']"], UnusableError, "a list that was written as text"),
        (NUMBERS, [float("nan")], MissingError, "stands for a label that is not there"),
        (CLASSES, [None], MissingError, "nothing in column 'label'"),
        (CLASSES, ["NULL"], MissingError, "stands for a label"),
        (CLASSES, [{"a": 1}], UnusableError, "an object in column 'label'"),
        (CLASSES, [["a", None]], MissingError, "nothing in column"),
        (FLAGS, ["1", "2"], UnusableError, "'2' in column 'loud': of several label columns, each"),
        (FLAGS, ["", "0"], MissingError, "nothing in column 'rude'"),
    ],
)
def test_what_is_no_label_of_the_task_says_why(config, values, error, message):
    with pytest.raises(error, match=message):
        read_label(values, config)


def split(path, lines=None, **fields):
    if lines is not None:
        path.write_text("\n".join(lines))
    found = []
    sides = split_rows(DataConfig(source=str(path), **fields), read_rows, found.append)
    return *sides, [text.partition(": ")[2] for text in found]


def test_numbers_are_split_by_texts_alone_whatever_their_values(tmp_path):
    lines = ["text,label", *(f"text {n},{n}.5" for n in range(200))]
    train, held_out, found = split(tmp_path / "d.csv", lines, task="regression")
    assert (len(train.texts), len(held_out.texts)) == (170, 30)
    assert all(isinstance(label, float) for label in train.labels)
    assert found == []
    lines += ["text 0,0.5", "text 1,9"]
    *_, found = split(tmp_path / "d.csv", lines, task="regression")
    assert found[0].startswith("1 rows repeat a text and its number (line 202)")
    assert found[1].startswith("1 text has several numbers (line 203 ")


def test_of_pairs_it_is_the_pair_that_repeats_and_the_first_text_that_lies_on_one_side(tmp_path):
    rows = [f"text {n % 20},other {n},{n}.5" for n in range(200)]
    pairs = {"task": "regression", "text_pair": "pair"}
    train, held_out, found = split(tmp_path / "d.csv", ["text,pair,label", *rows], **pairs)
    assert not set(train.texts) & set(held_out.texts)
    assert found == []
    rows += ["text 0,other 0,0.5", "text 1,other 1,9"]
    *_, found = split(tmp_path / "d.csv", ["text,pair,label", *rows], **pairs)
    assert found[0].startswith("1 rows repeat a pair and its number (line 202)")
    assert found[1].startswith("1 pair has several numbers (line 203 ")
    validation = tmp_path / "v.csv"
    validation.write_text("text,pair,label\ntext 0,new,1\ntext 0,other 20,2\n")
    rows = rows[:200]
    *_, found = split(
        tmp_path / "d.csv", ["text,pair,label", *rows], validation=str(validation), **pairs
    )
    assert found[0].startswith("1 held-out pairs are trained, too (line 3 ")


def test_held_out_numbers_that_tell_nothing_apart_are_told(tmp_path):
    lines = ["text,label", *(f"text {n},{n}.5" for n in range(5))]
    *_, found = split(tmp_path / "d.csv", lines, task="regression")
    assert found == [
        (
            "all held-out texts have one number: pearson, spearman, r2 cannot be measured; hold out"
            " others"
        )
    ]
    (tmp_path / "v.csv").write_text("text,label\na,1\nb,1\n")
    validation = str(tmp_path / "v.csv")
    assert split(tmp_path / "d.csv", task="regression", validation=validation)[2] == found


def test_numbers_that_float32_tells_apart_are_taken_however_large(tmp_path):
    lines = ["text,label", *(f"text {n},{1_700_000_000 + 86_400 * n}" for n in range(40))]
    assert split(tmp_path / "d.csv", lines, task="regression")[2] == []


def test_classes_that_look_like_several_are_told_where_no_row_has_more(tmp_path):
    lines = ["text,label", *(f"text {n},{'a;b' if n % 2 else 'b'}" for n in range(20))]
    *_, found = split(tmp_path / "d.csv", lines, task="multi_label")
    (told,) = (each for each in found if "label_separator" in each)
    assert told == (
        "no row has several classes, and 'a;b' is one: if ';' stands between two, set"
        " label_separator, which is ','"
    )
    *_, found = split(tmp_path / "d.csv", task="multi_label", label_separator=";")
    assert not any("label_separator" in each for each in found)


@pytest.mark.parametrize(("outside", "is_told"), [("O", False), ("o", True), ("NOUN", True)])
def test_words_that_all_are_of_entities_are_told(tmp_path, outside, is_told):
    lines = ["text,label", *(f"text {n},B-x {outside}" for n in range(20))]
    *_, found = split(tmp_path / "d.csv", lines, task="token_classification")
    assert any(each.startswith("no word has the class 'O'") for each in found) is is_told


def test_each_class_that_is_held_out_is_trained_too_where_rows_have_several(tmp_path):
    lines = ["text,label", *(f'text {n},"{"abc"[n % 3]},{"xyz"[n % 2]}"' for n in range(60))]
    lines += ["text of one,once", "text of none,"]
    for seed in range(12):
        train, held_out, found = split(tmp_path / "d.csv", lines, task="multi_label", seed=seed)
        trained = {name for label in train.labels for name in label}
        assert trained == {"a", "b", "c", "x", "y", "once"}
        assert {name for label in held_out.labels for name in label} >= {"a", "b", "c"}
        assert len(held_out.texts) == 9
        assert not set(train.texts) & set(held_out.texts)
        assert found == ["of the class 'once' no text is held out: trained, not measured"]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_lists_and_columns_of_typed_formats_are_several_classes(tmp_path, kind):
    rows = [
        {"text": f"text {n}", "label": ["a", "b"][: n % 3], "rude": n % 2 == 0, "loud": n % 5 == 0}
        for n in range(40)
    ]
    path = tmp_path / f"d.{kind}"
    if kind == "parquet":
        table = pa.Table.from_pylist(rows)
        labels = table["label"].cast(pa.large_list(pa.string()))
        pyarrow.parquet.write_table(table.set_column(1, "label", labels), path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    train, held_out, _ = split(path, task="multi_label")
    assert {*train.labels, *held_out.labels} == {(), ("a",), ("a", "b")}
    train, held_out, _ = split(path, task="multi_label", labels=["rude", "loud"])
    assert {*train.labels, *held_out.labels} == {(), ("rude",), ("loud",), ("loud", "rude")}
    with pytest.raises(InvalidInputError, match="list"):
        split(path, task="text_classification")


@pytest.mark.parametrize(
    ("lines", "fields", "message"),
    [
        (["text,label", "a,1", "b,1"], {"task": "regression"}, "holds one number only"),
        (
            ["text,label", *(f"text {n},{10**9 + n}" for n in range(40))],
            {"task": "regression"},
            "float32, in which they are learned, has steps of 64 there; subtract what they have in",
        ),
        (["text,label", "a,1", "b,x"], {"task": "regression"}, "line 3: 'x' in column 'label'"),
        (["text,label", "a,a", "b,a"], {"task": "multi_label"}, "one class only, 'a'"),
        (["text,label", 'a,""', 'b,""'], {"task": "multi_label"}, "holds no class"),
        (["text,label"], {"task": "regression"}, "it holds no rows"),
        (
            ["text,rude", "a,1"],
            {"task": "multi_label", "labels": ["rude", "lod"]},
            "data.labels = 'lod': d.csv has no such column",
        ),
        (
            ["text,rude", "a,1"],
            {"task": "multi_label", "labels": ["rude", "text"]},
            "data.labels = 'text': that is the column of the texts",
        ),
        # rows that a quote has swallowed, of which no number was seen elsewhere
        (
            ["text,label", "a,1", '"b,2', "c,3", 'd",4'],
            {"task": "regression"},
            "a quote opens a text that holds whole rows",
        ),
    ],
)
def test_data_that_the_task_cannot_learn_from_are_refused(tmp_path, lines, fields, message):
    with pytest.raises(InvalidInputError) as error:
        split(tmp_path / "d.csv", lines, **fields)
    assert message in str(error.value)


def test_a_class_of_the_held_out_file_that_nobody_trains_is_refused(tmp_path):
    (tmp_path / "held.csv").write_text('text,label\nx,"a,zz"\n')
    lines = ["text,label", "a,a", "b,b"]
    fields = {"task": "multi_label", "validation": str(tmp_path / "held.csv")}
    with pytest.raises(InvalidInputError, match="line 2: the class 'zz' is none of"):
        split(tmp_path / "d.csv", lines, **fields)
    (tmp_path / "held.csv").write_text("text,label\nx,77\n")
    held_out = split(
        tmp_path / "d.csv", ["text,label", "a,1", "b,2"], **{**fields, "task": "regression"}
    )[1]
    assert held_out.labels == [77.0]
