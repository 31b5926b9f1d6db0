from __future__ import annotations

import json
import math
import tracemalloc

import pytest

from workers.protocol.errors import InvalidInputError
from workers.protocol.finetune import DataConfig
from workers.texts.rows import read_rows
from workers.texts.split import check_rows, split_rows


@pytest.fixture
def write(tmp_path):
    def write(rows, name="d.csv"):
        path = tmp_path / name
        path.write_text("\n".join(["text,label", *(f"{text},{label}" for text, label in rows)]))
        return str(path)

    return write


def split(source, **fields):
    found = []
    sides = split_rows(DataConfig(source=source, **fields), read_rows, found.append)
    return *sides, [text.partition(": ")[2] for text in found]


def test_each_class_is_held_out_by_the_fraction_whatever_its_size(write):
    sizes = {"often": 400, "seldom": 20, "rare": 3, "twice": 2, "once": 1}
    source = write([(f"{label} {n}", label) for label, size in sizes.items() for n in range(size)])
    for seed in range(5):
        train, held_out, found = split(source, seed=seed)
        counts = {label: held_out.labels.count(label) for label in sizes}
        assert counts == {"often": 60, "seldom": 3, "rare": 1, "twice": 1, "once": 0}
        assert set(train.labels) == set(sizes)
        assert found == ["of the class 'once' no text is held out: trained, not measured"]
    assert split(source, seed=1)[:2] == split(source, seed=1)[:2]
    assert split(source, seed=1)[1] != split(source, seed=2)[1]


def test_the_split_does_not_hang_on_the_order_of_the_rows(write):
    rows = [(f"text {n}", n % 3) for n in range(90)]
    one = split(write(rows))[1]
    other = split(write(rows[::-1], "reversed.csv"))[1]
    assert set(one.texts) == set(other.texts)
    assert math.isclose(len(one.texts), 0.15 * 90, abs_tol=2)


def test_what_is_held_out_is_trained_too_where_texts_have_several_classes(write):
    rows = [(f"text {n}", label) for n in range(40) for label in ("a", "b" if n % 4 else "c")]
    for seed in range(10):
        train, held_out, found = split(write(rows), seed=seed)
        assert set(held_out.labels) <= set(train.labels)
        assert not set(train.texts) & set(held_out.texts)
        assert found[0].startswith(
            "40 texts have several classes (lines 3, 5, 7, 9, 11 and 35 more say otherwise than"
        )


def test_what_repeats_is_told_with_its_lines(write):
    rows = [(f"text {n}", n % 2) for n in range(30)]
    train, held_out, found = split(write([*rows, *rows[:3], rows[0]]))
    assert len(train.texts) + len(held_out.texts) == 34
    (text,) = found
    assert text.startswith("4 rows repeat a text and its class (lines 32, 33, 34, 35): they stay")


def test_rows_without_text_or_label_are_refused_with_their_number_and_first_lines(write):
    rows = [(f"text {n}", n % 2) for n in range(30)]
    blank = [("", 1), ("x", ""), *[(" ", 0)] * 7]
    source = write([*rows, *blank])
    message = (
        r"d.csv', lines 32, 34, 35, 36, 37 and 3 more: nothing in column 'text'; fill it in, leave"
        r" the row out, or set data.blank: drop to leave out all such rows"
    )
    with pytest.raises(InvalidInputError, match=message):
        split(source)
    with pytest.raises(InvalidInputError, match=message):
        check_rows(DataConfig(source=source), "data")


def test_rows_without_text_or_label_are_left_out_where_that_is_asked_for_and_it_is_said(write):
    rows = [(f"text {n}", n % 2) for n in range(30)]
    source = write([*rows, ("", 1), ("x", ""), ("y", "nan")])
    train, held_out, _found = split(source, blank="drop")
    assert len(train.texts) + len(held_out.texts) == 30
    assert "" not in {*train.labels, *held_out.labels}
    assert "nan" not in train.labels
    told = []
    check_rows(DataConfig(source=source, blank="drop"), "data", tell=told.append)
    assert [text.partition("d.csv', ")[2] for text in told] == [
        "line 32: nothing in column 'text'; left out, as `blank: drop` says",
        "line 33: nothing in column 'label'; left out, as `blank: drop` says",
        (
            "line 34: 'nan' in column 'label' stands for a label that is not there; left out, as"
            " `blank: drop` says"
        ),
    ]


def test_held_out_rows_of_their_own_are_compared_with_the_trained_ones(write):
    rows = [(f"text {n}", n % 3) for n in range(30)]
    source = write(rows)
    held_out = write([rows[0], ("new", 1), rows[3]], "held.csv")
    _, _, found = split(source, validation=held_out)
    assert found == [
        "of the class '2' no text is held out: trained, not measured",
        (
            "2 held-out texts are trained, too (lines 2, 4 of the held-out ones): what is measured"
            " on them is memory; they stay"
        ),
    ]


def test_a_check_holds_no_texts(tmp_path):
    path = tmp_path / "long.csv"
    with path.open("w") as file:
        file.write("text,label\n")
        for number in range(20_000):
            file.write(f"{number} {'word ' * 100},{number % 2}\n")
    tracemalloc.start()
    try:
        check_rows(DataConfig(source=str(path)), "data")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 10e6
    assert peak < 5e6


def test_a_key_that_a_later_row_does_not_have_is_a_blank(tmp_path):
    rows = [{"text": f"text {n}", "label": n % 2} for n in range(20)]
    rows += [
        {"text": "a"},
        {"text": "b", "label": None},
        {"label": 1},
        {},
        {"txt": "c", "label": 0},
    ]
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    train, held_out, _ = split(str(path), blank="drop")
    assert len(train.texts) + len(held_out.texts) == 20
    told = []
    check_rows(DataConfig(source=str(path), blank="drop"), "data", tell=told.append)
    assert [line.partition(", ")[2] for line in told] == [
        "line 21: there is no 'label'; left out, as `blank: drop` says",
        "line 22: nothing in column 'label'; left out, as `blank: drop` says",
        "lines 23, 24: there is no 'text'; left out, as `blank: drop` says",
        "line 25: there is no 'text'; did you mean 'txt'?; left out, as `blank: drop` says",
    ]
    with pytest.raises(InvalidInputError, match="line 21: there is no 'label'; .*blank: drop"):
        split(str(path))


def test_of_rows_that_hold_delimiters_alone_it_is_said_how_many_they_are(tmp_path):
    path = tmp_path / "d.csv"
    lines = [f"text {n},{n % 2},," for n in range(20)]
    path.write_text("\n".join(["text,label,,", *lines, ",,,", "", " , ,,", *[",,,"] * 6, ""]))
    told = []
    check_rows(DataConfig(source=str(path)), "data", tell=told.append)
    (finding,) = told
    assert finding.endswith(
        "d.csv', lines 22, 24, 25, 26, 27 and 3 more: nothing but delimiters; left out"
    )
