"""A model compiled by `torch.compile` for one training, its code kept in the cache for all others.

The model itself stays as it is: it is saved, frozen and switched to evaluation as if there were
nothing. Rows and tokens of a batch are dynamic, so that no length is compiled by itself. torch
takes one row for a constant: such a batch, the last of an epoch say, goes through the model as it
is, unless a training has no others.

Invariant: what torch knows of one training's model is gone when its block ends.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import torch

from workers.disk.cache_entry import Progress, unwatched
from workers.managers.compiled_code import CompiledCode
from workers.managers.compiler_errors import compilation_errors, is_of_host, is_of_training
from workers.managers.cuda import CUDAManager
from workers.managers.run_directories import DirectoryManager
from workers.managers.toolchain import describe_machine
from workers.protocol.errors import (
    ObjectiveError,
    TransientError,
)
from workers.protocol.plain import describe_error

if TYPE_CHECKING:
    from workers.managers.compile_watch import CompileWatch

#: What makes code of a graph.
BACKEND: Final = "inductor"

#: Of a model's configuration: what no code follows from.
_NAMES: Final = ("_name_or_path", "architectures", "id2label", "label2id", "transformers_version")

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
        self._compiling: CompileWatch | None = None

    @property
    def seconds(self) -> float:
        """Spent on compiling, or on waiting for who compiles the same, since `open`."""
        return 0.0 if self._compiling is None else self._compiling.seconds

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

        code = CompiledCode(self._directories, self._key, self._about)
        _forget()
        self._compiling = watch = CompileWatch(code.folder, self._watch)
        try:
            with code.in_place(), watch:
                yield
        except compilation_errors() as error:
            if is_of_training(error):
                raise
            # who is told to end may see its compilers end first: then this raises that
            self._watch("seconds of compiling the model", 0, 0)
            raise _refusal(error, code) from error
        finally:
            if watch.num_built:
                code.bring_to_disk()
            _forget()
            code.leave()


def _refusal(error: Exception, code: CompiledCode) -> Exception:
    """What to raise of an error of a compilation; code that may be to blame is renounced."""
    said = describe_error(error, _ERROR_CHARACTERS)
    if is_of_host(error):
        return TransientError(
            f"compile: {said}; it takes memory, and room for FLEET_CACHE = {code.cache}"
        )
    if code.renounce():
        return TransientError(f"compile: kept code may be damaged, and is put aside: {said}")
    return ObjectiveError(f"compile: the model does not compile here; leave it out: {said}")


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
