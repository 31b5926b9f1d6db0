"""What tokenised data are made of again, and when what is there is taken."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from disks import fill, small_disk
from structlog.testing import capture_logs
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from workers.containers import Container
from workers.disk.cache_entry import lock_for_use
from workers.managers import MANAGERS, DataManager, TokenizerManager, tokenized
from workers.managers.recipe import code_digest
from workers.managers.tokenized import TokenizedTexts
from workers.processes.registry import ProcessRecord
from workers.protocol.errors import TransientError
from workers.protocol.finetune import DataConfig, ModelConfig, TokenizerConfig
from workers.settings import Settings

BERT = ModelConfig(architecture="bert", hidden_size=32, num_hidden_layers=1)
WORDS = ["sentence", "number", *map(str, range(10))]


@pytest.fixture(autouse=True)
def no_wandb(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.csv"
    lines = [f"sentence number {index},{index % 3}" for index in range(200)]
    path.write_text("\n".join(["text,label", *lines]))
    return path


@contextmanager
def process(tmp_path):
    """The managers of one process more."""
    settings = Settings(home=tmp_path / "home", cache=tmp_path / "cache")
    with Container(MANAGERS, [settings, ProcessRecord()]) as opened:
        yield opened.get(DataManager)


def build(data, path, tokenizer=None, **fields):
    config = DataConfig(source=str(path), **{"max_length": 8, **fields})
    return data.text_classification(
        config, TokenizerConfig(id=tokenizer and str(tokenizer), vocab_size=100), BERT
    )


def entries(tmp_path):
    return sorted((tmp_path / "cache" / "data").glob("[0-9a-f]*"))


def word_tokenizer(folder, words=WORDS):
    """A tokenizer whose ids are the places of the words."""
    vocabulary = {word: number for number, word in enumerate(["[UNK]", "[PAD]", *words])}
    model = tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]")
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]", model_max_length=64
    )
    shutil.rmtree(folder, ignore_errors=True)
    wrapped.save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize("file", ["train.ids", "train.offsets", "validation.labels", "facts.json"])
def test_tokens_that_were_cut_off_are_not_trained_on(tmp_path, rows, file):
    with process(tmp_path) as data:
        before = [ids.tolist() for ids, _ in build(data, rows).train]
    (entry,) = entries(tmp_path)
    os.truncate(entry / file, (entry / file).stat().st_size // 2)
    with process(tmp_path) as data, capture_logs() as logs:
        assert [ids.tolist() for ids, _ in build(data, rows).train] == before
    assert "cache_entry_damaged" in [each["event"] for each in logs]


@pytest.mark.parametrize("is_the_same_process", [True, False])
def test_replaced_tokenizer_files_give_their_own_ids(tmp_path, rows, is_the_same_process):
    folder = word_tokenizer(tmp_path / "tokenizer")
    with process(tmp_path) as data:
        before = build(data, rows, folder).train[0][0].tolist()
        if is_the_same_process:
            word_tokenizer(folder, WORDS[::-1])
            after = build(data, rows, folder).train[0][0].tolist()
    if not is_the_same_process:
        word_tokenizer(folder, WORDS[::-1])
        with process(tmp_path) as data:
            after = build(data, rows, folder).train[0][0].tolist()
    assert before[:2] == [2, 3]
    assert after[:2] == [13, 12]


def test_a_file_that_is_replaced_with_its_size_and_time_kept_is_read_again(tmp_path, rows):
    other = tmp_path / "other"
    other.write_text(rows.read_text().replace("sentence", "SENTENCE"))
    shutil.copystat(rows, other)
    with process(tmp_path) as data:
        before = build(data, rows)
        other.replace(rows)
        after = build(data, rows)
    assert before.entry.path != after.entry.path


@pytest.mark.parametrize("what", ["rows", "tokenizer"])
def test_what_is_written_while_it_is_read_makes_no_entry(tmp_path, rows, what):
    folder = word_tokenizer(tmp_path / "tokenizer")

    def write(told, done, total):
        if told.startswith("tokenised texts of validation"):
            if what == "rows":
                rows.write_text(rows.read_text() + "\nanother,1")
            else:
                word_tokenizer(folder, WORDS[::-1])

    config = DataConfig(source=str(rows), max_length=8)
    with process(tmp_path) as data:
        with pytest.raises(TransientError, match="was written while it was read"):
            data.text_classification(config, TokenizerConfig(id=str(folder)), BERT, write)
        assert entries(tmp_path) == []
        assert len(build(data, rows, folder).classes) == 3


def test_the_same_tokenizer_and_data_elsewhere_are_the_same(tmp_path, rows):
    with process(tmp_path) as data:
        build(data, rows, word_tokenizer(tmp_path / "a" / "tokenizer"))
    (tmp_path / "other").mkdir()
    moved = rows.rename(tmp_path / "other" / "renamed.csv")
    with process(tmp_path) as data:
        build(data, moved, (tmp_path / "a" / "tokenizer").rename(tmp_path / "b"))
    assert len(entries(tmp_path)) == 1


@pytest.mark.parametrize(
    "fields", [{"max_length": 9}, {"seed": 1}, {"validation_fraction": 0.3}, {"quoting": "none"}]
)
def test_what_is_read_otherwise_is_another_entry(tmp_path, rows, fields):
    with process(tmp_path) as data:
        build(data, rows)
        build(data, rows)
        assert len(entries(tmp_path)) == 1
        build(data, rows, **fields)
        assert len(entries(tmp_path)) == 2


def test_code_that_changes_builds_anew(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "rows.py").write_text("a = 1")
    before = code_digest("texts/*.py", package=tmp_path)
    assert code_digest("texts/*.py", package=tmp_path) == before
    code_digest.cache_clear()
    (tmp_path / "texts" / "rows.py").write_text("a = 2")
    assert code_digest("texts/*.py", package=tmp_path) != before
    empty = code_digest("nothing/*.py", package=tmp_path)
    assert code_digest("texts/*.py", "managers/data.py") != empty, (
        "and of the package there is some"
    )


def test_an_entry_is_whole_without_the_one_of_its_tokenizer(tmp_path, rows):
    with process(tmp_path) as data:
        before = build(data, rows)
        before = before.tokenizer.get_vocab(), [ids.tolist() for ids, _ in before.train]
    shutil.rmtree(tmp_path / "cache" / "tokenizers")
    (tmp_path / "cache").rename(tmp_path / "elsewhere")
    (tmp_path / "cache").symlink_to("elsewhere")
    with process(tmp_path) as data:
        after = build(data, rows)
        assert (after.tokenizer.get_vocab(), [ids.tolist() for ids, _ in after.train]) == before
    assert not (tmp_path / "cache" / "tokenizers").exists(), "nothing was built again"


def test_what_a_process_uses_is_not_removed_and_what_it_used_long_ago_may_be(tmp_path, rows):
    settings = Settings(home=tmp_path / "home", cache=tmp_path / "cache", cache_size=0)
    with Container(MANAGERS, [settings, ProcessRecord()]) as container:
        data = container.get(DataManager)
        first = build(data, rows, max_length=4)
        for length in range(5, 14):
            build(data, rows, max_length=length)
        assert len(entries(tmp_path)) == 9, "the first, that is held here, and the last eight"
        assert first.train[0][0].tolist()


def test_on_a_full_disk_a_process_goes_on_with_a_copy_of_its_own(tmp_path, rows):
    with process(tmp_path) as data:
        expected = [ids.tolist() for ids, _ in build(data, rows).train]
    shutil.rmtree(tmp_path / "cache")
    with small_disk(tmp_path / "cache", 64) as filler:
        fill(filler)
        with process(tmp_path) as data, capture_logs() as logs:
            built = build(data, rows)
            assert [ids.tolist() for ids, _ in built.train] == expected
            assert build(data, rows) is built
        said = next(each for each in logs if each["event"] == "cache_not_written")
        assert "No space left" in said["error"]
        assert entries(tmp_path) == []


@pytest.mark.parametrize("code", [errno.ENOTCONN, errno.ETIMEDOUT, errno.EISDIR, errno.ELOOP])
def test_where_the_cache_is_away_a_process_goes_on_with_a_copy_of_its_own(
    tmp_path, rows, monkeypatch, code
):
    def lock(folder):
        if folder.is_relative_to(tmp_path / "cache"):
            raise OSError(code, os.strerror(code), str(folder))
        return lock_for_use(folder)

    monkeypatch.setattr("workers.disk.cache.lock_for_use", lock)
    with process(tmp_path) as data, capture_logs() as logs:
        assert len(build(data, rows).train)
    assert os.strerror(code) in next(
        each["error"] for each in logs if each["event"] == "cache_not_written"
    )


def test_where_no_disk_takes_the_tokens_one_line_says_which(tmp_path, rows, monkeypatch):
    with small_disk(tmp_path / "full", 16) as filler:
        monkeypatch.setenv("FLEET_SCRATCH_ROOT", str(tmp_path / "full" / "scratch"))
        monkeypatch.setattr("workers.managers.run_directories.tempfile.tempdir", filler.parent)
        settings = Settings(home=tmp_path / "home", cache=tmp_path / "full" / "cache")
        with (
            Container(MANAGERS, [settings, ProcessRecord()]) as container,
            pytest.raises(TransientError, match=r"FLEET_CACHE = .*full.*make room"),
        ):
            build(container.get(DataManager), rows)


def test_no_number_is_copied_into_the_memory_of_a_process(tmp_path, rows):
    with process(tmp_path) as data:
        train = build(data, rows).train
        assert all(
            isinstance(each.base, np.memmap) for each in (train._ids, train._offsets, train._labels)
        )


@pytest.mark.parametrize("kind", ["trained", "words", "slow"])
def test_texts_become_what_calling_the_tokenizer_makes_of_them(tmp_path, container, kind):
    texts = ["sentence number 7", "", " NA", "ünïcödé\n🎉", "[UNK] [PAD] <s>", "number " * 50]
    manager = container.get(TokenizerManager)
    if kind == "trained":
        folder = manager.train(texts, 100).path
    elif kind == "words":
        folder = word_tokenizer(tmp_path / "words")
    else:
        ByT5Tokenizer().save_pretrained(folder := tmp_path / "slow")
    tokenizer = manager.load(folder)
    assert tokenizer.is_fast is (kind != "slow")
    for max_length in (4, 20):
        rows = TokenizedTexts.write(tmp_path, "a", tokenizer, texts, range(6), max_length)
        expected = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
        assert [ids.tolist() for ids, _ in rows] == expected
        assert rows.lengths.tolist() == [len(row) for row in expected]
        assert [label for _, label in rows] == list(range(6))


LONG = {
    "words": "sentence number 7 " * 5_000,
    "one word": "number" * 15_000,
    "blanks": "number" + " " * 90_000 + "7 sentence",
}


@pytest.mark.parametrize("kind", LONG)
def test_of_a_long_text_the_same_is_kept_though_no_more_is_tokenised_than_that_takes(
    tmp_path, container, kind
):
    text = LONG[kind]
    tokenizer = container.get(TokenizerManager).load(
        container.get(TokenizerManager).train(WORDS, 100).path
    )
    for pairs in ([], ["sentence"]):
        rows = TokenizedTexts.write(tmp_path, "a", tokenizer, [text], [0], 20, pairs=pairs)
        expected = tokenizer([text], pairs or None, truncation=True, max_length=20)["input_ids"]
        assert rows[0][0].tolist() == expected[0]
    tokenizer.truncation_side = "left"
    rows = TokenizedTexts.write(tmp_path, "a", tokenizer, [text], [0], 20)
    assert rows[0][0].tolist() == tokenizer(text, truncation=True, max_length=20)["input_ids"]


@pytest.mark.parametrize("kind", ["words", "one word"])
def test_texts_of_ten_megabytes_are_read_and_no_more_of_them_tokenised_than_is_kept(
    tmp_path, container, kind, monkeypatch
):
    text = LONG[kind] * (10 * 2**20 // len(LONG[kind]) + 1)
    lines = [f"{text if n == 3 else 'sentence'} {n},{n % 2}" for n in range(60)]
    path = tmp_path / "long.csv"
    path.write_text("\n".join(["text,label", *lines]))
    folder = container.get(TokenizerManager).train(WORDS, 100).path
    sizes, encode = [], tokenized._encode

    def watched(tokenizer, texts, *args, **options):
        sizes.extend(map(len, texts))
        return encode(tokenizer, texts, *args, **options)

    monkeypatch.setattr(tokenized, "_encode", watched)
    data = container.get(DataManager).text_classification(str(path), str(folder), max_length=32)
    assert len(data.train) + len(data.validation) == len(sizes) == 60
    assert max(*data.train.lengths, *data.validation.lengths) == 32
    assert max(sizes) <= 2**16


def test_a_split_without_a_token_has_rows(tmp_path, container):
    tokenizer = container.get(TokenizerManager).load(word_tokenizer(tmp_path / "words"))
    rows = TokenizedTexts.write(tmp_path, "a", tokenizer, ["", ""], [0, 1], 8)
    assert [(ids.tolist(), label) for ids, label in rows] == [([], 0), ([], 1)]


def test_the_content_of_a_tokenizer_stays_while_it_is_used(tmp_path, container):
    manager = container.get(TokenizerManager)
    folder = word_tokenizer(tmp_path / "words")
    before = manager.content(folder)
    manager.load(folder)(["a b c"], truncation=True, max_length=2)
    shutil.copytree(folder, tmp_path / "copy")
    assert manager.content(folder) == before == manager.content(tmp_path / "copy")
    assert manager.content(word_tokenizer(folder, ["a"])) != before


@pytest.mark.parametrize(
    "what",
    [
        "bytes compared of rows.csv",
        "rows read of rows.csv",
        "texts read to train",
        "tokenised texts",
    ],
)
def test_building_is_told_step_by_step_and_can_be_stopped_at_each(tmp_path, rows, what):
    class Stopped(BaseException):
        pass

    def stop(told, done, total):
        if told.startswith(what):
            raise Stopped

    config = DataConfig(source=str(rows), max_length=8)
    with process(tmp_path) as data:
        with pytest.raises(Stopped):
            data.text_classification(config, TokenizerConfig(vocab_size=100), BERT, stop)
        assert entries(tmp_path) == []
        assert not [path for path in Path(tmp_path / "cache").rglob("*") if "draft" in path.name]
        build(data, rows)
