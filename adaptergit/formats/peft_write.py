"""Write an adapter as a checkpoint of Hugging Face's PEFT.

Only what computes the same there is written; everything else is refused with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from adaptergit.errors import UsageError
from adaptergit.formats.adapterhub import CONFIG
from adaptergit.formats.peft import WEIGHTS
from adaptergit.splice.anatomy import Projection
from adaptergit.splice.config import MethodConfig
from adaptergit.splice.methods import IA3, LoRA, PromptTuning, VeRA
from adaptergit.splice.methods.lora import LoRASite
from adaptergit.splice.panel import Panel
from adaptergit.splice.places import Linear

Made = tuple[dict[str, Any], dict[str, torch.Tensor]]


def write_peft(panel: Panel, name: str, folder: Path) -> None:
    """Write an adapter.

    Raises:
        UsageError: It would not compute the same there; nothing is written.
    """
    config = panel.config(name)
    writers: Mapping[type[MethodConfig], Callable[[Panel, str, Any], Made]] = {
        LoRA: _lora,
        IA3: _ia3,
        VeRA: _vera,
        PromptTuning: _prompt,
    }
    if type(config) not in writers:
        raise UsageError(f"PEFT has no exact equivalent of {config.method}")
    fields, tensors = writers[type(config)](panel, name, config)
    fields = {
        "base_model_name_or_path": str(getattr(panel.model.config, "_name_or_path", "")),
        "task_type": None,
        "inference_mode": True,
        **fields,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(fields, indent=2, sort_keys=True))
    contiguous = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    save_file(contiguous, str(folder / WEIGHTS), metadata={"format": "pt"})


def _sites(panel: Panel, name: str) -> dict[str, Any]:
    """Return an adapter's modules by their path from the whole model."""
    prefix = next((f"{p}." for p, module in panel.model.named_modules() if module is panel.host.base and p), "")
    found = {}
    for place, module in panel.spliced(name).parts.places.items():
        if not isinstance(place, Projection | Linear):
            raise UsageError(f"PEFT has nothing at {place.key}")
        found[f"{prefix}{place.path}"] = module
    return found


def _lora(panel: Panel, name: str, config: LoRA) -> Made:
    if config.use_gating:
        raise UsageError("PEFT has no gated LoRA")
    if config.use_dora and config.dora_norm != "paper":
        raise UsageError("PEFT computes DoRA as the paper does", hint="make it with dora_norm='paper'")
    sites = _sites(panel, name)
    tensors, ranks, alphas = {}, {}, {}
    for path, site in sites.items():
        stem = f"base_model.model.{path}"
        a, b, r, alpha = _whole(site)
        embeds = isinstance(site._host[0], nn.Embedding)
        tensors[f"{stem}.{'lora_embedding_A' if embeds else 'lora_A.weight'}"] = a
        tensors[f"{stem}.{'lora_embedding_B' if embeds else 'lora_B.weight'}"] = b
        if site.lora_bias is not None:
            tensors[f"{stem}.lora_B.bias"] = site.lora_bias
        if site.m is not None:
            tensors[f"{stem}.lora_magnitude_vector"] = site.m.view(-1)
        ranks[path], alphas[path] = r, alpha
    fused = any(type(site._host[0]).__name__ == "Conv1D" for site in sites.values())
    common = next(iter(ranks.values())), next(iter(alphas.values()))
    return {
        "peft_type": "LORA",
        "r": common[0],
        "lora_alpha": common[1],
        "lora_dropout": config.dropout,
        "bias": "none",
        "target_modules": sorted(sites),
        "use_dora": config.use_dora,
        "use_rslora": config.use_rslora,
        "lora_bias": config.lora_bias,
        "fan_in_fan_out": fused,
        "rank_pattern": {path: r for path, r in ranks.items() if r != common[0]},
        "alpha_pattern": {path: alpha for path, alpha in alphas.items() if alpha != common[1]},
    }, tensors


def _whole(site: LoRASite) -> tuple[torch.Tensor, torch.Tensor, int, float]:
    """Return A, B, rank and alpha for the whole layer: slots of a fused one become blocks of B."""
    n = len(site.target.slots)
    alpha = site.scale * (site.r**0.5 if site.config.use_rslora else site.r)
    if not site.target.fused:
        return site.lora_A, site.lora_B, site.r, alpha
    if site.config.use_rslora:
        raise UsageError("a rank-stabilised LoRA of a part of a fused layer has no equivalent in PEFT")
    b = site.lora_B.new_zeros(site.target.outputs, site.r * n)
    start = 0
    for slot, (first, last) in enumerate(site.target.slots):
        b[first:last, slot * site.r : (slot + 1) * site.r] = site.lora_B[start : start + last - first]
        start += last - first
    return site.lora_A, b, site.r * n, alpha * n


def _ia3(panel: Panel, name: str, config: IA3) -> Made:
    sites = _sites(panel, name)
    if config.use_gating or any(site.target.fused for site in sites.values()):
        raise UsageError("PEFT has no gated IA3, and none of a part of a fused layer")
    tensors = {}
    for path, site in sites.items():
        shape = (1, -1) if site.scales_input else (-1, 1)
        tensors[f"base_model.model.{path}.ia3_l"] = (site.factors * config.alpha).view(shape)
    return {
        "peft_type": "IA3",
        "target_modules": sorted(sites),
        "feedforward_modules": sorted(path for path, site in sites.items() if site.scales_input),
        "fan_in_fan_out": any(type(site._host[0]).__name__ == "Conv1D" for site in sites.values()),
    }, tensors


def _vera(panel: Panel, name: str, config: VeRA) -> Made:
    if config.full or config.use_dora:
        raise UsageError("PEFT has no VeRA with full matrices or magnitudes")
    sites = _sites(panel, name)
    shared = panel.spliced(name).parts.common
    tensors = {"base_model.vera_A": shared.lora_A, "base_model.vera_B": shared.lora_B}
    for path, site in sites.items():
        stem = f"base_model.model.{path}.vera_lambda"
        tensors[f"{stem}_b"] = site.vera_B * (config.alpha / config.r)  # PEFT has no other factor
        tensors[f"{stem}_d"] = site.vera_D
    return {
        "peft_type": "VERA",
        "r": config.r,
        "target_modules": sorted(sites),
        "vera_dropout": config.dropout,
        "save_projection": True,
        "projection_prng_key": 0,
        "bias": "none",
        "fan_in_fan_out": any(type(site._host[0]).__name__ == "Conv1D" for site in sites.values()),
    }, tensors


def _prompt(panel: Panel, name: str, config: PromptTuning) -> Made:
    if not config.before_positions or config.combine != "prefix":
        raise UsageError("PEFT puts prompts in front of the input embedding", hint="make it with before_positions=True")
    base = panel.host.base.config
    embedding = next(iter(panel.spliced(name).parts.places.values())).prompt_embedding
    assert isinstance(embedding, torch.Tensor)
    kinds = {"ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM", "ForConditionalGeneration": "SEQ_2_SEQ_LM"}
    cls = type(panel.model).__name__
    return {
        "peft_type": "PROMPT_TUNING",
        # PEFT only adds prompts in its classes for tasks.
        "task_type": next((task for end, task in kinds.items() if cls.endswith(end)), "FEATURE_EXTRACTION"),
        "num_virtual_tokens": config.prompt_length,
        "token_dim": embedding.shape[1],
        "num_transformer_submodules": 2 if getattr(base, "is_encoder_decoder", False) else 1,
        "num_attention_heads": getattr(base, "num_attention_heads", None),
        "num_layers": getattr(base, "num_hidden_layers", None),
    }, {"prompt_embeddings": embedding}
