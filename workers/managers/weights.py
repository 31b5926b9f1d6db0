"""A model's weights: what a checkpoint holds, in float32, and what is drawn beside it.

Pretrained models are built without memory (on torch's meta device) and filled: with copies of what
their checkpoint holds, and, for what it does not hold, as `transformers` draws their architecture.

Invariant: what is kept was read, and nothing of it was drawn. What is drawn follows from the state
of torch's generator alone, and is the same whether a checkpoint was kept or has to be read.
"""

from __future__ import annotations

import logging
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from transformers import AutoConfig

from workers.logs import get_logger
from workers.managers.architecture import check_for_texts
from workers.managers.head import SEQUENCE_CLASSIFIER, HeadKind, kind_of
from workers.protocol.errors import InvalidInputError, WorkerLacksError

log = get_logger(__name__)

#: Weights that a process keeps for its next trials; those of one larger model are read each time.
_KEPT_BYTES: Final = 8 * 2**30

#: Names of weights that a message quotes.
_QUOTED: Final = 3


@dataclass(frozen=True)
class Checkpoint:
    """A model as it was read from a hub id or a path."""

    name: str
    config: Any
    """The `transformers` configuration that was saved with it; not to be changed."""
    weights: Mapping[str, torch.Tensor]
    """What was read, by name, in float32 on the CPU; not to be changed."""
    lacking: frozenset[str]
    """What its own configuration asks for and its files do not hold, such as a head."""
    kind: HeadKind = SEQUENCE_CLASSIFIER
    """The head that it was read with."""

    @property
    def num_bytes(self) -> int:
        """The memory that the weights take."""
        return sum(value.nbytes for value in self.weights.values())


#: Reads a checkpoint: its name, its files, and the head that it is read with.
Reader = Callable[[str, str, HeadKind], Checkpoint]


class KeptCheckpoints:
    """The checkpoints that this process has read, within a bound; the least used goes first.

    Args:
        limit_bytes: Memory that the kept ones may take together.
    """

    def __init__(self, limit_bytes: int = _KEPT_BYTES) -> None:
        self._limit = limit_bytes
        self._kept: OrderedDict[tuple[object, ...], Checkpoint] = OrderedDict()

    def get(
        self,
        name: str,
        files: str | None = None,
        kind: HeadKind = SEQUENCE_CLASSIFIER,
        reader: Reader | None = None,
        bases: Sequence[str] = (),
    ) -> Checkpoint:
        """A checkpoint, read where it is not kept or its files were changed.

        Args:
            name: As the study names it.
            files: Where it lies, if the name is not the path.
            kind: The head that it is read with.
            reader: Reads it; by default `read`.
            bases: What it is made of beside its own files, such as the model of adapters.

        Raises:
            InvalidInputError: It does not load.
        """
        files = files or name
        states = [(folder, _state_of(Path(folder))) for folder in (files, *bases)]
        key = (name, kind, *states)
        found = self._kept.pop(key, None) or (reader or read)(name, files, kind)
        self._kept[key] = found
        while sum(each.num_bytes for each in self._kept.values()) > self._limit:
            self._kept.popitem(last=False)
        return found


def read(name: str, files: str | None = None, kind: HeadKind = SEQUENCE_CLASSIFIER) -> Checkpoint:
    """Read a checkpoint in whatever dtype it was saved; torch's generator stays as it is.

    Args:
        name: As the study names it.
        files: Where it lies, if the name is not the path.
        kind: The head that it is read with; one that the files do not hold is left out.

    Raises:
        InvalidInputError: There is none, or it holds no weights of the model that it names.
        WorkerLacksError: A package that it takes is not installed here.
    """
    files = files or name
    try:
        # what is drawn here, for a head that is missing, is not kept
        with torch.random.fork_rng(devices=[]), _without_report():
            config = AutoConfig.from_pretrained(files)
            check_for_texts(config.model_type, f"model.id = {name!r}")
            _refuse_quantised(name, config)
            model, info = kind.auto.from_pretrained(
                files,
                config=config,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except ImportError as error:
        raise WorkerLacksError(
            f"model.id = {name!r} takes what this worker does not have: {error}"
        ) from error
    except (OSError, ValueError, KeyError, SafetensorError, pickle.UnpicklingError) as error:
        raise refusal(name, error) from error
    drawn = _drawn(info)
    # copies: what was read may be a view of the file, which may be cut short
    weights = {key: value.clone() for key, value in model.state_dict().items() if key not in drawn}
    if not any(_is_of_base(model, key) for key in weights):
        raise InvalidInputError(
            f"model.id = {name!r} holds no weights of a {model.config.model_type}, which its"
            " config.json names; give the path of a model that was saved whole"
        )
    _refuse_partial(name, model, drawn, info)
    return Checkpoint(name, model.config, weights, frozenset(drawn), kind)


def is_configured(files: str) -> bool:
    """Whether a folder holds a model's configuration; adapters that peft saved have none."""
    return (Path(files) / "config.json").exists()


def saved_head(name: str, files: str) -> HeadKind:
    """The head that a model was saved with.

    Raises:
        InvalidInputError: There is no model.
    """
    try:
        return kind_of(AutoConfig.from_pretrained(files))
    except (OSError, ValueError, KeyError) as error:
        raise refusal(name, error) from error


def refusal(name: str, error: Exception) -> InvalidInputError:
    """What to tell of a model that does not load."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return InvalidInputError(
        f"model.id = {name!r} does not load ({first}); give a hub id, a path with a saved model,"
        " or an `architecture` instead"
    )


def build(
    config: Any, checkpoint: Checkpoint | None = None, kind: HeadKind = SEQUENCE_CLASSIFIER
) -> Any:
    """A model of its own memory, in float32 on the CPU, in evaluation mode.

    Args:
        config: A `transformers` configuration of an architecture with such a head.
        checkpoint: Where the weights are taken from; what it does not hold, such as a head for
            another number of classes, is drawn from torch's generator. Without one, all is.
        kind: The head; a checkpoint is one that was read with it.

    Raises:
        InvalidInputError: The configuration asks for other weights than the checkpoint holds.
        ValueError, TypeError, RuntimeError: The configuration cannot be built.
    """
    if checkpoint is None:
        return kind.auto.from_config(config, dtype=torch.float32).eval()
    cls = kind.mapping[type(config)]
    # copies: they become the model's own
    held = {name: value.clone() for name, value in checkpoint.weights.items()}
    before = torch.get_rng_state()
    with _without_report(), _marking_what_is_not_filled():
        model, info = cls.from_pretrained(
            None,
            config=config,
            state_dict=held,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    drawn = _drawn(info)
    _refuse_foreign(checkpoint, model, drawn)
    log.debug("weights_taken", model=checkpoint.name, drawn=sorted(drawn))
    _fill_what_is_left(model, config, drawn, before, kind)
    return model


def _drawn(info: Mapping[str, Any]) -> set[str]:
    """The names of what `from_pretrained` did not find, or found in another shape."""
    return set(info["missing_keys"]) | {name for name, *_ in info["mismatched_keys"]}


def _refuse_partial(name: str, model: Any, drawn: set[str], info: Mapping[str, Any]) -> None:
    """Refuse files by which a layer of the pretrained model itself would begin from nothing.

    What is no layer may be missing: many were saved without what pools their outputs.
    """
    misshapen = {weight for weight, *_ in info["mismatched_keys"]}
    lacking = sorted(
        weight
        for weight in drawn
        if _is_of_base(model, weight)
        and (weight in misshapen or any(part.isdecimal() for part in weight.split(".")))
    )
    if lacking:
        raise InvalidInputError(
            f"model.id = {name!r} lacks weights of the {model.config.model_type} that its"
            f" config.json describes ({_some(lacking)} would be drawn anew); give the path of a"
            " model that was saved whole"
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _QUOTED} more" if len(names) > _QUOTED else ""
    return f"{', '.join(names[:_QUOTED])}{more}"


def _is_of_base(model: Any, name: str) -> bool:
    """Whether a weight is the pretrained model's, and not of a head on it."""
    return name.startswith(f"{model.base_model_prefix}.")


def _refuse_quantised(id_or_path: str, config: Any) -> None:
    quantised = getattr(config, "quantization_config", None)
    if quantised is not None:
        fields = quantised if isinstance(quantised, dict) else quantised.to_dict()
        raise InvalidInputError(
            f"model.id = {id_or_path!r} is quantised ({fields.get('quant_method')}) and cannot be"
            " trained in float32; give the model that it was quantised from"
        )


def _refuse_foreign(checkpoint: Checkpoint, model: Any, drawn: set[str]) -> None:
    """Refuse fields by which a part of the pretrained model itself would begin from nothing."""
    foreign = sorted(name for name in drawn - checkpoint.lacking if _is_of_base(model, name))
    if foreign:
        raise InvalidInputError(
            f"model.id = {checkpoint.name!r}: its weights do not fit the fields set for it"
            f" ({_some(foreign)} would be drawn anew); leave out those that"
            " change a shape or add layers"
        )


@contextmanager
def _marking_what_is_not_filled() -> Iterator[None]:
    """Have torch fill new memory with NaN (of integers, the largest), to see what stays so."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*does not have a deterministic implementation.*")
            yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


@torch.no_grad()
def _fill_what_is_left(
    model: Any, config: Any, drawn: set[str], before: torch.Tensor, kind: HeadKind
) -> None:
    """Take what the architecture's `_init_weights` passes over from its constructor.

    An openai-gpt of transformers 5 has such weights: they would be what happened to lie in memory.
    """
    persistent = model.state_dict()
    left = [
        name
        for name, value in [*model.named_parameters(), *model.named_buffers()]
        if (name in drawn or name not in persistent) and _is_not_filled(value)
    ]
    if not left:
        return
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(before)
        whole = kind.auto.from_config(config, dtype=torch.float32)
    for name in left:
        model.get_parameter_or_buffer(name).copy_(whole.get_parameter_or_buffer(name))


def _is_not_filled(value: torch.Tensor) -> bool:
    if value.is_floating_point():
        return bool(value.sum().isnan())
    return value.dtype is not torch.bool and bool((value == torch.iinfo(value.dtype).max).any())


@contextmanager
def _without_report() -> Iterator[None]:
    """Leave out the table of what a checkpoint lacks, which is ours to tell, in one line."""

    def is_no_report(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return "LOAD REPORT" not in message and "tied weights mapping" not in message

    # by a filter: the library takes a higher level for a wish to hear of sharding
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(is_no_report)
    try:
        yield
    finally:
        logger.removeFilter(is_no_report)


def _state_of(folder: Path) -> tuple[object, ...]:
    """What changes with the files of a local model; nothing for a hub id."""
    try:
        files = [(path.name, path.stat()) for path in sorted(folder.iterdir())]
    except OSError:
        return ()
    return tuple((name, status.st_size, status.st_mtime_ns) for name, status in files)
