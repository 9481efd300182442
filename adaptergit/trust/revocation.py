"""Revocations: keys and releases that no longer count, one JSON object per line.

``{"key": "SHA256:…", "since": "2026-11-01T00:00:00Z", "severity": "refuse", "reason": "stolen laptop"}`` takes a key's
word away. A signature carries no time, so with ``since`` only releases that this machine saw before then still count;
without it, none do. ``{"manifest_sha256": "…", "reason": "poisoned data"}`` withdraws one release, whoever signed it.
With the severity ``warn`` nothing is refused, but every load says so. With a ``repository``, a key's word is taken away
for releases of that one only, or of those that a glob matches: a repository's owner says which keys sign there, and
nothing of other repositories.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from adaptergit.errors import TrustError, printable
from adaptergit.package import canonical
from adaptergit.package.names import PRINCIPALS
from adaptergit.trust.allowed_signers import matches

SEVERITIES = ("refuse", "warn")
_MAX_BYTES = 16 * 2**20
_KEY = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_FIELDS = {"key", "manifest_sha256", "repository", "since", "severity", "reason"}


@dataclass(frozen=True)
class Revocation:
    """One line."""

    key: str | None = None
    """Fingerprint."""
    manifest_sha256: str | None = None
    """Digest of a release."""
    since: datetime | None = None
    """For keys: what was seen before still counts."""
    severity: str = "refuse"
    """``refuse``, or ``warn``: it still counts, and a warning says why it should not."""
    reason: str = ""
    """In words, for people."""
    source: str = ""
    """Where it is written."""
    repository: str | None = None
    """The principal whose releases the key no longer signs, or a glob of such; None: all."""

    def line(self) -> str:
        """Return it as it is stored."""
        since = None
        if self.since is not None:
            moment = self.since.astimezone(UTC).replace(microsecond=0, tzinfo=None)
            since = f"{moment.isoformat()}Z"
        fields = {
            "key": self.key,
            "manifest_sha256": self.manifest_sha256,
            "repository": self.repository,
            "since": since,
            "severity": self.severity,
            "reason": self.reason,
        }
        return json.dumps({k: v for k, v in fields.items() if v is not None}, sort_keys=True, ensure_ascii=False)

    def holds_for(self, repository: str) -> bool:
        """Tell whether it is about the signers of a repository."""
        return self.repository is None or matches((self.repository,), repository)

    def speaks_of(self, fingerprint: str, repository: str) -> bool:
        """Tell whether it is about a key as a signer of a repository."""
        return self.key == fingerprint and self.holds_for(repository)

    def covers(self, fingerprint: str, repository: str, first_seen: datetime | None) -> bool:
        """Tell whether it takes away a key's word for a repository's release, first seen then or never before."""
        seen_after = self.since is None or first_seen is None or first_seen >= self.since
        return seen_after and self.speaks_of(fingerprint, repository)

    def __str__(self) -> str:
        """What to tell a person."""
        since = f" since {self.since:%Y-%m-%d}" if self.since else ""
        since += f" for {self.repository}" if self.repository else ""
        word = "revoked" if self.severity == "refuse" else "marked as revoked"
        # Of bundles and indexes, the reason is somebody else's text: it must not forge lines, nor drive a terminal.
        reason = printable(self.reason)
        return f"{word}{since}{': ' + reason if reason else ''} ({self.source})"


def parse_revocations(data: bytes, *, source: str) -> list[Revocation]:
    """Read a file of revocations. A line that is not understood is an error: it may be the one that matters.

    Raises:
        TrustError: With the line.
    """
    if len(data) > _MAX_BYTES:
        raise TrustError(f"more than {_MAX_BYTES} bytes", where=source)
    found = []
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            where = f"{source}:{number}"
            found.append(_parse(canonical.loads(line, where=where, limit=65536), where, source))
    return found


def _parse(raw: Any, where: str, source: str) -> Revocation:
    if not isinstance(raw, Mapping) or not set(raw) <= _FIELDS:
        raise TrustError(f"a revocation has {', '.join(sorted(_FIELDS))}", where=where)
    texts = {name: raw.get(name) for name in _FIELDS}
    if not all(value is None or isinstance(value, str) for value in texts.values()):
        raise TrustError("the fields of a revocation are texts", where=where)
    key, digest = texts["key"], texts["manifest_sha256"]
    if (key is None) == (digest is None):
        raise TrustError("a revocation names either a key or a manifest_sha256", where=where)
    if (key is not None and not _KEY.fullmatch(key)) or (digest is not None and not _DIGEST.fullmatch(digest)):
        hint = "write SHA256:…, as ssh-keygen -lf FILE.pub shows it"
        raise TrustError("not a key's fingerprint or a sha256 digest", where=where, hint=hint)
    if texts["repository"] is not None and key is None:
        raise TrustError("a release is of one repository already: repository goes with a key", where=where)
    repository = texts["repository"]
    if repository is not None and (not PRINCIPALS.fullmatch(repository) or repository.endswith(".git")):
        raise TrustError(f"{repository!r} names no repository", where=where, hint="write host/org/repo, or a pattern")
    severity = texts["severity"] or "refuse"
    if severity not in SEVERITIES:
        raise TrustError(f"severity is one of {', '.join(SEVERITIES)}, not {severity!r}", where=where)
    return Revocation(
        key, digest, _moment(texts["since"], where), severity, texts["reason"] or "", source, texts["repository"]
    )


def _moment(text: str | None, where: str) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        moment = (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).astimezone(UTC)
        if moment.year < 1970:
            raise ValueError(text)
    except (ValueError, OverflowError) as error:
        raise TrustError(f"since: {text!r} is no time", where=where, hint="2026-11-01T00:00:00Z") from error
    return moment


def of_release(revocations: Iterable[Revocation], digest: str) -> list[Revocation]:
    """Return what withdraws a release."""
    return [one for one in revocations if one.manifest_sha256 == digest]
