"""What follows from the few fields that a study gives of a model: its other sizes, by proportion.

Invariant: what nobody gave keeps the proportions that the architecture has by default.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final

from workers.managers.text_format import TextFormat

#: The size of an attention head where only the width of a model is given, as in BERT.
_HEAD_SIZE: Final = 64

#: Matrix products of some kernels want rows of 16 bytes, also in half precision.
_ALIGNED: Final = 8

#: Endings of the names of widths that grow with the width of the model.
_INNER_WIDTHS: Final = (
    "intermediate_size", "ffn_dim", "d_ff", "n_inner", "ffn_hidden_size", "d_inner", "hidden_dim",
    "feed_forward_size",
)  # fmt: skip

#: Widths of the parts of an embedding that add up to the width of the model.
_PARTS_OF_THE_WIDTH: Final = ("coordinate_size", "shape_size")

_HEAD_WIDTHS: Final = ("head_dim", "d_kv", "kv_channels", "attention_head_dim")

#: Of the decoder, where a model has two halves; the names of the encoder's are the common ones.
_DECODER_LAYERS: Final = ("decoder_layers", "num_decoder_layers")

TOKENS: Final = tuple(f"{name}_token_id" for name in ("pad", "bos", "eos", "sep", "cls", "mask"))


@cache
def default_of(cls: Any) -> Any:
    """An architecture's configuration as it is where nothing is given; not to be changed."""
    return cls()


def positions_field(cls: Any) -> str | None:
    """The field that says how many positions an architecture has, if one does."""
    own = {each.name for each in dataclasses.fields(cls)}
    common = cls.attribute_map.get("max_position_embeddings", "max_position_embeddings")
    return next((name for name in (common, "max_seq_len") if name in own), None)


def of_texts(cls: Any, texts: TextFormat, given: Mapping[str, Any]) -> dict[str, Any]:
    """What follows from the tokenizer and the longest text."""
    default, names = default_of(cls), cls.attribute_map
    fields: dict[str, Any] = {}
    if hasattr(default, "vocab_size"):
        fields[names.get("vocab_size", "vocab_size")] = texts.vocab_size
    vocab_size = given.get(names.get("vocab_size", "vocab_size"), texts.vocab_size)
    for name in TOKENS:
        if name in texts.token_ids:
            fields[names.get(name, name)] = texts.token_ids[name]
        elif isinstance(value := getattr(default, name, None), int) and value >= vocab_size:
            fields[names.get(name, name)] = None  # of a larger vocabulary
    positions = positions_field(cls)
    if positions is not None and 0 < getattr(default, positions) < texts.max_length:
        fields[positions] = texts.max_length
    if "decoder_start_token_id" in vars(default) and "eos_token_id" in texts.token_ids:
        fields["decoder_start_token_id"] = texts.token_ids["eos_token_id"]
    if "use_cache" in vars(default):
        fields["use_cache"] = False  # of keys and values, for generation
    return fields


def proportions(cls: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """What follows from a width, a number of layers or of heads that was given."""
    default, names = default_of(cls), cls.attribute_map
    fields: dict[str, Any] = {}
    layers = given.get(names.get("num_hidden_layers", "num_hidden_layers"))
    if isinstance(layers, int):
        fields |= {
            name: layers for name in _DECODER_LAYERS if isinstance(vars(default).get(name), int)
        }
    width = given.get(width_name := names.get("hidden_size", "hidden_size"))
    if isinstance(width, int):
        fields |= _widths(cls, width, vars(default).get(width_name))
    heads = given.get(heads_name := names.get("num_attention_heads", "num_attention_heads"))
    if heads is None and isinstance(width, int) and heads_name in vars(default):
        heads = max(1, width // _HEAD_SIZE)
        heads = fields[heads_name] = heads if width % heads == 0 else 1
    if isinstance(heads, int) and heads > 0:
        fields |= _of_heads(cls, heads, width)
    if irregular := _IRREGULAR.get(cls.model_type):
        fields |= irregular({**fields, **given})
    return fields


def _widths(cls: Any, width: int, before: int) -> dict[str, Any]:
    """Every width beside the model's, in the proportion that it has by default."""
    default = default_of(cls)
    fields: dict[str, Any] = {}
    for name, value in vars(default).items():
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        if name.endswith(_INNER_WIDTHS):
            fields[name] = _ALIGNED * max(1, math.ceil(value * width / before / _ALIGNED))
        elif name in _PARTS_OF_THE_WIDTH:
            fields[name] = max(1, round(value * width / before))
        elif name == "embedding_size" and value == before:
            fields[name] = width
    return fields


def _of_heads(cls: Any, heads: int, width: object) -> dict[str, Any]:
    """What depends on the number of attention heads."""
    default = vars(default_of(cls))
    fields: dict[str, Any] = {
        name: heads for name in ("decoder_attention_heads",) if name in default
    }
    default_heads = default_of(cls).num_attention_heads
    if "num_key_value_heads" in default:
        shared = default_heads // (default["num_key_value_heads"] or default_heads)
        most = max(1, heads // max(1, shared))
        fields["num_key_value_heads"] = next(n for n in range(most, 0, -1) if heads % n == 0)
    if (
        isinstance(width, int) and "qk_rope_head_dim" not in default
    ):  # those have widths of their own
        derived = _derived_fields(cls)
        fields |= {
            name: width // heads for name in _HEAD_WIDTHS if name in default and name not in derived
        }
    return fields


def _derived_fields(cls: Any) -> set[str]:
    """Fields that the constructor fills where they are left out."""
    default = vars(default_of(cls))
    return {
        each.name
        for each in dataclasses.fields(cls)
        if each.default is None and default.get(each.name) is not None
    }


def _alternating(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Global and local attention in turn, over all layers."""
    pairs, odd = divmod(fields.get("num_layers", 24), 2)
    types = [[["global", "local"], pairs], [["global"], odd]]
    return {"attention_types": [each for each in types if each[1]]}


def _two_heads(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Of one head and short texts, torch 2.13 crashes in the backward pass of the convolution."""
    return {"num_attention_heads": 2} if fields.get("num_attention_heads") == 1 else {}


def _first_language(fields: Mapping[str, Any]) -> dict[str, Any]:
    """One adapter, where no language was chosen."""
    languages = fields.get("languages", ("en_XX",))
    return {"languages": languages, "default_language": languages[0]}


_IRREGULAR: Final[Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]]] = {
    "gpt_neo": _alternating,
    "nystromformer": _two_heads,
    "xmod": _first_language,
}
