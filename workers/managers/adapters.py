"""Low-rank adapters (LoRA) by peft: trained in place of the weights of a pretrained model.

The model stays the object that it is, with adapters in its modules. After Hu et al. (2021,
arXiv:2106.09685).

Invariant: what is trained is what is saved: the adapters, the head, and what the checkpoint lacked.
The pretrained weights stay as they are.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import AutoConfig

from workers.managers import weights
from workers.managers.head import HEAD_KINDS, Head, HeadKind
from workers.managers.plain_arguments import section
from workers.protocol.errors import InvalidInputError, UnfitModelError, WorkerLacksError, nearest
from workers.protocol.finetune import ModelConfig
from workers.protocol.lora import LoraOptions
from workers.protocol.tasks import HeadName

#: The files that peft knows adapters by.
_CONFIG: Final = "adapter_config.json"
_WEIGHTS: Final = "adapter_model.safetensors"

#: The heads that adapters are for, by what peft calls that.
_HEADS: Final[Mapping[str, HeadName]] = {
    "SEQ_CLS": "sequence_classifier",
    "TOKEN_CLS": "token_classifier",
    "CAUSAL_LM": "causal_lm",
}

#: What peft writes before the names of a model's modules.
_PREFIX: Final = "base_model.model."

#: What peft writes within them, of a module that is trained as a whole.
_WRAPPED: Final = frozenset({"modules_to_save", "original_module"})

#: Names of modules that a message quotes.
_QUOTED: Final = 12


def as_options(lora: LoraOptions | Mapping[str, Any] | None) -> LoraOptions | None:
    """What a script writes, as a section.

    Raises:
        InvalidInputError: There are no such options.
    """
    if lora is None or isinstance(lora, LoraOptions):
        return lora
    return section(LoraOptions, None, dict(lora))


def adapt(
    model: Any,
    options: LoraOptions,
    head: Head,
    config: ModelConfig,
    checkpoint: weights.Checkpoint | None = None,
) -> None:
    """Put fresh adapters into a model, drawn from torch's generator; the rest of it is frozen.

    Args:
        model: On the CPU, or without memory.
        options: The study's.
        head: Is trained as a whole, where it has classes or numbers of its own.
        config: What the model is, for who loads the adapters.
        checkpoint: What it was built from; what was drawn, since it does not hold it, is trained as
            a whole, too.

    Raises:
        UnfitModelError: It takes no such options, or not with this model.
        WorkerLacksError: There is no peft here, or not what it needs for these options.
    """
    peft = _peft()
    before = {name: module for name, module in model.named_modules() if name}
    whole = _with_further(_trained_whole(model, head, checkpoint), options, before)
    adapter = _config(peft, options, whole)
    adapter.base_model_name_or_path, adapter.revision = _origin(config)
    _check_named("target_modules", adapter.target_modules, before)
    try:
        with _quiet():
            peft.inject_adapter_in_model(adapter, model)
    except (
        ValueError, TypeError, KeyError, NotImplementedError, RuntimeError, ImportError
    ) as error:  # fmt: skip
        raise _refusal(error, before) from error


def is_adapted(model: Any) -> bool:
    """Whether a model has adapters."""
    return hasattr(model, "peft_config")


def trained_state(model: Any) -> dict[str, torch.Tensor]:
    """What a training changes of a model: its state, or that of its adapters; by references."""
    if not is_adapted(model):
        state: dict[str, torch.Tensor] = model.state_dict()
        return state
    found: dict[str, torch.Tensor] = _peft().get_peft_model_state_dict(
        model, save_embedding_layers=False
    )
    # with `bias: all` peft names the biases of what is trained as a whole by its wrapper, too
    return {name: value for name, value in found.items() if not _WRAPPED & set(name.split("."))}


def load_trained_state(model: Any, state: Mapping[str, torch.Tensor]) -> None:
    """Be as `trained_state` told.

    Raises:
        RuntimeError: It is another model's.
    """
    if not is_adapted(model):
        model.load_state_dict(state)
        return
    if differing := sorted(trained_state(model).keys() ^ state.keys()):
        raise RuntimeError(f"the state is one of other adapters: {', '.join(differing[:_QUOTED])}")
    _peft().set_peft_model_state_dict(model, dict(state))


def save(model: Any, folder: Path) -> None:
    """Write a model's adapters as peft reads them, with the configuration of the whole model."""
    config = model.peft_config["default"]
    config.inference_mode = True
    try:
        config.save_pretrained(str(folder))
    finally:
        config.inference_mode = False
    state = {
        f"{_PREFIX}{name}": value.detach().cpu().contiguous()
        for name, value in trained_state(model).items()
    }
    save_file(state, folder / _WEIGHTS, metadata={"format": "pt"})
    whole = copy.deepcopy(model.config)
    whole.architectures = [type(model).__name__]
    whole.save_pretrained(str(folder))


def base_of(files: str) -> str | None:
    """The pretrained model that adapters are of; None where a folder holds no adapters.

    Raises:
        WorkerLacksError: There is no peft here to read them.
        InvalidInputError: They do not say.
    """
    if not (Path(files) / _CONFIG).exists():
        return None
    config = _peft().PeftConfig.from_pretrained(files)
    if not config.base_model_name_or_path:
        raise InvalidInputError(
            f"{files} holds adapters that name no base_model_name_or_path; write it into {_CONFIG}"
        )
    pinned = "" if config.revision is None else f"@{config.revision}"
    return f"{config.base_model_name_or_path}{pinned}"


def merged(name: str, files: str, base: weights.Checkpoint, kind: HeadKind) -> weights.Checkpoint:
    """A checkpoint with adapters added to its weights; what neither holds is lacking.

    Args:
        name: As the study names the adapters.
        files: Their folder.
        base: The model that they are of.
        kind: What they have on top.

    Raises:
        InvalidInputError: They are not of that model.
    """
    try:
        config = AutoConfig.from_pretrained(files) if weights.is_configured(files) else base.config
        with torch.random.fork_rng(devices=[]), _quiet():
            model = weights.build(config, base, kind)
            lacking = _drawn(model, base) - _named_in(files)
            whole = _peft().PeftModel.from_pretrained(model, files).merge_and_unload()
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise weights.refusal(name, error) from error
    held = {
        key: value.detach().clone()
        for key, value in whole.state_dict().items()
        if key not in lacking
    }
    return weights.Checkpoint(name, whole.config, held, lacking, kind)


def head_of(files: str) -> HeadKind | None:
    """The head that adapters which peft saved are for, if they say; None of all else."""
    if weights.is_configured(files) or not (Path(files) / _CONFIG).exists():
        return None
    task = _peft().PeftConfig.from_pretrained(files).task_type
    return HEAD_KINDS[_HEADS[task]] if task in _HEADS else None


def _drawn(model: Any, base: weights.Checkpoint) -> frozenset[str]:
    """The names of what a model has and its checkpoint does not hold."""
    return frozenset(
        name
        for name, value in model.state_dict().items()
        if name not in base.weights or base.weights[name].shape != value.shape
    )


def _named_in(files: str) -> frozenset[str]:
    """The names of a model's weights that adapters hold as a whole."""
    held = _peft().load_peft_weights(files, device="cpu")
    return frozenset(name.removeprefix(_PREFIX) for name in held)


def _peft() -> Any:
    """Here, since it takes seconds to import.

    Raises:
        WorkerLacksError: It is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise WorkerLacksError(
            f"lora needs peft ({error}): pip install 'trialfleet[peft]'"
        ) from error
    return peft


def _config(peft: Any, options: LoraOptions, whole: list[str]) -> Any:
    """The options as peft takes them, with the modules that are trained as a whole."""
    known = inspect.signature(peft.LoraConfig).parameters
    for name in options.further:
        if name not in known:
            raise UnfitModelError(
                f"lora.{name}: LoraConfig of peft {peft.__version__} has no such argument"
                f"{nearest(name, known)}"
            )
    further = dict(options.further)
    further.pop("modules_to_save", None)
    try:
        return peft.LoraConfig(
            r=options.r,
            lora_alpha=options.alpha,
            lora_dropout=options.dropout,
            target_modules=options.target_modules,
            modules_to_save=whole or None,
            **further,
        )
    except (ValueError, TypeError, KeyError, ImportError) as error:
        raise _refusal(error, {}) from error


def _with_further(new: list[str], options: LoraOptions, modules: Iterable[str]) -> list[str]:
    """The modules that are trained as a whole: what is new, and what the study names; none twice.

    Peft would wrap a module of another one that it wraps once more, and not find it again.

    Raises:
        UnfitModelError: There is none that is named so.
    """
    asked = options.further.get("modules_to_save") or []
    asked = [asked] if isinstance(asked, str) else asked
    _check_named("modules_to_save", asked, modules)
    ends = tuple(f".{name}" for name in asked)
    found = {*new, *(name for name in modules if f".{name}".endswith(ends))}
    return sorted(name for name in found if not any(name.startswith(f"{o}.") for o in found))


def _check_named(field: str, wanted: Any, modules: Iterable[str]) -> None:
    """Refuse names of modules of which there is none: peft passes over those beside others."""
    if wanted is None or isinstance(wanted, str):
        return
    ends = {name.split(".", start)[-1] for name in modules for start in range(name.count(".") + 1)}
    for name in wanted:
        if name not in ends:
            raise UnfitModelError(f"lora.{field}: the model has no {name!r}{nearest(name, ends)}")


def _trained_whole(model: Any, head: Head, checkpoint: weights.Checkpoint | None) -> list[str]:
    """The modules that are new: the head's, and those that were drawn.

    Raises:
        UnfitModelError: Words were added to the pretrained ones.
    """
    names = set()
    if head.labels:
        names |= {name for name, _ in model.named_children() if name != model.base_model_prefix}
    if checkpoint is not None:
        held = checkpoint.weights
        drawn = {name for name, _ in model.named_parameters() if name not in held}
        if drawn and not head.labels:
            # a new one would be tied to frozen embeddings, and saved without that tie
            raise UnfitModelError(
                f"lora: model.id = {checkpoint.name!r} was saved without its {head.kind.name}"
                f" ({', '.join(sorted(drawn)[:_QUOTED])}); take one that has it, or train all of it"
            )
        names |= {name.rpartition(".")[0] for name in drawn}
        if any(name in held and held[name].shape != each.shape for name, each in _words(model)):
            raise UnfitModelError(
                f"lora: the tokenizer has more entries than model.id = {checkpoint.name!r};"
                " take the model's own tokenizer, or train all of it"
            )
    modules = dict(model.named_modules())
    return sorted(
        name
        for name in names
        if next(modules[name].parameters(), None) is not None
        and not any(name.startswith(f"{other}.") for other in names)
    )


def _words(model: Any) -> list[tuple[str, Any]]:
    """The embeddings of words, by name."""
    words = getattr(model.get_input_embeddings(), "weight", None)
    return [(name, each) for name, each in model.named_parameters() if each is words]


def _origin(config: ModelConfig) -> tuple[str, str | None]:
    """The pretrained model and, of a hub, its commit."""
    name = str(config.pinned_id)
    if (folder := Path(name)).exists():
        return str(folder.absolute()), None
    base, _, revision = name.partition("@")
    return base, revision or None


def _refusal(error: Exception, modules: Mapping[str, Any]) -> InvalidInputError:
    """What to tell of options that peft does not take."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, ImportError):
        return WorkerLacksError(f"lora: peft needs more than this worker has: {first}")
    linear = sorted(
        {name.rpartition(".")[2] for name, each in modules.items() if hasattr(each, "in_features")}
    )
    has = f" (its linear layers are {', '.join(linear[:_QUOTED])})" if linear else ""
    return UnfitModelError(f"lora: peft does not take it so: {first}{has}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what peft warns of, and is as it ought to be here."""
    with warnings.catch_warnings():
        # it sets what it says that it sets
        warnings.filterwarnings("ignore", ".*fan_in_fan_out is set to.*", UserWarning)
        # peft 0.21 asks transformers 5 by a name of before
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        yield
