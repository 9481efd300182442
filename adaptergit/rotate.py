"""Rotate: a repository's releases are signed with another key from now on, and the old key says so."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from adaptergit.durable import scratch
from adaptergit.errors import AdaptergitWarning, PackageError, TrustError, UsageError
from adaptergit.package import canonical
from adaptergit.publish import check_announced, principal_of, push_source, signing_key
from adaptergit.settings import load_settings
from adaptergit.trust import (
    MANIFEST_NAMESPACE,
    ROTATION,
    ROTATION_NAMESPACE,
    AllowedSigner,
    Rotation,
    format_signer,
    parse_allowed_signers,
    sign,
)
from adaptergit.trust.rotation import MAX_ROTATIONS

if TYPE_CHECKING:
    from adaptergit.git import Clone

_ANNOUNCED = ".adaptergit/allowed_signers"


def rotate(
    new: str | Path,
    *,
    key: str | Path | None = None,
    cosigners: Sequence[str | Path] = (),
    keep: bool = False,
    clone: str | Path = ".",
    remote: str = "origin",
    repository: str | None = None,
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

    Raises:
        UsageError: No key, the same key twice, or not a clone.
        TrustError: Signing failed.
        TransportError: The server cannot be reached, or refuses. The clone is as it was.
    """
    from adaptergit.git import Clone, push_rotation

    here = Clone.at(Path(clone))
    principal = principal_of(here, remote, repository)
    old = [signing_key(key), *(signing_key(path) for path in cosigners)]
    for one in old:
        check_announced(here, one)
    successor = signing_key(new).public
    if successor in {one.public for one in old}:
        raise UsageError("that is the key there is", hint="make another one: adaptergit keygen PATH")
    if successor.fingerprint in _replaced(here, remote, principal):
        raise UsageError(
            "this key was replaced before: nobody would accept it", hint="make another one: adaptergit keygen PATH"
        )
    removed = () if keep else (old[0].public.fingerprint,)
    staying = old if keep else old[1:]
    # Once a key is removed nothing else that it signed counts: who stays is named again.
    added = (successor,) if keep else (successor, *(one.public for one in staying))
    rotation = Rotation(principal, added, removed, datetime.now(UTC).replace(microsecond=0))
    data = rotation.to_bytes()
    with scratch() as folder:
        files = {ROTATION: folder / ROTATION}
        files[ROTATION].write_bytes(data)
        for number, one in enumerate(old):
            mark = f".{hashlib.sha256(one.public.blob).hexdigest()[:8]}" if number else ""
            path = folder / f"{ROTATION}{mark}.sig"
            path.write_bytes(sign(data, one, namespace=ROTATION_NAMESPACE))
            files[path.name] = path
        announced = here.read(_ANNOUNCED) or b""
        kept = [
            line
            for line in announced.decode("utf-8").split("\n")
            if line.strip() and not any(s.key.fingerprint in removed for s in parse_allowed_signers(line, source=""))
        ]
        new_keys = [successor] if announced else [*(one.public for one in staying), successor]
        left = {s.key for line in kept for s in parse_allowed_signers(line, source="")} - {
            *added,
            *(k.public for k in old),
        }
        if left and not keep:
            warnings.warn(
                f"whoever knows only {old[0].public.fingerprint} will not accept "
                f"{', '.join(sorted(key.fingerprint for key in left))}: let them sign this rotation too (--cosigner)",
                AdaptergitWarning,
                stacklevel=2,
            )
        lines = [*kept, *(format_signer(AllowedSigner(("*",), one, (MANIFEST_NAMESPACE,))) for one in new_keys)]
        listing = "".join(f"{line}\n" for line in dict.fromkeys(lines)).encode()
        push_rotation(here, remote, files, listing, canonical.sha256(data)[:16])
    return rotation


def _replaced(here: Clone, remote: str, principal: str) -> set[str]:
    """Return the fingerprints of keys that the repository's rotations replaced."""
    from adaptergit.git import fetch_rotations

    limits = load_settings().limits
    with scratch() as folder:
        where = push_source(here.remote_url(remote), here.root)
        try:
            found = fetch_rotations(here.reached(where), limits, beside=folder, most=MAX_ROTATIONS)
        except PackageError:  # junk of others' making, which must not stop the owner
            return set()
    gone: set[str] = set()
    for files in found:
        with suppress(PackageError, TrustError, KeyError):
            rotation = Rotation.from_bytes(files[ROTATION])
            gone.update(rotation.remove if rotation.repository == principal else ())
    return gone
