"""Prediction heads of AdapterHub's ``adapters`` library."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch

from adaptergit.errors import ModelError, PackageError, UsageError
from adaptergit.splice.heads import (
    HEADS,
    ClassificationHead,
    HeadConfig,
    LanguageModelHead,
    QuestionAnsweringHead,
    StaticHead,
    TaggingHead,
)
from adaptergit.splice.places import Host

HEAD_CONFIG, HEAD_WEIGHTS = "head_config.json", "model_head.safetensors"
NO_HEAD = "leave it out: head=False, or --no-head"

_STATIC = {
    "SequenceClassification": ClassificationHead,
    "TokenClassification": TaggingHead,
    "QuestionAnswering": QuestionAnsweringHead,
}
_STATIC_CLASS = re.compile(f"For({'|'.join(_STATIC)})$")
_BIAFFINE_KEY = re.compile(r"heads\.(?P<name>.+)\.(?P<part>biaffine_(arcs|rels)\.weight)")
_HEAD_KEY = re.compile(r"heads\.(?P<name>.+)\.(?P<index>\d+)\.(?P<part>weight|bias)")


def translate_head(
    raw: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], host: Host, model_class: str, where: str
) -> tuple[HeadConfig, dict[str, torch.Tensor]]:
    """Translate a head: its configuration, and tensors as ours are named.

    Raises:
        PackageError, ModelError: It is of a kind that is not known, or its tensors are not its own.
    """
    config = raw.get("config")
    at = f"{where}/{HEAD_CONFIG}"
    if config is None:
        return _static_head(str(raw.get("model_class") or ""), _labels(raw.get("label2id"), at), tensors, model_class)
    kind = config.get("head_type") if isinstance(config, dict) else config
    cls = HEADS.get(str(kind))
    if cls is None or not isinstance(config, dict):
        raise PackageError(f"heads of the type {kind!r} are not known", where=at, hint=NO_HEAD)
    if getattr(host.base.config, "model_type", "") == "beit":
        config = {**config, "use_pooler": True}  # whatever the configuration says
    known = {f.name for f in fields(cls)} - {"labels"}
    try:
        head = cls(**{k: v for k, v in config.items() if k in known}, labels=_labels(config.get("label2id"), at))
    except (UsageError, TypeError) as error:
        raise PackageError(f"config: {error}", where=at) from error
    return head, _rename(tensors, head, where)


def _rename(tensors: Mapping[str, torch.Tensor], head: HeadConfig, where: str) -> dict[str, torch.Tensor]:
    numbered: dict[int, dict[str, torch.Tensor]] = {}
    renamed = {}
    for key, tensor in tensors.items():
        if match := _HEAD_KEY.fullmatch(key):
            numbered.setdefault(int(match["index"]), {})[match["part"]] = tensor
        elif match := _BIAFFINE_KEY.fullmatch(key):
            renamed[match["part"]] = tensor
        else:
            raise ModelError(f"the tensor {key} is not part of a {head.type} head", where=where)
    # The library numbers dropouts and activations too.
    last = max(numbered, default=0)
    for order, index in enumerate(sorted(numbered)):
        if isinstance(head, LanguageModelHead):
            stem = "decoder" if index == last else f"transform.{index}"
        else:
            stem = f"linears.{order}"
        renamed |= {f"{stem}.{part}": tensor for part, tensor in numbered[index].items()}
    return renamed


def _static_head(
    own_class: str, labels: tuple[str, ...], tensors: Mapping[str, torch.Tensor], model_class: str
) -> tuple[HeadConfig, dict[str, torch.Tensor]]:
    """A head of the model's own class; in another class, the same linear layer as a head beside the model."""
    match = _STATIC_CLASS.search(own_class)
    layers = {key.rpartition(".")[0] for key in tensors}
    if match and own_class != model_class and len(layers) == 1 and layers <= {"classifier", "score", "qa_outputs"}:
        layer = layers.pop()
        head = _STATIC[match[1]](
            num_labels=tensors[f"{layer}.weight"].shape[0],
            layers=1,
            activation_function=None,
            bias=f"{layer}.bias" in tensors,
            use_pooler=match[1] == "SequenceClassification" and layer == "classifier",
            labels=labels,
        )
        return head, {key.replace(layer, "linears.0", 1): value for key, value in tensors.items()}
    return StaticHead(own_class, len(labels) or None, labels=labels), {
        f"copies.{key}": value for key, value in tensors.items()
    }


def _labels(label2id: Any, where: str) -> tuple[str, ...]:
    if label2id is None:
        return ()
    if not isinstance(label2id, dict) or sorted(label2id.values()) != list(range(len(label2id))):
        raise PackageError("label2id: expected names numbered from 0", where=where)
    return tuple(sorted(label2id, key=lambda name: int(label2id[name])))
