"""Convert: a checkpoint in one format becomes the same adapter in another; what has no exact equivalent is refused.

unpack → load into the base model → write beside the target → rename. Every format is read and written through the
panel of a model, so that there is one meaning of every adapter, not one for every pair of formats.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adaptergit.bases import Base, base_model, stated_base, transformers
from adaptergit.errors import ModelError, UsageError
from adaptergit.export import WRITERS
from adaptergit.formats import Folder, foreign_format, is_single, load_folder
from adaptergit.formats import model_class as model_class_of
from adaptergit.formats.adapterhub_write import write_setup
from adaptergit.formats.folders import SETUP
from adaptergit.formats.unpack import unpacked
from adaptergit.hf import Checkpoint, fetch_hub
from adaptergit.load import load
from adaptergit.package import CARD, MANIFEST, README, WEIGHTS, Card
from adaptergit.package.folder import MODEL_SIGNATURE
from adaptergit.package.local import local_card
from adaptergit.package.modelcard import card_fields, told_front_matter
from adaptergit.reference import expand, is_folder, is_hub
from adaptergit.resolve import fetch
from adaptergit.settings import load_settings
from adaptergit.splice.checkpoint import card_data, card_name
from adaptergit.splice.composition import Composition
from adaptergit.splice.panel import Panel, adapters
from adaptergit.splice.setup import single

FORMATS = ("adaptergit", *sorted(WRITERS))
_CLASSES = {"vllm": "AutoModelForCausalLM"}


@dataclass(frozen=True)
class Converted:
    """What was written."""

    path: Path
    format: str
    adapters: tuple[str, ...]
    fusions: tuple[str, ...]
    heads: tuple[str, ...]
    files: tuple[str, ...]
    """Relative to ``path``."""


def convert(
    source: str | Path,
    target: str | Path,
    *,
    to: str,
    base: str | Path | nn.Module | None = None,
    model_class: str | None = None,
    name: str | None = None,
    allow_pickle: bool = False,
    about: Mapping[str, Any] | None = None,
    **fetching: Any,
) -> Converted:
    """Write an adapter, fusion, head or set-up as another library, or adaptergit, reads it.

    Args:
        source: Reference (``hf:org/repo`` too), package folder, folder of AdapterHub's or PEFT's, or a zip file that
            AdapterHub served.
        target: New or empty folder.
        to: A name in :data:`FORMATS`. What is in that format already is copied.
        base: Base model: its folder or id, or the model itself, which gets a panel; default: what the source names.
        model_class: Class of transformers that makes the base model. PEFT's names of tensors are those of the class it
            is used with; default: the causal language model for ``to="vllm"``, else what the source needs.
        name: Of the adapter; default: its own.
        allow_pickle: Read pickled weights, in a process of its own with limits and without secrets.
        about: Card fields, for ``to="adaptergit"``; default: what the front matter of the source's README says.
        fetching: ``policy``, ``offline``, ``index``, ``lock``: see :func:`~adaptergit.resolve.fetch`.

    Raises:
        UsageError: A wrong argument, or what is in the source has no exact equivalent there.
        NotFoundError, TransportError: The source or its base model cannot be had.
        PackageError, TrustError: The source is damaged, pickled, or refused.
        ModelError: It does not fit the base model. Nothing is written, whatever was raised.
    """
    if to not in FORMATS:
        raise UsageError(f"unknown format {to!r}", hint=", ".join(FORMATS))
    target = expand(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError("there is something already", where=str(target), hint="name a new folder")
    path, named = _source(source, allow_pickle, fetching)
    with unpacked(path, allow_pickle=allow_pickle) as folder, _staged(target) as staged:
        held = _held(folder)
        if to == held and not isinstance(base, nn.Module) and name is None:
            _copy(folder, staged)
            return Converted(target, to, (), (), (), _files(staged))
        model = base if isinstance(base, nn.Module) else _base_model(folder, base, model_class or _CLASSES.get(to))
        panel, composition = _loaded(folder, model, name or _named(named, folder), fetching)
        if to == "adaptergit":
            _save(panel, composition, staged, _merged(_told(folder), about or {}), name)
        elif len(panel.names) == 1 and not panel.fusions and set(panel.heads) <= set(panel.names):
            WRITERS[to](panel, panel.names[0], staged)
        elif to == "adapterhub":
            write_setup(panel, composition, list(panel.heads), staged)
        else:
            raise UsageError(f"{to} has no folders with more than one adapter", hint="convert them one by one")
        found = tuple(panel.names), tuple(panel.fusions), tuple(panel.heads)
        return Converted(target, to, *found, _files(staged))


def _source(source: str | Path, allow_pickle: bool, fetching: Mapping[str, Any]) -> tuple[Path, str | None]:
    """Return what is converted, and a name for what has none; a release is fetched and verified first."""
    if is_hub(source):
        if unknown := {key for key, value in fetching.items() if value is not None} - {"policy", "offline"}:
            raise UsageError(f"{', '.join(sorted(unknown))}: not for what is on the Hub", where=str(source))
        policy, offline = fetching.get("policy"), bool(fetching.get("offline"))
        found = fetch_hub(str(source), pickles=allow_pickle, policy=policy, offline=offline)
        return found.path, found.reference.name if isinstance(found, Checkpoint) else None
    path = expand(source)
    if is_folder(source) or path.exists():
        return path, path.stem if path.is_file() else None
    return fetch(str(source), **fetching).path, None


def _told(folder: Path) -> dict[str, Any]:
    """Return the card fields that the README of a checkpoint of others tells in its front matter."""
    return {} if (folder / CARD).is_file() else card_fields(told_front_matter(folder))


def _merged(told: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """Return both, field by field; what a person says goes before what a README does."""
    merged = {**told, **about}
    if isinstance(told.get("task"), dict) and isinstance(about.get("task"), Mapping):
        merged["task"] = {**told["task"], **about["task"]}
    return merged


def _held(folder: Path) -> str | None:
    """Return the format of what a folder holds."""
    if (folder / WEIGHTS).is_file() and (folder / CARD).is_file():
        return "adaptergit"
    return foreign_format(Folder(folder))


def _copy(folder: Path, staged: Path) -> None:
    """Copy what is in the wanted format already: the very bytes, without what only adaptergit reads."""
    if (folder / WEIGHTS).is_file() and (folder / CARD).is_file():
        raise UsageError("it is a package already", where=str(folder))
    ours = {CARD, MANIFEST, README, MODEL_SIGNATURE} if (folder / CARD).is_file() else set()
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_file() and relative.parts[0] not in ours and not relative.name.startswith(MANIFEST):
            (staged / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, staged / relative)


def _files(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()))


def describe(
    folder: str | Path,
    *,
    base: str | Path | nn.Module | None = None,
    name: str | None = None,
    **about: Any,
) -> Card:
    """Write the card of an AdapterHub or PEFT checkpoint into its folder, so that it can be published as it is.

    Licence, task, languages, data, keywords and evaluation are those of the front matter of its README, if it has some.

    Args:
        folder: With one adapter; nothing else in it is changed.
        base: See :func:`convert`.
        name: Of the adapter; default: its own, or the folder's.
        about: More card fields; they go before those of the README.

    Raises:
        UsageError: There is a card already, or no single adapter.
        NotFoundError, PackageError, ModelError: See :func:`convert`.
    """
    folder = expand(folder)
    if (folder / CARD).exists():
        raise UsageError("there is a card already", where=str(folder / CARD))
    if not is_single(Folder(folder)):
        raise UsageError(
            "this is no checkpoint of one adapter", where=str(folder), hint="a set-up is converted: adaptergit convert"
        )
    model = base if isinstance(base, nn.Module) else _base_model(folder, base, None)
    panel, _ = _loaded(folder, model, name, {})
    chosen = panel.names[0]
    data = card_data(panel, single(panel, chosen), _merged({"name": card_name(name or chosen), **_told(folder)}, about))
    data["adapter"] = {**data["adapter"], "format": foreign_format(Folder(folder))}
    data["adapter"].pop("sites")
    card = Card(data)
    (folder / CARD).write_bytes(card.to_yaml())
    return card


def _loaded(
    folder: Path, model: nn.Module, name: str | None, fetching: Mapping[str, Any]
) -> tuple[Panel, Composition | None]:
    """Return a panel that holds what a folder holds, and the composition it means."""
    panel = adapters(model)
    if not (folder / CARD).is_file():
        loaded = load_folder(panel, folder, name=None if (folder / SETUP).is_file() else name, dtype=_dtype(folder))
        return panel, loaded.composition
    # A fetched package was verified where it lies; what a person has in a folder is the person's own.
    load(folder, model, name=name, dtype=_dtype(folder), policy=fetching.get("policy"))
    return panel, panel.active


def _named(named: str | None, folder: Path) -> str | None:
    """PEFT's checkpoints have no name of their own: a folder, a zip file or a repository of the Hub has."""
    return named if foreign_format(Folder(folder)) == "peft" else None


def _save(panel: Panel, composition: Composition | None, folder: Path, about: dict[str, Any], name: str | None) -> None:
    only = panel.names[0] if len(panel.names) == 1 else None
    about.setdefault("name", card_name(name or only or next(iter([*panel.heads, *panel.fusions]), "setup")))
    if only is not None and not panel.fusions and set(panel.heads) <= {only}:
        panel.save(only, folder, **about)
    elif panel.names:
        panel.save_setup(folder, composition, heads=list(panel.heads), **about)
    elif panel.fusions:
        panel.save_fusion(next(iter(panel.fusions)), folder, **about)
    else:
        panel.save_head(next(iter(panel.heads)), folder, **about)


@contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """Give a folder that takes the target's place at the end, or is gone."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.")
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror}", where=str(target.parent)) from error
    try:
        staged = Path(temporary) / "made"
        yield staged
        if target.exists():
            target.rmdir()
        staged.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _base_model(folder: Path, base: str | Path | None, kind: str | None) -> nn.Module:
    """Load the model that a checkpoint was trained in, with a head of the model's own where it holds one."""
    settings = load_settings()
    needed, options = model_class_of(Folder(folder))
    made_by = getattr(transformers(), kind or needed, None)
    if not hasattr(made_by, "from_pretrained"):
        raise UsageError(f"transformers has no model class {kind!r}", hint="AutoModel, AutoModelForCausalLM …")
    if base is not None and (is_path := expand(base)).is_dir():
        settings = replace(settings, base_models={str(base): str(is_path)})
    if base is not None:
        return base_model(Base(str(base)), (made_by, options), settings)
    if (folder / CARD).is_file():
        return base_model(local_card(folder, settings.limits).base_model, (made_by, options), settings)
    return base_model(stated_base(folder), (made_by, options), settings)


def _dtype(folder: Path) -> torch.dtype | None:
    """Return what the weights are kept in, so that no digit is lost on the way; None where they differ."""
    from safetensors import SafetensorError, safe_open

    kinds: set[torch.dtype] = set()
    for path in (folder / WEIGHTS, *folder.rglob("*.safetensors")):
        if path.is_file():
            try:
                with safe_open(str(path), framework="pt") as file:
                    kinds |= {file.get_tensor(key).dtype for key in file.keys()}  # noqa: SIM118 - not a mapping
            except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
                raise ModelError(f"not a valid safetensors file: {error}", where=str(path)) from error
    return kinds.pop() if len(kinds) == 1 else None
