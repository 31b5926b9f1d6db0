"""Labelled texts of a data set that lies on a hub, or in a directory that is laid out like one.

The `datasets` library tells which files a configuration and a split have; the files are read by
the reader of local files, by its rules: `01` stays `01`. What it does not read, `datasets` reads.

Invariant: all rows are those of the commit that the study was given, where it was given one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from workers.protocol.errors import InvalidInputError, WorkerLacksError, nearest
from workers.protocol.finetune import FILE_FORMATS, HUB, DataConfig
from workers.remote.faults import will_pass
from workers.remote.hub import is_switched_off
from workers.texts.class_names import NO_NAMES, ClassNames
from workers.texts.labels import names_classes
from workers.texts.rows import Row, checked_row, read_rows
from workers.texts.written_labels import WrittenLabels

_FILE_ON_HUB: Final = re.compile(r"hf://datasets/([^@]+)@([^/]+)/(.+)")

#: How `datasets` tells of a hub that it could not ask.
_NOT_ANSWERED: Final = "on the Hugging Face Hub either: LocalEntryNotFoundError"

#: The kinds of `datasets` that the reader of local files reads, with the options that it has not.
_OWN_KINDS: Final = {
    "csv": ("names", "column_names", "skiprows"),
    "json": ("field",),
    "parquet": ("filters",),
}


def is_directory(source: str) -> bool:
    """Whether a hub source is a directory of this host."""
    return source.startswith((f"{HUB}/", f"{HUB}.", f"{HUB}~"))


def directory(source: str) -> Path:
    """The directory of such a source."""
    return Path(source.removeprefix(HUB)).expanduser()


def read_hub(source: str, config: DataConfig, field: str) -> Iterator[Row]:
    """The rows of one split, each checked.

    Args:
        source: As the study names it.
        config: The configuration, splits and columns.
        field: The setting that names the source, for messages.

    Raises:
        InvalidInputError: There is no such data set, configuration, split or column, or a row
            cannot be used.
        OSError: A hub that does not answer; `faults.will_pass` tells.
    """
    data = HubData(source, config, field)
    split = data.split()
    names = data.class_names()
    read = data.rows_of_files if data.is_read_here(split) else data.rows_by_library
    rows = read(split, names)
    yield from WrittenLabels(names, config, source, field).read(rows) if names else rows


def content_of(source: str, config: DataConfig) -> str:
    """Changes when the content of a hub source does."""
    if not is_directory(source):
        return f"{source}@{config.commits.get(source) or config.revision or 'main'}"
    digest = hashlib.sha256()
    for path in sorted(path for path in directory(source).rglob("*") if path.is_file()):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


class HubData:
    """One configuration of a data set.

    Raises:
        InvalidInputError: There is none.
        WorkerLacksError: Its directory is not here, where it may be on other hosts.
    """

    def __init__(self, source: str, config: DataConfig, field: str) -> None:
        self._source = source
        self._config = config
        self._field = field
        self._section = field.rpartition(".")[0]
        self._builder = self._open()

    def split(self) -> str:
        """The split that the setting asks for.

        Raises:
            InvalidInputError: There is no such split.
        """
        wanted, known = self._config.split_of(self._field), list(self._files)
        if wanted not in known:
            is_held_out = self._field.endswith("validation")
            setting = "validation_split" if is_held_out else "split"
            raise InvalidInputError(
                f"{self._section}.{setting} = {wanted!r}: {self._source!r} has no such split (it"
                f" has {', '.join(known)}){nearest(wanted, known)}"
            )
        return wanted

    def class_names(self) -> ClassNames:
        """The names of the class numbers, where the data set's card tells them."""
        if not names_classes(self._config):
            return NO_NAMES
        feature = (self._builder.info.features or {}).get(self._config.label)
        return ClassNames(getattr(getattr(feature, "feature", feature), "names", None) or ())

    def is_read_here(self, split: str) -> bool:
        """Whether the reader of local files reads the files of a split."""
        options = _OWN_KINDS.get(self._kind)
        if options is None or any(getattr(self._builder.config, each, None) for each in options):
            return False
        return all(Path(url).suffix.lower() in FILE_FORMATS for url in self._files[split])

    def num_bytes(self, split: str) -> int:
        """How much there is to read."""
        from huggingface_hub import HfFileSystem

        files = HfFileSystem()
        return sum(
            files.info(url)["size"] if url.startswith("hf://") else Path(url).stat().st_size
            for url in self._files[split]
        )

    def rows_of_files(self, split: str, names: ClassNames) -> Iterator[Row]:
        """The rows of the files of a split, fetched one after the other."""
        separator = getattr(self._builder.config, "sep", None)
        config = self._config
        if separator and separator != "," and config.delimiter == "auto":
            config = config.model_copy(update={"delimiter": separator})
        for url in self._files[split]:
            yield from read_rows(_fetched(url), config, self._field, names)

    def rows_by_library(self, split: str, names: ClassNames) -> Iterator[Row]:
        """The rows of a split as the `datasets` library reads them."""
        where = f"{self._field} = {self._source!r}"
        for number, example in enumerate(self._builder.as_streaming_dataset(split), 1):
            for column in self._config.columns:
                if column not in example:
                    raise InvalidInputError(
                        f"{where} has no column {column!r} (it has {', '.join(example)})"
                        f"{nearest(column, example)}"
                    )
            values = [example[column] for column in self._config.columns]
            yield checked_row(f"row {number}", values, self._config, where, names)

    @property
    def _files(self) -> dict[str, list[str]]:
        return {
            str(split): [str(url) for url in urls]
            for split, urls in (self._builder.config.data_files or {}).items()
        }

    @property
    def _kind(self) -> str:
        """Such as `csv`: of `datasets.packaged_modules.csv.csv`."""
        return type(self._builder).__module__.rpartition(".")[2]

    def _open(self) -> Any:
        import datasets

        datasets.disable_progress_bars()
        config = self._config
        name = self._source.removeprefix(HUB)
        is_here = is_directory(self._source)
        if is_here:
            name = str(directory(self._source))
            if not Path(name).is_dir():
                raise WorkerLacksError(
                    f"{self._field} = {self._source!r}: there is no such directory; mend the path,"
                    " or write hub:owner/name"
                )
        revision = None if is_here else config.commits.get(self._source) or config.revision
        try:
            return datasets.load_dataset_builder(name, config.configuration, revision=revision)
        except Exception as error:
            if will_pass(error):
                raise
            if not is_here and _NOT_ANSWERED in str(error) and not is_switched_off():
                # the library drops what it came from
                raise ConnectionError(f"the hub does not answer for {name!r}") from error
            raise self._refusal(error) from error

    def _refusal(self, error: Exception) -> InvalidInputError:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        wanted = self._config.configuration
        if "BuilderConfig" in str(error) or "Config name is missing" in str(error):
            return InvalidInputError(
                f"{self._section}.configuration = {wanted!r}: {self._source!r} has several, or no"
                f" such one ({first}); name one of them"
            )
        return InvalidInputError(
            f"{self._field} = {self._source!r} does not load ({first}); give the id of a data set"
            " that you may read, and a revision that it has"
        )


def _fetched(url: str) -> str:
    """The path of a file of the hub on this host."""
    from huggingface_hub import hf_hub_download

    found = _FILE_ON_HUB.fullmatch(url)
    if found is None:
        return url
    name, revision, path = found.groups()
    return str(hf_hub_download(name, path, repo_type="dataset", revision=revision))
