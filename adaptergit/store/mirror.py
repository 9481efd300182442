"""The layout of a static mirror: packages that any web server, USB stick or tar file can hold.

::

    mirror.json                                  {"schema": "adaptergit.mirror/1"}
    releases/<principal>/<adapter>.json          {"schema": …, "releases": [{version, manifest_sha256, tree, files}],
                                                  "yanked": {version: reason}}
    packages/<manifest digest>/<file>            immutable
    allowed_signers                              keys of the publishers, for those who choose to trust the mirror

Packages never change, so everything but ``releases/`` may be cached for ever.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from packaging.version import Version

from adaptergit.durable import replace_file, sync
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


@dataclass(frozen=True)
class Shelf:
    """What a mirror has of one adapter."""

    releases: tuple[Mirrored, ...] = ()
    yanked: Mapping[str, str] = field(default_factory=dict)
    """Versions that their publisher withdrew, and why; also such that are not here."""


def listing_path(principal: str, adapter: str) -> str:
    """Return where an adapter's releases are listed."""
    return f"releases/{principal}/{adapter}.json"


def package_path(digest: str) -> str:
    """Return where a package's files are."""
    return f"packages/{digest}"


def parse_listing(data: bytes, where: str) -> Shelf:
    """Read the list of an adapter's releases.

    Raises:
        PackageError: Not a list of releases.
    """
    raw = canonical.loads(data, where=where, limit=MAX_LISTING_BYTES)
    if not isinstance(raw, Mapping) or raw.get("schema") != SCHEMA or not isinstance(raw.get("releases"), list):
        raise PackageError(f"not a listing of {SCHEMA}", where=where)
    yanked = raw.get("yanked", {})
    if not isinstance(yanked, Mapping) or not all(is_version(v) and isinstance(why, str) for v, why in yanked.items()):
        raise PackageError("yanked: versions, and why", where=where)
    releases = (_release(item, f"{where}: releases[{number}]") for number, item in enumerate(raw["releases"]))
    return Shelf(tuple(releases), yanked)


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
    root: Path,
    package: Path,
    *,
    principal: str,
    adapter: str,
    version: str,
    digest: str,
    tree: str,
    yanked: Mapping[str, str] | None = None,
) -> bool:
    """Add a verified package to a mirror folder; return whether it was new. Every file is replaced in one step.

    Args:
        root: The mirror.
        package: The package's folder.
        principal: Whose it is.
        adapter: Its name.
        version: Its version.
        digest: sha256 of its manifest.
        tree: Git oid of its tree, or empty.
        yanked: What the publisher has withdrawn of the adapter, and why; None: nobody could be asked.

    Raises:
        PackageError: The mirror holds another release of that version: releases never change.
    """
    listing = root / listing_path(principal, adapter)
    known = parse_listing(listing.read_bytes(), str(listing)) if listing.is_file() else Shelf()
    for one in known.releases:
        if one.version == version and one.manifest_sha256 != digest:
            raise PackageError(f"the mirror holds another {adapter} {version}: releases never change", where=str(root))
    target = root / package_path(digest)
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=".new-"))
        try:
            for path in package.iterdir():
                shutil.copyfile(path, temporary / path.name)
                sync(temporary / path.name)
            temporary.chmod(0o755)
            sync(temporary)
            temporary.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    new = all(one.version != version for one in known.releases)
    releases = list(known.releases)
    if new:
        releases.append(Mirrored(version, digest, tree, tuple(sorted(path.name for path in package.iterdir()))))
        releases.sort(key=lambda one: Version(one.version))
    marks = known.yanked if yanked is None else yanked
    if new or marks != known.yanked:
        listed: dict[str, Any] = {"schema": SCHEMA, "releases": [asdict(one) for one in releases]}
        _write(listing, listed | ({"yanked": dict(marks)} if marks else {}))
    if not (root / MARK).is_file():
        _write(root / MARK, {"schema": SCHEMA})
    return new


def add_signers(root: Path, lines: Iterable[str]) -> None:
    """Write publishers' keys beside the packages, as allowed-signers lines."""
    path = root / SIGNERS
    existing = path.read_text("utf-8").splitlines() if path.is_file() else []
    merged = sorted({*existing, *lines} - {""})
    replace_file(path, "".join(f"{line}\n" for line in merged).encode())


def _write(path: Path, data: Any) -> None:
    replace_file(path, (json.dumps(data, indent=1, sort_keys=True) + "\n").encode())
