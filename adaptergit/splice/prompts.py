"""Room for prompts in what a stack is called with: positions, masks, token types."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - PyTorch's own idiom

from adaptergit.errors import ModelError, UsageError
from adaptergit.splice.inputs import shifted_right
from adaptergit.splice.interpret import Chain, HiddenState
from adaptergit.splice.trace import first_tensors

if TYPE_CHECKING:
    from adaptergit.splice.engine import Engine
    from adaptergit.splice.places import Prompt


def make_room(
    engine: Engine, base: nn.Module, names: tuple[str, ...], place: Prompt, named: dict[str, Any], length: int
) -> dict[str, Any]:
    """Widen what a stack is called with, by its parameters' names, for a prompt in front."""
    if not place.path:
        ids = named.pop("input_ids", None)
        embeds = named.get("inputs_embeds")
        if embeds is None and ids is None:
            raise ModelError("a prompt needs input_ids or inputs_embeds of the base model")
        if embeds is None:
            embeds = base.get_input_embeddings()(ids)  # type: ignore[operator]
            decodes = any(named.get(name) is not None for name in ("decoder_input_ids", "decoder_inputs_embeds"))
            shifts = hasattr(sys.modules[type(base).__module__], "shift_tokens_right")
            if "decoder_input_ids" in names and shifts and not decodes:  # as BART's kin do, which sees no ids now
                named["decoder_input_ids"] = shifted_right(ids, base.config)
        named["inputs_embeds"] = engine.run(place, HiddenState(embeds)).hidden
        given = named.get("position_ids")
        if given is not None:
            front = torch.arange(length, device=given.device).expand(given.shape[0], -1)
            named["position_ids"] = torch.cat([front, given + length], dim=1)
        if named.get("token_type_ids") is not None:
            named["token_type_ids"] = widen(named["token_type_ids"], length, 0)
    at = named.get("cache_position")
    if at is not None:  # transformers 4
        named["cache_position"] = torch.cat([torch.arange(length, device=at.device), at + length])
    mask = mask_in(named.get("attention_mask"))
    if mask is None and named.get("attention_mask") is not None:
        raise UsageError(
            "a prompt makes room in masks of tokens, (batch, seq), and this is another one",
            hint="pass the mask of the tokens; generate without a cache of a fixed size",
        )
    given = next((named[n] for n in ("input_ids", "inputs_embeds") if named.get(n) is not None), None)
    if mask is None and place.path and given is not None and "attention_mask" in names:
        # Some models make a mask for the tokens they were given, and would miss the prompt.
        mask = torch.ones(given.shape[:2], dtype=torch.long, device=given.device)
    if mask is not None:
        named["attention_mask"] = widen(mask, length, 1)
    return named


def own_mask(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
    """Give embeddings that clear padding (DeBERTa's) the mask of their tokens, without the prompt's."""
    kwargs = kwargs or {}
    mask, given = kwargs.get("mask"), first_tensors(args, {k: v for k, v in kwargs.items() if k != "mask"})
    if not isinstance(mask, torch.Tensor) or not given:
        return None
    return args, {**kwargs, "mask": mask[:, -given[0].shape[1] :]}


def prompt_length(node: Any) -> int:
    """Return how many positions a composition of prompts adds.

    Raises:
        UsageError: It is another composition than Stack.
    """
    if node is None:
        return 0
    if isinstance(node, Chain):
        return sum(map(prompt_length, node.nodes))
    if not hasattr(node, "prompt_embedding"):
        raise UsageError("prompts compose with Stack and by rows only")
    return len(node.prompt_embedding)


def widen(mask: torch.Tensor, length: int, value: int) -> torch.Tensor:
    """Put a value for each of a prompt's positions in front of a mask, (batch, seq)."""
    return torch.cat([mask.new_full((mask.shape[0], length), value), mask], dim=1)


def mask_in(value: Any, known: int | None = None) -> torch.Tensor | None:
    """Return a mask if it is one of tokens, (batch, seq).

    Args:
        value: A mask, (batch, seq) or (batch, queries, keys), or what is made of one: (batch, 1, queries, keys), bool,
            of ones and zeros or added to the scores, or several of these by kind of attention.
        known: Tokens that there are, those in a cache too: those that any query sees are real. None: not to be told.
    """
    if isinstance(value, dict):
        value = value.get("full_attention", next(iter(value.values()), None))
    if not isinstance(value, torch.Tensor):
        return None
    if value.dim() in (3, 4) and known is not None:
        if value.dim() == 3:  # ones and zeros, whatever their type: models make scores of them
            value = value[:, None].bool()
        seen = value > torch.finfo(value.dtype).min / 2 if value.is_floating_point() else value.bool()
        real = seen.flatten(1, 2).any(dim=1)[:, :known].long()
        return F.pad(real, (known - real.shape[1], 0), value=1)  # before a window, all are
    return value if value.dim() == 2 else None
