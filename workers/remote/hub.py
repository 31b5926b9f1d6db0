"""What lies on a hub of models and data sets (`HF_ENDPOINT`): its commits, and files by commit.

Invariant: the files of a folder are those of one commit; what is a path here is asked of no hub.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

RepoKind = Literal["model", "dataset"]

#: A repository, perhaps with its owner before it and a revision behind it.
_NAME: Final = re.compile(r"([\w.-]+(?:/[\w.-]+)?)(?:@(.+))?")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")

#: What loading a model never reads: folders of other models, formats of other libraries, pictures.
_NEVER_READ: Final = (
    "*/*", "*.h5", "*.msgpack", "*.onnx", "*.ot", "*.gguf", "*.tflite", "*.mlmodel", "*.zip",
    "*.tar.gz", "*.png", "*.jpg", "*.gif", "*.pdf", "*.ipynb",
)  # fmt: skip

_SAFE_WEIGHTS: Final = "*.safetensors"
_PICKLED_WEIGHTS: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def is_on_hub(name: str) -> bool:
    """Whether the name of a model or tokenizer, `owner/name@revision`, is of a hub, and no path."""
    return _NAME.fullmatch(name) is not None and not Path(name).exists()


def is_switched_off() -> bool:
    """Whether the network is not to be used (`HF_HUB_OFFLINE`)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def parts_of(name: str) -> tuple[str, str | None]:
    """A repository, and the revision behind its `@`, if any."""
    found = _NAME.fullmatch(name)
    return (name, None) if found is None else (found[1], found[2])


def commit_of(kind: RepoKind, name: str, revision: str | None) -> str:
    """The commit that a branch or a tag stands for now; by default, the main branch.

    With the network switched off (`HF_HUB_OFFLINE`), the commit that was last fetched.

    Raises:
        OSError: As the hub says; `faults.will_pass` tells what kind of it that is.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    try:
        return str(HfApi().repo_info(name, repo_type=kind, revision=revision).sha)
    except OfflineModeIsEnabled:
        fetched = _fetched_commit(kind, name, revision or "main")
        if fetched is None:
            raise
        return fetched


def model_folder(name: str, *, with_weights: bool) -> Path:
    """Where the files of a model, or those of its tokenizer alone, lie; fetched if need be.

    Args:
        name: `owner/name`, perhaps with `@` and a branch, a tag or a commit.
        with_weights: Whether a tokenizer alone is not enough.

    Raises:
        OSError: As the hub says; `faults.will_pass` tells what kind of it that is.
    """
    unread = [*_NEVER_READ, *_PICKLED_WEIGHTS, *([] if with_weights else [_SAFE_WEIGHTS])]
    folder = _fetch(*parts_of(name), unread)
    if with_weights and not any(folder.glob(_SAFE_WEIGHTS)):
        return _fetch(*parts_of(name), [*_NEVER_READ])
    return folder


def model_on_disk(name: str) -> frozenset[tuple[str, int, int]]:
    """What of a model's files lies here, whole or in part: other whenever something has arrived.

    Whoever fetches it: a process that waits for another one's download sees that come on.
    """
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / _cache_folder("model", parts_of(name)[0]) / "blobs"
    found = set()
    with suppress(OSError):  # it is not there yet, or a file has just got its final name
        for entry in os.scandir(folder):
            stat = entry.stat()
            found.add((entry.name, stat.st_size, stat.st_mtime_ns))
    return frozenset(found)


def _fetch(name: str, revision: str | None, unread: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, revision=revision, ignore_patterns=unread))


def _fetched_commit(kind: RepoKind, name: str, revision: str) -> str | None:
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / _cache_folder(kind, name)
    try:
        return (folder / "refs" / revision).read_text().strip()
    except OSError:
        return None


def _cache_folder(kind: RepoKind, name: str) -> str:
    """The folder of a repository in the hub's cache."""
    return f"{kind}s--{name.replace('/', '--')}"
