"""Load: a reference or a folder becomes adapters in a model. Here the two halves meet.

resolve → fetch → verify → compare with the model → read the weights → splice. Everything that can refuse comes before
anything that changes the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel

from adaptergit.errors import ModelError, NotFoundError, PackageError, UsageError
from adaptergit.formats import is_adapterhub, read_adapterhub
from adaptergit.package import CARD, MANIFEST, WEIGHTS, Card, Manifest, check_files, read_package
from adaptergit.package.card import MAX_BYTES
from adaptergit.package.folder import read_bounded
from adaptergit.reference import is_folder
from adaptergit.resolve import resolve, verify
from adaptergit.settings import Settings, load_settings
from adaptergit.splice.anatomy import anatomy_of
from adaptergit.splice.checkpoint import HEAD, fill, read_into
from adaptergit.splice.config import config_from_dict
from adaptergit.splice.fingerprint import Fingerprint, compare
from adaptergit.splice.heads import HeadConfig, build_head, head_from_dict
from adaptergit.splice.panel import Panel, adapters
from adaptergit.trust import Verdict


@dataclass(frozen=True)
class About:
    """Where a loaded adapter came from."""

    card: Card
    path: Path
    verdict: Verdict | None
    """None for a local folder that is not a signed package."""
    from_store: bool
    """True when no network was touched."""


def load(
    ref: str | Path,
    model: nn.Module | None = None,
    *,
    name: str | None = None,
    head: bool = True,
    activate: bool = True,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    policy: str | None = None,
    offline: bool = False,
    index: str | Path | None = None,
) -> Any:
    """Load an adapter into a model and return the transformers model itself.

    Args:
        ref: ``org/repo@adapter``, any other reference, or a package folder.
        model: Default: the base model the card names, through ``AutoModel.from_pretrained``.
        name: Name in the model's panel; default: the card's.
        head: Also load the prediction head, if the package has one.
        activate: Make it the active adapter.
        device: Where the adapter goes; default: where its block is. A model made here goes there too.
        dtype: Of the adapter; default: its block's.
        policy: ``enforce``, ``tofu``, ``digest`` or ``unsigned``; default: what the settings say.
        offline: Touch no network.
        index: Index file that pins the release.

    Raises:
        UsageError: A malformed reference, or the name is taken.
        NotFoundError, TransportError: It cannot be had.
        TrustError, PackageError: It was refused.
        ModelError: It does not fit the model. The model is as it was, whatever was raised.
    """
    settings = load_settings()
    path, verdict, from_store = _obtain(ref, policy, offline, index, settings)
    if not (path / CARD).exists():
        return _load_foreign(path, model, name, head, activate, device, dtype)
    card = Card.from_yaml(read_bounded(path / CARD, MAX_BYTES), where=str(path / CARD))
    if model is None:
        model = _base_model(card, settings, offline or settings.offline)
        if device is not None:
            model.to(device)
    fresh = getattr(model, "adaptergit", None) is None
    panel = adapters(model)
    try:
        _splice(panel, card, path, name or card.name, head, device, dtype, About(card, path, verdict, from_store))
    except Exception:
        if fresh:
            panel.detach()
        raise
    if activate:
        panel.activate(name or card.name)
    return model


def _obtain(
    ref: str | Path, policy: str | None, offline: bool, index: str | Path | None, settings: Settings
) -> tuple[Path, Verdict | None, bool]:
    """Return a package folder whose every byte is checked."""
    if is_folder(ref):
        folder = Path(ref).expanduser()
        if not folder.is_dir():
            raise NotFoundError(
                "no such folder, and not a reference",
                where=str(ref),
                hint="write org/repo@adapter, or the path of a package folder",
            )
        return folder, _verify_local(folder, policy, settings), True
    resolved = resolve(str(ref), offline=offline, index=index, settings=settings)
    return (
        resolved.path,
        verify(resolved.path, policy=policy, reference=resolved.reference, settings=settings),
        resolved.from_store,
    )


def _verify_local(folder: Path, policy: str | None, settings: Settings) -> Verdict | None:
    """A folder the caller named is the caller's word; a manifest in it must still hold, and a policy asked for too."""
    if policy is not None:
        return verify(folder, policy=policy, settings=settings)
    if (folder / MANIFEST).exists():
        package = read_package(folder, settings.limits)
        manifest = Manifest.from_bytes(package.manifest_bytes, where=str(folder / MANIFEST))
        check_files(package, manifest, settings.limits)
    elif not (folder / CARD).exists() and not is_adapterhub(folder):
        raise NotFoundError(
            f"there is no {CARD}",
            where=str(folder),
            hint="this is neither a package folder nor an AdapterHub checkpoint",
        )
    return None


def _load_foreign(
    path: Path,
    model: nn.Module | None,
    name: str | None,
    with_head: bool,
    activate: bool,
    device: str | torch.device | None,
    dtype: torch.dtype | None,
) -> nn.Module:
    """Load a local AdapterHub checkpoint: it names no base model that could be checked, so the caller brings one."""
    if model is None:
        raise UsageError(
            "an AdapterHub checkpoint does not say which weights it was trained in", where=str(path), hint="pass model="
        )
    fresh = getattr(model, "adaptergit", None) is None
    panel = adapters(model)
    try:
        found = read_adapterhub(path, panel.anatomy, model_class=type(model).__name__, head=with_head)
        chosen = name or found.name
        modules = panel.build(found.config)
        fill({f"{site.key}.": module for site, module in modules.items()}, found.tensors, where=str(path))
        head_module = _meta_head(found.head, panel) if found.head is not None else None
        if head_module is not None and found.head_tensors is not None:
            fill({"": head_module}, found.head_tensors, where=str(path))
        target = torch.device(device) if device is not None else None
        panel.insert(chosen, found.config, modules, dtype=dtype, device=target)
        if found.head is not None and head_module is not None:
            panel.insert_head(chosen, found.head, head_module, dtype=dtype, device=target)
    except Exception:
        if fresh:
            panel.detach()
        raise
    if activate:
        panel.activate(chosen)
    return model


def _splice(
    panel: Panel,
    card: Card,
    path: Path,
    name: str,
    with_head: bool,
    device: str | torch.device | None,
    dtype: torch.dtype | None,
    about: About,
) -> None:
    """Build on the meta device, read strictly, insert: the panel changes only in the last lines."""
    if name in panel or (with_head and "head" in card.data and name in panel.heads):
        raise UsageError(f"the model has an adapter {name!r} already", hint="load it under another name=")
    adapter = card.data["adapter"]
    if adapter["format"] != "adaptergit":
        raise PackageError(f"adapters in the format {adapter['format']!r} cannot be loaded yet", where=str(path / CARD))
    compare(Fingerprint.parse(card.base_model.fingerprint), panel.model, panel.anatomy, name=card.base_model.id)
    fields = dict(adapter["config"])
    family = str(fields.pop("family", adapter["method"]))
    try:
        config = config_from_dict(family, fields)
        head_config = _head_config(card)
    except (UsageError, TypeError) as error:
        raise PackageError(f"adapter.config or head: {error}", where=str(path / CARD)) from error
    modules = panel.build(config)
    holder: dict[str, nn.Module] = {f"{site.key}.": module for site, module in modules.items()}
    head_module = _meta_head(head_config, panel) if head_config is not None else None
    if head_module is not None:
        holder[HEAD] = head_module
    read_into(path / WEIGHTS, holder)
    target = torch.device(device) if device is not None else None
    panel.insert(name, config, modules, dtype=dtype, device=target, about=about)
    if head_config is not None and head_module is not None and with_head:
        panel.insert_head(name, head_config, head_module, dtype=dtype, device=target)


def _head_config(card: Card) -> HeadConfig | None:
    head = card.data.get("head")
    return None if head is None else head_from_dict(head["type"], head["config"], tuple(head.get("labels", ())))


def _meta_head(config: HeadConfig, panel: Panel) -> nn.Module:
    with torch.device("meta"):
        module = build_head(config, panel.model, panel.anatomy.hidden_size)
    return module.to("meta")


def _base_model(card: Card, settings: Settings, offline: bool) -> nn.Module:
    model_id = card.base_model.id
    source = settings.base_model_path(model_id)
    if source != model_id and not Path(source).expanduser().is_dir():
        raise NotFoundError(f"base_models maps {model_id} to a folder that is not there", where=source)
    try:
        model: nn.Module = AutoModel.from_pretrained(
            str(Path(source).expanduser()) if source != model_id else model_id,
            revision=card.base_model.revision if source == model_id else None,
            local_files_only=offline or source != model_id,
            trust_remote_code=False,
        )
    except (OSError, ValueError) as error:
        raise NotFoundError(
            f"the base model {model_id} cannot be loaded: {str(error).splitlines()[0]}",
            hint="pass model=, or say where it is under [base_models] in the settings",
        ) from error
    model.eval()
    try:
        anatomy_of(model)
    except ModelError:
        del model
        raise
    return model
