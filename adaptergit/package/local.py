"""Package folders that a person names: their own word, but a manifest in one must hold."""

from __future__ import annotations

import re
from pathlib import Path

from adaptergit.errors import NotFoundError
from adaptergit.package.card import MAX_BYTES, Card
from adaptergit.package.folder import CARD, MANIFEST, WEIGHTS, check_files, read_bounded, read_package
from adaptergit.package.manifest import Manifest
from adaptergit.reference import HUB
from adaptergit.settings import Limits

_SCHEMES = ("https", "http", "ssh", "file")
_PAGE = re.compile(
    r"https://(?P<repository>[^/]+(/[^/]+){2,}?)(/-)?/(tree|blob|src)/.*adapters/(?P<adapter>[^/]+)(/.*)?"
)
"""Of a folder or a file, as forges show it."""
_HF = "https://huggingface.co/"


def no_folder(folder: Path) -> NotFoundError:
    """Return the error for a folder that is not there, or a text that was meant to be a reference."""
    where, hint = str(folder), "write org/repo@adapter, or the path of a package folder"
    if (scheme := where.partition(":/")[0]) in _SCHEMES and ":/" in where:  # a path has lost its slashes
        where = f"{scheme}://{'/' if scheme == 'file' else ''}{where[len(scheme) + 2 :]}"
        hint = f"name an adapter in it: {where.replace('#', '@') if '#' in where else f'{where}@adapter'}"
        if (page := _PAGE.fullmatch(where)) is not None:
            hint = f"this is a page to look at: write {page['repository']}@{page['adapter']}"
        elif where.startswith(_HF):
            hint = f"write {HUB}{where.removeprefix(_HF).partition('/tree/')[0].rstrip('/')}"
    elif folder.is_file():
        return NotFoundError("this is a file, and no folder", where=where, hint=f"name its folder: {folder.parent}")
    return NotFoundError("no such file or folder, and not a reference", where=where, hint=hint)


def no_card(folder: Path) -> NotFoundError:
    """Return the error for a folder without a card, with what it may be instead."""
    hint = inside(folder)
    if hint is None and (folder / "adapter_config.json").is_file():
        hint = f"a checkpoint of AdapterHub's or PEFT's gets one: adaptergit card make {folder}"
    elif hint is None and (folder / WEIGHTS).is_file():
        hint = f"weights alone do not say what they are of: bring back their {CARD}, or save the adapter once more"
    elif hint is None and ((folder / ".git").exists() or ((folder / "HEAD").is_file() and (folder / "refs").is_dir())):
        where = folder if folder.is_absolute() or str(folder).startswith(".") else f"./{folder}"
        hint = f"a git repository: name an adapter in it, {where}@adapter"
    elif hint is None:
        hint = "this is neither a package folder nor a checkpoint of AdapterHub's or PEFT's: name the folder of one"
    return NotFoundError(f"there is no {CARD}", where=str(folder), hint=hint)


def local_card(folder: Path, limits: Limits = Limits()) -> Card:  # noqa: B008 - frozen
    """Return the card of a folder, after comparing every byte with the manifest if there is one.

    Raises:
        NotFoundError: No such folder, or no card in it.
        PackageError: The card is not valid, or a file was changed.
    """
    if not folder.is_dir():
        raise no_folder(folder)
    if (folder / MANIFEST).exists():
        package = read_package(folder, limits)
        return check_files(package, Manifest.from_bytes(package.manifest_bytes, where=str(folder / MANIFEST)), limits)
    if not (folder / CARD).is_file():
        raise no_card(folder)
    return Card.from_yaml(read_bounded(folder / CARD, MAX_BYTES), where=str(folder / CARD))


def inside(folder: Path) -> str | None:
    """Name the folders in a folder that have a card: it was one of those that was meant."""
    found = sorted(str(path.parent) for below in ("*", "adapters/*") for path in folder.glob(f"{below}/{CARD}"))
    return f"did you mean {' or '.join(found[:3])}?" if found else None
