"""Convert: a checkpoint in one format becomes the same adapter in another; what has no exact equivalent is refused.

unpack → load into the base model → write beside the target → rename. Every format is read and written through the
panel of a model, so that there is one meaning of every adapter, not one for every pair of formats.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adaptergit.bases import Named, NamedBase, base_model, class_for, is_hub_id, stated_base, transformers
from adaptergit.durable import disk_errors
from adaptergit.errors import DAMAGED_WEIGHTS, ModelError, NotFoundError, PackageError, UsageError
from adaptergit.export import WRITERS
from adaptergit.formats import Folder, foreign_format, is_single, load_folder, model_class
from adaptergit.formats.adapterhub_write import write_setup
from adaptergit.formats.folders import SETUP
from adaptergit.formats.unpack import unpacked
from adaptergit.hf import Checkpoint, fetch_hub
from adaptergit.legacy import LegacyError, legacy_file
from adaptergit.load import load
from adaptergit.package import CARD, WEIGHTS, Card, is_generated
from adaptergit.package.foreign import check_header_of
from adaptergit.package.local import local_card
from adaptergit.package.modelcard import card_fields, told_front_matter
from adaptergit.package.weights import tensors_in
from adaptergit.reference import check_flags, check_paths, expand, is_hub, is_path
from adaptergit.resolve import fetch
from adaptergit.settings import load_settings
from adaptergit.splice.checkpoint import card_data, card_name
from adaptergit.splice.composition import Composition
from adaptergit.splice.panel import Panel, adapters
from adaptergit.splice.setup import from_card, single

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
    head: bool = True,
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
        head: Take heads along; False: leave them out.
        allow_pickle: Read pickled weights, in a process of its own with limits and without secrets.
        about: Card fields, for ``to="adaptergit"``; default: what the front matter of the source's README says.
        fetching: ``policy``, ``offline``, ``index``, ``lock``: see :func:`~adaptergit.resolve.fetch`.

    Raises:
        UsageError: A wrong argument, or what is in the source has no exact equivalent there.
        NotFoundError, TransportError: The source or its base model cannot be had.
        PackageError, TrustError: The source is damaged, pickled, or refused.
        ModelError: It does not fit the base model. Nothing is written, whatever was raised.
    """
    check_paths(target=target)
    check_flags(head=head, allow_pickle=allow_pickle)
    if to not in FORMATS:
        raise UsageError(f"unknown format {to!r}", hint=", ".join(FORMATS))
    if about and to != "adaptergit":
        raise UsageError(f"{to} has no card for {', '.join(about)}", hint="card fields are for to='adaptergit'")
    target = expand(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError("there is something already", where=str(target), hint="name a new folder")
    path, policy, named = _source(source, allow_pickle, fetching)
    with unpacked(path, allow_pickle=allow_pickle) as folder, _staged(target) as staged:
        held = _held(folder, path)
        if path.is_dir() and target.resolve().is_relative_to(path.resolve()):
            hint = "name a folder elsewhere: a package holds no folders"
            raise UsageError("the target lies inside the source", where=str(target), hint=hint)
        if to == held.format and not isinstance(base, nn.Module) and name is None and head:
            _copy(held, staged)
            return Converted(target, to, (), (), (), _files(staged))
        offline = bool(fetching.get("offline"))
        model = (
            base if isinstance(base, nn.Module) else _base_model(held, base, model_class or _CLASSES.get(to), offline)
        )
        panel, composition = _loaded(held, model, name or _own_name(named, held), policy, head)
        if to == "adaptergit":
            _save(panel, composition, staged, _merged(_inherited(held, name), about or {}), name)
        elif len(panel.names) == 1 and not panel.fusions and set(panel.heads) <= set(panel.names):
            WRITERS[to](panel, panel.names[0], staged)
        elif to == "adapterhub":
            write_setup(panel, composition, list(panel.heads), staged)
        else:
            raise UsageError(f"{to} has no folders with more than one adapter", hint="convert them one by one")
        found = tuple(panel.names), tuple(panel.fusions), tuple(panel.heads)
        return Converted(target, to, *found, _files(staged))


def _source(source: str | Path, allow_pickle: bool, fetching: Mapping[str, Any]) -> tuple[Path, str | None, str | None]:
    """Return what is converted, the policy it must still pass, and a name for what has none of its own.

    A release is fetched and verified first.
    """
    policy, offline = fetching.get("policy"), bool(fetching.get("offline"))
    if is_hub(source):
        if unknown := {key for key, value in fetching.items() if value is not None} - {"policy", "offline"}:
            raise UsageError(f"{', '.join(sorted(unknown))}: not for what is on the Hub", where=str(source))
        found = fetch_hub(str(source), pickles=allow_pickle, policy=policy, offline=offline)
        return found.path, None, found.reference.name if isinstance(found, Checkpoint) else None
    if is_path(source):
        path = expand(source)
        return path, policy, path.stem if path.is_file() else None
    try:
        return fetch(str(source), **fetching).path, None, None
    except LegacyError as error:
        path = legacy_file(error, policy=policy, offline=offline, settings=load_settings())[0]
        return path, None, path.stem


def _merged(told: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """Return both, field by field; what a person says goes before what a README does."""
    merged = {**told, **about}
    if isinstance(told.get("task"), dict) and isinstance(about.get("task"), Mapping):
        merged["task"] = {**told["task"], **about["task"]}
    return merged


@dataclass(frozen=True)
class _Held:
    """What is converted."""

    folder: Path
    card: Card | None
    format: str


def _held(folder: Path, source: Path) -> _Held:
    """Find out what a folder holds."""
    if (folder / CARD).is_file():
        card = local_card(folder, load_settings().limits)
        return _Held(folder, card, str(card.data["adapter"]["format"]))
    if (found := foreign_format(Folder(folder))) is None:
        hint = "name a package folder, or the folder with adapter_config.json"
        if (folder / WEIGHTS).is_file():
            hint = f"weights alone do not say what they are of: bring back their {CARD}, or save the adapter once more"
        raise NotFoundError(
            "neither a package nor a checkpoint of AdapterHub's or PEFT's", where=str(source), hint=hint
        )
    return _Held(folder, None, found)


def _copy(held: _Held, staged: Path) -> None:
    """Copy what is in the wanted format already: the very bytes, without what only adaptergit reads."""
    if held.format == "adaptergit":
        raise UsageError("it is a package already", where=str(held.folder), hint="adaptergit publish takes it as it is")
    if not tensors_in(held.folder):  # the weights are looked at, if only at what they are called
        raise NotFoundError("there are no weights", where=str(held.folder), hint="adapter_model.safetensors is missing")
    for path in sorted(held.folder.rglob("*")):
        if path.is_symlink():
            raise PackageError("a link is not copied", where=str(path), hint="put the file itself there")
        if path.is_file() and not (held.card and path.parent == held.folder and is_generated(path)):
            copy = staged / path.relative_to(held.folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


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
        raise UsageError("there is a card already", where=str(folder / CARD), hint=f"adaptergit card edit {folder}")
    held = _held(folder, folder)
    if not is_single(Folder(folder)):
        raise UsageError(
            "this is no checkpoint of one adapter", where=str(folder), hint="a set-up is converted: adaptergit convert"
        )
    model = base if isinstance(base, nn.Module) else _base_model(held, base, None)
    panel, _ = _loaded(held, model, name, None)
    chosen = panel.names[0]
    data = card_data(
        panel, single(panel, chosen), _merged({"name": card_name(name or chosen), **_inherited(held, name)}, about)
    )
    data["adapter"] = {**data["adapter"], "format": held.format}
    data["adapter"].pop("sites")
    card = Card(data)
    (folder / CARD).write_bytes(card.to_yaml())
    return card


def _loaded(
    held: _Held, model: nn.Module, name: str | None, policy: str | None, head: bool = True
) -> tuple[Panel, Composition | None]:
    """Return a panel that holds what a folder holds, and the composition it means."""
    panel, folder = adapters(model), held.folder
    if held.card is None:
        own = None if (folder / SETUP).is_file() else name
        loaded = load_folder(panel, folder, name=own, head=head, dtype=_dtype(folder))
        return panel, loaded.composition
    # What it was trained on top of is another package, and stays one.
    load(folder, model, name=name, dtype=_dtype(folder), policy=policy, head=head, dependencies=False)
    return panel, panel.active


def _own_name(named: str | None, held: _Held) -> str | None:
    """PEFT's checkpoints have no name of their own: a folder, a zip file or a repository of the Hub has."""
    return named if held.format == "peft" else None


def _inherited(held: _Held, name: str | None) -> dict[str, Any]:
    """Return what is said of an adapter in whatever format: by its card, or by the front matter of a README."""
    if held.card is None:
        return card_fields(told_front_matter(held.folder))
    own = {"adapter", "base_model", "head", "embeddings", *(["name"] if name else [])}
    return {key: value for key, value in held.card.data.items() if key not in own}


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
    made = [path for path in target.parents if not path.exists()]
    full = "free some space, or name another folder"
    with disk_errors("the new folder", target, full):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        staged = Path(temporary) / "made"
        with disk_errors("the new folder", target, full):
            yield staged
        try:
            if target.exists():
                target.rmdir()
            staged.replace(target)
        except OSError as error:  # somebody else was here
            raise UsageError(f"cannot be written: {error.strerror}", where=str(target)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for path in made:
            with suppress(OSError):  # what was written is in it
                path.rmdir()


def _base_model(held: _Held, base: str | Path | None, kind: str | None, offline: bool = False) -> nn.Module:
    """Load the model that a checkpoint was trained in, with a head of the model's own where it holds one."""
    settings = load_settings()
    made_by, options = _class_of(held)
    made_by = made_by if kind is None else getattr(transformers(), kind, None)
    if not hasattr(made_by, "from_pretrained"):
        raise UsageError(f"transformers has no model class {kind!r}", hint="AutoModel, AutoModelForCausalLM …")
    named = _named(held)
    chosen = named if base is None else NamedBase(str(base))
    if base is not None and expand(base).is_dir():
        settings = replace(settings, base_models={str(base): str(expand(base))})
    model = base_model(chosen, (made_by, options), settings, offline or settings.offline)
    if is_hub_id(known := named.id if base is None or expand(base).is_dir() else chosen.id):
        # What is written names the model as everybody does, not the folder that it came from here.
        setattr(model.config, "_name_or_path", known)  # noqa: B010 - to the type checker it may be a module
    return model


def _class_of(held: _Held) -> tuple[Any, dict[str, Any]]:
    """Return the class of transformers that makes the model, and options."""
    if held.card is not None and held.format == "adaptergit":
        return class_for(from_card(held.card.data, None).heads.values())
    name, options = model_class(Folder(held.folder))
    return getattr(transformers(), name), options


def _named(held: _Held) -> Named:
    """Return what the files say of their base model."""
    if held.card is not None:
        return held.card.base_model
    return stated_base(held.folder)


def _dtype(folder: Path) -> torch.dtype | None:
    """Return what the weights are kept in, so that no digit is lost on the way; None where they differ."""
    from safetensors import SafetensorError, safe_open

    kinds: set[torch.dtype] = set()
    for path in (folder / WEIGHTS, *folder.rglob("*.safetensors")):
        if path.is_file():
            check_header_of(path)
            try:
                with safe_open(str(path), framework="pt") as file:
                    kinds |= {file.get_tensor(key).dtype for key in file.keys()}  # noqa: SIM118 - not a mapping
            except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
                raise ModelError(
                    f"not a valid safetensors file: {error}", where=str(path), hint=DAMAGED_WEIGHTS
                ) from error
    return kinds.pop() if len(kinds) == 1 else None
