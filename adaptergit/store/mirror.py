"""The layout of a static mirror: packages that any web server, USB stick or tar file can hold.

::

    mirror.json                                  {"schema": "adaptergit.mirror/1"}
    releases/<principal>/<adapter>.json          {"schema": …, "releases": [{version, manifest_sha256, tree, files}]}
    packages/<manifest digest>/<file>            immutable
    allowed_signers                              keys of the publishers, for those who choose to trust the mirror

Packages never change, so everything but ``releases/`` may be cached for ever.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from packaging.version import Version

from adaptergit.errors import PackageError
from adaptergit.package import canonical
from adaptergit.package.names import is_allowed
from adaptergit.package.version import is_version

SCHEMA = "adaptergit.mirror/1"
MARK, SIGNERS = "mirror.json", "allowed_signers"
MAX_LISTING_BYTES = 16 * 2**20
_DIGEST = re.compile(r"[0-9a-f]{64}")
_OID = re.compile(r"([0-9a-f]{40}([0-9a-f]{24})?)?")


@dataclass(frozen=True)
class Mirrored:
    """One release of a mirror."""

    version: str
    manifest_sha256: str
    tree: str
    """Git oid of its tree, or empty."""
    files: tuple[str, ...]


def listing_path(principal: str, adapter: str) -> str:
    """Return where an adapter's releases are listed."""
    return f"releases/{principal}/{adapter}.json"


def package_path(digest: str) -> str:
    """Return where a package's files are."""
    return f"packages/{digest}"


def parse_listing(data: bytes, where: str) -> list[Mirrored]:
    """Read the list of an adapter's releases.

    Raises:
        PackageError: Not a list of releases.
    """
    raw = canonical.loads(data, where=where, limit=MAX_LISTING_BYTES)
    if not isinstance(raw, Mapping) or raw.get("schema") != SCHEMA or not isinstance(raw.get("releases"), list):
        raise PackageError(f"not a listing of {SCHEMA}", where=where)
    return [_release(item, f"{where}: releases[{number}]") for number, item in enumerate(raw["releases"])]


def _release(raw: Any, where: str) -> Mirrored:
    fields = ("version", "manifest_sha256", "tree")
    if not isinstance(raw, Mapping) or not all(isinstance(raw.get(name), str) for name in fields):
        raise PackageError("a release has version, manifest_sha256, tree and files", where=where)
    files = raw.get("files")
    if not isinstance(files, list) or not all(isinstance(name, str) and is_allowed(name) for name in files):
        raise PackageError("files: names of a package's files", where=where)
    if not is_version(raw["version"]) or not _DIGEST.fullmatch(raw["manifest_sha256"]):
        raise PackageError("version or manifest_sha256 is malformed", where=where)
    if not _OID.fullmatch(raw["tree"]):
        raise PackageError("tree is no object id", where=where)
    return Mirrored(raw["version"], raw["manifest_sha256"], raw["tree"], tuple(files))


def add_to_mirror(
    root: Path, package: Path, *, principal: str, adapter: str, version: str, digest: str, tree: str
) -> bool:
    """Add a verified package to a mirror folder; return whether it was new. Every file is replaced in one step.

    Raises:
        PackageError: The mirror holds another release of that version: releases never change.
    """
    listing = root / listing_path(principal, adapter)
    known = parse_listing(listing.read_bytes(), str(listing)) if listing.is_file() else []
    for one in known:
        if one.version == version and one.manifest_sha256 != digest:
            raise PackageError(f"the mirror holds another {adapter} {version}: releases never change", where=str(root))
    target = root / package_path(digest)
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=".new-"))
        try:
            for path in package.iterdir():
                shutil.copyfile(path, temporary / path.name)
            temporary.chmod(0o755)
            temporary.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    if any(one.version == version for one in known):
        return False
    files = tuple(sorted(path.name for path in package.iterdir()))
    releases = sorted([*known, Mirrored(version, digest, tree, files)], key=lambda one: Version(one.version))
    _write(listing, {"schema": SCHEMA, "releases": [asdict(one) for one in releases]})
    if not (root / MARK).is_file():
        _write(root / MARK, {"schema": SCHEMA})
    return True


def add_signers(root: Path, lines: Iterable[str]) -> None:
    """Write publishers' keys beside the packages, as allowed-signers lines."""
    path = root / SIGNERS
    existing = path.read_text("utf-8").splitlines() if path.is_file() else []
    merged = sorted({*existing, *lines} - {""})
    _replace(path, "".join(f"{line}\n" for line in merged).encode())


def _write(path: Path, data: Any) -> None:
    _replace(path, (json.dumps(data, indent=1, sort_keys=True) + "\n").encode())


def _replace(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    Path(temporary).chmod(0o644)
    Path(temporary).replace(path)
