"""Whether a configuration makes a model, and that model takes the texts of a study.

Invariant: nothing here draws from torch's generator, and nothing that is given is changed.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final

import torch
from transformers import AutoConfig

from workers.logs import get_logger
from workers.managers import architecture, attention
from workers.managers.head import CAUSAL_LM, MASKED_LM, SEQUENCE_CLASSIFIER, Head, HeadKind
from workers.managers.proportions import positions_field
from workers.managers.text_format import TextFormat
from workers.protocol.errors import UnfitModelError
from workers.protocol.finetune import ModelConfig

log = get_logger(__name__)

#: Tables of positions, by the name of the module or buffer that is one.
_POSITION_TABLES: Final = frozenset(
    {"position_embeddings", "embed_positions", "positions_embed", "wpe", "char_position_embeddings"}
)

#: Architectures whose positions are in neither, to the field that bounds them.
_BOUNDED_BY: Final = {"ctrl": "n_positions", "mpt": "max_seq_len"}

#: Tokens by which it is tried what a language model sees, one after the other of the vocabulary.
_FEW: Final = 8

#: By how much, of the largest, logits differ that are computed in another order.
_ROUNDING: Final = 1e-4

#: Shapes that a process remembers to have looked at.
_REMEMBERED: Final = 256


class UnsuitedError(ValueError):
    """A model takes texts, and cannot learn from them what it is to learn."""


def configuration(
    model: ModelConfig,
    texts: TextFormat,
    head: Head,
    dropout: float | None = None,
    saved: Any = None,
) -> Any:
    """The configuration of a study's model, which takes the study's texts.

    Args:
        model: The study's section.
        texts: What the texts ask for.
        head: What the model has on top.
        dropout: Sets every dropout probability that the study does not give by its name.
        saved: The configuration that a pretrained model was saved with.

    Raises:
        UnfitModelError: No such model can be, or the texts do not fit it.
    """
    if head.kind is MASKED_LM and "mask_token_id" not in texts.token_ids:
        raise UnfitModelError(
            "tokenizer: it has no token that masks others, which task: masked_lm asks for; take one"
            " with a mask_token, or leave tokenizer.id out of a model that is built from nothing"
        )
    given = model.overrides
    as_text = json.dumps(dict(given), sort_keys=True, default=str)
    if saved is None:
        name = str(model.architecture)
        missing = _num_missing(name, as_text, texts, head.kind)
        enlarged = dataclasses.replace(texts, max_length=texts.max_length + missing)
        config = architecture.from_nothing(name, given, enlarged, head, dropout)
    else:
        config = architecture.of_pretrained(saved, given, texts, head, dropout)
        _check_saved_positions(str(model.id), saved.to_json_string(), texts, head.kind)
    attention.choose(config, model.attn_implementation, head.kind, is_packed=texts.is_packed)
    return config


def unfit(model: ModelConfig, config: Any, error: BaseException) -> Exception:
    """The refusal of a study's model that cannot be built, or that fails on a text."""
    kind, name = ("architecture", model.architecture) if model.id is None else ("id", model.id)
    if isinstance(error, UnsuitedError):
        return UnfitModelError(f"model.{kind} = {name!r} {error}")
    return architecture.unfit(f"model.{kind} = {name!r}", config, model.overrides, error)


def grow(model: Any, texts: TextFormat) -> None:
    """Have a pretrained model embed what was added to its tokenizer, and pad with it, too."""
    before = getattr(model.config.get_text_config(), "vocab_size", texts.vocab_size)
    if before < texts.vocab_size:
        log.debug("embeddings_added", model=model.name_or_path, before=before, now=texts.vocab_size)
        model.resize_token_embeddings(texts.vocab_size)
        model.config.pad_token_id = texts.token_ids.get("pad_token_id", model.config.pad_token_id)


def try_text(
    model: Any, texts: TextFormat, length: int, kind: HeadKind = SEQUENCE_CLASSIFIER
) -> None:
    """Give a model a short text and a padded one, as it will get in training.

    Args:
        model: Its mode is put back.
        texts: The format of the texts, with an example.
        length: Tokens of the longer text.
        kind: Its head.

    Raises:
        UnsuitedError: It takes them, and makes something else of them than training asks for.
        Exception: Whatever the model raises.
    """
    pad, example = texts.token_ids.get("pad_token_id", 0), list(texts.example)
    # longer by what is in its middle: how a text begins and ends is the tokenizer's
    middle = (len(example) - 1) // 2
    more = [example[middle]] * (length - len(example))
    whole = [*example[:middle], *more, *example[middle:]]
    rows = [whole, example + [pad] * (len(whole) - len(example))]
    masks = [[1] * len(whole), [1] * len(example) + [0] * (len(whole) - len(example))]
    was_training = model.training
    try:
        # not in inference mode: what a model computes once and keeps is for training, too
        with drawing_nothing(), torch.no_grad():
            ids, mask = (torch.tensor(each, device=model.device) for each in (rows, masks))
            logits = model.eval()(input_ids=ids, attention_mask=mask).logits
            if logits.shape != (expected := kind.shape(model.config, *ids.shape)):
                shape = tuple(logits.shape)
                raise ValueError(f"it has logits of shape {shape} where {expected} belong")
            if kind is CAUSAL_LM:
                few = torch.arange(min(ids.shape[1], _FEW), device=model.device)[None]
                _try_causal(model, few)
                if texts.is_packed:
                    _try_packed(model, few)
    finally:
        model.train(was_training)


def _try_causal(model: Any, ids: torch.Tensor) -> None:
    """Refuse a model whose outputs change with the tokens behind: it would copy the answers."""
    whole, begun = (model(input_ids=part).logits for part in (ids, ids[:, :-1]))
    if not _are_alike(whole[:, :-1], begun):
        raise UnsuitedError(
            "sees the tokens that it is to predict; set model.is_decoder: true, where it has that,"
            f" or take one such as {CAUSAL_LM.examples}"
        )


def _try_packed(model: Any, ids: torch.Tensor) -> None:
    """Refuse a model that does not keep the texts of a block apart, in each row of a batch."""
    length = ids.shape[1]
    starts = (length // 2, length // 2 + 1)
    rows = torch.cat([ids, ids.flip(-1)])
    positions = torch.arange(length, device=ids.device).repeat(len(starts), 1)
    for row, start in enumerate(starts):
        positions[row, start:] -= start
    packed = model(input_ids=rows, position_ids=positions, use_cache=False).logits
    if not all(
        _are_alike(packed[row, start:], model(input_ids=rows[row : row + 1, start:]).logits[0])
        for row, start in enumerate(starts)
    ):
        raise UnsuitedError(
            "does not keep the texts of a block apart; leave data.block_size out, set"
            " data.across_texts: true, or take one such as gpt2, llama or qwen2"
        )


def _are_alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() <= _ROUNDING * other.abs().max())


@contextmanager
def drawing_nothing() -> Iterator[None]:
    """Put torch's generator back, and leave warnings to when the model is used."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def without_memory(config: Any, kind: HeadKind = SEQUENCE_CLASSIFIER) -> Any:
    """A model on torch's meta device: its shapes, and no weights."""
    with drawing_nothing(), torch.device("meta"):
        return kind.auto.from_config(config, dtype=torch.float32)


def shapes_of(config: Any, kind: HeadKind = SEQUENCE_CLASSIFIER) -> dict[str, torch.Size]:
    """The shapes of a model's weights and buffers, by name."""
    return {name: value.shape for name, value in without_memory(config, kind).state_dict().items()}


def num_positions(model: Any) -> int | None:
    """How many tokens a text may have; None where positions are relative, or computed."""
    tables = [
        _num_rows(module)
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in _POSITION_TABLES
        and isinstance(getattr(module, "weight", None), torch.Tensor)
    ]
    tables += [
        len(buffer)
        for name, buffer in model.named_buffers()
        if name.rpartition(".")[2] in _POSITION_TABLES and buffer.ndim == 2
    ]
    config = model.config
    if bound := _BOUNDED_BY.get(config.model_type):
        return int(getattr(config, bound))
    if isinstance(most := getattr(config, "max_position_embeddings", None), int):
        tables = tables and [*tables, most]
    return min(tables, default=None)


def _num_rows(table: Any) -> int:
    """The positions of a table; those that follow RoBERTa count from behind the padding's."""
    if getattr(table, "padding_idx", None) is not None:
        return len(table.weight) - int(table.padding_idx) - 1
    return len(table.weight) - int(getattr(table, "offset", 0))


@lru_cache(maxsize=_REMEMBERED)
def _num_missing(name: str, given: str, texts: TextFormat, kind: HeadKind) -> int:
    """By how many the positions fall short of the longest text, which an offset may cause.

    Raises:
        UnfitModelError: No such model can be, or the positions are the study's own.
    """
    fields: Mapping[str, Any] = json.loads(given)
    config = architecture.from_nothing(name, fields, texts, Head(kind, ("a", "b")))
    try:
        positions = num_positions(without_memory(config, kind))
    except Exception as error:
        label = f"model.architecture = {name!r}"
        raise architecture.unfit(label, config, fields, error) from error
    if positions is None or positions >= texts.max_length:
        return 0
    field = positions_field(type(config))
    if field is None or {field, "max_position_embeddings"} & set(fields):
        raise _too_long(texts, f"model.architecture = {name!r}", positions)
    return texts.max_length - positions


@lru_cache(maxsize=_REMEMBERED)
def _check_saved_positions(name: str, saved: str, texts: TextFormat, kind: HeadKind) -> None:
    fields = json.loads(saved)
    config = AutoConfig.for_model(**fields)
    positions = num_positions(without_memory(config, kind))
    if positions is not None and positions < texts.max_length:
        raise _too_long(texts, f"model.id = {name!r}", positions)
    trained = getattr(config, "max_position_embeddings", None)
    if isinstance(trained, int) and 0 < trained < texts.max_length:
        length = {texts.length_setting.removeprefix("data."): texts.max_length}
        log.warning("longer_than_trained", model=name, trained=trained, **length)


def _too_long(texts: TextFormat, label: str, positions: int) -> UnfitModelError:
    return UnfitModelError(
        f"{texts.length_setting} = {texts.max_length}: {label} has positions for {positions}"
        f" tokens; {'make blocks' if texts.is_of_blocks else 'cut texts'} of so many at most, or"
        " take a model with more"
    )
