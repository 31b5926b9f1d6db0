"""A model compiled by `torch.compile` for one training, its code kept in the cache for all others.

The model itself stays as it is: it is saved, frozen and switched to evaluation as if there were
nothing. Rows and tokens of a batch are dynamic, so that no length is compiled by itself. torch
takes one row for a constant: such a batch, the last of an epoch say, goes through the model as it
is, unless a training has no others.

Invariant: what torch knows of one training's model is gone when its block ends.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import torch

from workers.disk import durable
from workers.disk.cache_entry import MANIFEST, Entry, Progress, unwatched
from workers.disk.cache_sweep import put_aside
from workers.managers.cuda import CUDAManager
from workers.managers.run_directories import DirectoryManager
from workers.managers.toolchain import describe_machine
from workers.protocol.errors import (
    ObjectiveError,
    TransientError,
)
from workers.protocol.memory_errors import is_of_memory
from workers.protocol.plain import describe_error

#: What makes code of a graph.
BACKEND: Final = "inductor"

#: The kind of its entries in the cache.
KIND: Final = "compiled"

#: Of a model's configuration: what no code follows from.
_NAMES: Final = ("_name_or_path", "architectures", "id2label", "label2id", "transformers_version")

#: What a compiler, or who starts it, meets on a host that is short of something.
_SHORTAGES: Final = {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EAGAIN}
_SHORTAGE: Final = re.compile(
    r"Killed|signal terminated|No space left on device|Disk quota exceeded"
    r"|annot allocate memory|virtual memory exhausted"
)

#: How much of a compiler's error is told.
_ERROR_CHARACTERS: Final = 500


class Compilation:
    """Calls a model by its compiled code; the first calls compile it.

    Args:
        model: A `transformers.PreTrainedModel` on the device, prepared to be trained.
        mode: As of `torch.compile`.
        precision: What is computed in.
        cuda: Has the device.
        directories: Have the cache.
        watch: Told, from a thread, how long a compilation has been going on.
        is_row_by_row: Whether one row goes through at a time.
    """

    def __init__(
        self,
        model: Any,
        mode: str,
        precision: str,
        cuda: CUDAManager,
        directories: DirectoryManager,
        watch: Progress = unwatched,
        *,
        is_row_by_row: bool = False,
    ) -> None:
        self._model = model
        self._is_row_by_row = is_row_by_row
        self._compiled: Any = torch.compile(model, mode=mode, backend=BACKEND)
        self._key = {
            "model": _shape_of(model),
            "mode": mode,
            "precision": precision,
            "machine": describe_machine(cuda),
        }
        self._about = {"model": type(model).__name__, "torch": torch.__version__}
        self._directories = directories
        self._watch = watch

    def __call__(self, **inputs: Any) -> Any:
        """What the model returns.

        Args:
            **inputs: Its arguments; of tensors, the first two dimensions are rows and tokens.
        """
        tensors = [value for value in inputs.values() if torch.is_tensor(value)]
        if not self._is_row_by_row and any(len(tensor) == 1 for tensor in tensors):
            return self._model(**inputs)
        for tensor in tensors:
            torch._dynamo.maybe_mark_dynamic(tensor, [0, 1])
        return self._compiled(**inputs)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Take the code that the cache has, and leave there what is compiled in this block.

        Raises:
            ObjectiveError: The model does not compile.
            TransientError: Code that was kept is damaged, and is put aside; or the compiler was
                killed, or found no room.
            TrialInterrupt: The compiler failed, and this process is to end.
        """
        # here: it takes seconds to import
        from workers.managers.compile_watch import CompileWatch

        entry = self._directories.cached(KIND, self._key, lambda _: self._about)
        folder = entry.path if _is_own(entry.path) else self._directories.scratch() / KIND
        folder.mkdir(exist_ok=True)
        had_code = _has_code(folder)
        _forget()
        watch = CompileWatch(folder, self._watch)
        try:
            with _kept_in(folder), watch:
                yield
        except _errors() as error:
            if is_of_memory(error):
                raise
            # who is told to end may see its compilers end first: then this raises that
            self._watch("seconds of compiling the model", 0, 0)
            raise _refusal(error, entry, had_code=had_code) from error
        finally:
            if watch.num_built:
                _bring_to_disk(folder)
            _forget()
            entry.leave()


def _errors() -> tuple[type[Exception], ...]:
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    return (TorchDynamoException, CppCompileError, InvalidCxxCompiler)


def _refusal(error: Exception, entry: Entry, *, had_code: bool) -> Exception:
    """What to raise of an error of a compilation; code that may be to blame is put aside."""
    said = describe_error(error, _ERROR_CHARACTERS)
    if _is_of_host(error):
        return TransientError(
            f"compile: {said}; it takes memory, and room for FLEET_CACHE = {entry.path.parents[1]}"
        )
    entry.leave()  # else it could be put aside, and not removed
    is_aside = False
    with suppress(OSError):
        put_aside(entry.path)
        is_aside = had_code
    if is_aside:
        return TransientError(f"compile: kept code may be damaged, and is put aside: {said}")
    return ObjectiveError(f"compile: the model does not compile here; leave it out: {said}")


def _is_of_host(error: BaseException | None) -> bool:
    """Whether what compiles was ended, or lacked room: the model is not to blame."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _SHORTAGES:
            return True
        if getattr(error, "returncode", 0) < 0 or _SHORTAGE.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _is_own(folder: Path) -> bool:
    """Whether nobody but this user may write there: what is read from it is run.

    torch writes where it reads, so that it is no use to take from others either.
    """
    status = folder.stat()
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _has_code(folder: Path) -> bool:
    return any(path.name[0] != "." and path.name != MANIFEST for path in folder.iterdir())


def _bring_to_disk(folder: Path) -> None:
    """Code that a power cut left in halves would be loaded by all trials that follow."""
    with suppress(OSError):  # another process's draft that is gone by now, or a full disk
        durable.sync_tree(folder)


@contextmanager
def _kept_in(folder: Path) -> Iterator[None]:
    """Have torch and Triton keep what they build in a folder.

    They compile in this process: others of theirs would outlive the trial.
    """
    import torch._inductor.config as inductor

    places = {"TORCHINDUCTOR_CACHE_DIR": folder, "TRITON_CACHE_DIR": folder / "triton"}
    before = {name: os.environ.get(name) for name in places}
    os.environ.update({name: str(place) for name, place in places.items()})
    try:
        with inductor.patch(compile_threads=1):
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _forget() -> None:
    """Drop what this process has compiled, and where it thinks that it is kept."""
    from torch._inductor.utils import clear_caches

    torch._dynamo.reset()
    clear_caches()


def _shape_of(model: Any) -> dict[str, Any]:
    """What tells a model's code from another's, as JSON takes it."""
    fields = json.loads(model.config.to_json_string(use_diff=False))
    weights = [
        (name, list(weight.shape), weight.requires_grad)
        for name, weight in model.named_parameters()
    ]
    return {
        "class": type(model).__name__,
        "config": {name: value for name, value in fields.items() if name not in _NAMES},
        "attention": model.config._attn_implementation,
        "weights": _digest(json.dumps(weights)),
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
