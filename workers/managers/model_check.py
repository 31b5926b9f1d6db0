"""Tries the models of a study in a process of its own, and writes down, as JSON, what is wrong.

Run by the preflight, which imports no torch. What cannot be known here (a model on a hub that does
not answer) is left to the trials.

Invariant: no weights are read, and nothing is written but the answer.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from transformers import AutoConfig

from workers.managers import adapters, attention, model_fit, trainable, weights
from workers.managers.head import HEAD_KINDS, SEQUENCE_CLASSIFIER, Head
from workers.managers.hub import HubManager
from workers.managers.text_format import TextFormat
from workers.managers.tokenizer import read, refuse_foreign, train_on
from workers.protocol.errors import InvalidInputError, RemoteUnavailableError, WorkerLacksError
from workers.protocol.finetune import FinetuneConfig
from workers.protocol.tasks import TASKS
from workers.settings import Settings

#: A larger model is looked at without memory for its weights: its shapes, and no text.
_MOST_TRIED: Final = 150_000_000

#: Above, it classifies a text and learns nothing from it.
_MOST_TRAINED: Final = 20_000_000

#: Tokens of the longest text that is tried.
_LONGEST: Final = 512

#: How many classes there are is the data's; what a model is does not follow from it.
_LABELS: Final = ("a", "b", "c")

#: The one output of a model that learns numbers.
_OUTPUT: Final = ("LABEL_0",)


def find_problem(config: FinetuneConfig, hub: HubManager | None = None) -> str | None:
    """What keeps a study's model, with these settings, from being trained, if anything.

    Args:
        config: The settings; ids of a hub are read at the commit that they are pinned to.
        hub: Asks a hub again that is away for a moment; by default one is made.
    """
    hub = hub or HubManager(Settings())
    try:
        if config.model.id is not None:
            _check_saved(config, config.model.id, hub)
        else:
            _check_architecture(config, hub)
    except WorkerLacksError:
        return None  # of this host, which need not train it
    except InvalidInputError as error:
        return str(error)
    return None


def _check_architecture(config: FinetuneConfig, hub: HubManager) -> None:
    texts = _texts(config, config.tokenizer.pinned_id, hub)
    if texts is None:
        return
    head = _head(config)
    built = _configuration(config, texts, head)
    _try(config, built, head, texts)


def _configuration(config: FinetuneConfig, texts: TextFormat, head: Head, saved: Any = None) -> Any:
    """The model's configuration, such as it can be tried without a GPU."""
    built = model_fit.configuration(config.model, texts, head, config.dropout, saved)
    if attention.needs_gpu(config.model.attn_implementation):
        built._attn_implementation = None
    return built


def _try(config: FinetuneConfig, built: Any, head: Head, texts: TextFormat) -> None:
    """Build a model with weights that are drawn, if it is small, and have it take a text."""
    num_weights = sum(weight.numel() for weight in _prepared(config, built, head).parameters())
    if num_weights > _MOST_TRIED:
        return
    try:
        model = weights.build(built, kind=head.kind)
        model_fit.grow(model, texts)
        model_fit.try_text(model, texts, min(texts.max_length, _LONGEST), head.kind)
        if num_weights <= _MOST_TRAINED:
            _learn(model, texts)
    except MemoryError:
        return  # of this host, which need not train it
    except Exception as error:
        raise model_fit.unfit(config.model, built, error) from error


def _learn(model: Any, texts: TextFormat) -> None:
    """A step back through the model: some crash in nothing else."""
    ids = torch.tensor([texts.example] * 2, device=model.device)
    logits = model.train()(input_ids=ids).logits
    loss = logits.square().mean()  # a task's own loss crashes nothing
    loss.backward()


def _check_saved(config: FinetuneConfig, name: str, hub: HubManager) -> None:
    try:
        saved = _saved_configuration(config.model.pinned_id or name, hub)
    except (OSError, ValueError, KeyError, RemoteUnavailableError) as error:
        if _is_local(name):
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InvalidInputError(f"model.id = {name!r} does not load ({first})") from error
        return
    head = _head(config)
    if type(saved) not in head.kind.mapping:
        raise InvalidInputError(
            f"model.id = {name!r} is a {saved.model_type}, which has no {head.kind.name} in"
            f" transformers; take one such as {head.kind.examples}"
        )
    texts = _texts(config, config.tokenizer.pinned_id or config.model.pinned_id, hub)
    if texts is None:
        return
    built = _configuration(config, texts, head, saved)
    try:
        as_saved = _with_labels(saved, built.num_labels)
        shapes = [model_fit.shapes_of(each, head.kind) for each in (built, as_saved)]
    except Exception as error:
        raise model_fit.unfit(config.model, built, error) from error
    changed = sorted(name for name, shape in shapes[0].items() if shapes[1].get(name) != shape)
    if changed:
        raise InvalidInputError(
            f"model.id = {name!r}: its weights do not fit the fields set for it ({changed[0]} has"
            " another shape); leave out those that change a shape or add layers"
        )
    if head.kind is SEQUENCE_CLASSIFIER:
        _prepared(config, built, head)
    else:
        _try(config, built, head, texts)


def _saved_configuration(name: str, hub: HubManager) -> Any:
    """The configuration of a model; of adapters that peft saved, that of their model."""
    files = _files_of(name, hub)
    if not weights.is_configured(files) and (base := adapters.base_of(files)) not in {None, name}:
        return _saved_configuration(str(base), hub)
    return AutoConfig.from_pretrained(files)


def _prepared(config: FinetuneConfig, built: Any, head: Head) -> Any:
    """The model without memory, as it is trained."""
    empty = model_fit.without_memory(built, head.kind)
    if config.lora is not None:
        adapters.adapt(empty, config.lora, head, config.model)
    trainable.prepare(empty, config)
    return empty


def _head(config: FinetuneConfig) -> Head:
    traits = TASKS[config.task]
    labels = {"number": _OUTPUT, "none": ()}.get(traits.labels, _LABELS)
    return Head(HEAD_KINDS[traits.head], labels)


def _with_labels(saved: Any, count: int) -> Any:
    """A configuration for as many classes as are tried."""
    saved = copy.deepcopy(saved)
    saved.num_labels = count
    return saved


def _texts(config: FinetuneConfig, tokenizer_id: str | None, hub: HubManager) -> TextFormat | None:
    """The format of the texts; None where the tokenizer cannot be had here."""
    if tokenizer_id is None:
        trained = train_on(["An example."], config.tokenizer.vocab_size)
        texts = TextFormat.of_data(trained, config.data)
        return dataclasses.replace(texts, vocab_size=config.tokenizer.vocab_size)
    if (tokenizer := _read(tokenizer_id, hub)) is None:
        return None
    if config.model.pinned_id not in {None, tokenizer_id}:
        _check_words(tokenizer, str(config.model.pinned_id), hub)
    return TextFormat.of_data(tokenizer, config.data)


def _files_of(name: str, hub: HubManager) -> str:
    """Where a model's configuration and its tokenizer lie; its weights are left where they are."""
    what = f"the configuration and tokenizer of {name!r}"
    try:
        return hub.model_files(what, name, with_weights=False)
    except WorkerLacksError as error:
        if not _is_local(name):
            raise
        # who hands a study in has what it names
        raise InvalidInputError(
            f"the model or tokenizer {name!r} does not load (there is no such path); mend it"
        ) from error


def _read(tokenizer_id: str, hub: HubManager) -> Any:
    """A tokenizer; None where it cannot be had here.

    Raises:
        InvalidInputError: It ought to lie here, and cannot be used.
    """
    try:
        return read(tokenizer_id, _files_of(tokenizer_id, hub))
    except (InvalidInputError, OSError, RemoteUnavailableError):
        if _is_local(tokenizer_id):
            raise
        return None


def _check_words(tokenizer: Any, model_id: str, hub: HubManager) -> None:
    try:
        own = read(model_id, _files_of(model_id, hub))
    except (InvalidInputError, OSError, RemoteUnavailableError):
        return  # it has none, or cannot be had here
    refuse_foreign(tokenizer, own, model_id)


def _is_local(name: str) -> bool:
    """Whether a model or tokenizer lies, or ought to lie, on this host."""
    return Path(name).exists() or name.startswith(("/", "./", "../"))


def main(request: Path, answer: Path) -> None:
    """Try models until one is wrong; which is tried is written down, in case that it kills us."""
    transformers.utils.logging.set_verbosity_error()
    hub = HubManager(Settings.from_environment())
    for number, fields in enumerate(json.loads(request.read_text())):
        answer.write_text(json.dumps({"trying": number}))
        problem = find_problem(FinetuneConfig.model_validate(fields), hub)
        if problem is not None:
            answer.write_text(json.dumps({"problem": problem}))
            return
    answer.write_text(json.dumps({}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
