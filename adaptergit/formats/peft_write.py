"""Write an adapter as a checkpoint of Hugging Face's PEFT.

Only what computes the same there is written; everything else is refused with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adaptergit.errors import UsageError
from adaptergit.formats.adapterhub import CONFIG
from adaptergit.formats.peft import FORM_PARTS, WEIGHTS
from adaptergit.formats.peft_checks import multiplies
from adaptergit.splice.anatomy import Projection
from adaptergit.splice.config import MethodConfig
from adaptergit.splice.methods import (
    IA3,
    LoRA,
    PrefixTuning,
    PromptTuning,
    TunedParameters,
    Union,
    VeRA,
    WeightForm,
)
from adaptergit.splice.methods.lora import LoRASite
from adaptergit.splice.methods.projections import spread
from adaptergit.splice.methods.tuned import TiedRows, TokenRows, TunedSite
from adaptergit.splice.panel import Panel
from adaptergit.splice.places import Linear, Parts, Place, Tuned
from adaptergit.splice.tensorfile import write_tensors

Made = tuple[dict[str, Any], dict[str, torch.Tensor]]
_STEM = "base_model.model."


@dataclass(frozen=True)
class _Source:
    """What is written."""

    panel: Panel
    places: Mapping[Place, nn.Module]
    shared: Any
    """What modules of several places use, or None."""

    def sites(self) -> dict[str, Any]:
        """Return the modules at linear layers by the layers' paths from the whole model."""
        prefix = _prefix_of(self.panel)
        found = {}
        for place, module in self.places.items():
            if not isinstance(place, Projection | Linear):
                raise UsageError(f"PEFT has nothing at {place.key}")
            found[f"{prefix}{place.path}"] = module
        return found

    def transposed(self) -> bool:
        """Tell whether the layers keep their matrices as GPT-2 does."""
        return any(type(site._host[0]).__name__ == "Conv1D" for site in self.sites().values())


def write_peft(panel: Panel, name: str, folder: Path, *, patterns: bool = True) -> None:
    """Write an adapter.

    Args:
        panel: Of the model.
        name: Of the adapter.
        folder: New.
        patterns: Whether layers may have ranks and alphas of their own, as where some are fused.

    Raises:
        UsageError: It would not compute the same there; nothing is written.
    """
    config, parts = panel.config(name), panel.spliced(name).parts
    tuned = {place: module for place, module in parts.places.items() if isinstance(place, Tuned)}
    if isinstance(config, Union) and len(config.configs) == 2 and isinstance(config.configs[1], TunedParameters):
        first = parts.get_submodule("0")
        assert isinstance(first, Parts)
        fields, tensors = _adapter(config.configs[0], _Source(panel, first.places, first.common))
        more, values = _beside(tuned, set(fields.get("target_modules", ())), panel)
        if "bias" in more and multiplies(config.configs[0]):
            raise UsageError(f"PEFT does not multiply tuned biases, and a {config.configs[0].method} here does")
        if "prompt_embeddings" in tensors:  # no tuner wraps the model then
            values = {key.replace(_STEM, "base_model.", 1): value for key, value in values.items()}
        fields, tensors = fields | more, tensors | values
    elif isinstance(config, TunedParameters):
        fields, tensors = _alone(tuned)
    else:
        fields, tensors = _adapter(config, _Source(panel, parts.places, parts.common))
    if not patterns and (fields.get("rank_pattern") or fields.get("alpha_pattern")):
        raise UsageError(
            "some layers have a rank or an alpha of their own here, as they are fused", hint="--to peft writes them"
        )
    if name in panel.heads and not fields.get("modules_to_save"):
        raise UsageError(
            "a head beside the model has no equivalent in PEFT",
            hint="leave it out: convert(…, head=False), or --no-head",
        )
    fields = {
        "base_model_name_or_path": str(getattr(panel.model.config, "_name_or_path", "")),
        "task_type": None,
        "inference_mode": True,
        **fields,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(fields, indent=2, sort_keys=True))
    write_tensors(folder / WEIGHTS, tensors)


def _adapter(config: MethodConfig, source: _Source) -> Made:
    writers: Mapping[type[MethodConfig], Callable[[Any, _Source], Made]] = {
        LoRA: _lora,
        IA3: _ia3,
        VeRA: _vera,
        PrefixTuning: _prefix,
        PromptTuning: _prompt,
        WeightForm: _form,
    }
    if type(config) not in writers:
        raise UsageError(
            f"PEFT has no exact equivalent of {config.method}",
            hint="--to adapterhub may have one; docs/compatibility.md says who reads what",
        )
    return writers[type(config)](config, source)


def _prefix_of(panel: Panel) -> str:
    return next((f"{p}." for p, module in panel.model.named_modules() if module is panel.host.base and p), "")


def _alone(tuned: Mapping[Tuned, nn.Module]) -> Made:
    """Parameters of the model's own and nothing else: PEFT copies the modules that have them."""
    tensors: dict[str, torch.Tensor] = {}
    rows = {place.path: module for place, module in tuned.items() if isinstance(module, TokenRows)}
    if rows and all(isinstance(module, TokenRows | TiedRows) for module in tuned.values()):
        tokens = {tuple(module.tokens) for module in rows.values()}
        if len(tokens) > 1:
            raise UsageError("PEFT has one list of tokens for all tables", hint="add them to a LoRA")
        tensors |= {f"{_STEM}{path}.trainable_tokens_delta": module.rows for path, module in rows.items()}
        indices = list(tokens.pop())
        return {"peft_type": "TRAINABLE_TOKENS", "target_modules": sorted(rows), "token_indices": indices}, tensors
    for place, module in tuned.items():
        if not isinstance(module, TunedSite):
            raise UsageError("rows for tokens and parameters without a LoRA have no equivalent in PEFT")
        values = dict(module._host[0].named_parameters(recurse=False)) | dict(module.named_parameters())
        tensors |= {f"{_STEM}{place.path}.ln_tuning_layers.{key}": value for key, value in values.items()}
    return {"peft_type": "LN_TUNING", "target_modules": sorted(place.path for place in tuned)}, tensors


def _beside(tuned: Mapping[Tuned, nn.Module], adapted: set[str], panel: Panel) -> Made:
    """Parameters of the model's own beside an adapter: biases, rows for tokens, and whole modules."""
    fields: dict[str, Any] = {}
    tensors: dict[str, torch.Tensor] = {}
    whole: dict[str, dict[str, torch.Tensor]] = {}
    for place, module in tuned.items():
        path = place.path
        if isinstance(module, TiedRows):  # PEFT ties them as well
            continue
        if isinstance(module, TokenRows):
            fields.setdefault("trainable_token_indices", {})[path] = list(module.tokens)
            tensors[f"{_STEM}{path}.token_adapter.trainable_tokens_delta"] = module.rows
            continue
        assert isinstance(module, TunedSite)
        values: dict[str, torch.Tensor] = dict(module.named_parameters())
        if set(values) == {"bias"}:
            fields["bias"] = "all"
            tensors[f"{_STEM}{path}.{'base_layer.' if path in adapted else ''}bias"] = values["bias"]
        elif path in adapted:
            raise UsageError(f"PEFT has no adapter of {path} and values of its own for it at once")
        else:
            whole[path] = values
            tensors |= {f"{_STEM}{path}.{key}": value for key, value in values.items()}
    # PEFT saves a module with all that is in it: of nested ones, the outermost.
    saved = [path for path in whole if not any(path.startswith(f"{other}.") for other in whole)]
    for path in saved:
        if inside := next((target for target in adapted if target.startswith(f"{path}.")), None):
            raise UsageError(f"PEFT has no adapter of {inside} within a copy of {path}")
        own = panel.model.get_submodule(path).state_dict()
        tensors = {f"{_STEM}{path}.{key}": value for key, value in own.items()} | tensors
    return fields | ({"modules_to_save": saved} if saved else {}), tensors


def _lora(config: LoRA, source: _Source) -> Made:
    if config.use_gating:
        raise UsageError("PEFT has no gated LoRA", hint="make it with use_gating=False")
    if config.use_dora and config.dora_norm != "paper":
        raise UsageError("PEFT computes DoRA as the paper does", hint="make it with dora_norm='paper'")
    sites = source.sites()
    tensors, ranks, alphas = {}, {}, {}
    for path, site in sites.items():
        stem = f"{_STEM}{path}"
        a, b, bias, r, alpha = _whole(site)
        embeds = isinstance(site._host[0], nn.Embedding)
        tensors[f"{stem}.{'lora_embedding_A' if embeds else 'lora_A.weight'}"] = a
        tensors[f"{stem}.{'lora_embedding_B' if embeds else 'lora_B.weight'}"] = b
        if bias is not None:
            if embeds:
                raise UsageError(
                    f"PEFT has no LoRA with a bias of an embedding: {path}", hint="make it with lora_bias=False"
                )
            tensors[f"{stem}.lora_B.bias"] = bias
        if site.m is not None:
            tensors[f"{stem}.lora_magnitude_vector"] = site.m.view(-1)
        ranks[path], alphas[path] = r, alpha
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
        "fan_in_fan_out": source.transposed(),
        "rank_pattern": {path: r for path, r in ranks.items() if r != common[0]},
        "alpha_pattern": {path: alpha for path, alpha in alphas.items() if alpha != common[1]},
    }, tensors


def _whole(site: LoRASite) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, int, float]:
    """Return A, B, its bias, rank and alpha for the whole layer: slots of a fused one become blocks of B."""
    n = len(site.target.slots)
    alpha = site.scale * (site.r**0.5 if site.config.use_rslora else site.r)
    if not site.target.fused:
        return site.lora_A, site.lora_B, site.lora_bias, site.r, alpha
    if site.config.use_rslora:
        raise UsageError(
            "a rank-stabilised LoRA of a part of a fused layer has no equivalent in PEFT",
            hint="make it with use_rslora=False",
        )
    b = site.lora_B.new_zeros(site.target.outputs, site.r * n)
    start = 0
    for slot, (first, last) in enumerate(site.target.slots):
        b[first:last, slot * site.r : (slot + 1) * site.r] = site.lora_B[start : start + last - first]
        start += last - first
    bias = None if site.lora_bias is None else spread(list(torch.split(site.lora_bias, site.sizes)), site.target)
    return site.lora_A, b, bias, site.r * n, alpha * n


def _ia3(config: IA3, source: _Source) -> Made:
    sites = source.sites()
    if config.use_gating or any(site.target.fused for site in sites.values()):
        raise UsageError(
            "PEFT has no gated IA3, and none of a part of a fused layer",
            hint="make it with use_gating=False" if config.use_gating else None,
        )
    tensors = {}
    for path, site in sites.items():
        shape = (1, -1) if site.scales_input else (-1, 1)
        tensors[f"{_STEM}{path}.ia3_l"] = (site.factors * config.alpha).view(shape)
    return {
        "peft_type": "IA3",
        "target_modules": sorted(sites),
        "feedforward_modules": sorted(path for path, site in sites.items() if site.scales_input),
        "fan_in_fan_out": source.transposed(),
    }, tensors


def _vera(config: VeRA, source: _Source) -> Made:
    if config.full or config.use_dora:
        raise UsageError(
            "PEFT has no VeRA with full matrices or magnitudes", hint="make it with full=False and use_dora=False"
        )
    sites = source.sites()
    tensors = {"base_model.vera_A": source.shared.lora_A, "base_model.vera_B": source.shared.lora_B}
    for path, site in sites.items():
        stem = f"{_STEM}{path}.vera_lambda"
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
        "fan_in_fan_out": source.transposed(),
    }, tensors


def _form(config: WeightForm, source: _Source) -> Made:
    sites = source.sites()
    ranks = {path: site.r for path, site in sites.items() if site.r != config.r}
    alphas = {path: site.alpha for path, site in sites.items() if site.alpha != config.alpha}
    if (ranks or alphas) and config.kind not in ("loha", "lokr"):
        raise UsageError(
            f"PEFT has no {config.kind} with patterns of ranks", hint="make it without rank_pattern and alpha_pattern"
        )
    if config.neumann_terms == 3:
        raise UsageError("PEFT computes an OFT of 3 terms as one of 4", hint="make it with neumann_terms=4")
    patterns = {"rank_pattern": ranks, "alpha_pattern": alphas}
    prefix, suffix = FORM_PARTS[config.kind]
    kinds: Mapping[str, dict[str, Any]] = {
        "loha": {"r": config.r, "alpha": config.alpha, **patterns},
        "lokr": {
            "r": config.r,
            "alpha": config.alpha,
            "decompose_factor": config.factor,
            "decompose_both": config.decompose_both,
            **patterns,
        },
        "fourierft": {
            "n_frequency": config.n_frequency,
            "scaling": config.scaling,
            "random_loc_seed": config.random_loc_seed,
            "fan_in_fan_out": source.transposed(),
        },
        "miss": {"r": config.r},
        "oft": {
            "r": 0 if config.block_size else config.r,
            "oft_block_size": config.block_size,
            "block_share": config.block_share,
            "use_cayley_neumann": config.neumann_terms > 0,
            "num_cayley_neumann_terms": config.neumann_terms or 5,
        },
        "boft": {"boft_block_size": config.block_size, "boft_block_num": 0, "boft_n_butterfly_factor": 1},
        "hra": {"r": config.r, "apply_GS": config.orthogonal},
    }
    return {"peft_type": config.kind.upper(), "target_modules": sorted(sites), **kinds[config.kind]}, {
        f"{_STEM}{path}.{prefix}{key}{suffix}": value
        for path, site in sites.items()
        for key, value in site.named_parameters()
    }


def _prefix(config: PrefixTuning, source: _Source) -> Made:
    networks = dict(source.shared.named_children())
    if not config.flat or config.positions != "before" or config.use_gating or config.leave_out:
        raise UsageError(
            "PEFT has flat prefixes that take positions", hint="make it with flat=True and positions='before'"
        )
    if set(networks) != {"self_prefix"}:
        raise UsageError("PEFT has prefixes of one attention to a block only")
    network = networks["self_prefix"]
    length, layers, heads, size = network.shape
    embeddings = network.control_trans.view(length, -1)
    fields = _virtual_tokens(source.panel, length)
    if fields["num_transformer_submodules"] == 2:
        # See formats/peft.py: of what PEFT stores there, the decoder uses these, some of them twice.
        order = [(2 * layer + part) % layers for layer in range(0, layers, 2) for part in (0, 1)]
        whole = torch.zeros(length, layers, heads * size, dtype=embeddings.dtype, device=embeddings.device)
        whole[:, order] = embeddings.detach().view(length, layers, -1)
        if not torch.equal(whole[:, order].view(length, -1), embeddings):
            raise UsageError("PEFT gives blocks of a decoder the same prefixes, and these differ")
        embeddings = whole.view(length, -1)
    return {
        **fields,
        "peft_type": "PREFIX_TUNING",
        "token_dim": heads * size,
        "num_attention_heads": heads,
        "num_layers": layers // 2,
        "encoder_hidden_size": heads * size,
        "prefix_projection": False,
    }, {"prompt_embeddings": embeddings}


def _prompt(config: PromptTuning, source: _Source) -> Made:
    if not config.before_positions or config.combine != "prefix":
        raise UsageError("PEFT puts prompts in front of the input embedding", hint="make it with before_positions=True")
    base = source.panel.host.base.config
    embedding = next(iter(source.places.values())).prompt_embedding
    assert isinstance(embedding, torch.Tensor)
    return {
        **_virtual_tokens(source.panel, config.prompt_length),
        "num_transformer_submodules": 1,  # with 2, half of the rows would be the decoder's
        "peft_type": "PROMPT_TUNING",
        "token_dim": embedding.shape[1],
        "num_attention_heads": getattr(base, "num_attention_heads", None),
        "num_layers": getattr(base, "num_hidden_layers", None),
    }, {"prompt_embeddings": embedding}


def _virtual_tokens(panel: Panel, count: int) -> dict[str, Any]:
    kinds = {"ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM", "ForConditionalGeneration": "SEQ_2_SEQ_LM"}
    cls = type(panel.model).__name__
    return {
        # PEFT only adds positions in its classes for tasks.
        "task_type": next((task for end, task in kinds.items() if cls.endswith(end)), "FEATURE_EXTRACTION"),
        "num_virtual_tokens": count,
        "num_transformer_submodules": 2 if getattr(panel.host.base.config, "is_encoder_decoder", False) else 1,
    }
