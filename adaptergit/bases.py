"""Base models that cards and checkpoints name, for adapters to go into."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from torch import nn

from adaptergit.base_place import not_loaded
from adaptergit.base_watch import told_of
from adaptergit.errors import ModelError, NotFoundError, PackageError
from adaptergit.formats import Folder
from adaptergit.package.modelcard import stated_base_id, told_front_matter
from adaptergit.reference import expand
from adaptergit.settings import Settings, config_dir
from adaptergit.splice.heads import HeadConfig, StaticHead

_HUB_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?")


class Named(Protocol):
    """What names a base model."""

    @property
    def id(self) -> str:
        """``org/name``, or a name."""

    @property
    def revision(self) -> str | None:
        """Commit on the hub."""


@dataclass(frozen=True)
class NamedBase:
    """A base model as files of others name it."""

    id: str
    revision: str | None = None


def stated_base(folder: Path, digests: Mapping[str, str] | None = None) -> NamedBase:
    """Return the base model that a checkpoint of others names: in its first configuration that does, or in its README.

    Args:
        folder: Of the checkpoint, or of a set-up of several.
        digests: See :class:`~adaptergit.formats.Folder`.

    Raises:
        PackageError: A configuration cannot be read.
    """
    found = NamedBase("")
    for path in sorted(folder.rglob("*_config.json")):
        files = Folder(path.parent, digests)
        raw = files.json(path.name) if path.name in files else {}
        if named := str(raw.get("base_model_name_or_path") or raw.get("model_name") or ""):
            found = NamedBase(named, str(raw["revision"]) if raw.get("revision") else None)
            break
    if not found.id or Path(found.id).is_absolute():  # a folder of whoever trained it
        return NamedBase(stated_base_id(told_front_matter(folder)) or found.id)
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
    mapped = model_id in settings.base_models
    if mapped and not expand(source).is_dir():
        mend = f"correct the path under [base_models] in {config_dir() / 'config.toml'}, or pass model= (or --base)"
        raise NotFoundError(f"base_models maps {model_id} to a folder that is not there", where=source, hint=mend)
    if not mapped and not is_hub_id(model_id):
        # A card may not choose a folder of this machine.
        raise NotFoundError(f"the base model {model_id!r} is not mapped to a folder", hint=hint)
    try:
        with told_of(model_id) as watched:
            model: nn.Module = made_by.from_pretrained(
                str(expand(source)) if mapped else model_id,
                revision=None if mapped else named.revision,
                local_files_only=offline or mapped,
                trust_remote_code=False,
                **({} if mapped else {"use_safetensors": True}),
                **options,
                **watched,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise not_loaded("the base model cannot be loaded", model_id, error, hint) from error
    model.eval()
    if device is not None:
        model.to(device)
    return model


def class_for(heads: Iterable[HeadConfig]) -> tuple[Any, dict[str, Any]]:
    """Return the class whose own head there is a copy of, else the plain base model's; and options.

    Raises:
        PackageError: A head is of a class that is not there.
    """
    library = transformers()
    head = next((head for head in heads if isinstance(head, StaticHead)), None)
    if head is None:
        return library.AutoModel, {}
    found = getattr(library, head.model_class, None)
    if not (isinstance(found, type) and issubclass(found, library.PreTrainedModel)):
        raise PackageError(
            f"head.config.model_class: transformers has no model {head.model_class!r}",
            hint="if a newer one has: pip install -U transformers",
        )
    if head.num_labels is None:
        return found, {}
    if len(head.labels) != head.num_labels:
        return found, {"num_labels": head.num_labels}
    # What a pipeline shows.
    return found, {
        "id2label": dict(enumerate(head.labels)),
        "label2id": {label: index for index, label in enumerate(head.labels)},
    }


def is_hub_id(text: str) -> bool:
    """Tell whether a text names a model on a hub, and nothing that lies here."""
    return _HUB_ID.fullmatch(text) is not None and not Path(text).exists()


def base_tokenizer(source: str, offline: bool = False) -> Any:
    """Load the tokenizer of a base model, from its folder or from the hub.

    Raises:
        ModelError: There is none.
    """
    folder = expand(source)
    try:
        return transformers().AutoTokenizer.from_pretrained(
            str(folder) if folder.is_dir() else source, local_files_only=offline
        )
    except (OSError, ValueError) as error:
        raise ModelError(
            f"the base model's tokenizer cannot be loaded: {str(error).splitlines()[0]}",
            where=source,
            hint="name the base model's folder with --base",
        ) from error


def trained_length(card: Mapping[str, Any]) -> int:
    """Return the number of tokens texts were cut to in training, where a card says it; else 128."""
    value = card.get("training", {}).get("hyperparameters", {}).get("max_length")
    return value if isinstance(value, int) and 1 <= value <= 100_000 else 128


def trained_columns(card: Mapping[str, Any]) -> dict[str, str]:
    """Return the columns by role that training read, where a card says them."""
    told = card.get("training", {}).get("hyperparameters", {}).get("columns")
    columns = told if isinstance(told, Mapping) else {}
    return {str(role): column for role, column in columns.items() if isinstance(column, str)}


def transformers() -> Any:
    """Import transformers, which takes a second, where it is needed."""
    import transformers as library

    return library
