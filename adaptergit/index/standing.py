"""Whether a release that an index lists still counts, after what was revoked since."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime

from adaptergit.index.entry import Entry
from adaptergit.trust import Revocation


class Standing:
    """What was revoked, for many releases to be looked up in."""

    def __init__(self, revocations: Iterable[Revocation]) -> None:
        self._keys: dict[str, list[Revocation]] = defaultdict(list)
        self._releases: dict[str, list[Revocation]] = defaultdict(list)
        for one in revocations:
            if one.key is not None:
                self._keys[one.key].append(one)
            elif one.manifest_sha256 is not None:
                self._releases[one.manifest_sha256].append(one)

    def touches(self, entry: Entry) -> bool:
        """Tell, quickly, whether anything that was revoked is about a release."""
        return entry.manifest_sha256 in self._releases or any(key in self._keys for key in entry.signers)

    def of_key(self, fingerprint: str, repository: str, first_seen: datetime | None = None) -> Revocation | None:
        """Return what takes the word of a key away, for a repository's release that was first seen then."""
        found = (one for one in self._keys.get(fingerprint, ()) if one.covers(fingerprint, repository, first_seen))
        return next((one for one in found if one.severity == "refuse"), None)

    def refusal(self, entry: Entry, threshold: int = 1) -> str | None:
        """Return why a release is refused by everybody who knows of this, or None.

        Args:
            entry: The release.
            threshold: How many different keys must have signed it.
        """
        withdrawn = [one for one in self._releases.get(entry.manifest_sha256, ()) if one.severity == "refuse"]
        if withdrawn:
            return str(withdrawn[0])
        over = {
            key: one for key in entry.signers if (one := self.of_key(key, entry.principal, _seen(entry))) is not None
        }
        if not over or len(set(entry.signers) - over.keys()) >= threshold:
            return None
        return "; ".join(f"signed by {key}, which is {one}" for key, one in over.items())

    def warning(self, entry: Entry) -> str | None:
        """Return what is to be said of a release that still counts, or None."""
        found = list(self._releases.get(entry.manifest_sha256, ()))
        found += [
            one for key in entry.signers for one in self._keys.get(key, ()) if one.speaks_of(key, entry.principal)
        ]
        return "; ".join(str(one) for one in found if one.severity == "warn") or None


def _seen(entry: Entry) -> datetime | None:
    try:
        moment = datetime.fromisoformat(entry.first_seen) if entry.first_seen else None
    except ValueError:
        return None
    return moment if moment is None or moment.tzinfo else moment.replace(tzinfo=UTC)
