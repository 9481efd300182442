"""The positions that a model gives its tokens where a call names none: by count, by padding tokens or by the mask."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from adaptergit.errors import ModelError, UsageError
from adaptergit.splice.attention import own_way

if TYPE_CHECKING:
    from adaptergit.splice.plan import Plan

_PICTURES = ("pixel_values", "pixel_values_videos")
_BY_PADDING = "create_position_ids_from_input_ids"


def shift_positions(base: nn.Module, named: dict[str, Any], plan: Plan, seen: int) -> None:
    """Give the first positions of a call to prefixes that want them; the tokens' own come behind."""
    ids = named.get("input_ids")
    tokens = ids if ids is not None else named["inputs_embeds"]
    given, counted = named.get("position_ids"), None
    if given is None:
        if hasattr(base, "get_rope_index") and any(named.get(name) is not None for name in _PICTURES):
            raise UsageError(
                "a prefix that takes positions needs those of pictures",
                hint="pass position_ids of model.get_rope_index(…)",
            )
        given, counted = own_positions(base, named, seen)
    listed = plan.positions(tokens.shape[0])
    taken: Any = listed[0] if len(set(listed)) == 1 else torch.tensor(listed, device=tokens.device)[:, None]
    named["position_ids"] = given + (taken if counted is None else taken * counted)


def check_shift(base: nn.Module, attention: nn.Module, path: str) -> None:
    """Refuse prefixes that take positions where tokens cannot be told theirs.

    Raises:
        ModelError: The model counts by itself.
    """
    if own_way(attention) and hasattr(attention, "compute_bias"):
        raise ModelError(
            "this prefix takes positions, which needs transformers 5 here",
            where=path,
            hint="pip install -U transformers",
        )
    names = (name.rpartition(".")[2] for name, _ in base.named_modules())
    absolute = next((name for name in names if "position" in name and "relative" not in name), None)
    if absolute and "position_ids" not in inspect.signature(base.forward).parameters:
        raise ModelError(
            f"this prefix takes positions, and a {type(base).__name__} counts those of its {absolute} by itself",
            where=path,
            hint="in adaptergit: positions='none'; PEFT has no such prefix",
        )


def own_positions(base: nn.Module, named: Mapping[str, Any], seen: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the positions that a base model would make up, and which of them are counted; None: all.

    Args:
        base: The base model.
        named: What it is called with, by the names of its parameters.
        seen: Tokens in the cache.

    Returns:
        Positions (batch or 1, seq), and a mask (batch, seq): padding keeps the position that it has.
    """
    ids = named.get("input_ids")
    tokens = ids if ids is not None else named["inputs_embeds"]
    counted: torch.Tensor | None = None
    padding = _padding(base)
    if padding is not None:  # RoBERTa's kind begins behind the padding token's number
        if ids is None:
            return torch.arange(seen, seen + tokens.shape[1], device=tokens.device)[None] + padding + 1, None
        counted = ids.ne(padding)
        return (counted.long().cumsum(dim=1) + seen) * counted + padding, counted
    mask = named.get("attention_mask")
    if isinstance(mask, torch.Tensor) and mask.dim() == 2 and _by_mask(type(base).__module__):  # OPT's kind
        counted = mask[:, seen : seen + tokens.shape[1]].bool()
        places = (mask.long().cumsum(dim=1) * mask - 1).long()[:, seen : seen + tokens.shape[1]]
        return places, counted
    return torch.arange(seen, seen + tokens.shape[1], device=tokens.device)[None], None


def _padding(base: nn.Module) -> int | None:
    embeddings = getattr(base, "embeddings", None)
    by_padding = hasattr(embeddings, _BY_PADDING) or hasattr(sys.modules[type(base).__module__], _BY_PADDING)
    padding = getattr(embeddings, "padding_idx", None)
    return int(padding) if by_padding and padding is not None else None


@cache
def _by_mask(module: str) -> bool:
    """Tell whether positions are looked up by the mask in the models of a module."""
    classes = {
        name: found
        for name, found in vars(sys.modules[module]).items()
        if isinstance(found, type) and issubclass(found, nn.Module) and found.__module__ == module
    }
    looks = any(
        name.endswith("LearnedPositionalEmbedding") and "attention_mask" in inspect.signature(found.forward).parameters
        for name, found in classes.items()
    )
    # BioGPT's embedding would count by the mask too, but since transformers 5 it is told to count all.
    return looks and not any("position_ids = torch.arange" in _source(found) for found in classes.values())


def _source(module: type[nn.Module]) -> str:
    try:
        return inspect.getsource(module.forward)
    except (OSError, TypeError):  # there is none to read
        return ""
