"""How a model computes attention: by which of the implementations that its architecture has.

Invariant: what was asked for is what computes; nothing else is taken in its place.
"""

from __future__ import annotations

from typing import Any, Final

from workers.managers.head import HeadKind
from workers.protocol.errors import UnfitModelError, nearest

#: What every architecture has, and what the others are told by, in its class.
_FLAGS: Final = {
    "eager": None,
    "sdpa": "_supports_sdpa",
    "flex_attention": "_supports_flex_attn",
}

_FLASH: Final = "flash_attention_"

#: Those that train on any device.
_ANYWHERE: Final = ("eager", "sdpa")


def choose(config: Any, name: str | None, kind: HeadKind, *, is_packed: bool = False) -> None:
    """Have a configuration's model compute attention so; None leaves it to `transformers`.

    Args:
        config: A `transformers` configuration.
        name: The implementation.
        kind: The model's head.
        is_packed: Whether a row holds several texts, which must not see one another.

    Raises:
        UnfitModelError: There is no such implementation, the architecture does not have it, or it
            does not keep the texts of a row apart.
    """
    if name is None:
        return
    # here: it imports scipy
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    known = ["eager", *(each for each in ALL_ATTENTION_FUNCTIONS.valid_keys() if "|" not in each)]
    if name not in known:
        raise UnfitModelError(
            f"model.attn_implementation = {name!r}: transformers has {', '.join(known)}"
            f"{nearest(name, known)}"
        )
    cls = kind.mapping[type(config)]
    had = [each for each in known if _has(cls, each)]
    if name not in had:
        raise UnfitModelError(
            f"model.attn_implementation = {name!r}: {config.model_type} does not have it; take"
            f" {' or '.join(had)}"
        )
    if is_packed and name.startswith(_FLASH):
        # transformers tells texts apart by their positions there only in a batch of one row
        raise UnfitModelError(
            f"model.attn_implementation = {name!r} does not keep the texts of a block apart; take"
            " sdpa, set data.across_texts: true, or leave data.block_size out"
        )
    config._attn_implementation = name


def needs_gpu(name: str | None) -> bool:
    """Whether no model trains so without a GPU."""
    return name is not None and name not in _ANYWHERE


def _has(cls: Any, name: str) -> bool:
    flag = "_supports_flash_attn" if name.startswith(_FLASH) else _FLAGS.get(name)
    return flag is None or bool(getattr(cls, flag, False))
