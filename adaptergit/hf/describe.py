"""What an unsigned checkpoint says of itself, for people: nobody vouches for it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from adaptergit.errors import PackageError
from adaptergit.hf.unsigned import Checkpoint
from adaptergit.package.folder import read_bounded
from adaptergit.package.modelcard import card_fields, stated_base_id, told_front_matter


@dataclass(frozen=True)
class Description:
    """What the configuration and the README of a checkpoint say."""

    format: str
    """"peft" or "adapterhub"."""
    method: str
    """As its library calls it; empty if it does not say."""
    base_model: str
    """Empty if it does not say."""
    told: dict[str, Any]
    """Card fields that the README tells: license, task, keywords, evaluation."""


def describe_checkpoint(found: Checkpoint) -> Description:
    """Read what a checkpoint says of itself.

    Raises:
        PackageError: A configuration is no JSON object.
    """
    raw: dict[str, Any] = {}
    for file in found.files:
        if file.path.endswith("_config.json") and not raw:
            raw = _object(found, file.path)
    front = told_front_matter(found.path)
    inner = raw.get("config")
    method = raw.get("peft_type") or (inner.get("architecture") if isinstance(inner, dict) else inner)
    base = raw.get("base_model_name_or_path") or raw.get("model_name") or stated_base_id(front)
    return Description(
        "peft" if "peft_type" in raw else "adapterhub", str(method or ""), str(base or ""), card_fields(front)
    )


def _object(found: Checkpoint, name: str) -> dict[str, Any]:
    path = found.path / name
    try:
        raw = json.loads(read_bounded(path, 1 << 20))
    except (ValueError, RecursionError) as error:
        raise PackageError(f"not JSON: {error}", where=str(path)) from error
    if not isinstance(raw, dict):
        raise PackageError("expected a JSON object", where=str(path))
    return raw
