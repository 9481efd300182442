"""Where ``adapters`` puts bottleneck adapters in models in which our anatomy sees other places.

Its checkpoints were trained there, so they act there. The models it supports through its plug-in interface read every
block's norm from the last block (adapters 1.3.0, ``init_bottleneck``); what was trained so is run so.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace

from adaptergit.splice.anatomy import Site
from adaptergit.splice.places import Host

# Models that the library supports through its plug-in interface.
PLUGGED_IN = ("gemma2", "gemma3_text", "modernbert", "phi", "qwen2", "qwen3")


def as_adapters_has_it(host: Host) -> Host:
    """Return the model with the sites of that library."""
    kind = host.model_type
    paths = host.anatomy.block_paths
    moved = tuple(_move(site, kind, paths[site.block], paths[-1]) for site in host.sites if site.ordinal == 1)
    return host if moved == host.sites else Host(host.model, replace(host.anatomy, sites=moved))


def _move(site: Site, kind: str, block: str, last: str) -> Site:
    attention = site.branch == "attention"
    if kind in ("gemma2", "gemma3_text"):
        reads, norm = ("input", "post_attention") if attention else ("pre_feedforward", "post_feedforward")
        return replace(
            site,
            output=f"{block}.self_attn" if attention else f"{block}.mlp",
            residual=f"{block}.{reads}_layernorm",
            norm=f"{last}.{norm}_layernorm",
        )
    if kind == "modernbert":
        output = f"{block}.attn" if attention else f"{block}.mlp"
        return replace(site, output=output, residual=output, norm=f"{last}.mlp_norm" if attention else None)
    if kind == "phi" and not attention:
        return replace(site, output=f"{block}.mlp", residual=None)
    if kind == "gptj" and not attention:
        return replace(site, residual=f"{block}.ln_1+{block}.attn")
    if kind == "albert" and attention:
        return replace(site, swapped=True)
    return site


def block_numbers(host: Host) -> list[int]:
    """Return the number the library gives to each of our blocks.

    It counts through encoder and decoder, a text tower before a vision tower, and starts again in the decoder of a pair
    of models.
    """
    paths = host.anatomy.block_paths
    stacks = list(dict.fromkeys(host.stack_of(path) for path in paths))
    order = sorted(stacks, key=lambda stack: (not stack.startswith("text"), stacks.index(stack)))
    start, starts = 0, {}
    pair = is_pair(host)
    for stack in order:
        starts[stack] = 0 if pair else start
        start += sum(host.stack_of(path) == stack for path in paths)
    seen: dict[str, int] = {}
    numbers = []
    for path in paths:
        stack = host.stack_of(path)
        numbers.append(starts[stack] + seen.get(stack, 0))
        seen[stack] = seen.get(stack, 0) + 1
    return numbers


def is_pair(host: Host) -> bool:
    """Tell whether a model is two models of other kinds, one encoding and one decoding."""
    return host.model_type == "encoder-decoder"


def undoes(host: Host) -> bool:
    """Tell whether the library undoes an invertible adapter in a language model's own class too.

    In its classes with flexible heads it always does.
    """
    return host.model_type in PLUGGED_IN


def rescaling(part: str, host: Host) -> float:
    """Return what a tensor of an invertible adapter (``F.0.weight``) is multiplied by when it comes from the library.

    In Gemma 2 it acts before the embedding is scaled by √hidden, which transformers 5 does inside the embedding: with
    ``n`` the scale, ``n (x + F(y))`` is ``nx + F'(ny)``.
    """
    if host.model_type != "gemma2":
        return 1.0
    scale = math.sqrt(host.hidden_size)
    return {"0.weight": 1 / scale, "0.bias": 1.0}.get(part[2:], scale)


def block_number(host: Host, index: int) -> int:
    """Return the library's number of one of our blocks."""
    return block_numbers(host)[index]


# Linear layers that transformers 5 renamed (ViT, BEiT).
_OLD_TAILS = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def old_path(path: str) -> str:
    """Return what transformers 4 called a module, where transformers 5 renamed it (ViT, BEiT)."""
    match = re.fullmatch(r"layers\.(\d+)(?:\.(.*))?", path)
    if match is None or (match[2] and match[2] not in _OLD_TAILS):
        return path
    return f"encoder.layer.{match[1]}" + (f".{_OLD_TAILS[match[2]]}" if match[2] else "")
