"""Resolve, fetch, verify: from a reference to a package folder that may be used.

One direction: reference → digest (store or git) → package folder in the store → verdict. Nothing here knows torch.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from packaging.version import Version

from adaptergit.errors import AdaptergitWarning, NotFoundError
from adaptergit.index.local import Entry, find_release
from adaptergit.package import Manifest, check_files, read_package
from adaptergit.pins import add_pin, known_signers
from adaptergit.reference import Reference
from adaptergit.settings import Settings, cache_dir, load_settings
from adaptergit.store import Seen, Store
from adaptergit.trust import AllowedSigner, Policy, Verdict, evaluate


@dataclass(frozen=True)
class Resolved:
    """Where a reference led."""

    reference: Reference
    version: str
    digest: str
    path: Path
    """The package folder in the store."""
    tree: str
    """Git oid of the release's tree; empty if it is known by its digest only."""
    from_store: bool
    """True when no network was touched."""


def resolve(
    ref: str | Reference,
    *,
    offline: bool = False,
    refresh: bool = False,
    index: str | Path | None = None,
    settings: Settings | None = None,
) -> Resolved:
    """Find the package a reference means and bring it into the store; nothing about trust is decided here.

    An exact version or a pinned digest that is in the store is answered without network and without a process. So is
    an unpinned reference, for ``resolution_max_age`` seconds after the repository was last asked.

    Args:
        ref: A reference.
        offline: Never touch the network; ``ADAPTERGIT_OFFLINE=1`` does the same.
        refresh: Ask the repository again even if a recent answer is known.
        index: Index file whose entry pins digest and tree of the release.
        settings: Default: the user's.

    Raises:
        UsageError: The reference is malformed.
        NotFoundError: No such adapter or version, or not in the store while offline.
        TransportError: The repository cannot be reached.
        PackageError: What was fetched is not a package, or is damaged.
    """
    settings = settings or load_settings()
    reference = _parse(ref, settings)
    store = Store(cache_dir())
    url = reference.source.url
    entry = find_release(index, reference) if index is not None else None
    if entry is not None and reference.digest is None:
        reference = reference.pinned(entry.manifest_sha256)
    offline = offline or settings.offline
    if not refresh and (hit := _from_store(reference, store, settings, offline)):
        return hit
    if offline:
        raise NotFoundError(
            f"{reference} is not in the store, and offline was asked for",
            where=str(store.root),
            hint="load it once with network",
        )
    with store.once(f"{url}@{reference.adapter}"):
        # Another process may have fetched it while this one waited.
        if not refresh and (hit := _from_store(reference, store, settings, offline)):
            return hit
        return _from_git(reference, entry, store, settings)


def fetch(
    ref: str | Reference, *, offline: bool = False, refresh: bool = False, index: str | Path | None = None
) -> Path:
    """Resolve a reference and return the package folder in the store. Verify it before using it."""
    return resolve(ref, offline=offline, refresh=refresh, index=index).path


def verify(
    path: str | Path,
    *,
    policy: str | None = None,
    reference: Reference | None = None,
    allowed_signers: Sequence[AllowedSigner] | None = None,
    settings: Settings | None = None,
) -> Verdict:
    """Verify a package folder: signature and policy first, then every byte, then that card and manifest agree.

    Args:
        path: The package folder.
        policy: ``enforce``, ``tofu``, ``digest`` or ``unsigned``; default: what the settings say for its principal.
        reference: What was asked for; the manifest must be of it.
        allowed_signers: Default: the user's allowed-signers file and pins.
        settings: Default: the user's.

    Raises:
        TrustError: Refused.
        PackageError: A byte, a file or the manifest is not as signed.
    """
    settings = settings or load_settings()
    package = read_package(Path(path), settings.limits)
    principal = reference.source.principal if reference else None
    if principal is None:
        # A local folder names nobody: the manifest says whose rules apply, and the signature whether it may say so.
        principal = Manifest.from_bytes(package.manifest_bytes, where=f"{path}/manifest.json").repository
    wanted = Policy(
        level=policy or settings.policy_for(principal),
        signers=tuple(known_signers(settings) if allowed_signers is None else allowed_signers),
        digest=reference.digest if reference else None,
        repository=reference.source.principal if reference else None,
        name=reference.adapter if reference else None,
        **({"specifier": reference.specifier} if reference else {}),
    )
    verdict = evaluate(package.manifest_bytes, package.signatures, wanted, datetime.now(UTC))
    check_files(package, verdict.manifest, settings.limits)
    for warning in verdict.warnings:
        warnings.warn(warning, AdaptergitWarning, stacklevel=2)
    if verdict.pin is not None:
        add_pin(settings, verdict.pin)
    return verdict


def _parse(ref: str | Reference, settings: Settings) -> Reference:
    return ref if isinstance(ref, Reference) else Reference.parse(ref, default_host=settings.default_host)


def _from_store(reference: Reference, store: Store, settings: Settings, offline: bool) -> Resolved | None:
    known = store.known(reference.source.url, reference.adapter)
    if reference.digest is not None:
        path = store.find(reference.digest)
        if path is None:
            return None
        manifest = Manifest.from_bytes(store.open(reference.digest).manifest_bytes, where=str(path))
        seen = known.fetched.get(manifest.version)
        tree = seen.tree if seen is not None and seen.digest == reference.digest else ""
        return Resolved(reference, manifest.version, reference.digest, path, tree, True)
    version = _exact(reference)
    if version is None and offline:
        version = _newest(reference, known.fetched)
    elif version is None and time.time() - known.asked < settings.resolution_max_age:
        version = _newest(reference, known.released)
    seen = known.fetched.get(version) if version is not None else None
    path = store.find(seen.digest) if seen is not None else None
    if version is None or seen is None or path is None:
        return None
    return Resolved(reference, version, seen.digest, path, seen.tree, True)


def _from_git(reference: Reference, entry: Entry | None, store: Store, settings: Settings) -> Resolved:
    from adaptergit.git import Remote, fetch_release, list_versions

    remote = Remote.of(reference.source, allow_http=settings.allow_http)
    url, adapter = reference.source.url, reference.adapter
    known = store.known(url, adapter)
    version = entry.version if entry else _exact(reference)
    if version is None:
        known = replace(known, released=tuple(list_versions(remote, adapter)), asked=time.time())
        version = _choose(reference, known.released)
    with store.workspace() as folder:
        inner = folder / "package"
        inner.mkdir()
        tree = entry.tree if entry else None
        fetched = fetch_release(remote, adapter, inner, version=version, tree=tree, limits=settings.limits)
        package = store.add(inner, settings.limits)
    seen = Seen(package.digest, fetched.tree)
    store.remember(url, adapter, replace(known, fetched={**known.fetched, version: seen}))
    return Resolved(reference, version, package.digest, package.path, fetched.tree, False)


def _exact(reference: Reference) -> str | None:
    clauses = list(reference.specifier)
    if len(clauses) == 1 and clauses[0].operator in ("==", "===") and not clauses[0].version.endswith(".*"):
        return str(Version(clauses[0].version))
    return None


def _choose(reference: Reference, versions: Collection[str]) -> str:
    if not versions:
        raise NotFoundError(
            f"{reference.source.url} has no adapter {reference.adapter!r}",
            hint="check the spelling; releases are tags named adapters/<name>/<version>",
        )
    version = _newest(reference, versions)
    if version is None:
        shown = ", ".join(sorted(versions, key=Version)[-10:])
        wanted = f"satisfies {reference.specifier}" if reference.specifier else "is a final release"
        raise NotFoundError(
            f"no version of {reference.adapter!r} in {reference.source.url} {wanted}",
            hint=f"released: {shown}",
        )
    return version


def _newest(reference: Reference, versions: Iterable[str]) -> str | None:
    versions = list(versions)
    fitting = [v for v in versions if reference.specifier.contains(v) and not Version(v).is_prerelease]
    if not fitting and reference.specifier.prereleases:
        fitting = [v for v in versions if reference.specifier.contains(v, prereleases=True)]
    return max(fitting, key=Version, default=None)
