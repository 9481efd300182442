"""Resolve, fetch, verify: from a reference to a package folder that may be used.

One direction: reference → version → (store, or git → a folder of its own) → verdict → store. A package that is refused
is neither stored nor remembered, and a stored one that does not verify is fetched again once: what lies in the store
can never stand between a user and an honest server. Nothing here knows torch.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from packaging.version import Version

from adaptergit.errors import (
    AdaptergitError,
    AdaptergitWarning,
    NotFoundError,
    PackageError,
    TransportError,
    TrustError,
    UsageError,
)
from adaptergit.index.local import Entry, find_release
from adaptergit.package import Card, Manifest, check_files, read_package
from adaptergit.package.version import is_version
from adaptergit.pins import add_pin, known_signers
from adaptergit.reference import Reference
from adaptergit.settings import POLICY_LEVELS, Settings, cache_dir, load_settings
from adaptergit.store import Known, Seen, Store
from adaptergit.trust import AllowedSigner, Policy, Verdict, evaluate


@dataclass(frozen=True)
class Resolved:
    """What a reference means right now."""

    reference: Reference
    version: str
    digest: str | None
    """sha256 of the manifest, where it is known before fetching."""
    tree: str | None
    """Git oid that fetches exactly this release, where it is known."""


@dataclass(frozen=True)
class Fetched:
    """A verified package."""

    reference: Reference
    version: str
    digest: str
    path: Path
    """The package folder in the store."""
    tree: str
    """Git oid of the release's tree; empty if it is known by its digest only."""
    card: Card
    verdict: Verdict
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
    """Find out which release a reference means; fetches nothing but a list of versions.

    Args:
        ref: A reference.
        offline: Never touch the network; ``ADAPTERGIT_OFFLINE=1`` does the same.
        refresh: Ask the repository again even if a recent answer is known.
        index: Index file whose entry pins digest and tree of the release.
        settings: Default: the user's.

    Raises:
        UsageError: The reference is malformed.
        NotFoundError: No such adapter or version, or none in the store while offline.
        TransportError: The repository cannot be reached.
    """
    settings = settings or load_settings()
    reference = parse_reference(ref, settings)
    store = Store(cache_dir())
    entry = find_release(index, reference) if index is not None else None
    stored = _remembered(reference, entry, store, settings, offline or settings.offline, refresh)
    if stored is not None:
        return stored
    _refuse_offline(reference, store, offline or settings.offline)
    return _ask(reference, entry, store, settings)


def fetch(
    ref: str | Reference,
    *,
    policy: str | None = None,
    offline: bool = False,
    refresh: bool = False,
    index: str | Path | None = None,
    settings: Settings | None = None,
) -> Fetched:
    """Fetch and verify the release a reference means, and return its folder in the store.

    An exact version or a pinned digest that is in the store needs no network and no process. So does an unpinned
    reference, for ``resolution_max_age`` seconds after the repository was last asked.

    Args:
        ref: A reference.
        policy: ``enforce``, ``tofu``, ``digest`` or ``unsigned``; default: what the settings say for the repository.
        offline: See :func:`resolve`, as ``refresh``, ``index`` and ``settings``.

    Raises:
        UsageError, NotFoundError, TransportError: It cannot be had.
        TrustError: Refused by policy; nothing is stored or remembered.
        PackageError: What was fetched is not what its manifest says; nothing is stored or remembered.
    """
    settings = settings or load_settings()
    reference = parse_reference(ref, settings)
    store = Store(cache_dir())
    offline = offline or settings.offline
    entry = find_release(index, reference) if index is not None else None
    if entry is not None:
        reference = reference.pinned(entry.manifest_sha256)
    if not refresh and (hit := _from_store(reference, entry, store, settings, policy, offline)):
        return hit
    _refuse_offline(reference, store, offline)
    with store.once(f"{reference.source.url}@{reference.adapter}"):
        # Another process may have fetched it while this one waited.
        if not refresh and (hit := _from_store(reference, entry, store, settings, policy, offline)):
            return hit
        return _from_git(reference, entry, store, settings, policy)


def verify(
    path: str | Path,
    *,
    policy: str | None = None,
    reference: Reference | None = None,
    version: str | None = None,
    allowed_signers: Sequence[AllowedSigner] | None = None,
    settings: Settings | None = None,
) -> Verdict:
    """Verify a package folder: signature and policy first, then every byte, then that card and manifest agree.

    Args:
        path: The package folder.
        policy: ``enforce``, ``tofu``, ``digest`` or ``unsigned``; default: what the settings say.
        reference: What was asked for; the manifest must be of it.
        version: The release that was chosen; the manifest must be of it.
        allowed_signers: Default: the user's allowed-signers file and pins.
        settings: Default: the user's.

    Raises:
        TrustError: Refused.
        PackageError: A byte, a file or the manifest is not as signed.
    """
    return _verified(Path(path), policy, reference, version, settings or load_settings(), allowed_signers)[0]


def parse_reference(ref: str | Reference, settings: Settings) -> Reference:
    """Return a parsed reference, with the settings' default host."""
    return ref if isinstance(ref, Reference) else Reference.parse(ref, default_host=settings.default_host)


def _verified(
    path: Path,
    policy: str | None,
    reference: Reference | None,
    version: str | None,
    settings: Settings,
    allowed_signers: Sequence[AllowedSigner] | None = None,
) -> tuple[Verdict, Card]:
    if policy is not None and policy not in POLICY_LEVELS:
        raise UsageError(f"unknown policy {policy!r}", hint=f"one of {', '.join(POLICY_LEVELS)}")
    package = read_package(path, settings.limits)
    principal = reference.source.principal if reference else None
    # A local path names nobody: what its manifest claims may not choose a weaker rule, nor earn a pin.
    level = policy or settings.policy_for(principal)
    wanted = Policy(
        level=level,
        signers=tuple(known_signers(settings) if allowed_signers is None else allowed_signers),
        digest=reference.digest if reference else None,
        repository=principal,
        name=reference.adapter if reference else None,
    )
    if reference:
        wanted = replace(wanted, specifier=reference.specifier)
    verdict = evaluate(package.manifest_bytes, package.signatures, wanted, datetime.now(UTC))
    if version is not None and verdict.manifest.version != version:
        raise TrustError(
            f"the release is tagged {version}, but its manifest is of {verdict.manifest.version}",
            where=str(path),
            hint="somebody moved a tag: ask the publisher",
        )
    if verdict.pin is not None and principal is None:
        raise TrustError(
            "a local path names nobody, so there is no first use to remember",
            hint=f"adaptergit trust add {verdict.manifest.repository} '{verdict.pin.key.line}'",
        )
    card = check_files(package, verdict.manifest, settings.limits)
    for warning in verdict.warnings:
        # A registry of its own: told on every load, not once per process, and still under the caller's filters.
        warnings.warn_explicit(warning, AdaptergitWarning, __file__, 1, registry={})
    if verdict.pin is not None:
        add_pin(settings, verdict.pin)
    return verdict, card


def _remembered(
    reference: Reference,
    entry: Entry | None,
    store: Store,
    settings: Settings,
    offline: bool,
    refresh: bool,
    skip: Collection[str] = (),
) -> Resolved | None:
    """Answer from what is stored and was seen, leaving out the versions in ``skip``."""
    if entry is not None:
        return Resolved(reference.pinned(entry.manifest_sha256), entry.version, entry.manifest_sha256, entry.tree)
    if refresh:
        return None
    known = store.known(reference.source.url, reference.adapter)
    if reference.digest is not None:
        return _pinned(reference, store, known)
    fetched = {v: seen for v, seen in known.fetched.items() if v not in skip and store.find(seen.digest) is not None}
    if offline or _exact(reference) is not None:
        version = _newest(reference, fetched)
    elif 0 <= time.time() - known.asked < settings.resolution_max_age:
        version = _newest(reference, known.released)
    else:
        return None
    seen = fetched.get(version) if version is not None else None
    return None if version is None or seen is None else Resolved(reference, version, seen.digest, seen.tree)


def _pinned(reference: Reference, store: Store, known: Known) -> Resolved | None:
    """A pinned digest says it all; the manifest in the store knows its version best."""
    digest = reference.digest
    try:
        if digest is None or store.find(digest) is None:
            return None
        manifest = Manifest.from_bytes(store.open(digest).manifest_bytes, where=digest)
    except (PackageError, NotFoundError, OSError):
        return None  # damaged: to be fetched again
    tree = next((seen.tree for seen in known.fetched.values() if seen.digest == digest), None)
    return Resolved(reference, manifest.version, digest, tree)


def _from_store(
    reference: Reference, entry: Entry | None, store: Store, settings: Settings, policy: str | None, offline: bool
) -> Fetched | None:
    refused: dict[str, AdaptergitError] = {}
    while found := _remembered(reference, entry, store, settings, offline, False, refused):
        path = store.find(found.digest) if found.digest is not None else None
        if found.digest is None or path is None or found.version in refused:
            break
        try:
            verdict, card = _verified(path, policy, reference, found.version, settings)
            if verdict.digest != found.digest:
                raise PackageError(f"the manifest was changed: its sha256 is {verdict.digest}", where=str(path))
        except OSError as error:
            refused[found.version] = TransportError(f"cannot be read: {error.strerror}", where=str(path))
        except (PackageError, TrustError, NotFoundError) as error:
            refused[found.version] = error
        else:
            tree = found.tree or ""
            return Fetched(reference, found.version, found.digest, path, tree, card, verdict, True)
        if not offline:
            return None  # damaged, or stored with other signatures: the repository is asked
    if refused:
        raise next(iter(refused.values()))
    return None


def _ask(reference: Reference, entry: Entry | None, store: Store, settings: Settings) -> Resolved:
    """Choose a version, asking the repository for a list where the reference does not name one."""
    from adaptergit.git import Remote, list_versions

    if entry is not None:
        return Resolved(reference, entry.version, entry.manifest_sha256, entry.tree)
    remote = Remote.of(reference.source, allow_http=settings.allow_http)
    url, adapter = reference.source.url, reference.adapter
    released = tuple(list_versions(remote, adapter))
    version = _choose(reference, released)
    store.remember(url, adapter, replace(store.known(url, adapter), released=released, asked=time.time()))
    return Resolved(reference, version, reference.digest, None)


def _from_git(
    reference: Reference, entry: Entry | None, store: Store, settings: Settings, policy: str | None
) -> Fetched:
    from adaptergit.git import Remote, fetch_release

    remote = Remote.of(reference.source, allow_http=settings.allow_http)
    with store.workspace() as folder:
        inner = folder / "package"
        inner.mkdir()
        exact = None if entry else _exact(reference)
        try:
            if exact is None:
                raise NotFoundError("no exact version")
            resolved = Resolved(reference, exact, None, None)
            fetched = fetch_release(remote, reference.adapter, inner, version=exact, limits=settings.limits)
        except NotFoundError:
            # ==1.0 also means 1.0.0: the list decides.
            resolved = _ask(reference, entry, store, settings)
            fetched = fetch_release(
                remote, reference.adapter, inner, version=resolved.version, tree=resolved.tree, limits=settings.limits
            )
        try:
            verdict, card = _verified(inner, policy, reference, resolved.version, settings)
        except TrustError as error:
            if reference.digest and not reference.specifier and "you pinned" in error.what:
                hint = (
                    f"{resolved.version} is the newest; write the version you pinned: {reference.adapter}==…#sha256:…"
                )
                raise TrustError(error.what, where=reference.source.url, hint=hint) from error
            raise
        package = store.add(inner, settings.limits)
    url, adapter = reference.source.url, reference.adapter
    known = store.known(url, adapter)
    seen = Seen(package.digest, fetched.tree)
    store.remember(url, adapter, replace(known, fetched={**known.fetched, resolved.version: seen}))
    return Fetched(reference, resolved.version, package.digest, package.path, fetched.tree, card, verdict, False)


def _refuse_offline(reference: Reference, store: Store, offline: bool) -> None:
    if offline:
        raise NotFoundError(
            f"{reference} is not in the store, and offline was asked for",
            where=str(store.root),
            hint="load it once with network",
        )


def _exact(reference: Reference) -> str | None:
    clauses = list(reference.specifier)
    if len(clauses) == 1 and clauses[0].operator == "==" and not clauses[0].version.endswith(".*"):
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
            f"no version of {reference.adapter!r} in {reference.source.url} {wanted}", hint=f"released: {shown}"
        )
    return version


def _newest(reference: Reference, versions: Iterable[str]) -> str | None:
    return reference.newest(version for version in versions if is_version(version))
