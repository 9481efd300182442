"""Reading the golden cases: what the peers computed, and how to compare."""

from __future__ import annotations

import copy
import json
import os
import re
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from adaptergit.formats.adapterhub import translate, translate_fusion
from adaptergit.formats.adapterhub_heads import translate_head
from adaptergit.splice import Average, BatchSplit, Fuse, MultiTask, Parallel, Split, Stack, adapters
from adaptergit.splice.checkpoint import fill
from adaptergit.splice.fusion import Fusion
from adaptergit.splice.heads import build_head

SMALL = Path(__file__).parent / "assets" / "golden"
_SHARED = Path(__file__).parent.parent.parent / "shared" / "golden"
GOLDEN = Path(os.environ.get("ADAPTERGIT_GOLDEN", _SHARED if _SHARED.is_dir() else SMALL))
BLOCKS = {cls.__name__: cls for cls in (Average, BatchSplit, Fuse, MultiTask, Parallel, Split, Stack)}


def cases(library: str) -> list[str]:
    return sorted(
        path.parent.name
        for path in (GOLDEN / "public").glob("*/case.json")
        if json.loads(path.read_text())["library"] == library
    )


def read(case: str) -> dict[str, Any]:
    return json.loads((GOLDEN / "public" / case / "case.json").read_text())


def inputs_of(io: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key.removeprefix("in."): value for key, value in io.items() if key.startswith("in.")}


def base_model(case: dict[str, Any]) -> nn.Module:
    kind = getattr(transformers, case["load_base_with"])
    folder = GOLDEN / "bases" / case["base"]
    return kind.from_pretrained(folder, attn_implementation="eager", **own_labels(case)).eval()


def own_labels(case: dict[str, Any]) -> dict[str, int]:
    """How many labels the head has that PEFT saved whole."""
    for record in case["adapters"].values():
        path = GOLDEN / "public" / case["id"] / record["checkpoint"]["path"] / "adapter_model.safetensors"
        for key, tensor in load_file(path).items() if path.exists() else ():
            if re.search(r"(classifier|score)\.weight$", key):
                return {"num_labels": tensor.shape[0]}
    return {}


def tensors_of(folder: Path, safe: str, pickled: str) -> dict[str, torch.Tensor]:
    """The library writes some checkpoints as pickle only; the test, unlike the library, trusts these files."""
    path = folder / safe
    return load_file(path) if path.exists() else torch.load(folder / pickled, weights_only=True)


def composition(structure: Any) -> Any:
    """Build a composition from a case's structure."""
    if structure is None or isinstance(structure, str):
        return structure
    kind = BLOCKS[structure["type"]]
    options = {k: v for k, v in structure.items() if k not in ("type", "children")}
    return kind(*(composition(child) for child in structure["children"]), **options)


def splice_adapter(panel: Any, name: str, folder: Path, record: dict[str, Any], case: dict[str, Any]) -> None:
    raw = json.loads((folder / "adapter_config.json").read_text())
    tensors = tensors_of(folder, "adapter.safetensors", "pytorch_adapter.bin")
    if "subtract_projection" in record or "subtract_projection" in case:
        raw["config"]["subtract_projection"] = record.get("subtract_projection", case.get("subtract_projection"))
    extra = folder.parent.parent / "params_not_in_checkpoint.safetensors"
    if extra.exists():
        tensors |= load_file(extra)
    leave_out = (record["checkpoint"].get("load_kwargs") or {}).get("leave_out", [])
    raw["config"]["leave_out"] = sorted({*raw["config"].get("leave_out", []), *leave_out})
    tensors = {
        k: v for k, v in tensors.items() if not any(f".{i}." in k.split(".adapters.")[0] + "." for i in leave_out)
    }
    found = translate(raw, tensors, panel.host, where=str(folder))
    parts = panel.build(found.config, found.host)
    fill({"": parts}, found.tensors, where=str(folder))
    panel.insert(name, found.config, parts)


def splice_head(panel: Any, name: str, folder: Path) -> None:
    raw = json.loads((folder / "head_config.json").read_text())
    tensors = tensors_of(folder, "model_head.safetensors", "pytorch_model_head.bin")
    config, renamed = translate_head(raw, tensors, panel.host, type(panel.model).__name__, str(folder))
    with torch.device("meta"):
        head = build_head(config, panel.model, panel.anatomy.hidden_size).to("meta")
    fill({"": head}, renamed, where=str(folder))
    panel.insert_head(name, config, head)


def splice_fusion(panel: Any, folder: Path) -> None:
    raw = json.loads((folder / "adapter_fusion_config.json").read_text())
    tensors = tensors_of(folder, "model_adapter_fusion.safetensors", "pytorch_model_adapter_fusion.bin")
    name, config, renamed = translate_fusion(raw, tensors, panel.host)
    modules = {}
    for site in panel.branches_of(raw["adapter_names"]):
        own = {k.removeprefix(f"{site.key}."): v for k, v in renamed.items() if k.startswith(f"{site.key}.")}
        module = Fusion(config, panel.host.width(site))
        fresh = {"temperature": module.temperature} if config.temperature else {}
        module.load_state_dict(own | fresh)
        modules[site] = module
    panel.insert_fusion(name, config, modules, raw["adapter_names"])


def watch_output(model: nn.Module) -> dict[str, torch.Tensor]:
    """Collect the base model's output; to be called before a head is active."""
    seen: dict[str, torch.Tensor] = {}
    base = model.base_model

    def leave(_m: Any, _a: Any, output: Any) -> None:
        flatten("out", output, seen)

    base.register_forward_hook(leave)
    if base is model and hasattr(model, "decoder"):  # T5 with its head: no module holds encoder and decoder alone
        model.decoder.register_forward_hook(leave)
    return seen


def watch_blocks(model: nn.Module, case: dict[str, Any], seen: dict[str, torch.Tensor]) -> None:
    """Collect what enters each block, as the cases name it; to be called after adapters are active."""
    base = model.base_model
    for name, path in case["layers_tf5" if transformers.__version__ >= "5" else "layers"].items():
        found = base.get_submodule(path)
        for block in found if isinstance(found, nn.ModuleList) else [found]:

            def enter(_m: Any, args: Any, kwargs: Any, name: str = name) -> None:
                count = sum(key.startswith(f"{name}.") for key in seen)
                seen[f"{name}.{count}"] = args[0] if args else kwargs["hidden_states"]

            block.register_forward_pre_hook(enter, with_kwargs=True)


def flatten(prefix: str, output: Any, seen: dict[str, torch.Tensor]) -> None:
    for key, value in output.items():
        if isinstance(value, torch.Tensor):
            seen[f"{prefix}.{key}"] = value
        elif hasattr(value, "items"):
            flatten(f"{prefix}.{key}", value, seen)


def prepare(case: dict[str, Any], folder: Path) -> Any:
    """Load a case's base model and splice in everything it has."""
    panel = adapters(base_model(case))
    for name, record in case["adapters"].items():
        splice_adapter(panel, name, folder / record["checkpoint"]["path"], record, case)
    for fusion in case["fusions"]:
        splice_fusion(panel, folder / fusion["path"])
    return panel


def prepare_peft(case: dict[str, Any], folder: Path) -> Any:
    """Load a case's base model and splice in its PEFT checkpoints."""
    from adaptergit.formats.peft import translate_peft

    model = base_model(case)
    for record in case["adapters"].values():
        replicate(model, record["config"].get("layer_replication"))
    panel = adapters(model)
    for name, record in case["adapters"].items():
        path = folder / record["checkpoint"]["path"]
        raw = json.loads((path / "adapter_config.json").read_text())
        tensors = tensors_of(path, "adapter_model.safetensors", "adapter_model.bin")
        found = translate_peft(raw, tensors, panel.host, str(path))
        parts = panel.build(found.config, found.host)
        fill({"": parts}, found.tensors, where=str(path))
        panel.insert(name, found.config, parts)
    return panel


def replicate(model: nn.Module, ranges: Any) -> None:
    """Repeat layers, as PEFT does with the base model before it adds adapters."""
    if not ranges:
        return
    layers = model.base_model.layers
    chosen = [layers[i] for start, stop in ranges for i in range(start, stop)]
    copies = nn.ModuleList([copy.deepcopy(layer) for layer in chosen])
    for index, layer in enumerate(copies):
        layer.self_attn.layer_idx = index
    model.base_model.layers = copies
    model.config.num_hidden_layers = len(copies)
    for name in ("layer_types",):
        kinds = getattr(model.config, name, None)
        if kinds:
            setattr(model.config, name, [kinds[0]] * len(copies))
