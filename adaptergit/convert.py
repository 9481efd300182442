"""Convert: a checkpoint in one format becomes the same adapter in another; what has no exact equivalent is refused.

unpack → load into the base model → write beside the target → rename. Every format is read and written through the
panel of a model, so that there is one meaning of every adapter, not one for every pair of formats.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adaptergit.errors import ModelError, NotFoundError, UsageError
from adaptergit.export import WRITERS
from adaptergit.formats import is_foreign, load_folder
from adaptergit.formats.adapterhub import CONFIG
from adaptergit.formats.adapterhub_write import write_setup
from adaptergit.formats.files import Folder
from adaptergit.formats.folders import SETUP, foreign_format
from adaptergit.formats.unpack import unpacked
from adaptergit.load import load
from adaptergit.package import CARD, WEIGHTS, Card
from adaptergit.package.local import local_card
from adaptergit.reference import expand
from adaptergit.settings import config_dir, load_settings
from adaptergit.splice.checkpoint import card_data, card_name
from adaptergit.splice.composition import Composition
from adaptergit.splice.panel import Panel, adapters
from adaptergit.splice.setup import single

FORMATS = ("adaptergit", *sorted(WRITERS))
_TASK_CLASSES = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
}


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
    name: str | None = None,
    allow_pickle: bool = False,
    about: Mapping[str, Any] | None = None,
) -> Converted:
    """Write the adapter, fusion, head or set-up in a folder as another library, or adaptergit, reads it.

    Args:
        source: Package folder, folder of AdapterHub's or PEFT's, or a zip file that AdapterHub served.
        target: New or empty folder.
        to: A name in :data:`FORMATS`.
        base: Base model: its folder or id, or the model itself, which gets a panel; default: what the source names.
        name: Of the adapter; default: its own.
        allow_pickle: Read pickled weights, in a process of its own with limits and without secrets.
        about: Card fields, for ``to="adaptergit"``.

    Raises:
        UsageError: A wrong argument, or what is in the source has no exact equivalent there.
        NotFoundError: The source or its base model cannot be had.
        PackageError: The source is damaged, or pickled.
        ModelError: It does not fit the base model. Nothing is written, whatever was raised.
    """
    source, target = expand(source), expand(target)
    if to not in FORMATS:
        raise UsageError(f"unknown format {to!r}", hint=", ".join(FORMATS))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError("there is something already", where=str(target), hint="name a new folder")
    with unpacked(source, allow_pickle=allow_pickle) as folder:
        panel, composition = _loaded(folder, base, name or _stem(source, folder))
        with _staged(target) as staged:
            if to == "adaptergit":
                _save(panel, composition, staged, dict(about or {}), name)
            elif len(panel.names) == 1 and not panel.fusions and set(panel.heads) <= set(panel.names):
                WRITERS[to](panel, panel.names[0], staged)
            elif to == "adapterhub":
                write_setup(panel, composition, list(panel.heads), staged)
            else:
                raise UsageError(f"{to} has no folders with more than one adapter", hint="convert them one by one")
    files = tuple(sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()))
    return Converted(target, to, tuple(panel.names), tuple(panel.fusions), tuple(panel.heads), files)


def describe(
    folder: str | Path,
    *,
    base: str | Path | nn.Module | None = None,
    name: str | None = None,
    **about: Any,
) -> Card:
    """Write the card of an AdapterHub or PEFT checkpoint into its folder, so that it can be published as it is.

    Args:
        folder: With one adapter; nothing else in it is changed.
        base: See :func:`convert`.
        name: Of the adapter; default: its own, or the folder's.
        about: More card fields.

    Raises:
        UsageError: There is a card already, or no single adapter.
        NotFoundError, PackageError, ModelError: See :func:`convert`.
    """
    folder = expand(folder)
    if (folder / CARD).exists():
        raise UsageError("there is a card already", where=str(folder / CARD))
    if not is_foreign(folder) or (folder / SETUP).is_file() or not (folder / CONFIG).is_file():
        raise UsageError(
            "this is no checkpoint of one adapter", where=str(folder), hint="a set-up is converted: adaptergit convert"
        )
    panel, _ = _loaded(folder, base, name)
    chosen = panel.names[0]
    data = card_data(panel, single(panel, chosen), {"name": card_name(name or chosen), **about})
    data["adapter"] = {**data["adapter"], "format": foreign_format(Folder(folder))}
    data["adapter"].pop("sites")
    card = Card(data)
    (folder / CARD).write_bytes(card.to_yaml())
    return card


def _loaded(folder: Path, base: str | Path | nn.Module | None, name: str | None) -> tuple[Panel, Composition | None]:
    """Return a panel that holds what a folder holds, and the composition it means."""
    model = base if isinstance(base, nn.Module) else _base_model(folder, base)
    if (folder / CARD).is_file():
        # The name a package has is its card's, unless it was asked for by another.
        load(folder, model, name=name if name != folder.name else None, dtype=_dtype(folder))
        panel = adapters(model)
        return panel, panel.active
    panel = adapters(model)
    loaded = load_folder(panel, folder, name=None if (folder / SETUP).is_file() else name, dtype=_dtype(folder))
    return panel, loaded.composition


def _stem(source: Path, folder: Path) -> str | None:
    """PEFT's checkpoints have no name of their own: a folder's or a zip file's does."""
    return source.stem if source.is_file() and foreign_format(Folder(folder)) == "peft" else None


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


def _base_model(folder: Path, base: str | Path | None) -> nn.Module:
    """Load the model that a checkpoint was trained in, with a head of the model's own where it holds one."""
    import transformers

    settings = load_settings()
    raw: dict[str, Any] = {}
    if (folder / CARD).is_file():
        named = local_card(folder, settings.limits).base_model.id
    else:
        raw = _configuration(folder)
        named = str(raw.get("base_model_name_or_path") or raw.get("model_name") or "")
    chosen = str(expand(base)) if base is not None else settings.base_model_path(named)
    hint = f"name it with --base, or map {named!r} under [base_models] in {config_dir() / 'config.toml'}"
    if not chosen or (base is not None and str(base).startswith((".", "/", "~")) and not Path(chosen).is_dir()):
        raise NotFoundError("the base model is not there", where=chosen or str(folder), hint=hint)
    kind, options = "AutoModel", {}
    if raw.get("modules_to_save") and raw.get("task_type") in _TASK_CLASSES:
        kind = _TASK_CLASSES[raw["task_type"]]
        rows = [
            tensor.shape[0]
            for key, tensor in Folder(folder).tensors("adapter_model.safetensors", "adapter_model.bin").items()
            if key.endswith((".classifier.weight", ".score.weight", ".out_proj.weight"))
        ]
        options = {"num_labels": rows[0]} if rows else {}
    try:
        model: nn.Module = getattr(transformers, kind).from_pretrained(chosen, trust_remote_code=False, **options)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise NotFoundError(f"the base model cannot be loaded: {reason[0]}", where=chosen, hint=hint) from error
    model.eval()
    return model


def _configuration(folder: Path) -> dict[str, Any]:
    """Return the first configuration in a folder of others that says something of its base model."""
    for path in sorted(folder.rglob("*_config.json")):
        raw = Folder(path.parent).json(path.name)
        if raw.get("base_model_name_or_path") or raw.get("model_name"):
            return raw
    return {}


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
