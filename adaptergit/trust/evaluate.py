"""The trust core: manifest bytes, signatures, a policy and the time in; a verdict or a refusal out.

No input or output, no clock, no network. The rules, in the order they are applied:

1. The manifest's bytes have the digest the caller pinned, if one was pinned.
2. Every signature file present is a valid SSHSIG by its own key over exactly these bytes, in the manifest namespace.
   A broken signature is never ignored, and where signatures are asked for, there is one.
3. The bytes parse as a manifest, and it is the one asked for: repository, name, version specifier.
4. It does not contradict a release that was seen before: no version has two digests, no release two successors.
5. The release is not revoked, and signatures of revoked keys do not count.
6. The policy's level decides whose signature is enough:
   ``enforce`` as many keys as the threshold says (one, if nothing is said), allowed for the principal by the user's
   files, a pin or an index ·
   ``tofu`` as enforce, and where no key is known for the principal, the first one seen is to be pinned ·
   ``digest`` rule 1 with a pinned digest ·
   ``unsigned`` nothing more; asked for by name.

A level never falls through to a weaker one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from adaptergit.errors import PackageError, TrustError, counted, quoted
from adaptergit.package import canonical
from adaptergit.package.manifest import MAX_BYTES, Manifest
from adaptergit.package.names import as_typed
from adaptergit.trust.allowed_signers import AllowedSigner
from adaptergit.trust.revocation import Revocation, of_release
from adaptergit.trust.rotation import Change
from adaptergit.trust.sshsig import MANIFEST_NAMESPACE, Signature, parse_signature, verify_signature

MAX_SIGNATURES = 16


@dataclass(frozen=True)
class Past:
    """A release that was seen before."""

    version: str
    """Of the release."""
    digest: str
    """sha256 of its manifest."""
    previous: str | None
    """Digest of the manifest it says it follows; None for the first one, or if that is not known."""
    chained: bool = True
    """False if it is not known what it follows."""


@dataclass(frozen=True)
class Policy:
    """What the caller demands."""

    level: str = "enforce"
    """``enforce``, ``tofu``, ``digest`` or ``unsigned``."""
    signers: tuple[AllowedSigner, ...] = ()
    """Everybody the caller knows: allowed-signers file, pins, index."""
    digest: str | None = None
    """sha256 that the caller pinned; None: any."""
    repository: str | None = None
    """The principal asked for; None when the source is a local path, which names nobody."""
    name: str | None = None
    """Adapter that was asked for; None: any."""
    specifier: SpecifierSet = field(default_factory=SpecifierSet)
    """Versions that were asked for."""
    threshold: int = 1
    """How many different keys must have signed, under ``enforce`` and ``tofu``."""
    revocations: tuple[Revocation, ...] = ()
    """Keys and releases that the person no longer believes."""
    first_seen: datetime | None = None
    """When this machine first had this very release; None if never before."""
    history: tuple[Past, ...] = ()
    """Releases of the same adapter that were seen before."""
    expected: str | None = None
    """Digest that an index lists: it must be this, but that is not the caller's pin."""
    first_use: bool = True
    """Under ``tofu``, whether the first key that is seen may be pinned; not where somebody else sent the release."""
    listed: tuple[Revocation, ...] = ()
    """What indexes have revoked."""
    witnessed: datetime | None = None
    """When an index first saw this very release; counts for what the index itself says of keys."""


@dataclass(frozen=True)
class Verdict:
    """Why a package was accepted. There is no verdict for a refusal: that is a :class:`TrustError`."""

    level: str
    """The policy that accepted it: ``enforce``, ``tofu``, ``digest`` or ``unsigned``."""
    digest: str
    """sha256 of the manifest, in hexadecimal digits."""
    manifest: Manifest
    """What was signed, parsed."""
    signers: tuple[str, ...]
    """Fingerprints of keys that signed validly."""
    vouched_by: tuple[str, ...]
    """Where those keys are allowed for this principal."""
    pin: AllowedSigner | None
    """Under ``tofu``: the key to remember."""
    steps: tuple[str, ...]
    """What was checked, in order, for people."""
    warnings: tuple[str, ...] = ()
    """What the person should know all the same, for example of a revoked key."""
    change: Change = field(default_factory=Change)
    """Keys that a rotation brought or took, to be remembered."""


def evaluate(manifest_bytes: bytes, signatures: Mapping[str, bytes], policy: Policy, now: datetime) -> Verdict:
    """Decide whether these bytes may be used.

    Args:
        manifest_bytes: ``manifest.json`` as it is stored.
        signatures: Armored SSHSIGs by file name.
        policy: What the caller demands.
        now: The time at which keys must be valid (SSHSIG itself carries no time).

    Raises:
        TrustError: Refused, and why.
        PackageError: The bytes are no manifest.
    """
    steps: list[str] = []
    try:
        return _evaluate(manifest_bytes, signatures, policy, now, steps)
    except TrustError as error:
        error.steps = tuple(steps)
        raise


def _evaluate(
    manifest_bytes: bytes, signatures: Mapping[str, bytes], policy: Policy, now: datetime, steps: list[str]
) -> Verdict:
    if len(manifest_bytes) > MAX_BYTES:
        raise PackageError(f"{len(manifest_bytes)} bytes, the limit is {MAX_BYTES}", where="manifest.json")
    digest = canonical.sha256(manifest_bytes)
    steps.append(_check_digest(digest, policy))
    valid = _check_signatures(manifest_bytes, signatures)
    if not valid and policy.level in ("enforce", "tofu"):
        raise TrustError(
            f"{policy.repository}@{policy.name} is not signed" if policy.repository else "it is not signed",
            hint="ask the publisher to sign it; policy='unsigned' loads it without anybody vouching for it",
        )
    manifest = Manifest.from_bytes(manifest_bytes)
    steps.append(_check_identity(manifest, policy))
    steps += [f"{name}: valid signature by {s.key.type} {s.key.fingerprint}" for name, s in valid.items()]
    keys = tuple(dict.fromkeys(s.key.fingerprint for s in valid.values()))
    steps += _check_history(digest, manifest, policy)
    warned = _check_release(digest, policy)
    valid, taken = _without_revoked(valid, manifest.repository, policy)
    warned += [f"{fingerprint} is {why}" for fingerprint, why in taken]

    if policy.level == "unsigned":
        warning = f"{manifest.repository}@{manifest.name} was loaded unsigned: nobody vouches for these weights"
        return Verdict("unsigned", digest, manifest, keys, (), None, tuple(steps), (warning, *warned))
    if policy.level == "digest":
        if policy.digest is None:
            raise TrustError(
                "the policy 'digest' needs a pinned digest",
                hint=f"write the reference with #sha256:{digest} if you trust it",
            )
        return Verdict("digest", digest, manifest, keys, ("the digest you pinned",), None, tuple(steps), tuple(warned))
    if policy.level not in ("enforce", "tofu"):
        raise TrustError(f"unknown policy level {policy.level!r}", hint="enforce, tofu, digest or unsigned")
    if taken and not valid:
        fingerprint, why = taken[0]
        raise _revoked(
            f"signed by {fingerprint}, which is {why}", "ask the publisher for a release signed with another key"
        )
    verdict = _check_signers(digest, manifest, valid, policy, now, steps)
    return replace(verdict, warnings=(*verdict.warnings, *warned))


def _check_history(digest: str, manifest: Manifest, policy: Policy) -> list[str]:
    """Refuse what contradicts a release seen before; who pins a digest has chosen between the two."""
    if policy.digest is not None or not policy.history:
        return []
    for past in policy.history:
        same = Version(past.version) == Version(manifest.version)
        if same and past.digest != digest:
            raise TrustError(
                f"{manifest.name} {manifest.version} has the digest {digest[:16]}…, but it was {past.digest[:16]}… "
                "when this machine had it before: releases never change",
                hint="ask the publisher which one is right, then write the reference with #sha256:…",
            )
        if past.digest == manifest.previous and Version(past.version) >= Version(manifest.version):
            raise TrustError(
                f"{manifest.name} {manifest.version} says to follow {past.version}, which is newer",
                hint="ask the publisher which one is right, then write the reference with #sha256:…",
            )
        if past.chained and not same and past.previous == manifest.previous:
            after = f"follow {past.previous[:16]}…" if past.previous else "be the first release"
            raise TrustError(
                f"{manifest.name} {manifest.version} and {past.version} both say to {after}: the history was forked",
                hint="ask the publisher which one is right, then write the reference with #sha256:…",
            )
    known = {past.digest for past in policy.history}
    follows = "" if manifest.previous not in known else ", and follows one of them"
    return [f"it contradicts nothing of {counted(len(known), 'release')} seen before{follows}"]


def _check_release(digest: str, policy: Policy) -> list[str]:
    """Refuse a revoked release at every level; return what is only to be warned of."""
    found = of_release((*policy.revocations, *policy.listed), digest)
    for one in found:
        if one.severity == "refuse":
            raise _revoked(f"this release is {one}", "use another version")
    return [f"this release is {one}" for one in found]


def _revoked(what: str, hint: str) -> TrustError:
    error = TrustError(what, hint=hint)
    error.revoked = True
    return error


def _without_revoked(
    valid: Mapping[str, Signature], repository: str, policy: Policy
) -> tuple[dict[str, Signature], list[tuple[str, Revocation]]]:
    """Take away the signatures of revoked keys; return what is left, and every key that a revocation names."""
    left, taken = {}, []
    for name, signature in valid.items():
        fingerprint = signature.key.fingerprint
        hits = [one for one in policy.revocations if one.covers(fingerprint, repository, policy.first_seen)]
        seen = [moment for moment in (policy.first_seen, policy.witnessed) if moment is not None]
        hits += [one for one in policy.listed if one.covers(fingerprint, repository, min(seen, default=None))]
        taken += [(fingerprint, one) for one in hits]
        if not any(one.severity == "refuse" for one in hits):
            left[name] = signature
    return left, taken


def _check_digest(digest: str, policy: Policy) -> str:
    if policy.expected is not None and digest != policy.expected:
        raise _other(f"the manifest's sha256 is {digest}, the index lists {policy.expected}")
    if policy.digest is not None and digest != policy.digest:
        hint = "ask whoever gave you that digest; without it, adaptergit info shows what is there"
        raise _other(f"the manifest's sha256 is {digest}, you pinned {policy.digest}", hint)
    return f"manifest sha256 {digest}" + (" is the pinned one" if policy.digest else "")


def _check_identity(manifest: Manifest, policy: Policy) -> str:
    said = f"{manifest.repository}@{manifest.name}=={manifest.version}"
    if policy.repository is not None and manifest.repository != policy.repository:
        raise TrustError(
            f"asked for {policy.repository}, but the manifest belongs to {manifest.repository}",
            hint="a copy in another place keeps its publisher's name: load it from there, or from a local path",
        )
    if policy.name is not None and manifest.name != policy.name:
        raise TrustError(
            f"asked for the adapter {policy.name!r}, but the manifest is of {manifest.name!r}",
            hint=f"if {manifest.name!r} is what you meant, ask for that; if not, load nothing of it",
        )
    if not policy.specifier.contains(Version(manifest.version), prereleases=True):
        raise _other(f"asked for version {policy.specifier}, but the manifest is of {manifest.version}")
    return f"it is {said}"


def _other(what: str, hint: str | None = None) -> TrustError:
    error = TrustError(what, hint=hint)
    error.other_release = True
    return error


def _check_signatures(manifest_bytes: bytes, signatures: Mapping[str, bytes]) -> dict[str, Signature]:
    if len(signatures) > MAX_SIGNATURES:
        raise TrustError(f"{len(signatures)} signatures, the limit is {MAX_SIGNATURES}")
    valid = {}
    for name, armored in signatures.items():
        try:
            signature = parse_signature(armored)
            verify_signature(signature, manifest_bytes, MANIFEST_NAMESPACE)
        except TrustError as error:
            raise TrustError(error.what, where=name, hint=error.hint) from error
        valid[name] = signature
    return valid


def _check_signers(
    digest: str, manifest: Manifest, valid: Mapping[str, Signature], policy: Policy, now: datetime, steps: list[str]
) -> Verdict:
    known = [s for s in policy.signers if s.names(manifest.repository)]
    # Perhaps a rotation says whose they are.
    strangers = bool(known) and not {s.key for s in valid.values()} <= {s.key for s in known}
    refusals, signers, vouched = [], [], []
    for signature in valid.values():
        for line in (s for s in known if s.key == signature.key):
            if (
                why := line.refusal(MANIFEST_NAMESPACE, now, policy.witnessed if line.vouched else policy.first_seen)
            ) is None:
                signers.append(signature.key.fingerprint)
                vouched.append(line.source)
            else:
                refusals.append(f"{why} ({line.source})")
    unique = tuple(dict.fromkeys(signers))
    if signers and len(unique) < policy.threshold:
        few = TrustError(
            f"signed by {', '.join(unique)}, but {policy.threshold} different keys must sign for {manifest.repository}",
            hint="ask the publisher for a release that is co-signed",
        )
        few.unknown_key = strangers
        raise few
    if signers:
        steps.append(f"the key may sign for {manifest.repository}: {', '.join(vouched)}")
        return Verdict(policy.level, digest, manifest, unique, tuple(dict.fromkeys(vouched)), None, tuple(steps))
    found = ", ".join(s.key.fingerprint for s in valid.values())
    if refusals:
        namespace = any("namespace" in one for one in refusals)
        hint = (
            "ask the publisher for a release signed with a key that counts now, or, if the line is yours, correct it"
            f"{f' (namespaces are to hold {MANIFEST_NAMESPACE})' if namespace else ''}: "
            f"adaptergit trust explain {manifest.repository}"
        )
        restricted = TrustError(f"signed by {found}, but {'; '.join(refusals)}", hint=hint)
        restricted.unknown_key = strangers
        raise restricted
    if known:
        allowed = ", ".join(sorted({s.key.fingerprint for s in known}))
        refused = TrustError(
            f"signed by {found}, but only {allowed} may sign for {manifest.repository}",
            hint="the publisher's key changed, or this is not the publisher; ask them over another channel first",
        )
        refused.unknown_key = strangers
        raise refused
    first = next(iter(valid.values()))
    if policy.level == "tofu" and policy.threshold == 1 and policy.first_use:
        pin = AllowedSigner((manifest.repository,), first.key, (MANIFEST_NAMESPACE,), source="pinned on first use")
        note = f"first use of {manifest.repository}: pinned the key {first.key.fingerprint}"
        return Verdict("tofu", digest, manifest, (first.key.fingerprint,), (pin.source,), pin, (*steps, note), (note,))
    add = f"adaptergit trust add {as_typed(manifest.repository)} {quoted(first.key.line)}"
    hint = f"check the fingerprint with the publisher, then: {add}"
    if policy.level == "tofu" and policy.threshold == 1:
        hint = (
            f"on first use, only what the repository itself sends pins a key: try again once it can be asked, or {hint}"
        )
    raise TrustError(f"signed by {found}, which nobody you know vouches for as {manifest.repository}", hint=hint)
