"""Rotate: a repository's releases are signed with another key from now on, and the old key says so."""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from adaptergit.durable import scratch
from adaptergit.errors import (
    AdaptergitWarning,
    ReleaseError,
    StorageError,
    TransportError,
    TrustError,
    UsageError,
    quoted,
)
from adaptergit.package.names import as_typed
from adaptergit.pins import known_revocations, known_rotation, known_signers, remember
from adaptergit.publish import check_announced, default_key, principal_of, push_source, signing_key
from adaptergit.settings import Settings, load_settings
from adaptergit.trust import (
    MANIFEST_NAMESPACE,
    ROTATION,
    ROTATION_NAMESPACE,
    AllowedSigner,
    Change,
    PublicKey,
    Rotation,
    SignedRotation,
    SigningKey,
    follow,
    format_signer,
    parse_allowed_signers,
    sign,
)
from adaptergit.trust.rotation import MAX_ROTATIONS

if TYPE_CHECKING:
    from adaptergit.git import Clone

_ANNOUNCED = ".adaptergit/allowed_signers"
_FAR = datetime.max.replace(tzinfo=UTC)
"""What another machine's clock has put into the future comes before what is signed now."""


def rotate(
    new: str | Path,
    *,
    key: str | Path | None = None,
    cosigners: Sequence[str | Path] = (),
    keep: bool = False,
    clone: str | Path = ".",
    remote: str = "origin",
    repository: str | None = None,
    pull_request: bool = False,
    report: Callable[[str], None] = lambda _: None,
) -> Rotation:
    """Name the key that comes after the one releases were signed with, and push that, signed with the old one.

    Everybody who knows the old key accepts the new one from then on. Releases that were signed with the old key stay
    valid for those who had them before.

    Args:
        new: The new key: a private key file or a ``.pub`` file.
        key: The old key; default: as for :func:`adaptergit.publish`.
        cosigners: More old keys, where users ask for more than one.
        keep: The old key goes on counting, beside the new one.
        clone: Any folder inside the clone.
        remote: Git remote to push to.
        repository: The principal, where the remote's URL does not tell it.
        pull_request: Announce the key in a new branch, where the branch itself is protected: the tag is what counts.
        report: Told whom the rotation vouches for besides.

    Raises:
        UsageError: No key, fewer than this machine asks for, one that is there or was replaced, rotations that
            contradict each other or are signed by nobody who is known, or not a clone.
        ReleaseError: The announced keys have changes that are not committed, or somebody else rotated at the same time.
        TrustError: Signing failed.
        TransportError: The server cannot be reached, or refuses. The clone is as it was.
    """
    from adaptergit.git import Clone, push_rotation

    here = Clone.at(Path(clone))
    principal = principal_of(here, remote, repository)
    if key is None and default_key() is None:
        raise UsageError("there is no key that another could follow", hint="name the one that signs now: --key PATH")
    old = [signing_key(key), *(signing_key(path) for path in cosigners)]
    for one in old:
        check_announced(here, one)
    if here.local_changes(_ANNOUNCED):
        raise ReleaseError(
            "uncommitted changes would be lost",
            where=str(here.root / _ANNOUNCED),
            hint=f"git commit {_ANNOUNCED}, or git restore it, then rotate again",
        )
    settings = load_settings()
    if len(old) < (needed := settings.threshold_for(principal)):
        raise UsageError(
            f"{needed} keys must sign for {principal}, and a rotation too", hint="name the others with --cosigner"
        )
    new_key = signing_key(new)
    successor = new_key.public
    if successor in {one.public for one in old}:
        raise UsageError("that is the key there is", hint="make another one: adaptergit keygen PATH")
    before = _rotations(here, remote, principal, [one.public for one in old], settings)
    earlier = [Rotation.from_bytes(one.data) for one in before]
    replaced = {fingerprint for one in earlier for fingerprint in one.remove}
    for public in (successor, *(one.public for one in old)):
        if public.fingerprint in replaced:
            raise UsageError(
                f"{public.fingerprint} was replaced before: nobody would accept it",
                hint="make another key: adaptergit keygen PATH" if public == successor else "sign with its successor",
            )
    removed = () if keep else (old[0].public.fingerprint,)
    # Who signs stays, also for those who knew only the key that goes.
    added = (successor, *(one.public for one in (old if keep else old[1:])))
    previous = before[-1].digest if before else None
    rotation = Rotation(principal, added, removed, datetime.now(UTC).replace(microsecond=0), previous)
    data = rotation.to_bytes()
    announced = [
        (line, {s.key for s in parse_allowed_signers(line, source=_ANNOUNCED)})
        for line in (here.read(_ANNOUNCED) or b"").decode("utf-8").split("\n")
        if line.strip()
    ]
    kept = [(line, keys) for line, keys in announced if not any(key.fingerprint in removed for key in keys)]
    new_keys = [successor] if announced else [*added[1:], successor]
    named = {key for one in (*earlier, rotation) for key in one.add}
    left = {key for _, keys in kept for key in keys} - named - {one.public for one in old}
    if left and not keep:
        warnings.warn(
            f"whoever knows only {old[0].public.fingerprint} will not accept "
            f"{', '.join(sorted(key.fingerprint for key in left))}: let them sign this rotation too (--cosigner)",
            AdaptergitWarning,
            stacklevel=2,
        )
    lines = [line for line, _ in kept]
    lines += [format_signer(AllowedSigner(("*",), one, (MANIFEST_NAMESPACE,))) for one in new_keys]
    listing = "".join(f"{line}\n" for line in dict.fromkeys(lines)).encode()
    with scratch() as folder:
        files = {ROTATION: folder / ROTATION}
        files[ROTATION].write_bytes(data)
        for name, armored in _signatures(data, old, new_key).items():
            files[name] = folder / name
            files[name].write_bytes(armored)
        signed = SignedRotation.of({name: path.read_bytes() for name, path in files.items()})
        standing = sorted(key.fingerprint for key in named - set(added) if key.fingerprint not in {*replaced, *removed})
        if standing:
            report(f"and, by the rotations before it, which it vouches for, by {', '.join(standing)}")
        branch = _branch(signed) if pull_request else None
        if not push_rotation(here, remote, files, listing, signed.mark, branch=branch):
            _check_alone(here, remote, principal, signed, [one.public for one in old], settings)
    _remember(settings, principal, (*before, signed))
    return rotation


def _check_alone(
    here: Clone, remote: str, principal: str, signed: SignedRotation, keys: Sequence[PublicKey], settings: Settings
) -> None:
    """Find out whether another owner pushed a rotation meanwhile: where two follow the same one, nobody follows.

    Raises:
        ReleaseError: One did. Only people know which one is to stay.
    """
    with contextlib.suppress(TransportError):  # it was pushed all the same
        there, after = _listed(here, remote, settings), known_rotation(settings, principal)
        change = _followed(there, principal, _known(principal, keys, settings), len(keys), after, settings)
        if signed.mark in change.contradiction:
            raise ReleaseError(
                f"somebody else rotated at the same time: {change.contradiction}, and nobody follows either",
                hint=f"yours is {signed.mark}: if the other one is a co-owner's, take it back with\n"
                f"{_delete(remote, signed.mark)}\nelse remove the other: {_delete(remote, 'DIGEST')}",
            )


def _known(principal: str, keys: Iterable[PublicKey], settings: Settings) -> list[AllowedSigner]:
    return [*known_signers(settings), *(AllowedSigner((principal,), one, (MANIFEST_NAMESPACE,)) for one in keys)]


def _listed(here: Clone, remote: str, settings: Settings) -> list[SignedRotation]:
    from adaptergit.ladder import rotations_at

    return rotations_at(here.reached(push_source(here.remote_url(remote), here.root)), settings.limits)


def _followed(
    found: Sequence[SignedRotation],
    principal: str,
    known: Sequence[AllowedSigner],
    threshold: int,
    after: str | None,
    settings: Settings,
) -> Change:
    """Follow as far as an owner can who vouches for all of it."""
    gone, now = known_revocations(settings), datetime.now(UTC)
    return follow(found, principal, known, gone, now, threshold=threshold, after=after, until=_FAR)


def _branch(signed: SignedRotation) -> str:
    return f"refs/heads/rotate/{signed.mark}"


def _remember(settings: Settings, principal: str, chain: Sequence[SignedRotation]) -> None:
    """Let this machine know what it has just said: the key that was replaced counts no longer here either."""
    known = [one for one in known_signers(settings) if one.names(principal)]
    change = follow(chain, principal, known, known_revocations(settings), datetime.now(UTC), after=chain[-1].digest)
    added, removed = (change.added, change.removed) if known else ((), ())
    try:
        remember(settings, added, removed, followed=(principal, chain[-1].digest))
    except StorageError as error:  # it is pushed all the same
        warnings.warn(
            f"the key is rotated, but this machine cannot remember it: {error}", AdaptergitWarning, stacklevel=3
        )


def _signatures(data: bytes, old: Sequence[SigningKey], new: SigningKey) -> dict[str, bytes]:
    """Sign with every old key, and with the new one if it is here: then it knows what it comes after."""
    found = {}
    for number, one in enumerate((*old, new)):
        mark = f".{hashlib.sha256(one.public.blob).hexdigest()[:8]}" if number else ""
        try:
            found[f"{ROTATION}{mark}.sig"] = sign(data, one, namespace=ROTATION_NAMESPACE)
        except (TrustError, UsageError):
            if one is not new:
                raise
    return found


def _rotations(
    here: Clone, remote: str, principal: str, keys: Sequence[PublicKey], settings: Settings
) -> tuple[SignedRotation, ...]:
    """Return the repository's rotations so far, which the next one comes after, and vouches for.

    Raises:
        UsageError: There is one for which these keys, and those that this machine knows, do not vouch, as many as sign
            now; one that was followed before is gone; or there are too many.
    """
    found = _listed(here, remote, settings)
    if len(found) >= MAX_ROTATIONS:
        raise UsageError(
            f"there are {len(found)} rotations, and nobody follows more", hint="let an index recover the key"
        )
    known = _known(principal, keys, settings)
    own = {one.key for one in known if one.names(principal)}
    after = known_rotation(settings, principal)
    while True:
        change = _followed(found, principal, known, len(keys), after, settings)
        # Too few signed it, but whoever it names is known here, and who goes says so: to vouch for it does no harm.
        harmless = [one for one in change.beyond if _is_harmless(one, own)]
        if change.contradiction or len(harmless) != 1:
            break
        after = harmless[0].digest
    if change.contradiction:
        raise UsageError(
            change.contradiction,
            hint=f"remove the tag of one that is not yours: {_delete(remote, 'DIGEST')}\n"
            f"or bring back one that is: git push {remote} refs/tags/adapters-rotations/DIGEST\n"
            f"or, after a recovery, begin anew: adaptergit trust add {as_typed(principal)} 'KEY'",
        )
    if change.beyond:
        strange = change.beyond[0]
        signed_by = sorted(strange.signers(), key=lambda key: key.fingerprint)
        signers = ", ".join(key.fingerprint for key in signed_by) or "nobody"
        unknown = dict.fromkeys(key for key in (*signed_by, *Rotation.from_bytes(strange.data).add) if key not in own)
        trust = "\n".join(f"adaptergit trust add {as_typed(principal)} {quoted(key.line)}" for key in unknown)
        raise UsageError(
            f"a rotation signed by {signers} comes first, and this machine knows fewer than {len(keys)} of its signers",
            where=f"refs/tags/adapters-rotations/{strange.mark}",
            hint=f"if it is of the repository's owners, trust who signed it and the keys that it names:\n{trust}\n"
            f"if it is not: {_delete(remote, strange.mark)}",
        )
    return change.path


def _is_harmless(one: SignedRotation, own: set[PublicKey]) -> bool:
    rotation, signers = Rotation.from_bytes(one.data), one.signers()
    leaves = {key.fingerprint for key in signers}
    return bool(signers & own) and own.issuperset(rotation.add) and leaves.issuperset(rotation.remove)


def _delete(remote: str, mark: str) -> str:
    return f"git push {remote} :refs/tags/adapters-rotations/{mark}"
