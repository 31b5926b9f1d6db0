"""What tokenised data follow from: files, columns, splits, a tokenizer, and code that reads them.

Invariant: two origins with one key give the same tokens, on whatever host, from wherever their
files lie.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Self

from workers.disk.cache_entry import Progress
from workers.managers.recipe import code_digest
from workers.managers.sources import fingerprint, state_of
from workers.protocol.finetune import DataConfig

#: What reads, splits and tokenises.
_CODE: Final = (
    "managers/data.py",
    "managers/sources.py",
    "managers/cldr.py",
    "managers/tags.py",
    "managers/targets.py",
    "managers/text_format.py",
    "managers/token_rows.py",
    "managers/tokenized.py",
    "remote/hub_data.py",
    "texts/*.py",
)

#: Whose releases may give other tokens.
_LIBRARIES: Final = ("tokenizers", "transformers")


@dataclass(frozen=True, slots=True)
class DataOrigin:
    """The origin of a data set as it is now; one that is written to is another."""

    config: DataConfig
    tokenizer: str | int
    """The digest of its content, or the size of the vocabulary of one that is to be trained."""
    states: tuple[tuple[int, ...], ...]
    """Of the files; cheap to have."""

    @classmethod
    def now(cls, config: DataConfig, tokenizer: str | int) -> Self:
        """The origin as its files lie there at this moment."""
        return cls(config, tokenizer, tuple(state_of(source) for source in config.sources))

    @property
    def name(self) -> str:
        """What a process knows it by, without reading the files."""
        return json.dumps([self.config.model_dump(), self.tokenizer, self.states])

    def key(self, progress: Progress) -> dict[str, Any]:
        """All that the tokens follow from; not where files lie. Reads the files."""
        return {
            "code": code_digest(*_CODE),
            "versions": {library: version(library) for library in _LIBRARIES},
            "data": self.config.model_dump(mode="json", exclude={"source", "validation"}),
            "content": [
                [Path(source).suffix.lower(), fingerprint(source, self.config, progress)]
                for source in self.config.sources
            ],
            "tokenizer": self.tokenizer,
        }
