"""Write an adapter as a checkpoint of AdapterHub's ``adapters`` library.

Only what computes the same there is written; everything else is refused with the reason.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adaptergit.errors import AdaptergitWarning, UsageError
from adaptergit.formats.adapterhub import CONFIG, FUSION_CONFIG, FUSION_WEIGHTS, WEIGHTS
from adaptergit.formats.adapterhub_heads import HEAD_CONFIG, HEAD_WEIGHTS, NO_HEAD
from adaptergit.formats.adapterhub_sites import as_adapters_has_it, block_number, old_path, rescaling, undoes
from adaptergit.formats.folders import SETUP
from adaptergit.splice.anatomy import Projection, Site
from adaptergit.splice.composition import Average, Composition, Fuse
from adaptergit.splice.config import MethodConfig
from adaptergit.splice.fusion import HOTTEST
from adaptergit.splice.heads import DependencyParsingHead, LanguageModelHead, LayersHead
from adaptergit.splice.methods import IA3, Bottleneck, LoRA, MTLLoRA, PrefixTuning, PromptTuning, ReFT, Union, VeRA
from adaptergit.splice.panel import Panel
from adaptergit.splice.places import Attention, BlockOutput, Embedding, Host, Place
from adaptergit.splice.setup import fused
from adaptergit.splice.tensorfile import write_tensors

VERSION = "adapters.1.3.0"
_LIKE_BERT = ("bert", "roberta", "xlm-roberta", "electra", "deberta", "deberta-v2", "bert-generation", "camembert")
_LIKE_T5 = ("t5", "mt5")
_KNOWN = (
    *_LIKE_BERT, *_LIKE_T5, "albert", "bart", "beit", "clip", "distilbert", "gpt2", "gptj", "llama", "mbart", "mistral",
    "plbart", "vit", "whisper", "modernbert", "gemma2", "gemma3_text", "qwen2", "qwen3", "phi",
)  # fmt: skip
_ARCHITECTURES: Mapping[type[MethodConfig], str] = {
    LoRA: "lora",
    IA3: "lora",
    VeRA: "lora",
    MTLLoRA: "mtl_lora",
    PrefixTuning: "prefix_tuning",
    PromptTuning: "prompt_tuning",
    ReFT: "reft",
}
_NO_OPTION = {
    "tagging": ("bias", "use_pooler"),
    "question_answering": ("bias", "use_pooler"),
    "multiple_choice": ("bias", "num_labels"),
    "seq2seq_lm": ("embedding_size",),
    "dependency_parsing": ("dropout_prob",),
}
"""What its heads are all made with the default of, by their type."""


def write_adapterhub(panel: Panel, name: str, folder: Path) -> None:
    """Write an adapter, and its head if it has one.

    Raises:
        UsageError: It would not compute the same there; nothing is written.
    """
    files = _adapter(panel, name, with_head=True)
    _warn_of_undoing(panel, name)
    _write(folder, files)


def write_setup(panel: Panel, composition: Composition | None, heads: Sequence[str], folder: Path) -> None:
    """Write a composition with its adapters, fusions and heads, each in a folder of its own, as ``adapters`` does.

    Raises:
        UsageError: It would not compute the same there; nothing is written.
    """
    adapters = [composition] if isinstance(composition, str) else [*composition.names()] if composition else []
    fusions = list(dict.fromkeys(fused(composition)))
    folders = {name: _adapter(panel, name, with_head=name in heads) for name in dict.fromkeys(adapters)}
    for name in dict.fromkeys(adapters):
        _warn_of_undoing(panel, name)
    folders |= {key: _fusion(panel, key) for key in fusions}
    folders |= {name: _head(panel, name, _envelope(panel)) for name in heads if name not in folders}
    if composition is None:
        if len(folders) != 1:
            raise UsageError("without a composition, adapters keeps one head to a folder")
        _write(folder, next(iter(folders.values())))
        return
    if len(folders) < len(set(adapters)) + len(fusions):
        raise UsageError("an adapter and a fusion have the same name")
    setup = {"adapter_setup": _block(composition), "head_setup": list(heads) or None, "version": VERSION}
    if isinstance(composition, str):
        setup["adapter_setup"] = {"type": "Stack", "children": [_block(composition)]}
    _write(folder, {SETUP: setup})
    for name, files in folders.items():
        _write(folder / name, files)


def _block(composition: Composition | None) -> dict[str, Any]:
    if composition is None:
        raise UsageError("adapters has no row without an adapter")
    if isinstance(composition, str):
        return {"type": "single", "children": [composition]}
    kind = type(composition).__name__
    if kind == "Route":
        raise UsageError("adapters has no routing of rows by name", hint="write a BatchSplit")
    options: dict[str, Any] = {
        name: list(getattr(composition, name)) for name in ("splits", "batch_sizes") if hasattr(composition, name)
    }
    if isinstance(composition, Average):
        options["weights"] = list(composition.factors)
        if not math.isclose(sum(composition.factors), 1.0):
            raise UsageError("adapters divides the weights of an Average by their sum", hint="let them sum to 1")
    children = [_block(child) for child in composition.children]
    if isinstance(composition, Fuse) and composition.key != ",".join(str(child) for child in composition.children):
        options["name"] = composition.key
    return {"type": kind, "children": children, **({"kwargs": options} if options else {})}


def _write(folder: Path, files: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        if file.endswith(".json"):
            (folder / file).write_text(json.dumps(content, indent=2, sort_keys=True))
        else:
            write_tensors(folder / file, content)


def _envelope(panel: Panel) -> dict[str, Any]:
    """What every configuration says of the model.

    Raises:
        UsageError: ``adapters`` does not know the model.
    """
    host = panel.host
    kind = host.model_type
    if kind not in _KNOWN:
        raise UsageError(f"adapters does not know models of the type {kind!r}")
    return {
        "hidden_size": panel.anatomy.hidden_size,
        # Of their class with flexible heads: heads beside the model are what both have.
        "model_class": f"{type(host.base).__name__.removesuffix('Model')}AdapterModel",
        "model_name": str(getattr(panel.model.config, "_name_or_path", "")),
        "model_type": kind,
        "version": VERSION,
    }


def _adapter(panel: Panel, name: str, *, with_head: bool) -> dict[str, Any]:
    """Return the files of an adapter."""
    host, config = panel.host, panel.config(name)
    envelope = _envelope(panel)
    kind = envelope["model_type"]
    if "." in name:
        raise UsageError(f"adapters has no names with a dot: {name!r}", hint="load it under another name=")
    _check_places(panel.spliced(name).parts.places, host, kind)
    files: dict[str, Any] = {
        CONFIG: {"config": _config(config, host), "name": name, **envelope},
        WEIGHTS: dict(_tensors(panel, name, host, kind)),
    }
    return files | (_head(panel, name, envelope) if with_head and name in panel.heads else {})


def _fusion(panel: Panel, key: str) -> dict[str, Any]:
    """Return the files of a fusion."""
    found, host, envelope = panel.fused(key), panel.host, _envelope(panel)
    kind = envelope["model_type"]
    _check_places(found.modules, host, kind)
    prefix = f"{getattr(host.base, 'base_model_prefix', '')}."
    tensors = {
        f"{prefix}{_location(place, host, kind)}.adapter_fusion_layer.{key}.{part}": tensor
        for place, module in found.modules.items()
        if isinstance(place, Site)
        for part, tensor in module.state_dict().items()
        if part != "temperature"
    }
    if any(m.temperature is not None and m.temperature < HOTTEST for m in found.modules.values()):
        raise UsageError(
            f"the fusion {key!r} has come to another temperature than {HOTTEST:g}, where adapters starts every one",
            hint="save_fusion writes it in our own format",
        )
    about = {"adapter_names": list(found.children), "config": found.config.to_dict(), "name": key, **envelope}
    return {FUSION_CONFIG: about, FUSION_WEIGHTS: tensors}


def _check_places(places: Iterable[Place], host: Host, kind: str) -> None:
    theirs = set(as_adapters_has_it(host).sites)
    if any(isinstance(place, Site) and place not in theirs for place in places):
        raise UsageError(
            f"adapters puts its modules elsewhere in {kind} models: the adapter would compute something else"
        )


def _config(config: MethodConfig, host: Host) -> dict[str, Any]:
    if isinstance(config, Union):
        for one, other in combinations(config.configs, 2):
            _check_pair(one, other)
        return {"architecture": "union", "configs": [_config(part, host) for part in config.configs]}
    fields = {key: list(value) if isinstance(value, tuple) else value for key, value in config.to_dict().items()}
    for key in ("leave_out", "layers"):
        if isinstance(fields.get(key), list):
            fields[key] = [block_number(host, index) for index in fields[key]]
    if isinstance(config, Bottleneck):
        if not config.inv_adapter or config.inv_adapter_undo == undoes(host):
            fields.pop("inv_adapter_undo")  # what is left says how we read it back; adapters ignores it
        fields["scaling"] = float(config.scaling) if isinstance(config.scaling, int | float) else config.scaling
        kind = host.model_type
        crossing = any(site.branch == "cross_attention" for site in host.sites)
        if kind in _LIKE_BERT and crossing and config.mh_adapter != config.cross_adapter:
            raise UsageError(
                f"in {kind} models, adapters has attention adapters behind cross-attention too",
                hint="set mh_adapter and cross_adapter alike",
            )
        if config.inv_adapter == "glow":
            raise UsageError("adapters cannot run GLOW adapters")
        return fields
    if type(config) not in _ARCHITECTURES:
        raise UsageError(f"adapters has no {config.method}", hint="PEFT may have it: --to peft")
    if isinstance(config, ReFT) and not config.subtract_projection:
        raise UsageError("adapters does not store that a ReFT is DiReFT, and loads it as NoReFT")
    fields["architecture"] = _ARCHITECTURES[type(config)]
    for ours, wanted in (
        ("target_modules", None), ("rank_pattern", None), ("alpha_pattern", None), ("use_rslora", False),
        ("lora_bias", False), ("feedforward_modules", []), ("before_positions", False), ("positions", "none"),
    ):  # fmt: skip
        if fields.pop(ours, wanted) != wanted:
            raise UsageError(f"adapters has no {ours}", hint="PEFT may have it: --to peft")
    if isinstance(config, LoRA | IA3 | VeRA | MTLLoRA):
        fields |= _low_rank(config, fields, host)
    for only_ours in ("dora_norm", "full", "prompt_init_ids", "random_uniform_scale", "subtract_projection"):
        fields.pop(only_ours, None)
    return fields


def _check_pair(one: MethodConfig, other: MethodConfig) -> None:
    """``adapters`` looks a part of a union up by its class, often before it looks where: it takes one of each."""
    if isinstance(one, Union) or isinstance(other, Union):
        raise UsageError("adapters has no union in a union")
    if isinstance(one, Bottleneck) and isinstance(other, Bottleneck):
        differ = one.mh_adapter != other.mh_adapter and one.output_adapter != other.output_adapter
        taken = (differ or one.leave_out or other.leave_out) and not (one.phm_layer and other.phm_layer)
    else:
        low_rank = (LoRA, IA3, VeRA, MTLLoRA)
        taken = type(one) is not type(other) and not (isinstance(one, low_rank) and isinstance(other, low_rank))
    if not taken:
        raise UsageError(
            f"adapters cannot load a union of {one.method} and {other.method}: it takes them for one thing",
            hint="export them as two adapters, for a Stack",
        )


def _low_rank(config: MethodConfig, fields: dict[str, Any], host: Host) -> dict[str, Any]:
    if isinstance(config, LoRA) and config.use_dora and config.dora_norm != "adapters":
        raise UsageError("adapters computes DoRA in another way", hint="make it with dora_norm='adapters'")
    made = {
        "composition_mode": "add",
        "use_gating": False,
        "use_dora": False,
        "vera_d": None,
        "vera_b": None,
        "dtype": None,
    }
    made |= {"init_weights": "lora"} | {key: fields[key] for key in made if key in fields}
    if isinstance(config, IA3):
        made |= {"composition_mode": "scale", "init_weights": "ia3", "r": 1, "dropout": 0.0}
    if isinstance(config, VeRA):
        made |= {"init_weights": "vera"}
    if host.model_type in ("llama", "mistral"):
        made |= {"intermediate_lora": fields["output_lora"], "output_lora": fields["intermediate_lora"]}
    return made


def _warn_of_undoing(panel: Panel, name: str) -> None:
    """Tell of a language model whose own head ``adapters`` gives other input than we do."""
    config, model = panel.config(name), panel.model
    parts = config.configs if isinstance(config, Union) else (config,)
    bottlenecks = [part for part in parts if isinstance(part, Bottleneck) and part.inv_adapter]
    get: Any = getattr(model, "get_output_embeddings", None)
    if name in panel.heads or get is None or get() is None:
        return
    if any(part.inv_adapter_undo != undoes(panel.host) for part in bottlenecks):
        cls = type(model).__name__
        told = (
            f"adapters undoes an invertible adapter in its {cls}, and {name!r} is not undone here"
            if undoes(panel.host)
            else f"adapters does not undo the invertible adapter of {name!r} in its {cls}, only in heads of its own"
        )
        warnings.warn(f"{told}: there it computes something else", AdaptergitWarning, stacklevel=4)


def _tensors(panel: Panel, name: str, host: Host, kind: str) -> Iterator[tuple[str, torch.Tensor]]:
    prefix = f"{getattr(host.base, 'base_model_prefix', '')}."
    spliced = panel.spliced(name)
    for place, module in spliced.parts.places.items():
        for part, tensor in module.state_dict().items():
            for key, value in _one(place, module, part, tensor, name, host, kind):
                yield prefix + key, value
    shared = (spliced.parts.common, *(getattr(child, "common", None) for child in spliced.parts.children()))
    for holder in shared:
        if isinstance(holder, nn.Module):
            for key, value in holder.state_dict().items():
                own = re.sub(r"^self_prefix(\d*)", _group(host, kind), key)
                stem = "prefix_tuning.prefix_tunings" if "_prefix" in key else "shared_parameters"
                yield f"{prefix}{stem}.{name}.{own}", value


def _group(host: Host, kind: str) -> Any:
    stacks = list(dict.fromkeys(host.stack_of(path) for path in host.anatomy.block_paths))

    def name(match: re.Match[str]) -> str:
        if kind == "distilbert":
            return "self"
        return f"clip_{stacks[int(match[1] or 1) - 1].split('.')[0]}_self_prefix" if kind == "clip" else "self_prefix"

    return name


def _one(
    place: Place, module: nn.Module, part: str, tensor: torch.Tensor, name: str, host: Host, kind: str
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield their names for one of our tensors."""
    if isinstance(place, Site):
        stem = f"{_location(place, host, kind)}.adapters.{name}"
        with_norm = module.config.ln_before  # type: ignore[union-attr]
        for ours, theirs in (("down.", f"adapter_down.{int(bool(with_norm))}."), ("up.", "adapter_up.")):
            if part.startswith(ours):
                part = theirs + part.removeprefix(ours)
        if part.startswith("norm_before."):  # theirs hold it twice
            yield f"{stem}.adapter_down.0.{part.removeprefix('norm_before.')}", tensor
        yield f"{stem}.{re.sub('^norm_', 'adapter_norm_', part)}", tensor
    elif isinstance(place, Projection):
        names = {"factors": "lora_B", "m": "m.weight", "task": "task_specific.values"}
        value = tensor[:, None] if part == "factors" else tensor
        if part in ("vera_D", "vera_B") and tensor.dim() == 1:
            value = torch.diag(tensor)
        yield f"{_old(place.path, kind)}.loras.{name}.{names.get(part, part)}", value
    elif isinstance(place, Embedding):
        stack = "encoder." if kind in _LIKE_T5 or kind in ("bart", "mbart", "plbart", "whisper") else ""
        yield f"{stack}invertible_adapters.{name}.{part}", tensor / rescaling(part, host)
    elif isinstance(place, BlockOutput):
        yield from _reft(place, module, part, tensor, name, kind)
    elif isinstance(place, Attention):
        yield f"{place.path}.prefix_tuning.prefix_gates.{name}.{part.removeprefix('gate.')}", tensor
    else:
        yield f"prompt_tuning.prompt_tunings.{name}.prompt_embedding.weight", tensor


def _old(path: str, kind: str) -> str:
    return old_path(path) if kind in ("vit", "beit") else path


def _location(site: Site, host: Host, kind: str) -> str:
    block = host.anatomy.block_paths[site.block]
    if kind in _LIKE_T5:
        order = [one.branch for one in host.sites if one.block == site.block]
        return f"{block}.layer.{order.index(site.branch)}"
    if kind in _LIKE_BERT:
        tails = {"attention": "attention.output", "cross_attention": "crossattention.output"}
        return f"{block}.{tails.get(site.branch, 'output')}"
    names = {"attention": "attention_adapters", "cross_attention": "cross_attention_adapters"}
    tail = names.get(site.branch, "output_adapters")
    if kind == "albert" and site.branch == "attention":
        tail = f"attention.{tail}"
    if kind == "vit" and site.branch == "ffn":
        tail = f"output.{tail}"
    return f"{_old(block, kind)}.{tail}"


def _reft(
    place: BlockOutput, module: Any, part: str, tensor: torch.Tensor, name: str, kind: str
) -> Iterator[tuple[str, torch.Tensor]]:
    unit, _, part = part.partition(".")
    index = 0 if unit == "prefix" or module.config.tied_weights else 1
    stem = f"{_old(place.path, kind)}.reft_layer.refts.{name}.units.{index}"
    if part.startswith("source."):
        yield f"{stem}.learned_source.{part.removeprefix('source.')}", tensor
    elif not module.config.orthogonality:
        yield f"{stem}.projection.weight", tensor
    else:
        layer: Any = nn.utils.parametrizations.orthogonal(nn.Linear(tensor.shape[1], tensor.shape[0], bias=False))
        with torch.no_grad():
            layer.weight = getattr(module, unit).rows().detach().cpu()
        for key, value in layer.state_dict().items():
            yield f"{stem}.projection.{key}", value


def _head(panel: Panel, name: str, envelope: Mapping[str, Any]) -> dict[str, Any]:
    head: Any = panel.head_config(name)
    module: Any = panel.head_module(name)
    base: Any = panel.host.base
    if not isinstance(head, LayersHead | LanguageModelHead | DependencyParsingHead):
        raise UsageError(f"a head of the kind {head.type!r} cannot be written as one of adapters", hint=NO_HEAD)
    fields = {key: value for key, value in head.to_dict().items() if key != "labels"}
    for option in _NO_OPTION.get(head.type, ()):
        if fields.pop(option) != getattr(type(head), option):
            raise UsageError(f"adapters has no {head.type} head with {option}={getattr(head, option)!r}", hint=NO_HEAD)
    tied = isinstance(head, LanguageModelHead) and getattr(base.config, "tie_word_embeddings", True)
    if tied and not torch.equal(base.get_input_embeddings().weight, module.decoder.weight):
        raise UsageError(
            "adapters ties the output embedding of a language model head, and this one has its own", hint=NO_HEAD
        )
    labels = {label: index for index, label in enumerate(head.labels)} or None
    tensors = {}
    for key, tensor in module.state_dict().items():
        own = key
        if match := re.match(r"linears\.(\d+)\.(.*)", key):  # dropout, linear, activation, …
            step = 3 if getattr(head, "activation_function", None) else 2
            own = f"{1 + step * int(match[1])}.{match[2]}"
        elif key.startswith("transform."):
            own = key.removeprefix("transform.")
        elif key.startswith("decoder."):
            own = f"{len(module.transform)}.{key.removeprefix('decoder.')}"
        tensors[f"heads.{name}.{own}"] = tensor
    config = {**fields, "head_type": head.type, "label2id": labels}
    return {HEAD_CONFIG: {"config": config, "name": name, **envelope}, HEAD_WEIGHTS: tensors}
