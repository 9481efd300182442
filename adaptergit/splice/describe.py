"""Say what was found in a model: its blocks, the branches of each, and its linear layers by role."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from adaptergit.base_place import not_loaded, place_of
from adaptergit.errors import NotFoundError
from adaptergit.splice.anatomy import Anatomy, anatomy_of, as_records, base_of, projections_of

_LETTERS: Mapping[str, str] = {"attention": "A", "cross_attention": "X", "ffn": "F", "moe": "M", "mixer": "S"}


def model_for_inspection(source: str) -> nn.Module:
    """Make a model from its configuration alone: its weights are not needed to find its parts.

    Args:
        source: A folder with a ``config.json``, or an id on the Hugging Face hub; the settings may map it to a folder.

    Raises:
        NotFoundError: There is no configuration transformers understands.
    """
    import transformers

    place = place_of(source)
    if "@" in source and not Path(place.source).exists():
        raise NotFoundError("this names an adapter, not a model", where=source, hint=f"adaptergit summary {source}")
    try:
        config = transformers.AutoConfig.from_pretrained(
            place.source, trust_remote_code=False, local_files_only=place.offline
        )
        names = list(getattr(config, "architectures", None) or [])
        found = [getattr(transformers, name, None) for name in names]
        kind: Any = next((cls for cls in found if cls is not None), None)
        model: nn.Module = kind(config) if kind is not None else transformers.AutoModel.from_config(config)
    except (OSError, ValueError, ImportError, KeyError) as error:
        hint = "give a folder with a config.json, or the id of a model transformers knows"
        raise not_loaded("no model can be made of it", source, error, hint, named="name its folder") from error
    return model.eval()


def inspect(model: nn.Module | str | os.PathLike[str], inputs: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a model's anatomy as plain data.

    Args:
        model: A model, or what :func:`model_for_inspection` takes.
        inputs: For a model that must be watched: keyword arguments of one small forward.

    Raises:
        NotFoundError, ModelError: There is no such model, or it is not understood.
    """
    if not isinstance(model, nn.Module):
        model = model_for_inspection(os.fspath(model))
    anatomy = anatomy_of(model, inputs=inputs)
    base = base_of(model)
    return {
        "model": type(base).__name__,
        "model_type": str(getattr(getattr(base, "config", None), "model_type", "")),
        "hidden_size": anatomy.hidden_size,
        "blocks": [{"path": path, "pattern": block_pattern(anatomy, i)} for i, path in enumerate(anatomy.block_paths)],
        "sites": [
            {"key": site.key, **record} for site, record in zip(anatomy.sites, as_records(anatomy.sites), strict=True)
        ],
        "projections": [{"key": p.key, "path": p.path} for p in projections_of(base, anatomy)],
    }


def block_pattern(anatomy: Anatomy, block: int) -> str:
    """Return the branches of a block in order, like ``A'+F'``; a prime marks a post-norm.

    A: self-attention, X: cross-attention, F: feed-forward, M: mixture of experts, S: another mixer of positions.
    """
    sites = [site for site in anatomy.sites if site.block == block]
    return "+".join(_LETTERS[site.branch] + ("'" if site.norm else "") for site in sites)
