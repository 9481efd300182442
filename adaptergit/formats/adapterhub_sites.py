"""Where ``adapters`` puts bottleneck adapters in models in which our anatomy sees other places.

Its checkpoints were trained there, so they act there. The models it supports through its plug-in interface read every
block's norm from the last block (adapters 1.3.0, ``init_bottleneck``); what was trained so is run so.
"""

from __future__ import annotations

from dataclasses import replace

from adaptergit.splice.anatomy import Site
from adaptergit.splice.places import Host

# Models that the library supports through its plug-in interface.
PLUGGED_IN = ("gemma2", "gemma3_text", "modernbert", "phi", "qwen2", "qwen3")


def as_adapters_has_it(host: Host) -> Host:
    """Return the model with the sites of that library."""
    kind = str(getattr(getattr(host.base, "config", None), "model_type", ""))
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
