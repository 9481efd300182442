"""The lock file: exactly which releases a project uses, so that the same ones are loaded everywhere.

``adaptergit.lock`` is JSON, described by ``schema/lock.schema.json``; sorted, so that it merges well.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adaptergit.durable import disk_errors, replace_file
from adaptergit.errors import NotFoundError, PackageError, quoted
from adaptergit.package import File, canonical, schemas
from adaptergit.package.version import check_version
from adaptergit.reference import Reference

SCHEMA = "adaptergit.lock/1"
MAX_BYTES = 16 * 2**20
DEFAULT = "adaptergit.lock"


@dataclass(frozen=True)
class Locked:
    """One release."""

    reference: str
    """What was asked for, with its specifier."""
    id: str
    """``host/org/repo@adapter``; for a local repository its address and the adapter."""
    version: str
    manifest_sha256: str
    tree: str
    """Git oid that fetches exactly this release; empty if it is not known."""
    urls: tuple[str, ...]
    """The repository, then mirrors."""
    signers: tuple[str, ...]
    """Fingerprints of the keys that signed it."""
    base_model: Mapping[str, str]
    """``id`` and ``fingerprint``."""
    files: tuple[File, ...]


def lock_id(reference: Reference) -> str:
    """Return the name under which a lock file holds what a reference means."""
    return f"{reference.source.principal or reference.source.url}@{reference.adapter}"


def relock(path: str | Path, reference: object, *, upgrade: bool = False) -> str:
    """Return the command that locks a reference in this very file."""
    where = "" if Path(path) == Path(DEFAULT) else f" --lock {quoted(path)}"
    return f"adaptergit lock {'--upgrade ' if upgrade else ''}{quoted(reference)}{where}"


def _mended(path: Path) -> str:
    """Say what is done about a lock file that is damaged."""
    return (
        f"if it is one that was damaged, take it from your repository's history; or delete it (rm {quoted(path)}), "
        f"and write it anew: {relock(path, 'org/repo@adapter')}"
    )


def read_lock(path: str | Path) -> dict[str, Locked]:
    """Read a lock file; releases by id.

    Raises:
        NotFoundError: There is none.
        PackageError: Not a lock file; names the entry and the field.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        hint = f"adaptergit lock REFERENCE… --lock {path}, or name another with --lock (in Python lock=)"
        raise NotFoundError("there is no lock file", where=str(path), hint=hint) from error
    except OSError as error:
        hint = "name the lock file itself with --lock (in Python lock=)"
        raise PackageError(f"cannot be read: {error.strerror}", where=str(path), hint=hint) from error
    try:
        raw = canonical.loads(data, where=str(path), limit=MAX_BYTES)
    except PackageError as error:
        raise PackageError(error.what, where=error.where, hint=_mended(path)) from error
    for where, message in schemas.problems("lock", raw):
        raise PackageError(f"{schemas.dotted(where) or 'document'}: {message}", where=str(path), hint=_mended(path))
    entries = [_entry(item, f"{path}: adapters[{number}]") for number, item in enumerate(raw["adapters"])]
    if len({one.id for one in entries}) != len(entries):
        raise PackageError("an adapter is locked twice", where=str(path), hint=_mended(path))
    return {one.id: one for one in entries}


def _entry(raw: Mapping[str, Any], where: str) -> Locked:
    check_version(raw["version"], where=where)
    lists = {name: tuple(raw[name]) for name in ("urls", "signers")}
    return Locked(**{**raw, **lists, "files": tuple(File(**item) for item in raw["files"])})


def write_lock(path: str | Path, entries: Iterable[Locked]) -> bool:
    """Replace a lock file in one step; return whether its content changed.

    Raises:
        StorageError: It cannot be written, and is as it was.
    """
    path = Path(path)
    ordered = [asdict(one) for one in sorted(entries, key=lambda one: one.id)]
    data = (json.dumps({"schema": SCHEMA, "adapters": ordered}, indent=1, sort_keys=True) + "\n").encode()
    with disk_errors("the lock file", path, "free some space, or name a file elsewhere"):
        if path.is_file() and path.read_bytes() == data:
            return False
        replace_file(path, data)
    return True
