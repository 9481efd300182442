"""Keeping the store: what is in it, whether it is whole, and what may go."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from packaging.version import Version

from adaptergit.settings import Settings, cache_dir, load_settings
from adaptergit.store import Store, Stored
from adaptergit.store.lockfile import read_lock


def stored() -> list[Stored]:
    """Return every package of the store."""
    return list(Store(cache_dir()).contents())


def verify_store(*, remove: bool = False, settings: Settings | None = None) -> dict[str, str]:
    """Read every byte of the store; return what is damaged by digest, and why.

    Args:
        remove: Remove what is damaged; it is fetched again when it is needed.
        settings: Default: the user's.
    """
    settings = settings or load_settings()
    store = Store(cache_dir())
    found = {one.digest: why for one in store.contents() if (why := store.damage(one.digest, settings.limits))}
    if remove:
        for digest in found:
            store.remove(digest)
    return found


def prune(
    *, keep: Iterable[str | Path] = (), older_than: float = 0.0, everything: bool = False, dry_run: bool = False
) -> list[Stored]:
    """Remove packages of which a newer version is stored, and damaged ones; return them.

    Args:
        keep: Lock files; what they name stays.
        older_than: Only what was stored more than so many seconds ago.
        everything: Also the newest versions.
        dry_run: Only say what would go.

    Raises:
        NotFoundError, PackageError: A lock file cannot be read; nothing is removed.
    """
    kept = {one.manifest_sha256 for path in keep for one in read_lock(path).values()}
    store = Store(cache_dir())
    contents = list(store.contents())
    newest: dict[tuple[str, str], Version] = {}
    for one in contents:
        if one.manifest is not None:
            who = (one.manifest.repository, one.manifest.name)
            newest[who] = max(newest.get(who, Version("0")), Version(one.manifest.version))
    doomed = [
        one
        for one in contents
        if one.digest not in kept
        and time.time() - one.since >= older_than
        and (everything or one.manifest is None or _superseded(one, newest))
    ]
    if not dry_run:
        for one in doomed:
            store.remove(one.digest)
    return doomed


def _superseded(one: Stored, newest: dict[tuple[str, str], Version]) -> bool:
    assert one.manifest is not None
    return Version(one.manifest.version) < newest[one.manifest.repository, one.manifest.name]
