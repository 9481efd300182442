"""Resolve, fetch, verify: from a reference to a package folder that may be used.

One direction: reference → version → (store, or git → a folder of its own) → verdict → store. A package that is refused
is neither stored nor remembered, and a stored one that does not verify is fetched again once: what lies in the store
can never stand between a user and an honest server. Nothing here knows torch.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from packaging.version import Version

from adaptergit.errors import (
    AdaptergitError,
    NotFoundError,
    PackageError,
    StorageError,
    TransportError,
    TrustError,
    UsageError,
    did_you_mean,
    quoted,
)
from adaptergit.index.local import find_release
from adaptergit.indexes import Word, word_on
from adaptergit.judge import Asked, accepted, history_of, judged, take_over, verified
from adaptergit.legacy import refusal
from adaptergit.package import WEIGHTS, Card, Manifest, read_package
from adaptergit.package.version import is_version
from adaptergit.reference import Reference, check_flags, check_paths
from adaptergit.settings import POLICY_LEVELS, Settings, cache_dir, load_settings
from adaptergit.store import Known, Store
from adaptergit.store.lockfile import lock_id, read_lock, relock
from adaptergit.trust import AllowedSigner, Verdict
from adaptergit.yanks import noted, warn_if_yanked

_NO_TAGS = "the tags are gone"


@dataclass(frozen=True)
class Resolved:
    """What a reference means right now."""

    reference: Reference
    version: str
    digest: str | None
    """sha256 of the manifest, where it is known before fetching."""
    tree: str | None
    """Git oid that fetches exactly this release, where it is known."""
    tagged: str | None = None
    """Git oid of what its tag is of, where the repository itself was just asked."""


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
    served_by: str = ""
    """The address that sent it; empty if it came from the store."""
    weights: memoryview | None = field(default=None, repr=False, compare=False)
    """The very bytes that were checked, if they could be held."""


@dataclass(frozen=True)
class Pin:
    """A release that an index or a lock file names."""

    version: str
    digest: str
    tree: str
    urls: tuple[str, ...] = ()
    vouched: bool = False
    """An index that was added says so; not the caller, by a lock file or an index file."""
    lock: str = ""
    """The lock file that says so, if one does."""


def resolve(
    ref: str | Reference,
    *,
    offline: bool = False,
    refresh: bool = False,
    index: str | Path | None = None,
    lock: str | Path | None = None,
    settings: Settings | None = None,
) -> Resolved:
    """Find out which release a reference means; fetches nothing but a list of versions.

    Args:
        ref: A reference.
        offline: Never touch the network; ``ADAPTERGIT_OFFLINE=1`` does the same.
        refresh: Ask the repository again even if a recent answer is known.
        index: Index file whose entry pins digest and tree of the release.
        lock: Lock file that names the release; nobody is asked which is the newest.
        settings: Default: the user's.

    Raises:
        UsageError: The reference is malformed.
        NotFoundError: No such adapter or version, or none in the store while offline.
        TransportError: The repository cannot be reached.
    """
    check_paths(index=index, lock=lock)
    settings = settings or load_settings()
    reference = parse_reference(ref, settings)
    store = Store(cache_dir())
    word = word_on(reference.source.principal, settings, offline=offline) if lock is None else Word()
    offline = offline or settings.offline
    pin = _pin(reference, index, lock, word, store, offline=offline, refresh=refresh)
    stored = _remembered(reference, pin, store, settings, offline, refresh, _passed_by(reference, word))
    if stored is not None:
        return stored
    _refuse_offline(reference, store, offline, refresh)
    return _ask(reference, store, settings, word)


def fetch(
    ref: str | Reference,
    *,
    policy: str | None = None,
    offline: bool = False,
    refresh: bool = False,
    index: str | Path | None = None,
    lock: str | Path | None = None,
    settings: Settings | None = None,
) -> Fetched:
    """Fetch and verify the release a reference means, and return its folder in the store.

    An exact version or a pinned digest that is in the store needs no network and no process. So does an unpinned
    reference, for ``resolution_max_age`` seconds after the repository was last asked.

    Args:
        ref: A reference.
        policy: ``enforce``, ``tofu``, ``digest`` or ``unsigned``; default: what the settings say for the repository.
        offline: See :func:`resolve`, as ``refresh``, ``index``, ``lock`` and ``settings``.

    Raises:
        UsageError, NotFoundError, TransportError: It cannot be had.
        TrustError: Refused by policy; nothing is stored or remembered.
        PackageError: What was fetched is not what its manifest says; nothing is stored or remembered.
    """
    check_policy(policy)
    check_paths(index=index, lock=lock)
    check_flags(offline=offline, refresh=refresh)
    settings = settings or load_settings()
    reference = parse_reference(ref, settings)
    store = Store(cache_dir())
    offline = offline or settings.offline
    word = word_on(reference.source.principal, settings, offline=offline)
    _refuse_legacy(reference, word)
    pin = _pin(reference, index, lock, word, store, offline=offline, refresh=refresh)
    if pin is not None and not pin.vouched:
        reference = reference.pinned(pin.digest)
    asked = Asked(
        settings, policy, reference, word=word, expected=pin.digest if pin is not None and pin.vouched else None
    )
    if not refresh and isinstance(hit := _from_store(reference, pin, store, asked, offline), Fetched):
        return hit
    _refuse_offline(reference, store, offline, refresh)
    with store.once(f"{reference.source.url}@{reference.adapter}"):
        # Another process may have fetched it while this one waited.
        stored = None if refresh else _from_store(reference, pin, store, asked, offline)
        if isinstance(stored, Fetched):
            return stored
        try:
            return _from_network(pin, store, asked, reference)
        except TransportError as error:
            if isinstance(stored, TrustError) and stored.revoked:
                stored.add_note(f"and there is no other: {error}")
                raise stored from error
            if isinstance(error, StorageError) and store.known(reference.source.publisher, reference.adapter).fetched:
                error.hint = f"{error.hint or 'free some space'}; --offline, or offline=True, loads what is stored"
            raise


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
    check_policy(policy)
    asked = Asked(settings or load_settings(), policy, reference, version, allowed_signers)
    return accepted(Path(path), asked)[0]


def parse_reference(ref: str | Reference, settings: Settings) -> Reference:
    """Return a parsed reference, with the settings' default host."""
    return ref if isinstance(ref, Reference) else Reference.parse(ref, default_host=settings.default_host)


def check_policy(policy: str | None) -> None:
    """Refuse what is no level.

    Raises:
        UsageError: It is none.
    """
    if policy is not None and policy not in POLICY_LEVELS:
        raise UsageError(f"unknown policy {policy!r}", hint=f"one of {', '.join(POLICY_LEVELS)}")


def _pin(
    reference: Reference,
    index: str | Path | None,
    lock: str | Path | None,
    word: Word,
    store: Store,
    *,
    offline: bool,
    refresh: bool,
) -> Pin | None:
    """Return what a lock file, or else an index file, or else the indexes say of a reference."""
    if lock is not None:
        locked = read_lock(lock).get(lock_id(reference))
        if locked is None:
            raise NotFoundError(f"{reference} is not locked", where=str(lock), hint=relock(lock, reference))
        fits = reference.specifier.contains(locked.version, prereleases=True)
        if not fits or reference.digest not in (None, locked.manifest_sha256):
            raise NotFoundError(
                f"{reference} is locked to {locked.version}, which does not fit",
                where=str(lock),
                hint=relock(lock, reference, upgrade=True),
            )
        return Pin(locked.version, locked.manifest_sha256, locked.tree, locked.urls, lock=str(lock))
    if index is not None:
        entry = find_release(index, reference)
        return None if entry is None else Pin(entry.version, entry.manifest_sha256, entry.tree)
    yanked = {*store.known(reference.source.publisher, reference.adapter).yanked}
    chosen = word.chosen(reference, yanked)
    if chosen is None or (refresh and _exact(reference) is None):
        return None
    if offline and _exact(reference) is None and store.find(chosen[0].manifest_sha256) is None:
        return None  # what is here is better than nothing
    had = _newest(reference, [past.version for past in history_of(reference) if past.chained])
    yanked |= word.yanked(reference.adapter)
    if had is not None and had not in yanked and Version(had) > Version(chosen[0].version):
        return None  # newer than what is listed: the repository is asked
    return Pin(chosen[0].version, chosen[0].manifest_sha256, chosen[0].tree, word.mirrors, vouched=True)


def _passed_by(reference: Reference, word: Word) -> set[str]:
    """Return the versions that an index calls withdrawn, unless one is named: who names it gets it."""
    named = reference.digest is not None or _exact(reference) is not None
    return set() if named else word.yanked(reference.adapter)


def _remembered(
    reference: Reference,
    pin: Pin | None,
    store: Store,
    settings: Settings,
    offline: bool,
    refresh: bool,
    skip: Collection[str] = (),
) -> Resolved | None:
    """Answer from what is stored and was seen, leaving out the versions in ``skip``."""
    if pin is not None:
        exact = reference if pin.vouched else reference.pinned(pin.digest)
        return Resolved(exact, pin.version, pin.digest, pin.tree)
    if refresh:
        return None
    known = store.known(reference.source.publisher, reference.adapter)
    if reference.digest is not None:
        return _pinned(reference, store, known)
    fetched = {v: seen for v, seen in known.fetched.items() if v not in skip and store.find(seen.digest) is not None}
    if _exact(reference) is not None:
        version = _newest(reference, fetched)
    elif offline:
        version = _newest(reference, _without(fetched, known.yanked))
    elif 0 <= time.time() - known.asked < settings.resolution_max_age:
        version = _newest(reference, _without(known.released, known.yanked))
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
    reference: Reference, pin: Pin | None, store: Store, asked: Asked, offline: bool
) -> Fetched | AdaptergitError | None:
    """Return what is stored, or why that cannot be used, or None if nothing is."""
    settings = asked.settings
    refused: dict[str, AdaptergitError] = {}
    passed_by = _passed_by(reference, asked.word)
    while found := _remembered(reference, pin, store, settings, offline, False, {*refused, *passed_by}):
        path = store.find(found.digest) if found.digest is not None else None
        if found.digest is None or path is None or found.version in refused:
            break
        _check_lock(pin, reference, path)
        held: dict[str, memoryview] = {}
        try:
            # Nobody knows who sent it: on first use, the repository is asked once more.
            verdict, card = verified(path, replace(asked, version=found.version, first_use=False), held)
            if verdict.digest != found.digest:
                raise PackageError(f"the manifest was changed: its sha256 is {verdict.digest}", where=str(path))
        except OSError as error:
            refused[found.version] = TransportError(f"cannot be read: {error.strerror}", where=str(path))
        except (PackageError, TrustError, NotFoundError) as error:
            refused[found.version] = error
        else:
            take_over(verdict, settings)
            tree = found.tree or ""
            known = store.known(reference.source.publisher, reference.adapter)
            seen = known.fetched.get(found.version)
            if seen is not None and not seen.vouched and verdict.level != "unsigned":
                change = functools.partial(
                    Known.seeing, version=found.version, digest=seen.digest, tree=seen.tree, vouched=True
                )
                store.remember(reference.source.publisher, reference.adapter, change)
            warn_if_yanked(reference, found.version, known, asked.word)
            return Fetched(
                reference, found.version, found.digest, path, tree, card, verdict, True, weights=held.get(WEIGHTS)
            )
        if not offline:
            break  # damaged, or stored with other signatures: the repository is asked
    why = next(iter(refused.values()), None)
    named = reference.digest is not None or _exact(reference) is not None
    if offline and isinstance(why, PackageError):
        why.hint = f"load it once online, and it is fetched anew: adaptergit info {reference}"
    if why is not None and (offline or (isinstance(why, TrustError) and (why.ours or (why.revoked and named)))):
        raise why
    return why


def _ask(reference: Reference, store: Store, settings: Settings, word: Word) -> Resolved:
    """Choose a version from the repository's list, or, if it cannot be asked, a mirror's."""
    from adaptergit.ladder import released

    who, adapter = reference.source.publisher, reference.adapter
    try:
        said = released(reference, settings)
    except TransportError as error:
        stored = any(store.find(seen.digest) is not None for seen in store.known(who, adapter).fetched.values())
        if stored and not isinstance(error, StorageError):
            stays = "what was fetched before can be loaded with --offline, or offline=True"
            error.hint = f"{error.hint}; {stays}" if error.hint else stays
        raise
    own, yanked = said.failed is None, said.listing.yanked | word.yanked(adapter)

    def answered(known: Known) -> Known:
        # A mirror may not have heard of a yank, and cannot take one back.
        after = replace(known, yanked=tuple(sorted(yanked | (set() if own else set(known.yanked)))))
        # Nobody else knows what is the newest.
        return replace(after, released=_without(said.listing.versions, yanked), asked=time.time()) if own else after

    yanked |= set(store.remember(who, adapter, answered).yanked)
    versions = _without(said.listing.versions, yanked)
    try:
        chosen = _choose(reference, versions, yanked, said.source, lambda: _others(reference, settings) if own else [])
    except NotFoundError as error:
        if said.failed is None:
            raise
        said.failed.add_note(f"then: {error}")
        raise said.failed from None
    # What is still here, with a manifest that says so: a damaged record shall not stand in the way.
    here = [past.version for past in history_of(reference) if past.chained]
    had = _newest(reference, [version for version in here if version not in yanked])
    if had is not None and Version(had) > Version(chosen):
        hint = f"releases do not disappear: ask the publisher; a version that is named is given: {adapter}=={chosen}"
        if said.failed is not None:
            hint = f"the mirror is behind, and {reference.source.url} cannot be asked: --offline loads what is stored"
        raise TrustError(
            f"{chosen} is the newest {adapter} that {said.source} lists, but this machine had {had}"
            f"{' from it' if own else ''}",
            hint=hint,
        )
    return Resolved(reference, chosen, reference.digest, None, said.listing.versions.get(chosen) if own else None)


def _without(versions: Iterable[str], yanked: Collection[str]) -> tuple[str, ...]:
    return tuple(version for version in versions if version not in yanked)


def _from_network(pin: Pin | None, store: Store, asked: Asked, reference: Reference) -> Fetched:
    """Ask the repository, then whoever else may have the release."""
    asked = replace(asked, settings=replace(asked.settings, limits=asked.settings.limits.started()))
    if pin is not None:
        resolved = Resolved(reference, pin.version, pin.digest, pin.tree or None)
        return _climb(resolved, store, asked, pin)
    if (exact := _exact(reference)) is not None:
        try:
            return _climb(Resolved(reference, exact, reference.digest, None), store, asked)
        except NotFoundError:
            pass  # ==1.0 also means 1.0.0: the list decides
    try:
        resolved = _ask(reference, store, asked.settings, asked.word)
    except NotFoundError as error:
        known = store.known(reference.source.publisher, reference.adapter)
        if known.released or known.yanked:
            raise
        # A repository that lost its tags may have it in the branch.
        try:
            return _climb(Resolved(reference, "", None, None), store, asked)
        except NotFoundError as branch:
            raise (branch if branch.what.startswith(_NO_TAGS) else error) from None
    return _climb(resolved, store, asked)


def _climb(wanted: Resolved, store: Store, asked: Asked, pin: Pin | None = None) -> Fetched:
    """Try every way to a release. What cannot be had is asked for elsewhere; what is refused ends the search."""
    from adaptergit.git import check_tree
    from adaptergit.ladder import Way, rotations_of, ways

    reference, settings, version = wanted.reference, asked.settings, wanted.version or None
    mirrors = pin.urls if pin is not None else ()
    asked = replace(
        asked,
        reference=reference,
        version=version,
        rotations=functools.cache(lambda: rotations_of(reference.source, settings, mirrors)[0]),
    )

    def judge(folder: Path, *, first_use: bool = True) -> dict[str, int]:
        try:
            package = read_package(folder, settings.limits)
        except NotFoundError as error:
            raise PackageError(error.what, where=error.where) from error
        _check_lock(pin, reference, folder)
        now = replace(asked, first_use=first_use)
        verdict = judged(package.manifest_bytes, package.signatures, reference.source.url, now)
        return {file.path: file.size for file in verdict.manifest.files}

    # Who keeps a mirror does not say whose the repository is.
    judges = judge, functools.partial(judge, first_use=False)
    failed: list[tuple[Way, AdaptergitError]] = []
    for way in ways(
        reference, version, settings, tree=wanted.tree, tagged=wanted.tagged, mirrors=mirrors, judges=judges
    ):
        if not way.after(failed, pinned=wanted.digest is not None):
            continue
        if failed and settings.limits.seconds_left <= 0:
            break
        with store.workspace() as folder:
            inner = folder / "package"
            inner.mkdir()
            try:
                got = way.fetch(inner)
            except StorageError:
                raise  # nobody else can help
            except (TransportError, NotFoundError) as error:
                failed.append((way, error))
                continue
            except (TrustError, PackageError) as error:
                if pin is not None and pin.lock and error.where == pin.lock:
                    raise
                raise _told(error, way.source, reference, version) from error
            _check_lock(pin, reference, inner)
            try:
                verdict, card = verified(inner, replace(asked, first_use=way.kind != "mirror"))
                if way.kind == "mirror":  # git itself works it out elsewhere
                    check_tree(inner, got.tree, way.source)
            except (TrustError, PackageError) as error:
                if way.kind == "branch" and isinstance(error, TrustError) and error.other_release:
                    missing = f"{_NO_TAGS}, and the branch has no {reference.adapter}{reference.specifier}"
                    failed.append((way, NotFoundError(missing, where=reference.source.url, hint=error.what)))
                    continue
                raise _told(error, way.source, reference, version) from error
            except NotFoundError as error:  # no manifest
                raise PackageError(error.what, where=way.source) from error
            new = store.find(verdict.digest) is None
            package = store.add(inner, settings.limits)
        found, who = verdict.manifest.version, (reference.source.publisher, reference.adapter)
        change = functools.partial(_having, verdict=verdict, tree=got.tree, yanked=got.yanked, own=way.kind == "git")
        try:
            warn_if_yanked(reference, found, change(store.known(*who)), asked.word)
            take_over(verdict, settings)
        except BaseException:  # also a warning that somebody made an error
            if new:
                store.remove(package.digest)
            raise
        store.remember(*who, change)
        return Fetched(reference, found, package.digest, package.path, got.tree, card, verdict, False, way.source)
    (_, first), *others = failed
    for _, later in others:
        first.add_note(f"then: {later}")
    raise first


def _having(known: Known, verdict: Verdict, tree: str, yanked: bool | None, own: bool) -> Known:
    """Return what is known of an adapter after a release was fetched."""
    version, vouched = verdict.manifest.version, verdict.level != "unsigned"
    after = noted(known, version, yanked, own=own)
    return after.seeing(version, verdict.digest, tree, vouched=vouched)


def _check_lock(pin: Pin | None, reference: Reference, folder: Path) -> None:
    """Refuse a line of a lock file that says something else of a release than the manifest whose digest it gives.

    Judging the manifest would find the same, and blame whoever sent it.
    """
    if pin is None or not pin.lock:
        return
    from adaptergit.git import tree_oid

    try:
        package = read_package(folder)
        other_tree = package.digest != pin.digest
        if other_tree and (not pin.tree or tree_oid(folder, len(pin.tree)) != pin.tree):
            return
        manifest = Manifest.from_bytes(package.manifest_bytes, where=str(folder))
    except (PackageError, NotFoundError, OSError):
        return  # to be told of where it is judged
    meant = replace(reference, digest=None, adapter=manifest.name)
    if other_tree or (manifest.name, manifest.version) != (reference.adapter, pin.version):
        raise TrustError(
            f"the lock file says {reference.adapter} {pin.version}, and the digest beside it is of {manifest.name} "
            f"{manifest.version}"
            if not other_tree
            else f"the lock file says {pin.digest}, and the tree beside it holds {package.digest}",
            where=pin.lock,
            hint=f"somebody edited it, and this writes it anew: {relock(pin.lock, meant, upgrade=True)}"
            if manifest.name == reference.adapter
            else f"somebody edited it: take that entry out, and lock what is meant: {relock(pin.lock, meant)}",
        )


def _told(error: AdaptergitError, source: str, reference: Reference, version: str | None) -> AdaptergitError:
    """Say who sent what was refused: nobody else is asked, and the person decides."""
    hint = error.hint
    if isinstance(error, TrustError) and reference.digest and not reference.specifier and "you pinned" in error.what:
        hint = f"{version} is the newest; write the version you pinned: {reference.adapter}==…#sha256:…"
    where = f"{source} ({error.where})" if error.where and source not in error.where else source
    if isinstance(error, TrustError) and error.ours:
        return error
    told = type(error)(error.what, where=where, hint=hint)
    told.steps = error.steps
    return told


def _refuse_legacy(reference: Reference, word: Word) -> None:
    listed = [entry for entry, _ in word.releases(reference.adapter).values()]
    if listed and all(entry.legacy for entry in listed):
        raise refusal(reference, listed)


def _refuse_offline(reference: Reference, store: Store, offline: bool, refresh: bool) -> None:
    if offline and refresh:
        raise UsageError(
            "to ask the repository again and to be offline contradict each other",
            where=str(reference),
            hint="leave one of the two: --refresh (of lock: --upgrade), or --offline (ADAPTERGIT_OFFLINE)",
        )
    if offline:
        known = store.known(reference.source.publisher, reference.adapter)
        stored = sorted((v for v, seen in known.fetched.items() if store.find(seen.digest) is not None), key=Version)
        said = ", ".join(f"{version}{' (yanked)' if version in known.yanked else ''}" for version in stored)
        named = f"; stored is {said}: name a version to have it, {reference.adapter}==…" if stored else ""
        named = named or _from_elsewhere(reference, store)
        raise NotFoundError(
            f"{reference} is not in the store, and offline was asked for",
            where=str(store.root),
            hint=f"load it once with network{named}",
        )


def _from_elsewhere(reference: Reference, store: Store) -> str:
    """Say how a release is had that is stored, but was fetched from another address than the reference's."""
    wanted = reference.source.principal, reference.adapter
    same = {
        one.manifest.version: one.digest
        for one in store.contents()
        if one.manifest is not None and (one.manifest.repository, one.manifest.name) == wanted
    }
    version = reference.newest(same)
    if version is None:
        return ""
    text = f"{reference.source.text}@{reference.adapter}#sha256:{same[version]}"
    return f"; {version} is stored, from another address, and is had by its digest: {quoted(text)}"


def _exact(reference: Reference) -> str | None:
    clauses = list(reference.specifier)
    if len(clauses) == 1 and clauses[0].operator == "==" and not clauses[0].version.endswith(".*"):
        return str(Version(clauses[0].version))
    return None


def _others(reference: Reference, settings: Settings) -> list[str]:
    """Name the adapters that a repository has, for a person who misspelt one; where it cannot be asked, none."""
    from adaptergit.git import Remote, list_all

    try:
        return sorted(list_all(Remote.of(reference.source, allow_http=settings.allow_http), settings.limits)[0])
    except (TransportError, UsageError):
        return []


def _choose(
    reference: Reference,
    versions: Collection[str],
    yanked: Collection[str],
    source: str,
    others: Callable[[], list[str]],
) -> str:
    exact = _exact(reference)
    if exact is not None and (named := _newest(reference, yanked)) is not None:
        return named  # who names a yanked version gets it
    if not versions and not yanked:
        there = others()
        listed = f"it has {', '.join(there[:20])}{' …' if len(there) > 20 else ''}" if there else None
        raise NotFoundError(
            f"{source} has no adapter {reference.adapter!r}",
            hint=did_you_mean(reference.adapter, there)
            or listed
            or "check the spelling; releases are tags named adapters/<name>/<version>",
        )
    version = _newest(reference, versions)
    if version is None:
        marked = {version: f"{version} (yanked)" if version in yanked else version for version in (*versions, *yanked)}
        shown = ", ".join(marked[version] for version in sorted(marked, key=Version)[-10:])
        wanted = (
            f"satisfies {reference.specifier}"
            if reference.specifier
            else f"is a final release{' that was not yanked' if yanked else ''}"
        )
        note = "; a yanked one is given to those who name its version" if yanked else ""
        raise NotFoundError(
            f"no version of {reference.adapter!r} in {source} {wanted}", hint=f"released: {shown}{note}"
        )
    return version


def _newest(reference: Reference, versions: Iterable[str]) -> str | None:
    return reference.newest(version for version in versions if is_version(version))
