"""Load: a reference or a folder becomes adapters in a model. Here the two halves meet.

resolve → fetch → verify → compare with the model → read the weights → splice. Everything that can refuse comes before
anything that changes the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from adaptergit.errors import AdaptergitError, NotFoundError, PackageError, UsageError
from adaptergit.formats import is_foreign, load_folder
from adaptergit.package import CARD, MANIFEST, WEIGHTS, Card, Manifest, read_package
from adaptergit.package.local import local_card
from adaptergit.reference import expand, is_folder
from adaptergit.resolve import fetch, verify
from adaptergit.settings import Settings, config_dir, load_settings
from adaptergit.splice.anatomy import Site
from adaptergit.splice.checkpoint import HEAD, read_into
from adaptergit.splice.config import config_from_dict
from adaptergit.splice.fingerprint import Fingerprint, compare
from adaptergit.splice.heads import HeadConfig, StaticHead, build_head, head_from_dict
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

    @property
    def weights_sha256(self) -> str | None:
        """What the weights must be, byte for byte, when they are read; None for a folder without a manifest."""
        manifest = self.path / MANIFEST
        if self.verdict is None and not manifest.exists():
            return None
        parsed = self.verdict.manifest if self.verdict else Manifest.from_bytes(read_package(self.path).manifest_bytes)
        return next((f.sha256 for f in parsed.files if f.path == WEIGHTS), "")


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
    _check_arguments(ref, model, dtype)
    if is_folder(ref) and not (expand(ref) / CARD).exists() and is_foreign(expand(ref)):
        return _load_foreign(expand(ref), model, name, head, activate, device, dtype)
    about = _obtain(ref, policy, offline, index, settings)
    card = about.card
    if model is None:
        model = _base_model(card, settings, offline or settings.offline, head)
        if device is not None:
            model.to(device)
    with _all_or_nothing(model) as panel:
        _splice(panel, name or card.name, head, device, dtype, about)
        if activate:
            panel.activate(name or card.name)
    return model


@contextmanager
def _all_or_nothing(model: nn.Module) -> Iterator[Panel]:
    """Give the model's panel; if anything goes wrong, take back whatever was added to it."""
    fresh = getattr(model, "adaptergit", None) is None
    panel = adapters(model)
    restore = panel.snapshot()
    try:
        yield panel
    except BaseException as error:
        restore()
        if fresh:
            panel.detach()
        if isinstance(error, RuntimeError | AssertionError) and not isinstance(error, AdaptergitError):
            raise UsageError(
                f"the adapter cannot be put there: {str(error).splitlines()[0]}", hint="check device= and dtype="
            ) from error
        raise


def _check_arguments(ref: object, model: object, dtype: torch.dtype | None) -> None:
    if not isinstance(ref, str | Path):
        raise UsageError(f"expected a reference or a folder, not {type(ref).__name__}", hint='write "org/repo@adapter"')
    if model is not None and not isinstance(model, nn.Module):
        raise UsageError(
            f"model must be a transformers model, not {type(model).__name__}",
            hint="AutoModel.from_pretrained(…) makes one",
        )
    if dtype is not None and dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        raise UsageError(f"adapters compute in float64, float32, float16 or bfloat16, not in {dtype}")


def _obtain(ref: str | Path, policy: str | None, offline: bool, index: str | Path | None, settings: Settings) -> About:
    """Return a package whose every byte is checked."""
    if not is_folder(ref):
        found = fetch(str(ref), policy=policy, offline=offline, index=index, settings=settings)
        return About(found.card, found.path, found.verdict, found.from_store)
    folder = expand(ref)
    card = local_card(folder, settings.limits)
    if policy is None or (policy == "unsigned" and not (folder / MANIFEST).exists()):
        return About(card, folder, None, True)
    return About(card, folder, verify(folder, policy=policy, settings=settings), True)


def _load_foreign(
    path: Path,
    model: nn.Module | None,
    name: str | None,
    with_head: bool,
    activate: bool,
    device: str | torch.device | None,
    dtype: torch.dtype | None,
) -> nn.Module:
    """Load a local folder in a format of others: it names no weights that could be compared, so the caller brings a
    model."""
    if model is None:
        raise UsageError(
            "this checkpoint does not say which weights it was trained in", where=str(path), hint="pass model="
        )
    with _all_or_nothing(model) as panel:
        target = torch.device(device) if device is not None else None
        loaded = load_folder(panel, path, name=name, head=with_head, device=target, dtype=dtype)
        if activate and (loaded.composition is not None or loaded.head is not None):
            chosen = loaded.composition if loaded.composition is not None else panel.active
            panel.activate(chosen, loaded.head)
    return model


def _check_free(panel: Panel, name: str, with_head: bool) -> None:
    if name in panel or (with_head and name in panel.heads):
        raise UsageError(f"the model has an adapter or head {name!r} already", hint="load it under another name=")


def _splice(
    panel: Panel,
    name: str,
    with_head: bool,
    device: str | torch.device | None,
    dtype: torch.dtype | None,
    about: About,
) -> None:
    """Build on the meta device, read strictly, insert: the panel changes only in the last lines."""
    card, where = about.card, str(about.path / CARD)
    _check_free(panel, name, with_head and "head" in card.data)
    adapter = card.data["adapter"]
    if adapter["format"] != "adaptergit":
        raise PackageError(f"adapters in the format {adapter['format']!r} cannot be loaded yet", where=where)
    compare(Fingerprint.parse(card.base_model.fingerprint), panel.model, panel.anatomy, name=card.base_model.id)
    fields = dict(adapter["config"])
    family = str(fields.pop("family", adapter["method"]))
    try:
        config = config_from_dict(family, fields)
        head_config = _head_config(card)
    except (UsageError, TypeError) as error:
        raise PackageError(f"adapter.config or head: {error}", where=where) from error
    if config.method != card.method:
        raise PackageError(f"adapter.method is {card.method!r}, but its config is of {config.method!r}", where=where)
    modules = panel.build(config, panel.host.with_sites(Site(**site) for site in adapter.get("sites", ())))
    holder: dict[str, nn.Module] = {"": modules}
    head_module = _meta_head(head_config, panel) if head_config is not None and with_head else None
    if head_module is not None:
        holder[HEAD] = head_module
    read_into(
        about.path / WEIGHTS, holder, digest=about.weights_sha256, ignore=() if head_module is not None else (HEAD,)
    )
    target = torch.device(device) if device is not None else None
    panel.insert(name, config, modules, dtype=dtype, device=target, about=about)
    if head_config is not None and head_module is not None:
        panel.insert_head(name, head_config, head_module, dtype=dtype, device=target)


def _head_config(card: Card) -> HeadConfig | None:
    head = card.data.get("head")
    return None if head is None else head_from_dict(head["type"], head["config"], tuple(head.get("labels", ())))


def _meta_head(config: HeadConfig, panel: Panel) -> nn.Module:
    with torch.device("meta"):
        module = build_head(config, panel.model, panel.anatomy.hidden_size)
    return module.to("meta")


def _base_model(card: Card, settings: Settings, offline: bool, head: bool) -> nn.Module:
    """Load the model the card names: from the folder the settings map it to, or from the hub, never a pickle."""
    model_id = card.base_model.id
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
        model: nn.Module = _auto_class(card, head).from_pretrained(
            str(expand(source)) if mapped else model_id,
            revision=None if mapped else card.base_model.revision,
            local_files_only=offline or mapped,
            trust_remote_code=False,
            **({} if mapped else {"use_safetensors": True}),
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise NotFoundError(f"the base model {model_id} cannot be loaded: {reason[0]}", hint=hint) from error
    model.eval()
    return model


def _auto_class(card: Card, head: bool) -> Any:
    """The class of the model's own head, if the package holds a copy of one; else the plain base model."""
    import transformers

    head_config = _head_config(card) if head else None
    if not isinstance(head_config, StaticHead):
        return transformers.AutoModel
    found = getattr(transformers, head_config.model_class, None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise PackageError(f"head.config.model_class: transformers has no model {head_config.model_class!r}")
    number = head_config.num_labels
    return found if number is None else _WithLabels(found, number)


@dataclass(frozen=True)
class _WithLabels:
    """A model class whose own head is made for a number of labels."""

    model_class: Any
    num_labels: int

    def from_pretrained(self, source: str, **options: Any) -> Any:
        """As the class's own."""
        return self.model_class.from_pretrained(source, num_labels=self.num_labels, **options)
