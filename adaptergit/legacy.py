"""Files of an archive that nobody signed, as an index lists them: whoever pins a file's sha256 gets exactly that file.

There is no manifest and no signature, so none of the other policies has anything to judge. The file is fetched once,
compared with the digest that the caller wrote, and kept by it.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

from adaptergit.errors import NotFoundError, TrustError
from adaptergit.index.entry import Entry
from adaptergit.indexes import revoked
from adaptergit.pins import known_revocations
from adaptergit.reference import Reference
from adaptergit.settings import Settings, cache_dir
from adaptergit.trust.revocation import of_release


class LegacyError(NotFoundError):
    """A reference means a file of an archive, not a release.

    Cause: an index lists files of before there were releases. Nobody signed them, and most of them hold pickles.

    Remedy: pin the file: ``adaptergit.load("…#sha256:…", policy="digest")`` takes exactly the one with that digest, and
    the message has it. ``adaptergit convert`` makes a package of it that can be signed and published.
    """

    reference: Reference
    entries: Sequence[Entry] = ()
    """Newest last."""


def refusal(reference: Reference, entries: Sequence[Entry]) -> LegacyError:
    """Return the error that says what a reference means, and how it is loaded all the same."""
    one = entries[-1]
    error = LegacyError(
        f"{one.id} is a file of an archive that nobody signed, not a release",
        where=one.legacy,
        hint=f'in Python, adaptergit.load("{one.pinned}", policy="digest") takes exactly the file with this sha256',
    )
    error.reference, error.entries = reference, entries
    return error


def legacy_file(error: LegacyError, *, policy: str | None, offline: bool, settings: Settings) -> tuple[Path, Entry]:
    """Return the file that a reference pins, and what the index says of it.

    Args:
        error: What :func:`adaptergit.resolve.fetch` raised.
        policy: Of the load; default: what the settings say for the archive.
        offline: Touch no network.
        settings: The user's.

    Raises:
        LegacyError: The policy is another than ``digest``, or no digest is pinned.
        TrustError: Another digest than the index lists, another file than the digest, or it was revoked.
        NotFoundError, TransportError: It cannot be had.
    """
    reference = error.reference
    if (policy or settings.policy_for(reference.source.principal)) != "digest" or reference.digest is None:
        raise error
    fitting = [entry for entry in error.entries if reference.specifier.contains(entry.version, prereleases=True)]
    entry = next((entry for entry in fitting if entry.manifest_sha256 == reference.digest), None)
    if entry is None:
        listed = ", ".join(f"{entry.version} #sha256:{entry.manifest_sha256}" for entry in error.entries)
        raise TrustError(f"you pinned sha256:{reference.digest}, which is not listed", hint=f"listed: {listed}")
    for one in of_release([*known_revocations(settings), *revoked(settings)], reference.digest):
        if one.severity == "refuse":
            raise TrustError(f"{entry.id} is {one}", where=entry.legacy)
    path = cache_dir() / "legacy" / f"{reference.digest}.zip"
    if not path.is_file() or _sha256(path) != reference.digest:
        if offline or settings.offline:
            hint = "load it once with network"
            raise NotFoundError(f"{entry.id} is not here, and offline was asked for", where=entry.legacy, hint=hint)
        _download(entry.legacy, path, reference.digest, settings)
    return path, entry


def _download(url: str, path: Path, digest: str, settings: Settings) -> None:
    from adaptergit.web.download import Download

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        fresh = Path(folder) / "file"
        Download(settings.allow_http, settings.limits.fetch_seconds).save(url, fresh, settings.limits.package_bytes)
        if (found := _sha256(fresh)) != digest:
            hint = "the archive's server sends another file than it did: do not use it"
            raise TrustError(f"the file's sha256 is {found}, you pinned {digest}", where=url, hint=hint)
        fresh.replace(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
