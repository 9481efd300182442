"""What models are called with: made-up inputs for one tiny forward, and masks of audio."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.utils.generic import ModelOutput

from adaptergit.errors import ModelError

_LENGTH = 8

CACHE = "cache" if hasattr(ModelOutput, "past_key_values") else "past_key_values"
"""What outputs call the cache: transformers 5.24 gave it a new name, and answers to the old one."""


def cache_in(given: Mapping[str, Any]) -> Any:
    """Return the cache among a call's arguments, by any name that a version of transformers has for it, or None."""
    names = ("cache", "past_key_values", "past_key_value")
    return next((given[name] for name in names if given.get(name) is not None), None)


def cache_of(output: Any) -> Any:
    """Return the cache of a model's output, or None."""
    return getattr(output, CACHE, None)


def tiny_inputs(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return keyword arguments for one forward, batch 1, on the model's device.

    Raises:
        ModelError: The model takes something that cannot be made up.
    """
    parameters = list(inspect.signature(model.forward).parameters)
    config = getattr(model, "config", None)
    text = getattr(config, "text_config", None) or config
    vision = getattr(config, "vision_config", None) or config
    inputs: dict[str, torch.Tensor] = {}
    wanted = {getattr(model, "main_input_name", "input_ids")}
    wanted |= (
        {"input_ids", "pixel_values"} if hasattr(config, "text_config") and hasattr(config, "vision_config") else set()
    )
    if "input_ids" in wanted and "input_ids" in parameters:
        size = int(getattr(text, "vocab_size", 0) or 0)
        first = 5 if size > 20 else 0
        inputs["input_ids"] = (torch.arange(_LENGTH) % max(size - first, 1) + first)[None]
        end = getattr(text, "eos_token_id", None)
        if isinstance(end, int) and 0 <= end < size:
            inputs["input_ids"][0, -1] = end  # heads of some models look for it
    if "pixel_values" in wanted and "pixel_values" in parameters:
        side = getattr(vision, "image_size", 32)
        height, width = (side, side) if isinstance(side, int) else tuple(side)
        inputs["pixel_values"] = torch.zeros(1, int(getattr(vision, "num_channels", 3) or 3), height, width).normal_(
            generator=torch.Generator().manual_seed(0)
        )
    if "input_values" in wanted and "input_values" in parameters:
        inputs["input_values"] = torch.sin(torch.arange(16000) / 10.0)[None]
    if "input_features" in wanted and "input_features" in parameters:
        bins = int(getattr(config, "num_mel_bins", 80))
        frames = 2 * int(getattr(config, "max_source_positions", 64))
        inputs["input_features"] = torch.sin(torch.arange(bins * frames) / 10.0).view(1, bins, frames)
    if "decoder_input_ids" in parameters and getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = torch.arange(5, 5 + _LENGTH)[None] % max(
            int(getattr(config, "vocab_size", 99)), 1
        )
    if not inputs:
        raise ModelError(
            f"no inputs for {type(model).__name__} can be made up (it takes {', '.join(parameters[:6])} …)",
            hint="adaptergit.adapters(model, inputs=…) takes keyword arguments for one small forward",
        )
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return {name: value.to(device) for name, value in inputs.items()}


def mask_of_frames(base: nn.Module, mask: torch.Tensor, frames: int) -> torch.Tensor | None:
    """Return the mask of an encoder's positions, (batch, frames), from one of what it was given.

    Audio models are given samples or spectra, and have fewer positions; others have a position for each entry.
    """
    if getattr(base, "main_input_name", "") not in ("input_values", "input_features") or mask.shape[1] == frames:
        return mask
    of_samples = getattr(base, "_get_feature_vector_attention_mask", None)
    if of_samples is not None:
        found: torch.Tensor = of_samples(frames, mask)
        return found.long()
    step = mask.shape[1] // frames
    return mask[:, ::step] if step * frames == mask.shape[1] else None


def shifted_right(tokens: torch.Tensor, config: Any) -> torch.Tensor:
    """Return a decoder's input for (batch, seq) tokens, as models with heads of their own make it."""
    pad = getattr(config, "pad_token_id", None) or 0
    shifted = tokens.new_full(tokens.shape, int(getattr(config, "decoder_start_token_id", None) or pad))
    shifted[:, 1:] = tokens[:, :-1]
    return shifted.masked_fill(shifted == -100, pad)
