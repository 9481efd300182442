"""The layout of a static mirror: packages that any web server, USB stick or tar file can hold.

::

    mirror.json                                  {"schema": "adaptergit.mirror/1"}
    releases/<principal>/<adapter>.json          {"schema": …, "releases": [{version, manifest_sha256, tree, files}],
                                                  "yanked": {version: reason}}
    packages/<manifest digest>/<file>            immutable
    rotations/<principal>.jsonl                  which keys came after which, as the keys before say
    allowed_signers                              keys of the publishers, for those who choose to trust the mirror

Packages never change, so everything below ``packages/`` may be cached for ever.
"""

from __future__ import annotations

import errno
import filecmp
import json
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from packaging.version import Version

from adaptergit.durable import remove_tree, replace_file, sync
from adaptergit.errors import PackageError, UsageError
from adaptergit.package import canonical
from adaptergit.package.names import is_allowed
from adaptergit.package.version import is_version

SCHEMA = "adaptergit.mirror/1"
MARK, SIGNERS = "mirror.json", "allowed_signers"
LOCKS = f".{MARK}.locks"
_NEW = ".new-"
MAX_LISTING_BYTES = 16 * 2**20
_STALE_SECONDS = 86400.0
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


class Added(Enum):
    """What became of a release in a mirror."""

    NEW = "new"
    MENDED = "mended"
    """It was there, but not whole."""
    THERE = "was there"


def listing_path(principal: str, adapter: str) -> str:
    """Return where an adapter's releases are listed."""
    return f"releases/{principal}/{adapter}.json"


def package_path(digest: str) -> str:
    """Return where a package's files are."""
    return f"packages/{digest}"


def rotations_path(principal: str) -> str:
    """Return where a repository's rotations are, one a line."""
    return f"rotations/{principal}.jsonl"


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


def begin_mirror(root: Path) -> None:
    """Mark a folder as a mirror, before anything else is in it: what is interrupted then goes on another time.

    Raises:
        UsageError: The folder is something else.
    """
    if root.exists() and not root.is_dir():
        raise UsageError("this is not a folder", where=str(root), hint="name a new folder, or a repository's URL")
    mark = root / MARK
    if mark.is_file():
        _sweep(root)
        return
    if root.is_dir() and any(not path.name.startswith(f".{MARK}.") for path in root.iterdir()):
        git = (root / "objects").is_dir() or (root / ".git").exists()
        hint = f"a git repository is named {root.resolve().as_uri()}" if git else "choose an empty one"
        raise UsageError("the folder holds something else than a mirror", where=str(root), hint=hint)
    _write(mark, {"schema": SCHEMA})


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
) -> Added:
    """Add a verified package to a mirror folder, or mend what is there of it. Every file is replaced in one step.

    Args:
        root: The mirror; see :func:`begin_mirror`.
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
    known = _listed(listing)
    for one in known.releases:
        if one.version == version and one.manifest_sha256 != digest:
            raise PackageError(
                f"the mirror holds another {adapter} {version}: releases never change",
                where=str(root),
                hint="copy to a new folder",
            )
    target = root / package_path(digest)
    mended = _put(package, target)
    before = next((one for one in known.releases if one.version == version), None)
    # A signature that was added later lies beside those that are listed.
    more = () if before is None else (name for name in before.files if (target / name).is_file())
    files = tuple(sorted({*(path.name for path in package.iterdir()), *more}))
    # The tree is of exactly these files: of those that are there now, or of those that were, or it is not known.
    own = tree if files == tuple(sorted(path.name for path in package.iterdir())) else ""
    kept = before.tree if before is not None and before.files == files else ""
    after = Mirrored(version, digest, own or kept, files)
    marks = known.yanked if yanked is None else yanked
    if after != before or marks != known.yanked:
        releases = sorted(
            (*(one for one in known.releases if one != before), after), key=lambda one: Version(one.version)
        )
        listed: dict[str, Any] = {"schema": SCHEMA, "releases": [asdict(one) for one in releases]}
        _write(listing, listed | ({"yanked": dict(marks)} if marks else {}))
    if before is None:
        return Added.NEW
    return Added.MENDED if mended or after != before else Added.THERE


def put_rotations(root: Path, principal: str, lines: Iterable[str], *, keep: bool) -> None:
    """Write a repository's rotations beside the packages: who knows a key of before can follow them.

    Args:
        root: The mirror.
        principal: Whose they are.
        lines: One each.
        keep: Those that are there stay too: the repository itself could not be asked.
    """
    path = root / rotations_path(principal)
    existing = path.read_text("utf-8").splitlines() if path.is_file() else []
    after = sorted({*(existing if keep else ()), *lines} - {""})
    if after != existing:
        replace_file(path, "".join(f"{line}\n" for line in after).encode())


def add_signers(root: Path, lines: Iterable[str]) -> None:
    """Write publishers' keys beside the packages, as allowed-signers lines."""
    path = root / SIGNERS
    existing = path.read_text("utf-8").splitlines() if path.is_file() else []
    merged = sorted({*existing, *lines} - {""})
    replace_file(path, "".join(f"{line}\n" for line in merged).encode())


def _listed(listing: Path) -> Shelf:
    if not listing.is_file():
        return Shelf()
    try:
        return parse_listing(listing.read_bytes(), str(listing))
    except PackageError as error:
        error.hint = error.hint or "remove it, and mirror once more what it shall list"
        raise


def _put(package: Path, target: Path) -> bool:
    """Make a folder of a mirror hold a package's files; return whether there was one that did not."""
    if not target.is_dir():
        try:
            _copy(package, target)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # else another machine was faster
                raise
        else:
            return False
    mended = False
    for path in package.iterdir():
        there = target / path.name
        if not there.is_file() or not filecmp.cmp(path, there, shallow=False):
            replace_file(there, path.read_bytes())
            mended = True
    return mended


def _copy(package: Path, target: Path) -> None:
    temporary = target.with_name(f"{_NEW}{secrets.token_hex(8)}")
    temporary.mkdir(parents=True)  # not as tempfile does: whoever may read the listings may read this too
    try:
        for path in package.iterdir():
            shutil.copyfile(path, temporary / path.name)
            sync(temporary / path.name)
        sync(temporary)
        temporary.rename(target)
        sync(target.parent)
    finally:
        remove_tree(temporary)


def _sweep(root: Path) -> None:
    """Remove what killed processes left behind a day ago or earlier."""
    for path in (root / package_path("")).glob(f"{_NEW}*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                remove_tree(path)


def _write(path: Path, data: Any) -> None:
    replace_file(path, (json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())
