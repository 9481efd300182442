"""Keeping the store: what is in it, whether it is whole, and what may go."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from packaging.version import Version

from adaptergit.package import Manifest
from adaptergit.progress import tell
from adaptergit.settings import Settings, cache_dir, load_settings
from adaptergit.store import Store, Stored
from adaptergit.store.lockfile import read_lock


def stored() -> list[Stored]:
    """Return every package of the store."""
    return list(Store(cache_dir()).contents())


def verify_store(*, remove: bool = False, settings: Settings | None = None) -> dict[str, str]:
    """Read every byte of the store; return what is damaged by digest, and why. Inside ``watching``, say how far it is.

    Args:
        remove: Remove what is damaged; it is fetched again when it is needed.
        settings: Default: the user's.
    """
    settings = settings or load_settings()
    store = Store(cache_dir())
    contents, done = list(store.contents()), 0
    found, total = dict[str, str](), sum(one.size for one in contents)
    for one in contents:
        if why := store.damage(one.digest, settings.limits):
            found[one.digest] = why
        done += one.size
        tell("the store", done, total)
    if remove:
        for digest in found:
            store.remove(digest)
    return found


def prune(
    *, keep: Iterable[str | Path] = (), older_than: float = 0.0, everything: bool = False, dry_run: bool = False
) -> list[Stored]:
    """Remove packages of which a newer version is stored, and damaged ones; return them.

    Of each adapter the newest version stays, and the one that a reference without a version means: the newest that is
    neither a pre-release nor yanked.

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
    wanted = _wanted(store, [one.manifest for one in contents if one.manifest is not None])
    doomed = [
        one
        for one in contents
        if one.digest not in kept
        and time.time() - one.since >= older_than
        and (everything or one.manifest is None or one.manifest.version not in wanted[_who(one.manifest)])
    ]
    if not dry_run:
        for one in doomed:
            store.remove(one.digest)
    return doomed


def _wanted(store: Store, manifests: Iterable[Manifest]) -> dict[tuple[str, str], set[str]]:
    """Return the versions of each adapter that somebody may load without naming one."""
    versions: dict[tuple[str, str], set[str]] = {}
    for manifest in manifests:
        versions.setdefault(_who(manifest), set()).add(manifest.version)
    wanted = {}
    for who, here in versions.items():
        known = store.known(*who)
        # What was only looked at, whoever signed it, takes nobody's place.
        here = {v for v in here if v not in known.fetched or known.fetched[v].vouched} or here
        yanked = known.yanked
        final = [version for version in here if version not in yanked and not Version(version).is_prerelease]
        wanted[who] = {max(some, key=Version) for some in (here, final) if some}
    return wanted


def _who(manifest: Manifest) -> tuple[str, str]:
    return manifest.repository, manifest.name
