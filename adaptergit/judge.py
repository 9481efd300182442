"""Judging a package: the trust core, given what this machine knows.

What was asked for, the person's keys and pins, what the indexes say, what was seen before: all of it is gathered here,
``trust.evaluate`` decides, and only :func:`take_over` remembers anything.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from packaging.specifiers import SpecifierSet

from adaptergit.errors import AdaptergitWarning, NotFoundError, PackageError, TrustError, quoted
from adaptergit.indexes import Word, revoked
from adaptergit.package import Card, Manifest, canonical, check_files, read_package
from adaptergit.package.names import as_typed
from adaptergit.pins import known_revocations, known_rotation, known_signers, remember
from adaptergit.reference import Reference
from adaptergit.settings import Settings, cache_dir
from adaptergit.store import Store
from adaptergit.trust import AllowedSigner, Change, Past, Policy, SignedRotation, Verdict, evaluate, follow


@dataclass(frozen=True)
class Asked:
    """What a package must answer to."""

    settings: Settings
    policy: str | None = None
    reference: Reference | None = None
    version: str | None = None
    allowed_signers: Sequence[AllowedSigner] | None = None
    rotations: Callable[[], list[SignedRotation]] = list
    """Asks the repository which keys came after those that are known; called only if an unknown key signed."""
    word: Word = field(default_factory=Word)
    """What the person's indexes say of the repository."""
    expected: str | None = None
    """The digest an index lists."""
    first_use: bool = True
    """Whether a key may be pinned on first use: what the repository itself sends may."""


def verified(path: Path, asked: Asked, held: dict[str, memoryview] | None = None) -> tuple[Verdict, Card]:
    """Judge manifest and signatures, then every byte; remember nothing.

    Args:
        path: The package's folder.
        asked: What it must answer to.
        held: See :func:`check_files`.

    Raises:
        TrustError: Refused.
        PackageError: A byte, a file or the manifest is not as signed.
        NotFoundError: There is no manifest.
    """
    package = read_package(path, asked.settings.limits)
    verdict = judged(package.manifest_bytes, package.signatures, str(path), asked)
    try:
        card = check_files(package, verdict.manifest, asked.settings.limits, held)
    except PackageError as error:
        error.steps = verdict.steps
        raise
    step = f"{len(verdict.manifest.files)} files are exactly those that were signed"
    return replace(verdict, steps=(*verdict.steps, step)), card


def accepted(path: Path, asked: Asked) -> tuple[Verdict, Card]:
    """Judge a folder, and remember what that brought; see :func:`verified` and :func:`take_over`."""
    verdict, card = verified(path, asked)
    take_over(verdict, asked.settings)
    return verdict, card


def take_over(verdict: Verdict, settings: Settings) -> None:
    """Remember the keys that a verdict brought, and say what a person should know."""
    change = verdict.change
    followed = (verdict.manifest.repository, change.path[-1].digest) if change.path else None
    remember(settings, change.added, change.removed, followed=followed, first=verdict.pin)
    for warning in verdict.warnings:
        # A registry of its own: told on every load, not once per process, and still under the caller's filters.
        warnings.warn_explicit(warning, AdaptergitWarning, __file__, 1, registry={})


def judged(manifest_bytes: bytes, signatures: Mapping[str, bytes], where: str, asked: Asked) -> Verdict:
    """Decide on manifest and signatures alone.

    Raises:
        TrustError, PackageError: Refused.
    """
    reference, version, settings = asked.reference, asked.version, asked.settings
    principal = reference.source.principal if reference else None
    # A local path names nobody: what its manifest claims may not choose a weaker rule, nor earn a pin.
    level = asked.policy or settings.policy_for(principal)
    try:
        signers = list(known_signers(settings) if asked.allowed_signers is None else asked.allowed_signers)
        revocations = tuple(known_revocations(settings))
    except (TrustError, PackageError) as error:
        unreadable = TrustError(error.what, where=error.where, hint=error.hint)
        unreadable.ours = True
        raise unreadable from error
    own = principal is not None and any(signer.names(principal) for signer in signers)
    if not own:
        signers += asked.word.signers  # the person's own word goes before that of an index
    wanted = Policy(
        level=level,
        signers=tuple(signers),
        digest=reference.digest if reference else None,
        repository=principal,
        name=reference.adapter if reference else None,
        specifier=reference.specifier if reference else SpecifierSet(),
        threshold=max(settings.threshold_for(principal), asked.word.threshold),
        revocations=revocations,
        first_seen=_first_seen(reference, version, manifest_bytes),
        expected=asked.expected,
        first_use=asked.first_use,
        listed=tuple(revoked(settings)),
        witnessed=_witnessed(reference, manifest_bytes, asked.word),
        history=history_of(reference),
    )
    now = datetime.now(UTC)
    try:
        verdict = evaluate(manifest_bytes, signatures, wanted, now)
    except TrustError as error:
        # Perhaps the publisher has a new key, and an old one says so.
        if not error.unknown_key or principal is None:
            raise
        gone = (*wanted.revocations, *wanted.listed)
        after = known_rotation(settings, principal) if own else None
        kept, found = asked.word.rotations, asked.rotations()
        if not (kept or found):
            raise
        if own:  # the person's own pins owe nothing to what an index has followed
            kept, found = [], [*kept, *found]
        change = follow(found, principal, wanted.signers, gone, now, threshold=wanted.threshold, after=after, kept=kept)
        if change.contradiction:
            error.hint = (
                f"{change.contradiction}: ask the publisher which one is theirs, trust its key by hand, and remove any "
                "other that is not (adaptergit trust ls)"
            )
        if not change:
            raise
        wanted = replace(
            wanted,
            signers=(*wanted.signers, *change.added),
            revocations=(*wanted.revocations, *change.removed),
        )
        verdict = evaluate(manifest_bytes, signatures, wanted, now)
        told = [f"{principal} has a new key {s.key.fingerprint}, by {s.source}" for s in change.added]
        # What an index says is asked anew each time: a pin would hide what it says later.
        verdict = replace(verdict, change=change if own else Change(), warnings=(*verdict.warnings, *told))
    needed = settings.threshold_for(verdict.manifest.repository)
    if verdict.level in ("enforce", "tofu") and needed > wanted.threshold:  # of a folder, which names nobody
        verdict = evaluate(manifest_bytes, signatures, replace(wanted, threshold=needed), now)
    if version is not None and verdict.manifest.version != version:
        raise TrustError(
            f"the release is tagged {version}, but its manifest is of {verdict.manifest.version}",
            where=where,
            hint="somebody moved a tag: ask the publisher",
        )
    if verdict.pin is not None and principal is None:
        raise TrustError(
            "a local path names nobody, so there is no first use to remember",
            hint=f"adaptergit trust add {as_typed(verdict.manifest.repository)} {quoted(verdict.pin.key.line)}",
        )
    return verdict


def history_of(reference: Reference | None) -> tuple[Past, ...]:
    """What this machine had of an adapter before."""
    if reference is None or reference.source.principal is None:
        return ()
    store = Store(cache_dir())
    found = []
    for version, seen in store.known(reference.source.publisher, reference.adapter).fetched.items():
        if not seen.vouched:
            continue
        try:
            manifest = Manifest.from_bytes(store.open(seen.digest).manifest_bytes, where=seen.digest)
        except (PackageError, NotFoundError, OSError):
            found.append(Past(version, seen.digest, None, chained=False))  # pruned, or damaged
        else:
            found.append(Past(manifest.version, seen.digest, manifest.previous))
    return tuple(found)


def _first_seen(reference: Reference | None, version: str | None, manifest_bytes: bytes) -> datetime | None:
    """When this machine first fetched exactly this release."""
    if reference is None or version is None:
        return None
    seen = Store(cache_dir()).known(reference.source.publisher, reference.adapter).fetched.get(version)
    if seen is None or not seen.at or not seen.vouched or seen.digest != canonical.sha256(manifest_bytes):
        return None
    return datetime.fromtimestamp(seen.at, UTC)


def _witnessed(reference: Reference | None, manifest_bytes: bytes, word: Word) -> datetime | None:
    """When the index that speaks for the repository first saw exactly this release."""
    if reference is None or not word.known:
        return None
    digest = canonical.sha256(manifest_bytes)
    entries = [entry for entry in word.known[0].entries(reference.adapter) if entry.manifest_sha256 == digest]
    try:
        moments = [datetime.fromisoformat(entry.first_seen) for entry in entries if entry.first_seen]
        return min((m if m.tzinfo else m.replace(tzinfo=UTC) for m in moments), default=None)
    except ValueError:
        return None
