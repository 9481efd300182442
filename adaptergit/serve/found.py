"""From references to what they mean: each verified, and all compared, before a model is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adaptergit.bases import Named, NamedBase, base_model, base_tokenizer, stated_base, transformers
from adaptergit.errors import ModelError, UsageError
from adaptergit.formats import Folder, is_foreign, model_class
from adaptergit.hf import Checkpoint, HubReference, fetch_hub
from adaptergit.load import About, about_of, base_for, obtain
from adaptergit.package import CARD, MANIFEST, canonical
from adaptergit.reference import expand, is_folder, is_hub
from adaptergit.resolve import parse_reference
from adaptergit.serve.names import split_name
from adaptergit.settings import Settings
from adaptergit.splice.fingerprint import Fingerprint
from adaptergit.splice.setup import KINDS


@dataclass(frozen=True)
class Found:
    """What one reference means, verified, nothing of it loaded."""

    name: str
    reference: str
    exact: str | Path
    """What is loaded: exactly what was looked at."""
    about: About | None
    """None: it has no card."""
    bare: Folder | None = None
    """The files of a checkpoint without a card."""
    identity: str | None = None
    """sha256 of the manifest, or of the list of an unsigned checkpoint's files; None for a folder without either."""


def find(
    text: str, settings: Settings, policy: str | None, offline: bool, refresh: bool, lock: str | Path | None
) -> Found:
    """Resolve and verify what ``REF`` or ``name=REF`` means.

    Raises:
        AdaptergitError: It cannot be had, or was refused.
    """
    name, reference = split_name(text)
    if is_hub(reference):
        fetched = fetch_hub(reference, policy=policy, offline=offline, refresh=refresh, settings=settings)
        if not isinstance(fetched, Checkpoint):
            place = HubReference.parse(reference)
            exact = str(place.at(place.revision, fetched.digest))
            return Found(name or fetched.card.name, reference, exact, about_of(fetched), None, fetched.digest)
        exact, own = str(fetched.pinned), fetched.reference.name
        if CARD not in fetched.digests:
            files = Folder(fetched.path, fetched.digests)
            return Found(name or own, reference, exact, None, files, fetched.identity)
        about = about_of(fetched)
        return Found(name or about.card.name, reference, exact, about, None, fetched.identity)
    folder = expand(reference)
    if is_folder(reference) and not (folder / CARD).exists() and is_foreign(folder):
        return Found(name or folder.resolve().name, reference, folder, None, Folder(folder))
    about = obtain(reference, settings, policy=policy, offline=offline, refresh=refresh, lock=lock)
    if is_folder(reference) or about.verdict is None:
        return Found(name or about.card.name, reference, folder, about, None, _digest(about))
    pinned = parse_reference(reference, settings).pinned(about.verdict.digest)
    return Found(name or about.card.name, reference, str(pinned), about, None, about.verdict.digest)


def check_names(names: Sequence[str]) -> None:
    """Refuse two adapters of one name.

    Raises:
        UsageError: With the name.
    """
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"two adapters are called {twice!r}", hint=f"give one another name: {twice}-2=REF")


def check_bases(found: Sequence[tuple[str, About]]) -> None:
    """Refuse adapters of two base models; their weights tell, whatever cards call them.

    Raises:
        ModelError: With the names.
    """
    if not found:
        return
    first, about = found[0]
    base = about.card.base_model
    for name, other in found[1:]:
        its = other.card.base_model
        if not Fingerprint.parse(base.fingerprint).same_base(Fingerprint.parse(its.fingerprint)):
            raise ModelError(
                f"{first!r} was trained in {base.id}, {name!r} in {its.id}, and these are not the same weights",
                hint="one server has one base model: start another for the others",
            )


def base_of_all(
    found: Sequence[Found], base: str | Path | None, settings: Settings, offline: bool, device: torch.device | None
) -> tuple[nn.Module, str, Any]:
    """Return the base model, its id and its tokenizer.

    Raises:
        UsageError: Nobody says which it is.
        NotFoundError: It cannot be had.
    """
    lead = _lead([one.about for one in found if one.about is not None])
    files = next((one.bare for one in found if one.bare is not None), None)
    if lead is not None:
        named: Named = lead.card.base_model
    else:
        assert files is not None
        named = stated_base(files.path, files.digests) if base is None else NamedBase(expand(base).resolve().name)
        if not named.id:
            raise UsageError("the checkpoint does not say which weights it was trained in", hint="add --base DIR")
    if base is not None:
        settings = replace(settings, base_models={**settings.base_models, named.id: str(expand(base).resolve())})
    if lead is not None:
        model = base_for(lead, settings, offline=offline, device=device)
    else:
        assert files is not None
        kind, options = model_class(files)
        model = base_model(named, (getattr(transformers(), kind), options), settings, offline, device)
    return model, named.id, base_tokenizer(settings.base_model_path(named.id), offline)


def _lead(found: Sequence[About]) -> About | None:
    """Choose whose card names the model's class: a head that belongs to a class fits no other."""
    static = (about for about in found if _is_static(about.card.data))
    foreign = (about for about in found if about.format != "adaptergit")
    return next(static, next(foreign, next(iter(found), None)))


def _is_static(card: Mapping[str, Any]) -> bool:
    """Tell whether a package holds a copy of the head of a class of models."""
    listed = card["adapter"]["config"].get("heads") if card["adapter"]["method"] in KINDS else [card.get("head")]
    heads = listed if isinstance(listed, list) else []
    return any(isinstance(head, Mapping) and head.get("type") == "static" for head in heads)


def _digest(about: About) -> str | None:
    if about.verdict is not None:
        return about.verdict.digest
    manifest = about.path / MANIFEST
    return canonical.sha256(manifest.read_bytes()) if manifest.is_file() else None
