from __future__ import annotations

import csv
import json
import math
import tracemalloc
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet
import pytest

from workers.protocol.errors import InvalidInputError
from workers.protocol.finetune import DataConfig
from workers.texts.rows import read_rows
from workers.texts.split import check_rows, split_rows

#: Enough rows of two classes for both sides.
GOOD = [(f"text number {number}", "ab"[number % 2]) for number in range(60)]


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def rows_of(path, **fields):
    config = DataConfig(source=str(path), **fields)
    rows = read_rows(str(path), config, "data.source")
    return [(row.text, row.label) for row in rows if row.lacks is None]


def refusal(path, **fields):
    """What is said of a file: the same in training and at submission."""
    config = DataConfig(source=str(path), **fields)
    with pytest.raises(InvalidInputError) as in_training:
        split_rows(config, read_rows)
    with pytest.raises(InvalidInputError) as at_submission:
        check_rows(config, "data")
    message = str(in_training.value)
    assert str(at_submission.value) == message
    assert "\n" not in message
    assert path.name in message
    return message


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("reviews[2024].csv", "text,label\na,1\n", [("a", "1")]),
        ("my *reviews?.csv", "text,label\na,1\n", [("a", "1")]),
        ("REVIEWS.TSV", "text\tlabel\na, b\t1\n", [("a, b", "1")]),
        ("Ünï.Csv", "text,label\na,1\n", [("a", "1")]),
        ("{a,b}/**/x%20.csv", "text,label\na,1\n", [("a", "1")]),
        ("crlf.csv", "text,label\r\na,1\r\nb,2\r\n", [("a", "1"), ("b", "2")]),
        ("cr.csv", "text,label\ra,1\rb,2\r", [("a", "1"), ("b", "2")]),
        ("mark.csv", "\ufefftext,label\na,1\n", [("a", "1")]),
        ("mark16.csv", "text,label\né,1\n".encode("utf-16"), [("é", "1")]),
        ("mark32.csv", "text,label\né,1\n".encode("utf-32"), [("é", "1")]),
        ("semicolon.csv", "text;label\na, b;1\n", [("a, b", "1")]),
        ("tab.csv", "text\tlabel\na, b\t1\n", [("a, b", "1")]),
        ("pipe.csv", "id|text|label\n1|a, b|1\n", [("a, b", "1")]),
        ("comma.tsv", "text,label\na\tb,1\n", [("a\tb", "1")]),
        ("excel.csv", "sep=;\ntext;label\na;1\n", [("a", "1")]),
        ("blank.csv", "\n\ntext,label\n\na,1\n,\n  \n\nb,2\n,,,\n", [("a", "1"), ("b", "2")]),
        ("spaced.csv", 'text, label\n"a, b", 1\nc, "2"\n', [("a, b", "1"), ("c", "2")]),
        ("quoted.csv", '"text","label"\n"say ""hi"", you","1"\n', [('say "hi", you', "1")]),
        ("inner.csv", 'text,label\na 5" disk,1\n', [('a 5" disk', "1")]),
        ("lines.csv", 'text,label\n"a,\nb",1\nc,2\n', [("a,\nb", "1"), ("c", "2")]),
        ("numbers.csv", "text,label\n1.10,1.1\n007,1.10\nNA,01\n",
         [("1.10", "1.1"), ("007", "1.10"), ("NA", "01")]),
        ("names.csv", "text,label\nx,NA\ny,None\nz,N/A\n",
         [("x", "NA"), ("y", "None"), ("z", "N/A")]),
        ("padded.csv", "text,label\n a , x \n", [(" a ", "x")]),
        ("other.csv", "text,text2,label,,\na,b,1,,\n", [("a", "1")]),
        ("twice.csv", "x,text,x,label\n1,a,2,b\n", [("a", "b")]),
        ("last.csv", "text,label\na,1", [("a", "1")]),
        ("l.jsonl", '{"text": "a", "label": 1}\n\n{"label": "1", "text": "b"}\n',
         [("a", "1"), ("b", "1")]),
        ("n.jsonl", '{"text": 1.10, "label": 1.0}\n{"text": "1.10", "label": 1.5}\n',
         [("1.10", "1"), ("1.10", "1.5")]),
        ("b.ndjson", '{"text": "a", "label": true}\n', [("a", "True")]),
        ("m.JSON", ('\ufeff [\n{"text": "a,]", "label": "x"} ,\n{"text": "\\ud83d\\ude00",'
         '"label": 2}]\n'),
         [("a,]", "x"), ("\U0001f600", "2")]),
    ],
)  # fmt: skip
def test_files_are_read_as_people_write_them(write, name, content, rows):
    assert rows_of(write(name, content)) == rows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,label\na,1\nb, c,2\n", "line 3: 3 columns, where the header has 2; put a"),
        ("a.csv", "text,label\na,1\nb\n", "line 3: 1 columns, where the header has 2"),
        ("a.csv", "text,label\na,1\nb,2,\n", "line 3: 3 columns"),
        ("a.csv", 'text,label\n"a,1\nb,2\n', "line 2: a quote opens there and never closes"),
        ("a.csv", 'text,label\n"a" b,1\n', "line 2: a quote closes amid a text; write a quote"),
        ("a.csv", 'text,label\nx,1\n"a,1\nb",1\n', "line 3: a quote opens a text that holds whole"),
        ("a.csv", 'text,label\nx,0\n"a,1\n"b",0\nc,1\n', "line 3: a quote closes amid a text"),
        ("a.csv", "text,label\na,1\n,2\n", "line 3: nothing in column 'text'; fill it in, leave"),
        ("a.csv", "text,label\na,1\n  ,2\n", "line 3: nothing in column 'text'"),
        ("a.csv", "text,label\na,1\nb,\n", "line 3: nothing in column 'label'"),
        ("a.csv", "text,label\na,1\nb,nan\n", "line 3: 'nan' in column 'label' stands for a label"),
        ("a.csv", "text,label\na,1\nb,NULL\n", "line 3: 'NULL' in column 'label'"),
        ("a.csv", "text,label\na,1\ntext,label\nb,2\n", "line 3: the header again; leave it out"),
        ("a.csv", "text,label\na,1\nb\0c,2\n", "line 3: a NUL byte"),
        ("a.csv", b"text,label\na,1\n\xe9,2\n", "line 3: not UTF-8: invalid continuation byte"),
        ("a.csv", "text,label\na,1\n".encode("utf-16-le"), "UTF-16-LE without a byte-order mark; "),
        ("a.csv", "text,label\na,1\n".encode("utf-16-be"), "set data.encoding: utf-16-be"),
        ("a.csv", "", "it holds no rows; fill it"),
        ("a.csv", "\n \n", "it holds no rows; fill it"),
        ("a.csv", "text,label\n", "it holds no rows; fill it"),
        ("a.csv", "text,label\na,1\nb,1\n", "holds one class only, '1'; classification needs two"),
        ("a.csv", "text,text,label\na,b,1\n", "data.text = 'text': a.csv has 2 columns of that"),
        ("a.csv", "Text,label\na,1\n", "has no such column (it has Text, label); did you mean 'Te"),
        ("a.csv", "a;b;c\na;b;c\n", "has no such column (it has a, b, c)"),
        ("a.csv", "good film,1\nbad film,0\n", "has no such column (it has good film, 1)"),
        ("a.csv", "text,label\na,1\nb,2\n", "of 2 rows none is left for the held-out side"),
        ("a.csv", "text,label\na,1\nb,1.0\nc,2\n", "holds '1' and '1.0', which are one number"),
        ("a.csv", "text,label\na,caf\u00e9\nb,cafe\u0301\n", "differ in how accents are encoded"),
        ("a.jsonl", '{"text": "a"}\n', "data.label = 'label': a.jsonl has no such column"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "lable": 1}\n',
         "line 2: there is no 'label'; did you mean 'lable'?"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": null, "label": 1}\n',
         "line 2: nothing in column 'text'"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": ["b"], "label": 1}\n',
         "line 2: a list in column 'text'; make it a text"),
        ("a.jsonl", '{"text": "a", "label": {"x": 1}}\n', "line 1: an object in column 'label'"),
        ("a.jsonl", '{"text": "a", "label": NaN}\n', "line 1: 'nan' in column 'label'"),
        ("a.jsonl", '{"text": "a", "text": "b", "label": 1}\n', "line 1: the key 'text' comes twi"),
        ("a.jsonl", '{"text": "\\ud800", "label": 1}\n', "line 1: half a character"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": \n', "line 2: no JSON (Expecting value)"),
        ("a.jsonl", '{\n"text": "a"}\n', "line 1: no JSON"),
        ("a.jsonl", '"a"\n', 'line 1: "a" is no object; write one object a line, or one array of'),
        ("a.jsonl", "[" * 100_000, "row 1: no JSON that can be read"),
        ("a.jsonl", '{"text": ' + "[" * 100_000, "line 1: no JSON that can be read"),
        ("a.jsonl", '{"text": "a", "label": ' + "9" * 5000 + "}", "line 1: no JSON that can be"),
        ("a.json", '[{"text": "a", "label": 1} {"text": "b", "label": 2}]', "without a comma"),
        ("a.json", '[{"text": "a", "label": 1},]', "row 2: no JSON"),
        ("a.json", '[{"text": "a", "label": 1}', "row 2: the array goes on without a comma"),
        ("a.json", '[{"text": "a", "label": 1}, 3]', "row 2: 3 is no object"),
        ("a.json", '[{"text": "a", "label": 1}]\n[]', "it goes on behind its array"),
        ("a.json", "[]", "it holds no rows"),
        ("a.json", "", "it holds no rows"),
        ("a.parquet", "text,label\n", "cannot be read as parquet"),
        ("a.parquet", "", "cannot be read as parquet"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_one_line_with_the_file_the_row_and_the_way_out(
    write, name, content, message
):
    assert message in refusal(write(name, content))


@pytest.mark.parametrize(
    ("fields", "content", "rows"),
    [
        ({"encoding": "cp1252"}, "text,label\né,1\n".encode("cp1252"), [("é", "1")]),
        ({"encoding": "cp1252"}, "text,label\né,1\n".encode("utf-8-sig"), [("é", "1")]),
        ({"encoding": "utf-16-le"}, "text,label\né,1\n".encode("utf-16-le"), [("é", "1")]),
        ({"encoding": "shift_jis"}, "text,label\n日本,1\n".encode("shift_jis"), [("日本", "1")]),
        ({"delimiter": "~"}, "text~label\na,b~1\n", [("a,b", "1")]),
        ({"delimiter": "tab"}, "text\tlabel\na,b\t1\n", [("a,b", "1")]),
        ({"quoting": "none"}, 'text,label\n"a,1\n"b" c,2\n', [('"a', "1"), ('"b" c', "2")]),
        ({"quoting": "backslash"}, 'text,label\n"a \\" b",1\n', [('a " b', "1")]),
    ],
)
def test_how_a_file_is_written_may_be_said(write, fields, content, rows):
    assert rows_of(write("a.csv", content), **fields) == rows


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("encoding", "utf-9", "no such encoding"),
        ("encoding", "hex", "no such encoding"),
        ("delimiter", ",,", "one character"),
        ("delimiter", '"', "one character"),
        ("quoting", "all", "'standard', 'backslash' or 'none'"),
    ],
)
def test_how_a_file_is_written_must_be_possible(field, value, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**{field: value})


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (pa.array(["x", "y", "1.10"]), ["x", "y", "1.10"]),
        (pa.array(["x", "y", "x"]).dictionary_encode(), ["x", "y", "x"]),
        (pa.array([1, 2, 10], pa.int8()), ["1", "2", "10"]),
        (pa.array([1.0, 2.0, 2.5]), ["1", "2", "2.5"]),
        (pa.array([1.0, 1.1, 2.0], pa.float32()), ["1", "1.1", "2"]),
        (pa.array([1.0, 2.0, 1.0]).dictionary_encode(), ["1", "2", "1"]),
        (pa.array([True, False, True]), ["True", "False", "True"]),
        (pa.array([Decimal("1.10"), Decimal("2.00"), Decimal("3.5")]), ["1.10", "2", "3.50"]),
        (pa.array([0, 1, 2], pa.date32()), ["1970-01-01", "1970-01-02", "1970-01-03"]),
    ],
)
def test_columns_of_a_parquet_file_may_be_of_any_plain_type(tmp_path, labels, classes):
    path = tmp_path / "a[1].parquet"
    pyarrow.parquet.write_table(pa.table({"label": labels, "text": ["a", "b", "c"]}), path)
    assert rows_of(path) == list(zip("abc", classes, strict=True))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a", "b"], "label": [1.0, math.nan]}, "row 2: 'nan' in column 'label'"),
        ({"text": ["a", "b"], "label": [1, None]}, "row 2: nothing in column 'label'"),
        ({"text": ["a", "b"], "label": [None, None]}, "rows 1, 2: nothing in column 'label'"),
        ({"text": ["a", ""], "label": [1, 2]}, "row 2: nothing in column 'text'"),
        ({"text": [b"a", b"b"], "label": [1, 2]}, "the column 'text' holds binary; make it one"),
        ({"text": ["a", "b"], "label": [[1], [2]]}, "the column 'label' holds list<"),
        ({"text": ["a", "b"], "lab": [1, 2]}, "has no such column (it has text, lab)"),
        ({"text": [], "label": []}, "it holds no rows"),
    ],
)
def test_a_parquet_file_that_cannot_be_used_is_refused_with_the_row(tmp_path, columns, message):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pa.table(columns), path)
    assert message in refusal(path)


def test_damaged_parquet_files_are_refused(tmp_path):
    path = tmp_path / "a.parquet"
    texts = pa.array([f"text {number}" for number in range(5000)])
    pyarrow.parquet.write_table(pa.table({"text": texts, "label": texts}), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:1000] + bytes(2000) + whole[3000:])
    assert "cannot be read as parquet" in refusal(path)
    path.write_bytes(whole[: len(whole) // 2])
    assert "cannot be read as parquet" in refusal(path)
    binary = pa.array([b"a", b"\xff"]).view(pa.string())
    pyarrow.parquet.write_table(pa.table({"text": binary, "label": ["a", "b"]}), path)
    assert "a text that is not UTF-8" in refusal(path)


def as_csv(rows):
    return "text,label\n" + "".join(f"{text},{label}\n" for text, label in rows)


@pytest.mark.parametrize(
    ("train", "held_out", "message"),
    [
        ("abab", "abc", "line 4: the class 'c' is none of"),
        ("1212", ["1.0"], "line 2: the class '1.0' is none of"),
        ("abab", [], "data.validation = 'v': it holds no rows"),
        ("abab", [""], "line 2: nothing in column 'label'"),
    ],
)
def test_a_file_of_held_out_rows_has_the_classes_that_are_trained(write, train, held_out, message):
    held = write("held.csv", as_csv((f"h{n}", label) for n, label in enumerate(held_out)))
    path = write("train.csv", as_csv((f"t{n}", label) for n, label in enumerate(train)))
    with pytest.raises(InvalidInputError) as error:
        check_rows(DataConfig(source=str(path), validation=str(held)), "data")
    assert message.replace("'v'", repr(str(held))) in str(error.value)
    assert held.name in str(error.value)


def test_typed_and_written_numbers_of_two_files_are_one_class(tmp_path, write):
    path = write("train.csv", as_csv([("a", 1), ("b", 2)]))
    held = tmp_path / "held.parquet"
    pyarrow.parquet.write_table(pa.table({"text": ["c", "d"], "label": [1.0, 2.0]}), held)
    config = DataConfig(source=str(path), validation=str(held))
    assert split_rows(config, read_rows)[1].labels == ["1", "2"]


def test_a_class_is_never_held_out_alone(write):
    for number in range(40):  # some of these texts are held out, whatever the hash is
        path = write("rare.csv", as_csv([*GOOD, (f"rare {number}", "c")]))
        train, held_out = split_rows(DataConfig(source=str(path)), read_rows)
        assert "c" in train.labels
        assert "c" not in held_out.labels
        assert len(train.texts) + len(held_out.texts) == 61


def test_equal_texts_stay_on_one_side(write):
    path = write("same.csv", as_csv([*GOOD, *GOOD, *[(text, "c") for text, _ in GOOD[:30]]]))
    train, held_out = split_rows(DataConfig(source=str(path)), read_rows)
    assert not set(train.texts) & set(held_out.texts)
    assert len(train.texts) + len(held_out.texts) == 150


def test_one_endless_word_is_a_text(write):
    word = "x" * 300_000
    before = csv.field_size_limit()
    csv.field_size_limit(131_072)
    assert rows_of(write("a.csv", f"text,label\n{word},1\n")) == [(word, "1")]
    assert csv.field_size_limit() >= before
    assert rows_of(write("a.jsonl", json.dumps({"text": word, "label": 1}))) == [(word, "1")]


def test_a_text_or_a_line_without_an_end_is_refused_before_memory_is(write):
    assert "is a quote not closed?" in refusal(
        write("a.csv", 'text,label\n"' + "row of a text,1\n" * 1_100_000)
    )
    assert "line 2: longer than" in refusal(write("b.csv", "text,label\n" + "x" * 70_000_000))


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json", "a.parquet"])
def test_a_check_keeps_no_rows(tmp_path, name):
    count, path = 60_000, tmp_path / name
    rows = [
        {"text": f"{number} " + "x" * 200, "label": "ab"[number % 2]} for number in range(count)
    ]
    if name.endswith("parquet"):
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=5000)
    elif name.endswith("csv"):
        path.write_text(as_csv((row["text"], row["label"]) for row in rows))
    elif name.endswith("jsonl"):
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        path.write_text(json.dumps(rows))
    del rows
    tracemalloc.start()
    try:
        check_rows(DataConfig(source=str(path)), "data")
        assert tracemalloc.get_traced_memory()[1] < 8_000_000, "of 12 MB"
    finally:
        tracemalloc.stop()
