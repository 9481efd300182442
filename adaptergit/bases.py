"""Base models that cards and checkpoints name, for adapters to go into."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from torch import nn

from adaptergit.errors import NotFoundError
from adaptergit.formats import Folder
from adaptergit.package.modelcard import stated_base_id, told_front_matter
from adaptergit.reference import expand
from adaptergit.settings import Settings, config_dir


class Named(Protocol):
    """What names a base model."""

    @property
    def id(self) -> str:
        """``org/name``, or a name."""

    @property
    def revision(self) -> str | None:
        """Commit on the hub."""


@dataclass(frozen=True)
class Base:
    """A base model as a checkpoint of others names it."""

    id: str
    revision: str | None = None


def stated_base(folder: Path, digests: Mapping[str, str] | None = None) -> Base:
    """Return the base model that a checkpoint of others names: in its first configuration that does, or in its README.

    Args:
        folder: Of the checkpoint, or of a set-up of several.
        digests: See :class:`~adaptergit.formats.Folder`.

    Raises:
        PackageError: A configuration cannot be read.
    """
    found = Base("")
    for path in sorted(folder.rglob("*_config.json")):
        files = Folder(path.parent, digests)
        raw = files.json(path.name) if path.name in files else {}
        if named := str(raw.get("base_model_name_or_path") or raw.get("model_name") or ""):
            found = Base(named, str(raw["revision"]) if raw.get("revision") else None)
            break
    if not found.id or Path(found.id).is_absolute():  # a folder of whoever trained it
        return Base(stated_base_id(told_front_matter(folder)) or found.id)
    return found


def base_model(
    named: Named,
    kind: tuple[Any, dict[str, Any]],
    settings: Settings,
    offline: bool = False,
    device: torch.device | None = None,
) -> nn.Module:
    """Load a base model: from the folder the settings map it to, or from the hub, never a pickle.

    Args:
        named: Its id and revision, as files of others say.
        kind: Class of transformers that makes it, and options.
        settings: Map ids to folders.
        offline: Ask no hub.
        device: Where it goes.

    Raises:
        NotFoundError: It cannot be had.
    """
    model_id, (made_by, options) = named.id, kind
    source = settings.base_model_path(model_id)
    hint = f"pass model= (or --base), or map it under [base_models] in {config_dir() / 'config.toml'}"
    mapped = source != model_id
    if mapped and not expand(source).is_dir():
        raise NotFoundError(f"base_models maps {model_id} to a folder that is not there", where=source, hint=hint)
    if not mapped and (
        not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?", model_id)
        or Path(model_id).exists()
    ):
        # A card may not choose a folder of this machine.
        raise NotFoundError(f"the base model {model_id!r} is not mapped to a folder", hint=hint)
    try:
        model: nn.Module = made_by.from_pretrained(
            str(expand(source)) if mapped else model_id,
            revision=None if mapped else named.revision,
            local_files_only=offline or mapped,
            trust_remote_code=False,
            **({} if mapped else {"use_safetensors": True}),
            **options,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise NotFoundError(f"the base model {model_id} cannot be loaded: {reason[0]}", hint=hint) from error
    model.eval()
    if device is not None:
        model.to(device)
    return model


def transformers() -> Any:
    """Import transformers, which takes a second, where it is needed."""
    import transformers as library

    return library
