from __future__ import annotations

import io
import json
from unittest.mock import Mock

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workers.protocol.errors import InvalidInputError, RemoteUnavailableError
from workers.protocol.finetune import DataConfig
from workers.remote.faults import will_pass
from workers.remote.hub_data import content_of, read_hub
from workers.remote.patience import Patience
from workers.texts.rows import read_rows
from workers.texts.split import split_rows

CARD = """---
configs:
- config_name: en
  default: true
  data_files:
  - split: train
    path: en/train-*.csv
  - split: test
    path: en/test.csv
- config_name: de
  data_files: de/*.csv
dataset_info:
  config_name: en
  features:
  - name: text
    dtype: string
  - name: label
    dtype:
      class_label:
        names:
          '0': neg
          '1': pos
---
"""

FILES = {
    "README.md": CARD,
    "en/train-1.csv": "text,label\n1.10,0\nNA,1\n",
    "en/train-2.csv": "text,label\nb,1\n",
    "en/test.csv": "text,label\nc,1\nd,0\n",
    "de/x.csv": "text,label\nja,01\nnein,02\n",
}

SOURCE = "hub:me/reviews"


@pytest.fixture
def repo(hub):
    found = hub.repo("datasets", "me/reviews")
    found.commit(FILES)
    return found


def rows(source=SOURCE, role="source", **fields):
    config = DataConfig(source=source, **fields)
    return [(row.text, row.label) for row in read_hub(source, config, f"data.{role}")]


def test_configurations_and_splits_are_read_as_strings_and_classes_by_name(repo):
    assert rows() == [("1.10", "neg"), ("NA", "pos"), ("b", "pos")]
    assert rows(split="test") == [("c", "pos"), ("d", "neg")]
    assert rows(configuration="de") == [("ja", "01"), ("nein", "02")]
    config = DataConfig(source=SOURCE, validation_split="test")
    train, held_out = split_rows(config, read_hub)
    assert (train.labels, held_out.labels) == (["neg", "pos", "pos"], ["pos", "neg"])


def test_what_the_hub_has_not_is_named_with_what_it_has(repo):
    for fields, message in [
        ({"split": "tset"}, "data.split = 'tset': 'hub:me/reviews' has no such split"),
        ({"configuration": "fr"}, "data.configuration = 'fr': .*Available: .'en', 'de'.*name one"),
        ({"revision": "v9"}, "Revision 'v9' doesn't exist"),
        ({"source": "hub:me/none"}, "data.source = 'hub:me/none' does not load .Dataset 'me"),
        ({"text": "texts"}, "train-1.csv has no such column .it has text, label."),
    ]:  # fmt: skip
        with pytest.raises(InvalidInputError, match=message):
            rows(**fields)
    with pytest.raises(InvalidInputError, match="validation_split = 'validation': .* no such"):
        rows(role="validation")


def test_a_study_reads_the_commit_that_it_was_given(repo):
    (first,) = repo.commits
    repo.commit({**FILES, "en/train-2.csv": "text,label\nb,0\n"})
    assert rows()[-1] == ("b", "neg")
    assert rows(commits={SOURCE: first})[-1] == ("b", "pos")
    assert rows(revision=first)[-1] == ("b", "pos")
    pinned = DataConfig(source=SOURCE, commits={SOURCE: first})
    assert content_of(SOURCE, pinned) != content_of(SOURCE, DataConfig(source=SOURCE))


def test_a_class_number_that_stands_for_no_class_is_refused(repo):
    repo.commit({**FILES, "en/test.csv": "text,label\nc,-1\nd,-1\n"})
    with pytest.raises(InvalidInputError, match="line 2: '-1' is no class of it .it has neg, pos."):
        rows(split="test")


def test_parquet_files_keep_the_names_of_their_classes(hub):
    labels = pa.array([1, 0], pa.int64())
    table = pa.table({"text": ["a", "b"], "label": labels})
    about = b'{"info": {"features": {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}}}}'
    stream = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"huggingface": about}), stream)
    hub.repo("datasets", "me/parquet").commit({"data/train-00.parquet": stream.getvalue()})
    assert rows("hub:me/parquet") == [("a", "pos"), ("b", "neg")]


def test_what_the_reader_of_files_does_not_know_the_library_reads(hub):
    plain = '{"data": [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]}'
    card = "---\nconfigs:\n- config_name: default\n  data_files: a.json\n  field: data\n---\n"
    hub.repo("datasets", "me/nested").commit({"README.md": card, "a.json": plain})
    assert rows("hub:me/nested") == [("a", "x"), ("b", "y")]


def test_a_directory_that_is_laid_out_like_a_hubs_is_read_without_one(hub, tmp_path):
    for path, content in FILES.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(content)
    source = f"hub:{tmp_path}"
    assert rows(source, configuration="de") == [("ja", "01"), ("nein", "02")]
    before = content_of(source, DataConfig(source=source))
    (tmp_path / "de" / "x.csv").write_text("text,label\nja,1\n")
    assert content_of(source, DataConfig(source=source)) != before
    assert hub.requests == []
    with pytest.raises(InvalidInputError, match="there is no such directory"):
        rows("hub:/no/such")


def test_a_fault_at_any_request_passes(hub, repo):
    config = DataConfig(source=SOURCE)

    def read():
        return list(read_hub(SOURCE, config, "data.source"))

    read()
    count = len(hub.requests)
    assert count > 5
    # the library itself asks again where a status says so, after a second
    faults = [(number, "reset") for number in range(count)] + [(0, 503), (3, 429)]
    for number, fault in faults:
        hub.clear()
        hub.repos["datasets", "me/reviews"] = repo
        hub.faults = [None] * number + [fault]
        assert len(Patience(0.01).ask("it", read)) == 3, (number, fault)
    hub.clear()
    hub.always = "reset"
    with pytest.raises(RemoteUnavailableError):
        Patience(0.01).ask("it", read)


def test_a_hub_of_which_the_library_forgets_that_it_was_away_passes(hub, monkeypatch):
    problem = FileNotFoundError(
        "Couldn't find any data file at /me/reviews. Couldn't find 'me/reviews' on the Hugging Face"
        " Hub either: LocalEntryNotFoundError: An error happened while trying to locate the file"
    )
    monkeypatch.setattr(datasets, "load_dataset_builder", Mock(side_effect=problem))
    with pytest.raises(ConnectionError) as caught:
        rows()
    assert will_pass(caught.value)


def test_a_gated_data_set_is_wrong_at_once(hub, repo):
    repo.is_gated = True
    with pytest.raises(InvalidInputError, match="does not load") as caught:
        rows()
    assert not will_pass(caught.value)


def test_settings_of_the_hub_are_refused_for_files():
    for name in ("configuration", "revision", "validation_split", "labels_as"):
        with pytest.raises(ValueError, match=f"`{name}` is for hub data sets"):
            DataConfig(source="a.csv", **{name: "names"})


FIVE = """---
dataset_info:
  features:
  - name: text
    dtype: string
  - name: label
    dtype:
      class_label:
        names:
          '0': '1'
          '1': '2'
          '2': '3'
          '3': '4'
          '4': '5'
---
"""
STARS = ["1", "2", "3", "4", "5"]


def five(hub, name, content):
    hub.repo("datasets", "me/five").commit({"README.md": FIVE, name: content})
    return [label for _, label in rows("hub:me/five")]


def json_lines(labels):
    return "".join(json.dumps({"text": f"t{n}", "label": each}) + "\n" for n, each in labels)


def test_an_integer_is_the_number_of_a_class_also_where_classes_are_called_by_numbers(hub):
    lines = json_lines(enumerate([0, 1, 2, 3, 4.0]))
    assert five(hub, "a.jsonl", lines) == STARS
    with pytest.raises(InvalidInputError, match="line 1: '-1' is no class of it"):
        five(hub, "a.jsonl", json_lines([(0, -1)]))


def test_what_the_library_reads_has_the_names_of_its_classes(hub):
    card = FIVE.replace("---\n", "---\nconfigs:\n- config_name: default\n  data_files: a.json\n"
                        "  field: data\n", 1)  # fmt: skip
    content = [{"text": f"t{number}", "label": number} for number in range(5)]
    files = {"README.md": card, "a.json": json.dumps({"data": content})}
    hub.repo("datasets", "me/five").commit(files)
    assert [label for _, label in rows("hub:me/five")] == STARS


def test_labels_that_are_text_are_all_names_or_all_numbers(hub):
    assert five(hub, "a.csv", "text,label\na,1\nb,5\nc,2\n") == ["1", "5", "2"]
    assert five(hub, "a.csv", "text,label\na,1\nb,0\nc,2\n") == ["2", "1", "3"]
    with pytest.raises(InvalidInputError, match="line 4: '0', where labels are the names of clas"):
        five(hub, "a.csv", "text,label\na,1\nb,5\nc,0\n")


def test_labels_that_may_be_either_are_refused_with_the_setting(hub):
    content = "text,label\na,1\nb,2\nc,3\n"
    message = "line 2: '1' is the name of a class, and the number of '2'.*data.labels_as: names or"
    with pytest.raises(InvalidInputError, match=message):
        five(hub, "a.csv", content)
    source = "hub:me/five"
    assert [label for _, label in rows(source, labels_as="numbers")] == ["2", "3", "4"]
    assert [label for _, label in rows(source, labels_as="names")] == ["1", "2", "3"]


def test_several_classes_a_row_have_their_names(hub):
    sequence = FIVE.replace("class_label:", "sequence:\n        class_label:").replace(
        "        names:", "          names:"
    ).replace("          '", "            '")  # fmt: skip
    table = pa.table({"text": ["a", "b", "c"], "label": pa.array([[4, 0], [], [2]])})
    stream = io.BytesIO()
    pq.write_table(table, stream)
    files = {"README.md": sequence, "data/train-0.parquet": stream.getvalue()}
    hub.repo("datasets", "me/several").commit(files)
    found = [label for _, label in rows("hub:me/several", task="multi_label")]
    assert found == [("1", "5"), (), ("3",)]


def test_several_classes_in_a_parquet_file_have_their_names(tmp_path):
    feature = {"feature": {"names": ["joy", "anger"], "_type": "ClassLabel"}, "_type": "List"}
    about = json.dumps({"info": {"features": {"label": feature}}})
    table = pa.table({"text": ["a", "b"], "label": pa.array([[1, 0], [0]])})
    pq.write_table(table.replace_schema_metadata({"huggingface": about}), tmp_path / "a.parquet")
    config = DataConfig(source=str(tmp_path / "a.parquet"), task="multi_label")
    found = [row.label for row in read_rows(config.source, config, "data.source")]
    assert found == [("anger", "joy"), ("joy",)]
