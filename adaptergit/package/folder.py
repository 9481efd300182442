"""Package folders: what may be in one, writing one, and checking every byte of one.

A package is a flat folder: ``card.yaml``, ``manifest.json``, ``manifest.json.sig`` (and co-signers'
``manifest.json.<fp8>.sig``), ``README.md``, ``training.svg`` where the card says how training went, and the weights.
Nothing else is a package: no subfolder, link, executable, unlisted or missing file.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import stat
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from adaptergit.errors import NotFoundError, PackageError, no_file, what_is_there
from adaptergit.package import canonical
from adaptergit.package.card import MAX_BYTES as MAX_CARD_BYTES
from adaptergit.package.card import Card
from adaptergit.package.curve import PICTURE, is_drawn, picture_file, series_of
from adaptergit.package.manifest import MAX_BYTES as MAX_MANIFEST_BYTES
from adaptergit.package.manifest import File, Manifest
from adaptergit.package.names import fold, is_allowed
from adaptergit.package.readme import is_rendered, render_readme
from adaptergit.settings import Limits

CARD = "card.yaml"
MANIFEST = "manifest.json"
SIGNATURE = "manifest.json.sig"
README = "README.md"
WEIGHTS = "adapter.safetensors"
MODEL_SIGNATURE = "model.sig"
"""An OpenSSF model-signing bundle, for other tools; it covers the manifest, so the manifest cannot list it."""

_SIGNATURE = re.compile(r"manifest\.json(\.[0-9a-f]{8})?\.sig")
_MAX_SIGNATURE_BYTES = 16 * 1024
MAX_MODEL_SIGNATURE_BYTES = 128 * 1024
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_LFS = b"version https://git-lfs"


@dataclass(frozen=True)
class Package:
    """A package folder whose structure was checked; its bytes are checked by :func:`check_files`."""

    path: Path
    manifest_bytes: bytes
    signatures: Mapping[str, bytes]
    """Armored SSHSIG by file name."""

    @property
    def digest(self) -> str:
        """The identity: sha256 of the manifest's bytes."""
        return canonical.sha256(self.manifest_bytes)


def list_folder(path: Path, limits: Limits = Limits()) -> dict[str, int]:  # noqa: B008 - frozen
    """Return the size in bytes of every file of a package folder.

    Raises:
        NotFoundError: There is no such folder.
        PackageError: The folder holds something a package may not hold.
    """
    if not path.is_dir():
        raise NotFoundError("no such folder", where=str(path), hint=what_is_there(path))
    sizes: dict[str, int] = {}
    with os.scandir(path) as entries:
        for entry in entries:
            where = f"{path}/{entry.name}"
            mode = entry.stat(follow_symlinks=False).st_mode
            check_entry_name(entry.name, where)
            if stat.S_ISDIR(mode):
                raise PackageError("a package has no subfolders", where=where, hint="move the file up or elsewhere")
            if not stat.S_ISREG(mode):
                raise PackageError(
                    "a package holds regular files only: no links or devices",
                    where=where,
                    hint="put the file itself there",
                )
            if os.name == "posix" and mode & 0o111:
                raise PackageError("a package holds no executables", where=where, hint=f"chmod -x {entry.name}")
            sizes[entry.name] = entry.stat(follow_symlinks=False).st_size
    check_sizes(sizes, limits, str(path))
    return sizes


def check_entry_name(name: str, where: str) -> None:
    """Refuse a name that a package may not hold.

    Raises:
        PackageError: The name, and why.
    """
    if not is_allowed(name):
        raise PackageError(f"{name!r} is not a file name of a package", where=where, hint="use A-Z a-z 0-9 . _ -")
    if name.lower().endswith(_PICKLES):
        raise PackageError(
            "a package holds no pickle", where=where, hint="write the weights as safetensors and remove this file"
        )


def check_sizes(sizes: Mapping[str, int], limits: Limits, where: str) -> None:
    """Refuse too many, too large or case-colliding files.

    Raises:
        PackageError: With the limit.
    """
    if len(sizes) > limits.files:
        raise PackageError(f"{len(sizes)} files, the limit is {limits.files}", where=where)
    for name, size in sizes.items():
        if size > limits.file_bytes:
            raise PackageError(f"{size} bytes, the limit for one file is {limits.file_bytes}", where=f"{where}/{name}")
    if (total := sum(sizes.values())) > limits.package_bytes:
        raise PackageError(f"{total} bytes, the limit for a package is {limits.package_bytes}", where=where)
    folded: dict[str, str] = {}
    for name in sorted(sizes):
        if fold(name) in folded:
            raise PackageError(
                f"{name!r} and {folded[fold(name)]!r} differ only in case", where=where, hint="give one another name"
            )
        folded[fold(name)] = name


def signature_names(names: Iterable[str]) -> list[str]:
    """Return the names of signature files, the publisher's own first."""
    return sorted((n for n in names if _SIGNATURE.fullmatch(n)), key=lambda n: (n != SIGNATURE, n))


def unlisted_names(names: Iterable[str]) -> list[str]:
    """Return the names of what a package holds and its manifest does not list: itself, and what signs it."""
    there = set(names)
    return [*sorted({MANIFEST, MODEL_SIGNATURE} & there), *signature_names(there)]


def read_package(path: Path, limits: Limits = Limits()) -> Package:  # noqa: B008 - frozen
    """Read manifest and signatures of a package folder; nothing is parsed.

    Raises:
        PackageError: Not a package folder.
        NotFoundError: No such folder, or no manifest in it.
    """
    names = list_folder(path, limits)
    if MANIFEST not in names:
        raise NotFoundError(
            f"there is no {MANIFEST}",
            where=str(path),
            hint="it is not signed: publish signs the copy it writes to adapters/NAME in the clone",
        )
    signatures = {n: read_bounded(path / n, _MAX_SIGNATURE_BYTES) for n in signature_names(names)}
    return Package(path, read_bounded(path / MANIFEST, MAX_MANIFEST_BYTES), signatures)


def check_files(
    package: Package,
    manifest: Manifest,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    held: dict[str, memoryview] | None = None,
) -> Card:
    """Check that the folder holds exactly what the manifest names, byte for byte, in constant memory.

    Args:
        package: The folder.
        manifest: What it must hold.
        limits: Bounds on its size.
        held: Gets the weights whose bytes were checked, by name, where they can be :func:`mapped`.

    Returns:
        The card, parsed from the very bytes that were checked.

    Raises:
        PackageError: A file is missing, unlisted, or of another size or digest; or card and manifest disagree.
    """
    sizes = list_folder(package.path, limits)
    present = set(sizes) - set(unlisted_names(sizes))
    if sizes.get(MODEL_SIGNATURE, 0) > MAX_MODEL_SIGNATURE_BYTES:
        raise PackageError(f"more than {MAX_MODEL_SIGNATURE_BYTES} bytes", where=f"{package.path}/{MODEL_SIGNATURE}")
    listed = {f.path for f in manifest.files}
    for name in sorted(listed - present):
        raise PackageError(
            "the file is missing, but the manifest lists it",
            where=f"{package.path}/{name}",
            hint="get the folder once more from where it came",
        )
    for name in sorted(present - listed):
        raise PackageError(
            "the manifest does not list this file",
            where=f"{package.path}/{name}",
            hint="take it out; of your own, publish it in a new version",
        )
    for file in manifest.files:
        check_file(package.path / file.path, file, held if file.path == WEIGHTS else None)
    where = str(package.path / CARD)
    listing = next((f for f in manifest.files if f.path == CARD), None)
    if listing is None:
        raise PackageError(f"the manifest lists no {CARD}", where=str(package.path))
    source = read_bounded(package.path / CARD, MAX_CARD_BYTES)
    if canonical.sha256(source) != listing.sha256:
        raise PackageError("the file was changed while it was read", where=where)
    card = Card.from_yaml(source, where=where)
    _check_agreement(card, manifest, str(package.path))
    return card


def check_file(path: Path, file: File, held: dict[str, memoryview] | None = None) -> None:
    """Check size and digest of one file; see :func:`check_files`.

    Raises:
        PackageError: They differ from the manifest's.
    """
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        if size != file.size:
            raise _changed(path, f"{size} bytes, the manifest says {file.size}")
        data = mapped(stream) if held is not None else None
        found = hashlib.file_digest(stream, "sha256") if data is None else hashlib.sha256(data)
    if (digest := found.hexdigest()) != file.sha256:
        raise _changed(path, f"sha256 {digest[:16]}…, the manifest says {file.sha256[:16]}…")
    if held is not None and data is not None:
        held[file.path] = data


def mapped(stream: BinaryIO) -> memoryview | None:
    """Return the content of a file that is ours and that nobody may write to, as those of the store; else None.

    Processes that map the same file share its memory; who changes what is mapped has a copy. Any other file could be
    another one a moment after it was checked, and what is mapped would be with it.
    """
    about = os.fstat(stream.fileno())
    if sys.platform == "win32" or about.st_uid != os.geteuid() or about.st_mode & 0o222 or not about.st_size:
        return None
    try:
        return memoryview(mmap.mmap(stream.fileno(), about.st_size, access=mmap.ACCESS_COPY))
    except OSError:  # not every file system can
        return None


def is_generated(path: Path) -> bool:
    """Tell whether :func:`pack` writes the file anew: the card, the manifest, a signature, our README and plot."""
    if path.name == PICTURE:
        with path.open("rb") as stream:
            return is_drawn(stream.read(256))
    if path.name == README:
        return is_rendered(path.read_bytes().decode("utf-8", "replace"))
    return path.name in (CARD, MANIFEST, MODEL_SIGNATURE) or _SIGNATURE.fullmatch(path.name) is not None


def pack(
    source: Path,
    target: Path,
    card: Card,
    *,
    repository: str,
    previous: str | None,
    created: datetime,
    address: str | None = None,
    readme: bytes | None = None,
) -> bytes:
    """Write the package of ``source`` into the empty folder ``target`` and return the manifest's bytes, unsigned.

    Args:
        source: Folder with the weights (and any other file to publish).
        target: Existing empty folder.
        card: Written as ``card.yaml``; also rendered to ``README.md``, and to ``training.svg`` if it has a curve.
        repository: The principal.
        previous: Digest of the previous version's manifest.
        created: Aware time; stored in UTC to the second.
        address: What people load it from, for the README; default: the principal.
        readme: Written as ``README.md``; default: the source's own, or the card rendered.

    Raises:
        PackageError: The source holds what a package may not hold.
    """
    names = {name for name in list_folder(source) if not is_generated(source / name)}
    if not any(name.endswith(".safetensors") for name in names):
        raise PackageError(
            "there are no weights (*.safetensors)",
            where=str(source),
            hint="name the folder that holds card.yaml and the weights",
        )
    _write(target / CARD, card.to_yaml())
    if readme is not None:
        names.discard(README)
        _write(target / README, readme)
    elif README not in names:  # a README of the publisher's own is published as it is
        size = sum((source / name).stat().st_size for name in names if name.endswith(".safetensors"))
        _write(target / README, render_readme(card, address or repository, size=size).encode("utf-8"))
    for name in sorted(names):
        _copy(source / name, target / name)
    drawn: set[str] = set()
    if (series := series_of(card.data)) and PICTURE not in names:
        _write(target / PICTURE, picture_file(series))
        drawn = {PICTURE}
    manifest = Manifest(
        repository=repository,
        name=card.name,
        version=card.version,
        created=created.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        license=card.license,
        method=card.method,
        base_model=card.base_model,
        files=tuple(_describe(target / name) for name in sorted(names | {CARD, README} | drawn)),
        previous=previous,
    )
    data = manifest.to_bytes()
    _write(target / MANIFEST, data)
    return data


def read_bounded(path: Path, limit: int) -> bytes:
    """Read a file of at most ``limit`` bytes.

    Raises:
        NotFoundError: No such file.
        PackageError: It is larger.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    except FileNotFoundError as error:
        raise no_file(path) from error
    if len(data) > limit:
        raise PackageError(f"more than {limit} bytes", where=str(path))
    return data


def _check_agreement(card: Card, manifest: Manifest, where: str) -> None:
    pairs = {
        "name": (card.name, manifest.name),
        "version": (card.version, manifest.version),
        "license": (card.license, manifest.license),
        "method": (card.method, manifest.method),
        "base_model": (card.base_model, manifest.base_model),
    }
    for field, (in_card, in_manifest) in pairs.items():
        if in_card != in_manifest:
            raise PackageError(f"{field}: the card says {in_card!r}, the manifest {in_manifest!r}", where=where)


def _changed(path: Path, detail: str) -> PackageError:
    with path.open("rb") as stream:
        if stream.read(len(_LFS)) == _LFS:
            what = "this is a git-lfs pointer, not the file: the publisher must commit the file itself"
            return PackageError(what, where=str(path))
    in_clone = any((folder / ".git").exists() for folder in path.absolute().parents)
    again = "get it once more from where it came; of a mirror of yours, adaptergit mirror mends it, of the store sync"
    hint = f"git restore {path}, or publish the folder as a new version" if in_clone else again
    return PackageError(f"the file was changed: {detail}", where=str(path), hint=hint)


def _describe(path: Path) -> File:
    with path.open("rb") as stream:
        return File(path.name, path.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest())


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    path.chmod(0o644)


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as reader, target.open("wb") as writer:
        while block := reader.read(1 << 20):
            writer.write(block)
    target.chmod(0o644)
