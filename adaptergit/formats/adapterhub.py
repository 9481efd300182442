"""Checkpoints of AdapterHub's ``adapters`` library: bottleneck adapters with their classification or static head.

A folder holds ``adapter_config.json`` with ``adapter.safetensors``, and optionally ``head_config.json`` with
``model_head.safetensors``. Pickled weights (``pytorch_adapter.bin``) are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from adaptergit.errors import ModelError, NotFoundError, PackageError, UsageError
from adaptergit.splice.anatomy import Anatomy
from adaptergit.splice.config import MethodConfig, config_from_dict
from adaptergit.splice.heads import ClassificationHead, HeadConfig, StaticHead

CONFIG, WEIGHTS = "adapter_config.json", "adapter.safetensors"
HEAD_CONFIG, HEAD_WEIGHTS = "head_config.json", "model_head.safetensors"

_MAX_CONFIG = 1 << 20
# What the library adds to every bottleneck configuration but reads only for Compacter and invertible adapters.
_COMPACTER = re.compile(r"phm_.*|.*_phm(_.*)?|factorized_.*|learn_phm|hypercomplex_nonlinearity|shared_.*")
# adapter-transformers 1.x wrote no version, and meant other functions by these names.
_OLD_ACTIVATIONS = {"gelu": "gelu_new", "gelu_orig": "gelu"}
_KEY = re.compile(r"(?P<location>.+)\.adapters\.(?P<name>[^.]+)\.(?P<part>[a-z_]+(\.\d+)?(\.(weight|bias))?)")
_HEAD_KEY = re.compile(r"heads\.(?P<name>.+)\.(?P<index>\d+)\.(?P<part>weight|bias)")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in our terms: tensors are named as in ``adapter.safetensors``."""

    name: str
    config: MethodConfig
    tensors: Mapping[str, torch.Tensor]
    head: HeadConfig | None = None
    head_tensors: Mapping[str, torch.Tensor] | None = None


def is_adapterhub(folder: Path) -> bool:
    """Tell whether a folder holds an AdapterHub checkpoint (PEFT's configuration has other keys)."""
    path = folder / CONFIG
    if not path.is_file():
        return False
    raw = _json(path)
    return "config" in raw and "peft_type" not in raw


def read_adapterhub(folder: Path, anatomy: Anatomy, *, model_class: str = "", head: bool = True) -> Checkpoint:
    """Read a checkpoint folder. ``model_class`` is the class it is read for: a static head fits only its own.

    Raises:
        NotFoundError: A file is missing.
        PackageError: Not a checkpoint this version can read, or only a pickled one.
        ModelError: Its keys name no site of the model.
    """
    raw = _json(folder / CONFIG)
    tensors = _tensors(folder, WEIGHTS, "pytorch_adapter.bin")
    head_raw = _json(folder / HEAD_CONFIG) if head and (folder / HEAD_CONFIG).is_file() else None
    head_tensors = _tensors(folder, HEAD_WEIGHTS, "pytorch_model_head.bin") if head_raw else None
    return translate(raw, tensors, anatomy, head_raw, head_tensors, model_class=model_class, where=str(folder))


def translate(
    raw: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    anatomy: Anatomy,
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
    config = _config(raw, where)
    renamed = _rename(tensors, config, anatomy, where)
    checkpoint = Checkpoint(str(raw.get("name") or "adapter"), config, renamed)
    if head_raw is None or head_tensors is None:
        return checkpoint
    head, head_renamed = _head(head_raw, head_tensors, model_class, where)
    return replace(checkpoint, head=head, head_tensors=head_renamed)


def _config(raw: Mapping[str, Any], where: str) -> MethodConfig:
    config = raw.get("config")
    if not isinstance(config, dict):
        raise PackageError("config: expected an object", where=f"{where}/{CONFIG}")
    if config.get("architecture"):
        raise PackageError(
            f"adapters of the kind {config['architecture']!r} cannot be read yet", where=f"{where}/{CONFIG}"
        )
    for key, what in (("phm_layer", "Compacter"), ("inv_adapter", "invertible")):
        if config.get(key):
            raise PackageError(f"{what} adapters cannot be read yet ({key}={config[key]!r})", where=f"{where}/{CONFIG}")
    kept = {
        k: v
        for k, v in config.items()
        if not _COMPACTER.fullmatch(k) and not k.startswith(("inv_adapter", "invertible_adapter"))
    }
    if "version" not in raw and kept.get("non_linearity") in _OLD_ACTIVATIONS:
        kept["non_linearity"] = _OLD_ACTIVATIONS[kept["non_linearity"]]
    try:
        return config_from_dict("bottleneck", kept)
    except (UsageError, TypeError) as error:
        raise PackageError(f"config: {error}", where=f"{where}/{CONFIG}") from error


def _rename(
    tensors: Mapping[str, torch.Tensor], config: MethodConfig, anatomy: Anatomy, where: str
) -> dict[str, torch.Tensor]:
    known = {site.key for site in anatomy.sites}
    with_norm = bool(getattr(config, "ln_before", False))
    renamed: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        site = _site(match["location"]) if match else None
        if match is None or site not in known:
            raise ModelError(f"the tensor {key} belongs to no place of this model", where=where)
        part = _part(match["part"], with_norm)
        if part is None:
            raise ModelError(f"the tensor {key} is not part of a bottleneck adapter", where=where)
        name = f"{site}.{part}"
        if name in renamed and not torch.equal(renamed[name], tensor):
            raise PackageError(f"two tensors claim to be {name}", where=where)
        renamed[name] = tensor
    return renamed


def _site(location: str) -> str | None:
    """``bert.encoder.layer.3.attention.output`` → ``blocks.3.attention``."""
    numbers = re.findall(r"\.(\d+)\.", f".{location}.")
    if not numbers:
        return None
    tail = location.rpartition(f".{numbers[-1]}.")[2]
    branch = "cross_attention" if "cross" in tail else "attention" if "attention" in tail else "ffn"
    return f"blocks.{numbers[-1]}.{branch}"


def _part(part: str, with_norm: bool) -> str | None:
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


def _head(
    raw: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], model_class: str, where: str
) -> tuple[HeadConfig, dict[str, torch.Tensor]]:
    config = raw.get("config")
    at = f"{where}/{HEAD_CONFIG}"
    if config is None:
        return _static_head(str(raw.get("model_class") or ""), _labels(raw.get("label2id"), at), tensors, model_class)
    if not isinstance(config, dict) or config.get("head_type") != "classification":
        kind = config.get("head_type") if isinstance(config, dict) else config
        raise PackageError(f"heads of the type {kind!r} cannot be read yet", where=at, hint="load with head=False")
    known = {f.name for f in fields(ClassificationHead)}
    head = ClassificationHead(
        **{k: v for k, v in config.items() if k in known}, labels=_labels(config.get("label2id"), at)
    )
    numbered: dict[tuple[int, str], torch.Tensor] = {}
    for key, tensor in tensors.items():
        match = _HEAD_KEY.fullmatch(key)
        if match is None:
            raise ModelError(f"the tensor {key} is not part of a classification head", where=where)
        numbered[int(match["index"]), match["part"]] = tensor
    order = {index: i for i, index in enumerate(sorted({index for index, _ in numbered}))}
    return head, {f"linears.{order[index]}.{part}": tensor for (index, part), tensor in numbered.items()}


def _static_head(
    own_class: str, labels: tuple[str, ...], tensors: Mapping[str, torch.Tensor], model_class: str
) -> tuple[HeadConfig, dict[str, torch.Tensor]]:
    """A head of the model's own class; in another class, the same linear layer as a head beside the model."""
    for layer, with_pooler in (("classifier", True), ("score", False)):
        if (
            own_class != model_class
            and set(tensors) <= {f"{layer}.weight", f"{layer}.bias"}
            and f"{layer}.weight" in tensors
        ):
            head = ClassificationHead(
                num_labels=tensors[f"{layer}.weight"].shape[0],
                layers=1,
                activation_function=None,
                bias=f"{layer}.bias" in tensors,
                use_pooler=with_pooler,
                labels=labels,
            )
            return head, {key.replace(layer, "linears.0"): value for key, value in tensors.items()}
    return StaticHead(own_class, len(labels) or None, labels), {
        f"copies.{key}": value for key, value in tensors.items()
    }


def _labels(label2id: Any, where: str) -> tuple[str, ...]:
    if label2id is None:
        return ()
    if not isinstance(label2id, dict) or sorted(label2id.values()) != list(range(len(label2id))):
        raise PackageError("label2id: expected names numbered from 0", where=where)
    return tuple(sorted(label2id, key=lambda name: int(label2id[name])))


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise NotFoundError("no such file", where=str(path))
    if path.stat().st_size > _MAX_CONFIG:
        raise PackageError(f"more than {_MAX_CONFIG} bytes", where=str(path))
    try:
        raw = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise PackageError(f"not JSON: {error}", where=str(path)) from error
    if not isinstance(raw, dict):
        raise PackageError("expected a JSON object", where=str(path))
    return raw


def _tensors(folder: Path, name: str, pickled: str) -> dict[str, torch.Tensor]:
    path = folder / name
    if not path.is_file():
        if (folder / pickled).is_file():
            raise PackageError(
                "the weights are pickled, and loading a pickle can run code",
                where=str(folder / pickled),
                hint="ask the publisher for safetensors",
            )
        raise NotFoundError("no such file", where=str(path))
    try:
        return load_file(str(path))
    except SafetensorError as error:
        raise PackageError(f"not a valid safetensors file: {error}", where=str(path)) from error
