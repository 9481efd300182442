"""Load what a folder of AdapterHub or PEFT holds into a panel: an adapter, a head, a fusion, or a whole set-up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adaptergit.errors import PackageError
from adaptergit.formats.adapterhub import (
    CONFIG,
    FUSION_CONFIG,
    FUSION_WEIGHTS,
    is_adapterhub,
    read_adapterhub,
    translate_fusion,
)
from adaptergit.formats.adapterhub_heads import HEAD_CONFIG, HEAD_WEIGHTS, translate_head
from adaptergit.formats.files import Folder
from adaptergit.formats.peft import WEIGHTS as PEFT_WEIGHTS
from adaptergit.formats.peft import is_peft, read_peft
from adaptergit.splice.checkpoint import fill
from adaptergit.splice.composition import BLOCKS, Composition
from adaptergit.splice.fusion import HOTTEST, Fusion
from adaptergit.splice.panel import Panel
from adaptergit.splice.places import Place

SETUP = "adapter_setup.json"
_MARKS = (CONFIG, HEAD_CONFIG, FUSION_CONFIG, SETUP)
_TASKS = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
}
"""PEFT's names of tasks."""
_CLASSES = {
    **{auto.removeprefix("AutoModel"): auto for auto in (*_TASKS.values(), "AutoModelForMaskedLM")},
    "LMHeadModel": "AutoModelForCausalLM",
    "ForConditionalGeneration": "AutoModelForSeq2SeqLM",
}
"""How names of classes end."""


@dataclass(frozen=True)
class Loaded:
    """What was put into the panel, still inactive."""

    composition: Composition | None = None
    head: str | tuple[str, ...] | None = None


def is_foreign(folder: Path) -> bool:
    """Tell whether a folder holds something in a format of others."""
    return folder.is_dir() and any((folder / name).is_file() for name in _MARKS)


def foreign_format(folder: Folder) -> str | None:
    """Return "adapterhub", "peft", or None: whose files a folder holds."""
    if is_peft(folder):
        return "peft"
    return "adapterhub" if any(name in folder for name in _MARKS) else None


def is_single(folder: Folder) -> bool:
    """Tell whether a folder holds one adapter and nothing beside it but its head."""
    return CONFIG in folder and SETUP not in folder and FUSION_CONFIG not in folder


def model_class(folder: Folder) -> tuple[str, dict[str, Any]]:
    """Return the class of transformers that makes the model a checkpoint fits, and options: where PEFT saved what is
    the model's own, at paths of its class, it is the class that PEFT was used with."""
    raw = folder.json(CONFIG) if is_peft(folder) else {}
    own = any(raw.get(name) for name in ("modules_to_save", "trainable_token_indices", "token_indices"))
    own = own or raw.get("bias", "none") != "none" or raw.get("peft_type") == "LN_TUNING"
    mapping = raw.get("auto_mapping")
    made_in = str(mapping.get("base_model_class")) if isinstance(mapping, Mapping) else ""
    by_class = next((auto for end, auto in _CLASSES.items() if made_in.endswith(end)), None)
    kind = _TASKS.get(str(raw.get("task_type")), by_class)
    if kind is None or not own:
        return "AutoModel", {}
    tensors = folder.tensors(PEFT_WEIGHTS, "adapter_model.bin")
    ends = (".classifier.weight", ".score.weight", ".out_proj.weight")
    rows = [tensor.shape[0] for key, tensor in tensors.items() if key.endswith(ends)]
    return kind, {"num_labels": rows[0]} if rows else {}


def load_folder(
    panel: Panel,
    path: Path,
    *,
    name: str | None = None,
    head: bool = True,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    digests: Mapping[str, str] | None = None,
    about: Any = None,
) -> Loaded:
    """Put what a folder holds into a panel.

    Args:
        panel: Of the model.
        path: Of the folder with AdapterHub's or PEFT's files.
        name: For the adapter, head or fusion; default: its own, or the folder's.
        head: Load heads too.
        device: Default: where the model is.
        dtype: Default: the model's.
        digests: sha256 that the files must have, by name; what is not named is not read.
        about: Where the adapter comes from, for :meth:`Panel.about`.

    Raises:
        NotFoundError, PackageError, ModelError: It cannot be read, or does not fit.
    """
    folder = Folder(path, digests)
    if SETUP in folder:
        return _setup(panel, folder, head, device, dtype)
    if FUSION_CONFIG in folder:
        return _fusion(panel, folder, name)
    if CONFIG not in folder:
        chosen = _head(panel, folder, name, device, dtype)
        return Loaded(None, chosen)
    if is_peft(folder):
        found = read_peft(folder, panel.host)
        chosen = name or path.name
    elif is_adapterhub(folder):
        found = read_adapterhub(folder, panel.host, model_class=type(panel.model).__name__, head=head)
        chosen = name or found.name
    else:
        raise PackageError("neither an AdapterHub nor a PEFT configuration", where=str(path / CONFIG))
    parts = panel.build(found.config, found.host)
    fill({"": parts}, found.tensors, where=str(folder))
    built = None
    if found.head is not None and found.head_tensors is not None:
        built = panel.build_head(found.head)
        fill({"": built}, found.head_tensors, where=str(folder))
    panel.insert(chosen, found.config, parts, dtype=dtype, device=device, about=about)
    if built is not None and found.head is not None:
        panel.insert_head(chosen, found.head, built, dtype=dtype, device=device)
    return Loaded(chosen, chosen if built is not None else None)


def _head(
    panel: Panel, folder: Folder, name: str | None, device: torch.device | None, dtype: torch.dtype | None
) -> str:
    raw = folder.json(HEAD_CONFIG)
    tensors = folder.tensors(HEAD_WEIGHTS, "pytorch_model_head.bin")
    config, renamed = translate_head(raw, tensors, panel.host, type(panel.model).__name__, str(folder))
    module = panel.build_head(config)
    fill({"": module}, renamed, where=str(folder))
    chosen = name or str(raw.get("name") or folder.path.name)
    panel.insert_head(chosen, config, module, dtype=dtype, device=device)
    return chosen


def _fusion(panel: Panel, folder: Folder, name: str | None) -> Loaded:
    raw = folder.json(FUSION_CONFIG)
    tensors = folder.tensors(FUSION_WEIGHTS, "pytorch_model_adapter_fusion.bin")
    own, config, renamed = translate_fusion(raw, tensors, panel.host, str(folder))
    children = [str(child) for child in raw.get("adapter_names") or own.split(",")]
    with torch.device("meta"):
        modules: dict[Place, Fusion] = {
            site: Fusion(config, panel.host.width(site))
            for site in panel.branches_of(child for child in children if child in panel)
        }
    if config.temperature:  # it is not stored there: it starts again
        renamed |= {f"{site.key}.temperature": torch.tensor(HOTTEST) for site in modules}
    fill({f"{site.key}.": module for site, module in modules.items()}, renamed, where=str(folder))
    panel.insert_fusion(name or own, config, modules, children)
    missing = [child for child in children if child not in panel]
    block = BLOCKS["Fuse"](*children, name=None if (name or own) == ",".join(children) else name or own)
    return Loaded(None if missing else block)


def _setup(
    panel: Panel, folder: Folder, with_head: bool, device: torch.device | None, dtype: torch.dtype | None
) -> Loaded:
    raw = folder.json(SETUP)
    heads: list[str] = []
    # Adapters before the fusions over them.
    for inner in sorted(folder.folders(), key=lambda inner: FUSION_CONFIG in inner):
        if is_foreign(inner.path):
            loaded = load_folder(panel, inner.path, head=with_head, device=device, dtype=dtype)
            heads += [loaded.head] if isinstance(loaded.head, str) else []
    return Loaded(_composition(raw.get("adapter_setup"), str(folder.path / SETUP)), tuple(heads) or None)


def _composition(raw: Any, where: str) -> Composition | None:
    if raw is None or isinstance(raw, str):
        return raw
    if not isinstance(raw, Mapping) or not isinstance(raw.get("children"), list):
        raise PackageError("adapter_setup: expected type and children", where=where)
    if raw.get("type") == "single":
        return str(raw["children"][0])
    if raw.get("type") not in BLOCKS:
        raise PackageError(f"adapter_setup: unknown block {raw.get('type')!r}", where=where)
    children = [_composition(child, where) for child in raw["children"]]
    made: Composition = BLOCKS[str(raw["type"])](*children, **dict(raw.get("kwargs") or {}))
    return made
