"""Crawl: find what the sources of an index have released, check it, and list it.

Publishing is pushing a tag; the crawl finds it. Every release is fetched and verified as a user would, with the keys
the index enrolled and no others. A source that cannot be reached, or releases something that is refused, is reported
and never stops the rest. What was listed stays as it is, but for ``yanked``.

A run does only what is new: one list of tags per source, one fetch per new release, and each source is written when
it is done, so that a run that was stopped goes on where it was. ``shard=(i, n)`` does every n-th source, for as many
machines as one likes.
"""

from __future__ import annotations

import tempfile
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from packaging.version import Version

from adaptergit.errors import AdaptergitError, PackageError, TrustError
from adaptergit.git import Listing, Remote, fetch_release, fetch_rotations, list_all, yank_reason
from adaptergit.index.entry import Entry, entry_of
from adaptergit.index.release_rules import Release
from adaptergit.index.repository import IndexPolicy, IndexRepository, Proof
from adaptergit.index.rules import broken_by
from adaptergit.index.sources import SourceFile
from adaptergit.package import check_files, read_package
from adaptergit.progress import tell
from adaptergit.reference import Source
from adaptergit.settings import Settings
from adaptergit.trust import (
    AllowedSigner,
    Past,
    Policy,
    Revocation,
    SignedRotation,
    evaluate,
    parse_revocations,
)
from adaptergit.trust.rotation import MAX_ROTATIONS

_MAX_FRESH = 500
"""New releases of one source in one run; the others wait for the next."""
_PER_HOST = 4
"""Sources of one host at a time."""


@dataclass(frozen=True)
class Crawled:
    """What became of one source."""

    principal: str
    added: tuple[str, ...] = ()
    """``adapter==version``."""
    yanked: tuple[str, ...] = ()
    restored: tuple[str, ...] = ()
    """Releases that are yanked no more."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Releases that were not listed, and why."""
    missing: tuple[str, ...] = ()
    """Releases of the original that a copy does not have."""
    error: str = ""
    """Why the source could not be looked at."""


def crawl(
    index: IndexRepository,
    settings: Settings,
    *,
    now: datetime | None = None,
    only: Iterable[str] | None = None,
    shard: tuple[int, int] = (0, 1),
    jobs: int = 8,
    report: Callable[[Crawled], None] = lambda _: None,
) -> list[Crawled]:
    """Look at every source.

    Args:
        index: The repository; entries are written into it.
        settings: Limits, and hosts plain http is spoken to.
        now: Becomes ``first_seen``.
        only: Principals; default: all.
        shard: ``(i, n)``: only every n-th source, beginning with i.
        jobs: Sources at a time.
        report: Called with every source when it is done.
    """
    moment = (now or datetime.now(UTC)).replace(microsecond=0)
    part, parts = shard
    chosen = [
        principal
        for principal in (index.principals() if only is None else only)
        if zlib.crc32(principal.encode()) % parts == part
    ]
    policy = index.policy()
    revocations = parse_revocations(index.revoked(), source="revoked.jsonl")

    def one(principal: str) -> Crawled:
        try:
            source = index.source(principal)
            if source.legacy:
                return Crawled(principal)
            if source.tracks is None:
                found = crawl_source(index, source, settings, policy, revocations, moment)
            else:
                found = look_at_copy(index, source, source.tracks, settings)
        except (AdaptergitError, OSError, ValueError, ArithmeticError, LookupError, TypeError) as error:
            found = Crawled(principal, error=str(error))  # whatever a stranger's files do: the others go on
        report(found)
        return found

    return _in_turns(chosen, one, max(1, jobs))


def look_at_copy(index: IndexRepository, source: SourceFile, original: str, settings: Settings) -> Crawled:
    """Compare what a copy has with what is listed of the original; a copy lists nothing of its own.

    Raises:
        TransportError: It cannot be reached.
    """
    listings, _ = list_all(Remote.of(Source.parse(source.url), allow_http=settings.allow_http), settings.limits)
    listed = [entry for entry in index.entries(original) if entry.yanked is None]
    missing = [e for e in listed if e.name not in listings or e.version not in listings[e.name].versions]
    return Crawled(source.repository, missing=tuple(f"{entry.name}=={entry.version}" for entry in missing))


def crawl_source(
    index: IndexRepository,
    source: SourceFile,
    settings: Settings,
    policy: IndexPolicy,
    revocations: Iterable[Revocation],
    now: datetime,
) -> Crawled:
    """Look at one source and list what is new.

    Raises:
        TransportError: It cannot be reached. Nothing was written.
    """
    remote = Remote.of(Source.parse(source.url), allow_http=settings.allow_http)
    listings, rotations = list_all(remote, settings.limits)
    entries = index.entries(source.repository)
    known = {(entry.name, entry.version): entry for entry in entries}
    added: dict[tuple[str, str], Entry] = {}
    refused: dict[str, str] = {}
    fresh = [
        (name, version)
        for name, listing in sorted(listings.items())
        for version in sorted(listing.versions, key=Version)
        if (name, version) not in known
    ]
    fresh = fresh[:_MAX_FRESH]
    proofs = index.proofs(source.repository)
    gone = list(revocations)
    kept = [proof.rotation for proof in proofs if proof.kind == "rotation"]
    if rotations - {one.mark for one in kept} and (new := _new_rotations(source, remote, settings, kept, gone, now)):
        # What was there stays: a rotation whose tag is gone is still a rotation.
        fresh_proofs = {one.data: Proof("rotation", one.data, one.signatures) for one in new}
        index.write_proofs(source.repository, list(({proof.data: proof for proof in proofs} | fresh_proofs).values()))
        kept = [proof.rotation for proof in index.proofs(source.repository) if proof.kind == "rotation"]
    change = source.follow(kept, gone, now)
    signers, gone = [*source.signers("sources/"), *change.added], [*gone, *change.removed]
    for name, version in fresh:
        past = [entry for (other, _), entry in {**known, **added}.items() if other == name]
        try:
            added[name, version] = _release(
                source, remote, name, version, past, (signers, gone), settings, policy, now, listings[name]
            )
        except (AdaptergitError, ValueError, ArithmeticError, LookupError, TypeError) as error:
            refused[f"{name}=={version}"] = str(error).partition("\n")[0]
    changed = {}
    for key, entry in known.items():
        listing = listings.get(entry.name)
        if listing is None or entry.legacy:
            continue
        # A maintainer's word on a release stays; a publisher's follows the tag.
        marked = entry.version in listing.yanked
        if marked and entry.yanked is None:
            changed[key] = replace(entry, yanked=_why(remote, entry.name, entry.version, settings))
        elif not marked and entry.yanked is not None and entry.yanked.startswith(_BY_PUBLISHER):
            changed[key] = replace(entry, yanked=None)
    if added or changed:
        index.write_entries(source.repository, list({**known, **changed, **added}.values()))
    return Crawled(
        source.repository,
        tuple(f"{name}=={version}" for name, version in added),
        tuple(f"{one.name}=={one.version}" for one in changed.values() if one.yanked is not None),
        tuple(f"{one.name}=={one.version}" for one in changed.values() if one.yanked is None),
        refused,
    )


_BY_PUBLISHER = "withdrawn by its publisher"


def _why(remote: Remote, name: str, version: str, settings: Settings) -> str:
    reason = yank_reason(remote, name, version, settings.limits)
    return f"{_BY_PUBLISHER}: {reason}" if reason else _BY_PUBLISHER


def _release(
    source: SourceFile,
    remote: Remote,
    name: str,
    version: str,
    past: list[Entry],
    keys: tuple[list[AllowedSigner], list[Revocation]],
    settings: Settings,
    policy: IndexPolicy,
    now: datetime,
    listing: Listing,
) -> Entry:
    """Fetch and check one release.

    Raises:
        TrustError, PackageError: It is refused.
        NotFoundError, TransportError: It cannot be had.
    """
    limits = replace(settings.limits, package_bytes=min(settings.limits.package_bytes, policy.max_release_bytes))
    signers, revocations = keys
    wanted = Policy(
        signers=tuple(signers),
        repository=source.repository,
        name=name,
        threshold=source.threshold,
        revocations=tuple(revocations),
        history=tuple(Past(entry.version, entry.manifest_sha256, entry.previous) for entry in past),
    )
    with tempfile.TemporaryDirectory(prefix="adaptergit-crawl-") as folder:
        target = Path(folder) / "package"
        target.mkdir()

        def judge(path: Path) -> dict[str, int]:
            package = read_package(path, limits)
            return {
                file.path: file.size
                for file in evaluate(package.manifest_bytes, package.signatures, wanted, now).manifest.files
            }

        try:
            tagged = listing.versions[version]
            fetched = fetch_release(remote, name, target, version=version, tagged=tagged, limits=limits, judge=judge)
            package = read_package(target, limits)
            verdict = evaluate(package.manifest_bytes, package.signatures, wanted, now)
            card = check_files(package, verdict.manifest, limits)
            entry = entry_of(
                verdict.manifest,
                card,
                digest=verdict.digest,
                url=source.url,
                tree=fetched.tree,
                signers=verdict.signers,
                first_seen=f"{now:%Y-%m-%dT%H:%M:%SZ}",
                yanked=_why(remote, name, version, settings) if version in listing.yanked else None,
            )
            one = Release(entry, target, version, tuple(past), policy)
        except (TrustError, PackageError) as error:
            one = Release(None, target, version, tuple(past), policy, error)
        if (found := broken_by(one)) or one.entry is None:
            raise PackageError("; ".join(f"{rule.id}: {why}" for rule, why in found))
        return one.entry


def _new_rotations(
    source: SourceFile,
    remote: Remote,
    settings: Settings,
    kept: list[SignedRotation],
    revocations: list[Revocation],
    now: datetime,
) -> list[SignedRotation]:
    """Return the rotations that come after those that are kept, or have more signatures; the first one seen counts."""
    with tempfile.TemporaryDirectory(prefix="adaptergit-crawl-") as folder:
        try:
            found = fetch_rotations(remote, settings.limits, beside=Path(folder), most=MAX_ROTATIONS)
        except PackageError:
            return []
    have = {one.digest: set(one.signatures.values()) for one in kept}
    path = source.follow(kept, revocations, now, found=map(SignedRotation.of, found)).path
    return [one for one in path if set(one.signatures.values()) != have.get(one.digest)]


def _in_turns(principals: list[str], one: Callable[[str], Crawled], jobs: int) -> list[Crawled]:
    """Do all sources, a few of one host at a time, and of a host that has not answered (yet, or last time) only one.

    So nobody waits in front of a host that does not answer but those who want something from it.
    """
    waiting: dict[str, deque[str]] = {}
    for principal in principals:
        waiting.setdefault(principal.partition("/")[0], deque()).append(principal)
    running: Counter[str] = Counter()
    answered: set[str] = set()
    found: dict[str, Crawled] = {}
    pending: dict[Future[Crawled], str] = {}
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        while waiting or pending:
            for host in list(waiting):
                while len(pending) < jobs and running[host] < (_PER_HOST if host in answered else 1) and waiting[host]:
                    pending[pool.submit(one, waiting[host].popleft())] = host
                    running[host] += 1
                if not waiting[host]:
                    del waiting[host]
                if len(pending) == jobs:
                    break
            done, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                host, crawled = pending.pop(future), future.result()
                running[host] -= 1
                found[crawled.principal] = crawled
                tell("sources", len(found), len(principals), "sources")
                (answered.discard if crawled.error else answered.add)(host)
    return [found[principal] for principal in principals]
