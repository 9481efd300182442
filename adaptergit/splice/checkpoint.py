"""Weights on disk in our own layout: ``adapter.safetensors`` with architecture-free names, and the card beside it.

Tensor names are ``blocks.<i>.<branch>.<part>`` for the adapter and ``head.<part>`` for its head. Reading is strict:
every tensor of the file is used exactly once, every expected tensor is there, and names, shapes and dtypes are compared
before the model is touched.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from adaptergit.base_place import place_of
from adaptergit.errors import OTHER_MODEL, ModelError, PackageError, UsageError
from adaptergit.package import CARD, MANIFEST, WEIGHTS, Card
from adaptergit.package.card import UNSPECIFIED
from adaptergit.reference import check_needed_paths
from adaptergit.splice.anatomy import Site, as_records
from adaptergit.splice.fingerprint import fingerprint_of
from adaptergit.splice.setup import Setup, as_card, tensors_of
from adaptergit.splice.tensorfile import DTYPES, is_finite, read_tensors, write_tensors

if TYPE_CHECKING:
    from adaptergit.splice.panel import Panel

TOKENIZER = "tokenizer_config.json"


def save(panel: Panel, setup: Setup, folder: str | Path, about: Mapping[str, Any]) -> Card:
    """Write members of a panel as a package folder. See :meth:`Panel.save` and :meth:`Panel.save_setup`."""
    check_needed_paths(folder=folder)
    folder = Path(folder)
    if not any(True for _ in setup.prefixes()):
        raise UsageError("there is nothing to save", hint="name a composition, or activate one")
    name = about.get("name", _default_name(setup))
    if name == "" and not setup.single:
        raise UsageError(f"a {setup.method} has no name of its own", hint='pass one: name="my-setup"')
    if folder.exists() and not folder.is_dir():
        raise UsageError("this is not a folder", where=str(folder), hint="name a new folder")
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", name):
        raise UsageError(f"{name!r} cannot be a published name", hint='pass one: save(…, name="my-adapter")')
    if panel.merged:
        raise UsageError(
            f"{', '.join(map(repr, panel.merged))} is merged: the model's weights are not those of its base",
            hint="panel.unmerge(…) first, and merge again afterwards",
        )
    tokenizers = [found for n in setup.embeddings if (found := panel.tokenizer(n)) is not None]
    if len(setup.embeddings) > 1 and tokenizers:
        raise UsageError("a package holds one tokenizer", hint="save the adapters one by one")
    card = Card(card_data(panel, setup, about))
    _check_place(folder, card)
    tensors = tensors_of(panel, setup)
    for key in sorted(tensors):
        if not is_finite(tensors[key].detach()):
            raise PackageError(
                f"the tensor {key} holds values that are not finite",
                hint="training has diverged: lower its learning rate",
            )
    folder.mkdir(parents=True, exist_ok=True)
    for tokenizer in tokenizers:
        _save_tokenizer(tokenizer, folder)
    _replace(folder / WEIGHTS, lambda path: write_tensors(path, {key: tensors[key] for key in sorted(tensors)}))
    _replace(folder / CARD, lambda path: path.write_bytes(card.to_yaml()))
    return card


def _check_place(folder: Path, card: Card) -> None:
    """Refuse to write over another adapter, or over a release.

    Raises:
        UsageError: One is there.
    """
    if (folder / MANIFEST).is_file():
        raise UsageError("there is a signed package", where=str(folder), hint="name a new folder")
    if (folder / CARD).is_file():
        with contextlib.suppress(PackageError, OSError):  # of a card that is none, nothing is lost
            there = Card.from_yaml((folder / CARD).read_bytes())
            if there.name != card.name:
                hint = "name a new folder, or remove this one"
                raise UsageError(f"there is another adapter, {there.name}", where=str(folder), hint=hint)


def _save_tokenizer(tokenizer: Any, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as made:
        tokenizer.save_pretrained(made)
        for path in Path(made).iterdir():
            if path.is_file():
                path.replace(folder / path.name)


def read_tokenizer(folder: Path, digests: Mapping[str, str] | None = None) -> Any:
    """Return the tokenizer that a package's embeddings came with, or None.

    Args:
        folder: The package's.
        digests: sha256 by name, of what is verified: only these very bytes are read.

    Raises:
        PackageError: It cannot be read, or was changed.
    """
    if not (folder / TOKENIZER).is_file():
        return None
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory(prefix="adaptergit-tokenizer-") as copied:
        for name in (one for one in digests or () if not one.endswith(".safetensors")):
            data = (folder / name).read_bytes()
            if hashlib.sha256(data).hexdigest() != (digests or {})[name]:
                raise PackageError("the file was changed while it was loaded", where=str(folder / name))
            (Path(copied) / name).write_bytes(data)
        place = folder if digests is None else copied
        try:
            found = AutoTokenizer.from_pretrained(str(place), local_files_only=True, trust_remote_code=False)
        except Exception as error:  # tokenizers raise what they like
            raise PackageError(f"the tokenizer cannot be read: {error}", where=str(folder / TOKENIZER)) from error
    found.name_or_path = str(folder)
    return found


def read_into(
    path: Path,
    modules: Mapping[str, nn.Module],
    *,
    digest: str | None = None,
    held: memoryview | None = None,
    ignore: tuple[str, ...] = (),
) -> None:
    """Fill modules without storage from a safetensors file, strictly.

    Args:
        path: The file.
        modules: Modules on the meta device by the prefix of their tensors' names.
        digest: sha256 the file must have; the very bytes that are hashed are parsed.
        held: The file's content, if that was checked already.
        ignore: Prefixes of tensors that are not wanted.

    Raises:
        PackageError: Not a safetensors file, or its tensors are not those the modules expect.
        ModelError: Names fit, shapes do not.
    """
    if not path.is_file():
        raise PackageError("the weights are missing", where=str(path))
    tensors = read_tensors(path, digest=digest, held=held)
    if ignore and any(key.startswith(ignore) for key in tensors):
        # Copies: a view keeps all that was read.
        tensors = {key: tensor.clone() for key, tensor in tensors.items() if not key.startswith(ignore)}
    fill(modules, tensors, where=str(path))


def fill(modules: Mapping[str, nn.Module], tensors: Mapping[str, torch.Tensor], *, where: str) -> None:
    """Fill modules from tensors in memory, strictly; see :func:`read_into`."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    found = {key: (tuple(t.shape), names.get(t.dtype, str(t.dtype))) for key, t in tensors.items()}
    states = {prefix: module.state_dict() for prefix, module in modules.items()}
    expected = {f"{prefix}{key}": value for prefix, state in states.items() for key, value in state.items()}
    _compare(where, expected, found)
    for key, tensor in tensors.items():
        if not is_finite(tensor):
            raise PackageError(f"the tensor {key} holds values that are not finite", where=where)
    for prefix, module in modules.items():
        own = {key: tensors[prefix + key] for key in states[prefix]}
        module.load_state_dict(own, strict=True, assign=True)


def _compare(
    where: str, expected: Mapping[str, torch.Tensor], found: Mapping[str, tuple[tuple[int, ...], str]]
) -> None:
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or extra:
        parts = [
            f"{len(keys)} {what} ({', '.join(keys[:3])}…)"
            for what, keys in (("missing", missing), ("unexpected", extra))
            if keys
        ]
        raise ModelError(
            f"the weights do not fit the model and the card: {'; '.join(parts)}", where=where, hint=OTHER_MODEL
        )
    for key, tensor in expected.items():
        shape, dtype = found[key]
        if shape != tuple(tensor.shape):
            raise ModelError(
                f"the tensor {key} has shape {shape}, the model needs {tuple(tensor.shape)}",
                where=where,
                hint=OTHER_MODEL,
            )
        if dtype not in DTYPES:
            raise PackageError(f"the tensor {key} has dtype {dtype}, expected one of {', '.join(DTYPES)}", where=where)


def card_data(panel: Panel, setup: Setup, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a card: what the panel knows, overlaid with ``about``."""
    model_config = getattr(panel.model, "config", None)
    method, described, told = setup.method, as_card(setup), about.get("base_model", {})
    origin = str(getattr(model_config, "_name_or_path", "") or "")
    data: dict[str, Any] = {
        "name": _default_name(setup),
        "version": "0.1.0",
        "description": f"A {method}{' adapter' if setup.single else ''}.",
        "task": {"type": "other"},
        "base_model": {
            "id": (place_of(origin).id or Path(origin).name) if origin and Path(origin).is_dir() else origin,
            "revision": getattr(model_config, "_commit_hash", None),
            "model_type": str(getattr(model_config, "model_type", "")),
            "fingerprint": told.get("fingerprint") or str(fingerprint_of(panel.model, panel.anatomy)),
        },
        "adapter": {
            "format": "adaptergit",
            "method": method,
            "config": described.pop("config"),
            "sites": as_records(_sites(panel, setup)),
            "parameters": sum(panel.parameters_of(name) for name in setup.adapters),
        },
        **described,
    }
    if not data["base_model"]["id"]:
        data["base_model"]["id"] = data["base_model"]["model_type"]
    data["training"] = {"frameworks": frameworks()}
    data["license"] = UNSPECIFIED
    for key, value in about.items():
        nested = isinstance(value, Mapping) and isinstance(data.get(key), dict)
        data[key] = {**data[key], **value} if nested else value
    return data


def _sites(panel: Panel, setup: Setup) -> list[Site]:
    """Return where the members act; one card holds one site of a key."""
    found: dict[str, Site] = {}
    fused = [place for key in setup.fusions for place in panel.fused(key).modules if isinstance(place, Site)]
    for site in [*(site for name in setup.adapters for site in panel.sites_of(name)), *fused]:
        if found.setdefault(site.key, site) != site:
            raise UsageError(
                f"the adapters of this set-up act at different places of {site.key}", hint="save them singly"
            )
    return list(found.values())


def _default_name(setup: Setup) -> str:
    return card_name(next(iter(setup.adapters))) if setup.single else ""


def card_name(name: str) -> str:
    """Return the name an adapter would be published under."""
    return re.sub(r"[^a-z0-9._-]", "-", name.lower())


def frameworks() -> dict[str, str]:
    """Return the versions of what training and inference ran on."""
    versions = {}
    for package in ("adaptergit", "torch", "transformers"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Write to a temporary file and rename: a crash leaves the old file, never half a new one."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
