"""Checkpoints of AdapterHub's ``adapters`` library, of every age, read into our terms.

A folder holds ``adapter_config.json`` with ``adapter.safetensors``, and optionally ``head_config.json`` with
``model_head.safetensors``; a fusion's folder holds ``adapter_fusion_config.json``. Pickled weights
(``pytorch_adapter.bin``) are refused here.

Its tensor names are module paths of transformers 4; ours are architecture-free. A name is read in three steps: which
block, which place of it, which part of the adapter there.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from packaging.version import InvalidVersion, Version
from torch import nn

from adaptergit.errors import OTHER_MODEL, AdaptergitWarning, ModelError, PackageError, UsageError
from adaptergit.formats.adapterhub_sites import (
    as_adapters_has_it,
    block_numbers,
    is_pair,
    old_path,
    rescaling,
    undoes,
)
from adaptergit.formats.files import Folder
from adaptergit.splice.anatomy import branch_and_role
from adaptergit.splice.config import MethodConfig, config_from_dict, parse_config
from adaptergit.splice.fusion import FusionConfig, fusion_config
from adaptergit.splice.heads import HeadConfig
from adaptergit.splice.methods import IA3, Bottleneck, LoRA, MTLLoRA, PrefixTuning, PromptTuning, ReFT, Union, VeRA
from adaptergit.splice.places import Host

CONFIG, WEIGHTS = "adapter_config.json", "adapter.safetensors"
FUSION_CONFIG, FUSION_WEIGHTS = "adapter_fusion_config.json", "model_adapter_fusion.safetensors"

# adapter-transformers 1.x wrote no version, and meant other functions by these names.
_OLD_ACTIVATIONS = {"gelu": "gelu_new", "gelu_orig": "gelu"}
_OLD_NAMES = {
    "attention_text_task_adapters": "attention.output.adapters",
    "attention_text_lang_adapters": "attention.output.adapters",
    "layer_text_task_adapters": "output.adapters",
    "layer_text_lang_adapters": "output.adapters",
    "invertible_lang_adapters": "invertible_adapters",
}
# How the first releases spelt some fields.
_SPELT = {
    "LN_after": "ln_after",
    "LN_before": "ln_before",
    "MH_Adapter": "mh_adapter",
    "Output_Adapter": "output_adapter",
}
_FIELDS = {
    field.name
    for kind in (Bottleneck, IA3, LoRA, MTLLoRA, PrefixTuning, PromptTuning, ReFT, VeRA)
    for field in fields(kind)
} | {
    "architecture",
    "attention_type",  # of a fusion, not of the adapter
    "composition_mode",
    "dtype",
    "invertible_adapter",
    "output_reft",
    "version",
}
# Until this version, LoRA's alpha was not applied.
_ALPHA_APPLIES = Version("1.1.0")
# Native mixins of these models call the feed-forward's last layer "intermediate" and its first "output".
_SWAPPED = ("llama", "mistral")

_BOTTLENECK = re.compile(r"(?P<place>.*?)\.adapters\.(?P<name>[^.]+)\.(?P<part>.+)")
_LORA = re.compile(  # an adapter of another method may be called "loras"
    r"(?P<place>.*?)(?<!prefix_tunings)(?<!prompt_tunings)(?<!invertible_adapters)\.loras\.(?P<name>[^.]+)\.(?P<part>.+)"
)
_REFT = re.compile(r"(?P<place>.*?)\.reft_layer\.refts\.(?P<name>[^.]+)\.units\.(?P<unit>[01])\.(?P<part>.+)")
_INVERTIBLE = re.compile(r"(?:.*\.)?invertible_adapters\.(?P<name>[^.]+)\.(?P<part>[FG]\.\d+\.(?:weight|bias))")
_SHARED = re.compile(r"(?:.*\.)?shared_parameters\.(?P<name>[^.]+)\.(?P<part>\w+)")
_PROMPT = re.compile(r"(?:.*\.)?prompt_tunings\.(?P<name>[^.]+)\.prompt_embedding\.weight")
_PREFIX = re.compile(
    r"(?P<place>.*?)prefix_tuning\.(?:pool\.)?prefix_tunings\.(?P<name>[^.]+)\.(?P<group>\w+)\.(?P<part>(?:wte|control_trans).*)"
)
_GATE = re.compile(r"(?P<place>.*?)\.prefix_tuning\.prefix_gates\.(?P<name>[^.]+)\.(?P<part>weight|bias)")
_FUSION = re.compile(r"(?P<place>.*?)\.adapter_fusion_layer\.(?P<name>[^.]+)\.(?P<part>\w+\.(?:weight|bias))")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in our terms: tensors are named as in ``adapter.safetensors``."""

    name: str
    config: MethodConfig
    tensors: Mapping[str, torch.Tensor]
    host: Host
    """The model with the sites the checkpoint was made for."""
    head: HeadConfig | None = None
    head_tensors: Mapping[str, torch.Tensor] | None = None


def is_adapterhub(folder: Folder) -> bool:
    """Tell whether a folder holds an AdapterHub checkpoint (PEFT's configuration has other keys)."""
    if CONFIG not in folder:
        return False
    raw = folder.json(CONFIG)
    return "config" in raw and "peft_type" not in raw


def read_adapterhub(folder: Folder, host: Host, *, model_class: str = "", head: bool = True) -> Checkpoint:
    """Read a checkpoint folder. ``model_class`` is the class it is read for: a static head fits only its own.

    Raises:
        NotFoundError: A file is missing.
        PackageError: Not a checkpoint this version can read, or only a pickled one.
        ModelError: Its keys name no place of the model.
    """
    from adaptergit.formats.adapterhub_heads import HEAD_CONFIG, HEAD_WEIGHTS

    raw = folder.json(CONFIG)
    tensors = folder.tensors(WEIGHTS, "pytorch_adapter.bin")
    head_raw = folder.json(HEAD_CONFIG) if head and HEAD_CONFIG in folder else None
    head_tensors = folder.tensors(HEAD_WEIGHTS, "pytorch_model_head.bin") if head_raw else None
    return translate(raw, tensors, host, head_raw, head_tensors, model_class=model_class, where=str(folder))


def translate(
    raw: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    host: Host,
    head_raw: Mapping[str, Any] | None = None,
    head_tensors: Mapping[str, torch.Tensor] | None = None,
    *,
    model_class: str = "",
    where: str = "checkpoint",
) -> Checkpoint:
    """Translate configuration and tensors, already in memory.

    Raises:
        PackageError, ModelError: As :func:`read_adapterhub`.
    """
    from adaptergit.formats.adapterhub_heads import translate_head

    host = as_adapters_has_it(host)
    config = translate_config(raw, tensors, host, where)
    if any(".crossattention.output.adapters." in key for key in tensors):
        config = _crossing(config)
    if host.model_type == "whisper" and any(
        isinstance(part, Bottleneck) and part.inv_adapter for part in _parts_of(config)
    ):
        raise ModelError("adapters puts Whisper's invertible adapters behind the encoder: they invert nothing there")
    renamed = _rename(tensors, config, host, where)
    if isinstance(config, Union):
        renamed = _number(renamed, config, host, where)
    checkpoint = Checkpoint(str(raw.get("name") or "adapter"), config, renamed, host)
    if head_raw is None or head_tensors is None:
        return checkpoint
    head, head_renamed = translate_head(head_raw, head_tensors, host, model_class, where)
    return replace(checkpoint, head=head, head_tensors=head_renamed)


def translate_fusion(
    raw: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], host: Host, where: str = "checkpoint"
) -> tuple[str, FusionConfig, dict[str, torch.Tensor]]:
    """Translate a fusion: its name, configuration and tensors by place.

    Raises:
        PackageError, ModelError: As :func:`read_adapterhub`.
    """
    name = str(raw.get("name") or ",".join(raw.get("adapter_names", ())))
    known = {field.name for field in fields(FusionConfig)}
    config = fusion_config({k: v for k, v in dict(raw.get("config") or {}).items() if k in known})
    renamed = {}
    for key, tensor in tensors.items():
        match = _FUSION.fullmatch(key)
        if match is None:
            raise ModelError(f"the tensor {key} is not part of a fusion", where=where)
        if match["part"].startswith("dense."):
            continue  # made when there is neither query nor key nor value, and never used
        # The library's filter lets tensors of longer names through too.
        if match["name"] == name:
            renamed[f"{_site(match['place'], host, where)}.{match['part']}"] = tensor
    return name, config, renamed


def translate_config(
    raw: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], host: Host, where: str
) -> MethodConfig:
    """Translate the configuration; the tensors tell what it leaves open.

    Raises:
        PackageError: It is not one this version can read.
    """
    config = raw.get("config")
    try:
        if isinstance(config, str):  # the name of a preset
            return parse_config(config)
        if not isinstance(config, dict):
            raise UsageError("expected an object")
        return _one_config({str(_SPELT.get(key, key)): value for key, value in config.items()}, raw, tensors, host)
    except (UsageError, TypeError, ValueError) as error:
        raise PackageError(f"config: {error}", where=f"{where}/{CONFIG}") from error


def _one_config(
    config: Mapping[str, Any], raw: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], host: Host
) -> MethodConfig:
    architecture: str | None = config.get("architecture")
    if architecture == "union":
        return Union(tuple(_one_config(part, raw, tensors, host) for part in config["configs"]))
    if strange := [key for key, value in config.items() if key not in _FIELDS and value]:
        raise UsageError(f"{strange[0]}: not a field that adapters 1.3 or an older version has")
    fields_ = {k: v for k, v in config.items() if k not in ("architecture", "version")}
    for key in ("leave_out", "layers"):
        if isinstance(fields_.get(key), list):
            fields_[key] = _blocks(fields_[key], host)
    if architecture in ("lora", "mtl_lora"):
        return _lora(fields_, raw, tensors, host, architecture)
    kinds: Mapping[str | None, type[MethodConfig]] = {
        None: Bottleneck,
        "prefix_tuning": PrefixTuning,
        "prompt_tuning": PromptTuning,
        "reft": ReFT,
    }
    if architecture not in kinds:
        named = ", ".join(repr(one) for one in kinds if one is not None)
        raise UsageError(f"unknown architecture {architecture!r}", hint=f"known: {named}, lora …, or none")
    if architecture == "reft":
        fields_.pop("output_reft", None)
        fields_.pop("dtype", None)
        if not fields_.get("orthogonality", True) and "subtract_projection" not in fields_:
            warnings.warn(
                "a checkpoint of adapters does not say if it is NoReFT or DiReFT: it is read as NoReFT; for DiReFT, "
                'add "subtract_projection": false to the config in its adapter_config.json',
                AdaptergitWarning,
                stacklevel=2,
            )
    if architecture is None:
        fields_ = _bottleneck_fields(fields_, raw, host)
    known = {field.name for field in fields(kinds[architecture])}
    return config_from_dict(kinds[architecture].family, {k: v for k, v in fields_.items() if k in known})


def _bottleneck_fields(config: dict[str, Any], raw: Mapping[str, Any], host: Host) -> dict[str, Any]:
    nested = config.pop("invertible_adapter", None)
    if isinstance(nested, Mapping):
        config["inv_adapter"] = nested.get("block_type", "nice")
        config["inv_adapter_reduction_factor"] = nested.get("reduction_factor", 2)
    config.setdefault("inv_adapter_undo", undoes(host))  # only we write it
    if "version" not in raw and config.get("non_linearity") in _OLD_ACTIVATIONS:
        config["non_linearity"] = _OLD_ACTIVATIONS[config["non_linearity"]]
    factor = config.get("reduction_factor")
    if isinstance(factor, Mapping):
        own = {str(i): factor[str(theirs)] for i, theirs in enumerate(block_numbers(host)) if str(theirs) in factor}
        config["reduction_factor"] = own | {k: v for k, v in factor.items() if k == "default"}
    return config


def _lora(
    config: dict[str, Any],
    raw: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    host: Host,
    architecture: str,
) -> MethodConfig:
    model_type = str(raw.get("model_type") or host.model_type)
    if model_type in _SWAPPED:
        config["intermediate_lora"], config["output_lora"] = config.get("output_lora"), config.get("intermediate_lora")
    config = {k: (v or False) if k in ("intermediate_lora", "output_lora") else v for k, v in config.items()}
    kind: type[MethodConfig] = MTLLoRA if architecture == "mtl_lora" else LoRA
    if config.get("composition_mode") == "scale":
        kind = IA3
    elif config.get("vera_d") is not None:
        kind = VeRA
        config["full"] = not all(_is_diagonal(t) for k, t in tensors.items() if k.endswith(("vera_D", "vera_B")))
    elif kind is LoRA and config.get("use_dora"):
        config["dora_norm"] = "adapters"
    if kind is LoRA and _older_than(raw.get("version"), _ALPHA_APPLIES):
        config["alpha"] = config.get("r", 8)
    if config.get("init_weights") not in ("lora", "bert"):
        config.pop("init_weights", None)
    known = {field.name for field in fields(kind)}
    return config_from_dict(kind.family, {k: v for k, v in config.items() if k in known})


def _older_than(version: Any, limit: Version) -> bool:
    """Tell whether ``adapters`` wrote a checkpoint before a version; its forerunner counts as other software."""
    if not isinstance(version, str) or not version.startswith("adapters."):
        return False
    try:
        return Version(version.removeprefix("adapters.")) < limit
    except InvalidVersion:
        return False


def _blocks(theirs: list[int], host: Host) -> tuple[int, ...]:
    return tuple(index for index, number in enumerate(block_numbers(host)) if number in theirs)


def _is_diagonal(tensor: torch.Tensor) -> bool:
    return bool((tensor - torch.diag(torch.diagonal(tensor))).eq(0).all())


def _rename(
    tensors: Mapping[str, torch.Tensor], config: MethodConfig, host: Host, where: str
) -> dict[str, torch.Tensor]:
    renamed: dict[str, torch.Tensor] = {}
    for key, tensor in _orthogonal(tensors):
        for old, new in _OLD_NAMES.items():
            key = key.replace(f".{old}.", f".{new}.")
        found = _translate_key(key, tensor, config, host, where)
        if found is None:
            continue
        name, value = found
        if name in renamed and not torch.equal(renamed[name], value):
            raise PackageError(f"two tensors claim to be {name}", where=where)
        renamed[name] = value
    return renamed


def _translate_key(
    key: str, tensor: torch.Tensor, config: MethodConfig, host: Host, where: str
) -> tuple[str, torch.Tensor] | None:
    """Return our name and tensor, or None for what we do not keep."""
    if match := _REFT.fullmatch(key):
        reft = next(c for c in _parts_of(config) if isinstance(c, ReFT))
        return _reft(match, tensor, reft, host, where)
    if match := _BOTTLENECK.fullmatch(key):
        with_norm = any(isinstance(c, Bottleneck) and c.ln_before for c in _parts_of(config))
        part = _bottleneck_part(match["part"], with_norm)
        if part is not None:
            return f"{_site(match['place'], host, where)}.{part}", tensor
    if match := _LORA.fullmatch(key):
        return _lora_key(match, tensor, config, host, where)
    if match := _INVERTIBLE.fullmatch(key):
        return f"embedding.{match['part']}", tensor * rescaling(match["part"], host)
    if match := _SHARED.fullmatch(key):
        return f"shared.{match['part']}", tensor
    if _PROMPT.fullmatch(key):
        return "prompt.prompt_embedding", tensor
    if match := _PREFIX.fullmatch(key):
        group = _group(match["group"], host)
        if group == "self_prefix" and is_pair(host) and match["place"].startswith("encoder."):
            group = "encoder_prefix"
        return f"shared.{group}.{match['part']}", tensor
    if match := _GATE.fullmatch(key):
        block, tail = _block(match["place"], host, where)
        branch = branch_and_role(f"{tail}.q")[0]
        return f"blocks.{block}.{branch}.prefix.gate.{match['part']}", tensor
    raise ModelError(f"the tensor {key} belongs to no place of this model", where=where, hint=OTHER_MODEL)


def _crossing(config: MethodConfig) -> MethodConfig:
    """Models of BERT's kind have attention adapters behind cross-attention too, whatever ``cross_adapter`` says."""
    if isinstance(config, Union):
        return Union(tuple(map(_crossing, config.configs)))
    return replace(config, cross_adapter=True) if isinstance(config, Bottleneck) and config.mh_adapter else config


def _parts_of(config: MethodConfig) -> tuple[MethodConfig, ...]:
    return config.configs if isinstance(config, Union) else (config,)


def _block(place: str, host: Host, where: str) -> tuple[int, str]:
    """Return the block a module path of transformers 4 lies in, and the rest of the path."""
    best: tuple[int, int, str] | None = None
    for index, path in enumerate(host.anatomy.block_paths):
        for name in {path, old_path(path)}:
            match = re.search(rf"(?:^|\.){re.escape(name)}(?:\.|$)", place)
            if match and (best is None or len(name) > best[0]):
                best = (len(name), index, place[match.end() :])
    if best is None:
        raise ModelError(f"{place} is in no block of this model", where=where, hint=OTHER_MODEL)
    return best[1], best[2]


def _site(place: str, host: Host, where: str) -> str:
    """``bert.encoder.layer.3.attention.output`` → ``blocks.3.attention``."""
    block, tail = _block(place, host, where)
    branches = [site.branch for site in host.sites if site.block == block]
    match = re.fullmatch(r"layer\.(\d)", tail)
    if match:  # T5 numbers its sub-layers
        branch = (
            "attention" if match[1] == "0" else "cross_attention" if match[1] == "1" and len(branches) > 2 else "ffn"
        )
    else:
        branch = "cross_attention" if "cross" in tail else "attention" if "attention" in tail else "ffn"
    if branch not in branches:
        raise ModelError(f"{place} is no place of this model", where=where, hint=OTHER_MODEL)
    return f"blocks.{block}.{branch}"


def _bottleneck_part(part: str, with_norm: bool) -> str | None:
    """Translate a tensor's last names. With a LayerNorm in front, ``adapter_down.0`` is that norm once more."""
    linear = "adapter_down.1." if with_norm else "adapter_down.0."
    for old, new in (
        (linear, "down."),
        ("adapter_up.", "up."),
        ("adapter_norm_before.", "norm_before."),
        ("adapter_norm_after.", "norm_after."),
        ("gate.", "gate."),
    ):
        if part.startswith(old):
            return new + part[len(old) :]
    if with_norm and part.startswith("adapter_down.0."):
        return "norm_before." + part.removeprefix("adapter_down.0.")
    return "scaling" if part == "scaling" else None


def _lora_key(
    match: re.Match[str], tensor: torch.Tensor, config: MethodConfig, host: Host, where: str
) -> tuple[str, torch.Tensor] | None:
    block, tail = _block(match["place"], host, where)
    branch, role = branch_and_role(tail)
    if role is None:
        raise ModelError(f"{match['place']} is no linear layer whose role is known", where=where, hint=OTHER_MODEL)
    part = match["part"]
    own = [c for c in _parts_of(config) if isinstance(c, LoRA | IA3 | VeRA | MTLLoRA)]
    if any(isinstance(c, IA3) for c in own):
        if part == "lora_A":
            return None
        part, tensor = ("factors", tensor.reshape(-1)) if part == "lora_B" else (part, tensor)
    for c in own:
        if isinstance(c, VeRA) and not c.full and part in ("vera_D", "vera_B"):
            tensor = torch.diagonal(tensor).contiguous()
    part = {"m.weight": "m", "task_specific.values": "task", "task_specific.weight": "task"}.get(part, part)
    return f"blocks.{block}.{branch}.{role}.{part}", tensor


def _group(name: str, host: Host) -> str:
    """Translate the kind of attention a prefix belongs to."""
    if name in ("self", "self_prefix"):
        return "self_prefix"
    for tower in ("text", "vision"):
        if tower in name:
            stacks = list(dict.fromkeys(host.stack_of(path) for path in host.anatomy.block_paths))
            number = next(i for i, stack in enumerate(stacks) if tower in stack)
            return "self_prefix" if not number else f"self_prefix{number + 1}"
    return name


def _reft(
    match: re.Match[str], tensor: torch.Tensor, config: ReFT, host: Host, where: str
) -> tuple[str, torch.Tensor] | None:
    units = [
        name for name, there in (("prefix", config.prefix_positions), ("suffix", config.suffix_positions)) if there
    ]
    unit = ("prefix", "suffix")[int(match["unit"])]
    if config.tied_weights:
        unit = units[0]
    elif unit not in units:
        return None  # saved, never used
    part = {
        "learned_source.weight": "source.weight",
        "learned_source.bias": "source.bias",
        "projection.weight": "projection",
    }.get(match["part"])
    if part is None:
        raise PackageError(f"the tensor {match[0]} is not part of ReFT", where=where)
    return f"blocks.{_block(match['place'], host, where)[0]}.output.{unit}.{part}", tensor


def _orthogonal(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield all tensors, with the matrices in place of PyTorch's parametrisation of orthogonal ones."""
    for key, tensor in tensors.items():
        if key.endswith(".parametrizations.weight.0.base"):
            continue
        if not key.endswith(".parametrizations.weight.original"):
            yield key, tensor
            continue
        stem = key.removesuffix(".parametrizations.weight.original")
        rows, columns = tensor.shape
        layer: Any = nn.utils.parametrizations.orthogonal(nn.Linear(columns, rows, bias=False))
        state = {"parametrizations.weight.original": tensor}
        if f"{stem}.parametrizations.weight.0.base" in tensors:
            state["parametrizations.weight.0.base"] = tensors[f"{stem}.parametrizations.weight.0.base"]
        layer.load_state_dict(state)
        yield f"{stem}.weight", layer.weight.detach().clone()


def _number(renamed: Mapping[str, torch.Tensor], config: Union, host: Host, where: str) -> dict[str, torch.Tensor]:
    """Say of every tensor which part of the union it belongs to."""
    with torch.device("meta"):
        expected = set(config.build(host).state_dict())
    numbered = {}
    for key, tensor in renamed.items():
        own = [f"{i}.{key}" for i in range(len(config.configs)) if f"{i}.{key}" in expected]
        if len(own) != 1:
            raise ModelError(f"the tensor {key} belongs to {len(own)} parts of the union", where=where)
        numbered[own[0]] = tensor
    return numbered
