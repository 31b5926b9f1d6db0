"""From a study's fields to the configuration of a model of `transformers` with a head.

Fields are taken by the configuration's constructor, so that what it derives from them follows.

Invariant: a configuration that is returned holds every field that was given, under the name that
the architecture knows, and none that it does not know.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Final

import transformers

from workers.managers.head import Head, HeadKind
from workers.managers.proportions import TOKENS, default_of, of_texts, proportions
from workers.managers.text_format import TextFormat
from workers.protocol.errors import UnfitModelError, WorkerLacksError, nearest

#: How much of an error's text a message quotes.
_QUOTED: Final = 300

#: Taken by the constructor of a configuration with rotary positions, and kept under another name.
_ROTARY: Final = frozenset({"rope_theta", "rope_scaling", "partial_rotary_factor"})

#: What cannot be told from a field's name, by architecture: what its fields must be.
_NEEDS: Final = {
    "cohere_compass_text": "give rope_parameters, such as"
    " {full_attention: {rope_type: default, rope_theta: 10000.0}}",
    "deepseek_v2": "give num_experts_per_tok, such as 2",
    "diffllama": "give num_attention_heads and num_key_value_heads that are even",
    "funnel": "give block_sizes, the layers of each block, such as [2, 2], in place of layers",
    "layoutlmv3": "give a hidden_size that 6 divides",
    "lilt": "give a hidden_size that 6 divides",
    "perceiver": "give d_latents, num_latents, num_self_attends_per_block and d_model",
    "reformer": "give attn_layers, such as [local, lsh], in place of a number, and what goes"
    " with it: axial_pos_shape and axial_pos_embds_dim, or axial_pos_embds: false",
    "zamba": "it has 8 layers at least, unless attn_layer_period and attn_layer_offset are given",
    "zamba2": "give layers_block_type, a list such as [linear_attention, hybrid], as long as there"
    " are layers",
}

#: What takes more than texts, whatever its fields are and whatever is installed.
_FOR_MORE_THAN_TEXTS: Final = {
    "layoutlmv2": "it reads pages as images; take layoutlm, or an architecture for texts",
}


def from_nothing(
    architecture: str,
    given: Mapping[str, Any],
    texts: TextFormat,
    head: Head,
    dropout: float | None = None,
) -> Any:
    """The configuration of an architecture, for a model whose weights are drawn.

    Args:
        architecture: A model type of `transformers`.
        given: Fields, by the names of the architecture or the common ones (`hidden_size`).
        texts: The vocabulary gets as many entries, and there are as many positions.
        head: What the model has on top.
        dropout: Sets every dropout probability that is not among the fields.

    Raises:
        UnfitModelError: There is no such architecture, or it cannot be so.
    """
    cls = _class_of(architecture, head.kind)
    label = f"model.architecture = {architecture!r}"
    fields = _completed(cls, _named(cls, given), texts)
    if dropout is not None:
        fields = {**dict.fromkeys(_dropouts(default_of(cls)), dropout), **fields}
    config = _constructed(cls, {**fields, **head.fields}, given, label)
    _check_tokens(config, texts)
    vocab_size = getattr(config, "vocab_size", texts.vocab_size)
    if vocab_size < texts.vocab_size:
        raise UnfitModelError(
            f"model.vocab_size = {vocab_size}: the tokenizer has {texts.vocab_size} entries; leave"
            " it out, or give as many at least"
        )
    return config


def of_pretrained(
    config: Any,
    given: Mapping[str, Any],
    texts: TextFormat,
    head: Head,
    dropout: float | None = None,
) -> Any:
    """A pretrained model's configuration with some fields set anew.

    The arguments are those of `from_nothing`.

    Raises:
        UnfitModelError: It has no such fields, or cannot have such values.
    """
    cls = type(config)
    fields = _named(cls, given)
    if "pad_token_id" in texts.token_ids and not is_pad_added(config, texts):
        fields = {"pad_token_id": texts.token_ids["pad_token_id"], **fields}
    if dropout is not None:
        fields = {**dict.fromkeys(_dropouts(config), dropout), **fields}
    before = {name: value for name, value in config.to_dict().items() if name != "model_type"}
    fields = {**before, **fields, **head.fields}
    configured = _constructed(cls, fields, given, f"model.id = {config.name_or_path!r}")
    if not is_pad_added(config, texts):
        _check_tokens(configured, texts)
    return configured


def is_pad_added(config: Any, texts: TextFormat) -> bool:
    """Whether a pretrained model has yet to embed what pads: no layer can be built with it."""
    vocab_size = getattr(config.get_text_config(), "vocab_size", texts.vocab_size)
    return texts.token_ids.get("pad_token_id", 0) >= vocab_size


def unfit(label: str, config: Any, given: Mapping[str, Any], error: BaseException) -> Exception:
    """The refusal of fields of which no model can be built, or none that takes texts.

    Args:
        label: What the study says the model is.
        config: Its configuration, or the class of one.
        given: The fields that the study gives.
        error: What building or trying it raised.
    """
    fields = ", ".join(f"{name} = {value!r}" for name, value in given.items())
    if isinstance(error, ImportError):
        return WorkerLacksError(
            f"{label} takes what this worker does not have: {_cause(error)}; install it"
        )
    hint = _NEEDS.get(config.model_type) or "mend these fields, or leave them out"
    return UnfitModelError(
        f"{label} cannot be built so{f' ({fields})' if fields else ''}:"
        f" {_cause(error)}{_left_open(config, error)}; {hint}"
    )


def check_for_texts(model_type: str, label: str) -> None:
    """Refuse an architecture that takes more than texts, before it is built.

    Args:
        model_type: Its name in `transformers`.
        label: What the study says the model is.

    Raises:
        UnfitModelError: It is one.
    """
    if (reason := _FOR_MORE_THAN_TEXTS.get(model_type)) is not None:
        raise UnfitModelError(f"{label}: {reason}")


def _class_of(architecture: str, kind: HeadKind) -> Any:
    known = [str(name) for name in transformers.CONFIG_MAPPING]
    if architecture not in known:
        raise UnfitModelError(
            f"model.architecture = {architecture!r}: no such architecture in transformers"
            f" {transformers.__version__}{nearest(architecture, known)}"
        )
    cls = transformers.CONFIG_MAPPING[architecture]
    check_for_texts(architecture, f"model.architecture = {architecture!r}")
    if cls not in kind.mapping:
        raise UnfitModelError(
            f"model.architecture = {architecture!r} has no {kind.name} in transformers;"
            f" take one such as {kind.examples}"
        )
    text_part = getattr(default_of(cls), "text_config", None)
    if text_part is not None:
        raise UnfitModelError(
            f"model.architecture = {architecture!r} takes images, too; take its text part,"
            f" {text_part.model_type}, or another architecture"
        )
    return cls


def _named(cls: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Fields by the names that the constructor takes them by."""
    own = {each.name for each in dataclasses.fields(cls)}
    own |= _ROTARY if "rope_parameters" in own else frozenset()
    named: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for name, value in given.items():
        mapped = cls.attribute_map.get(name, name)
        if mapped not in own:
            raise UnfitModelError(
                f"model.{name} = {value!r}: {cls.model_type} has no such setting"
                f"{_alternative(cls, name, [*own, *cls.attribute_map])}"
            )
        if mapped in named and named[mapped] != value:
            raise UnfitModelError(
                f"model.{name} = {value!r}: {cls.model_type} has it under the name"
                f" {origin[mapped]!r}, too, as {named[mapped]!r}; give one of the two"
            )
        named[mapped], origin[mapped] = value, name
    return named


def _completed(cls: Any, given: Mapping[str, Any], texts: TextFormat) -> dict[str, Any]:
    """The fields that were given, and what follows from them and from the texts."""
    parts = {
        name: _completed(type(part), _named(type(part), value), texts)
        for name, value in given.items()
        if isinstance(value, Mapping)
        and isinstance(part := vars(default_of(cls)).get(name), transformers.PreTrainedConfig)
    }
    fields = {**given, **parts}
    fields = {**of_texts(cls, texts, fields), **fields}
    return {**proportions(cls, fields), **fields}


def _check_tokens(config: Any, texts: TextFormat) -> None:
    """Padding that a model takes for a word, it would learn from."""
    wanted = texts.token_ids.get("pad_token_id", config.pad_token_id)
    if config.pad_token_id != wanted:
        raise UnfitModelError(
            f"model.pad_token_id = {config.pad_token_id}: the tokenizer's is {wanted}; leave it out"
        )


def _alternative(cls: Any, name: str, known: Iterable[str]) -> str:
    """What may have been meant; for a common name that is not mapped, what there is of its kind."""
    if cls.model_type in _NEEDS and name in {"hidden_size", "num_hidden_layers"}:
        return f"; {_NEEDS[cls.model_type]}"
    parts = [each for each in getattr(cls, "sub_configs", {}) if hasattr(default_of(cls), each)]
    if parts:
        return f"; its fields are in {' and '.join(parts)}, each with fields of its own"
    if hint := nearest(name, known):
        return hint
    common = {each.name for each in dataclasses.fields(transformers.PreTrainedConfig)}
    sizes = [
        each.name
        for each in dataclasses.fields(cls)
        if each.name not in {*common, *TOKENS}
        and isinstance(value := getattr(default_of(cls), each.name, None), int)
        and not isinstance(value, bool)
    ]
    return f" (its sizes are {', '.join(sizes)})"


def _dropouts(config: Any) -> list[str]:
    """The names of a configuration's dropout probabilities."""
    return [
        name
        for name, value in vars(config).items()
        if ("dropout" in name or name.endswith("_pdrop"))
        and isinstance(value, (int, float))
        and not isinstance(value, bool)
    ]


def _constructed(cls: Any, fields: dict[str, Any], given: Mapping[str, Any], label: str) -> Any:
    try:
        config = cls(**fields)
    except Exception as error:  # what a constructor raises is up to its author
        raise unfit(label, cls, given, error) from error
    if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        # left to the settings of generation, which a classifier has none of
        config.decoder_start_token_id = config.pad_token_id
    return config


def _cause(error: BaseException) -> str:
    """What an error says, in a line; of a check of a field, what was wrong with it."""
    lines = [line.strip()[:_QUOTED] for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].endswith(":"):
        return lines[1].partition(": ")[2] or lines[1]
    return lines[0] if lines else type(error).__name__


def _left_open(config: Any, error: BaseException) -> str:
    """The numbers that have no value, if that is what was wrong."""
    if "NoneType" not in str(error) or isinstance(config, type):
        return ""
    names = [
        each.name
        for each in dataclasses.fields(config)
        if getattr(config, each.name, 0) is None
        and "int" in str(each.type)
        and not each.name.endswith("_token_id")
    ]
    return f" (nothing is given for {', '.join(names)})" if names else ""
