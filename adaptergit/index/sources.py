"""A source: one repository that publishes adapters, in a file that people propose by pull request.

``sources/<host>/<org>/<repo>.yaml``::

    schema: adaptergit.source/1
    repository: github.com/acme/adapters     # the principal of its manifests
    url: https://github.com/acme/adapters.git
    keys:
      - key: ssh-ed25519 AAAA… alice
        valid_after: "2026-11-01T00:00:00Z"  # optional, as valid_before
    threshold: 1                             # how many different keys sign each release
    mirrors: [https://codeberg.org/acme/adapters.git]
    contact: alice@example.org
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from adaptergit.errors import PackageError, TrustError, UsageError
from adaptergit.index.documents import moment, when
from adaptergit.package import schemas, yamlfile
from adaptergit.reference import Source
from adaptergit.trust import (
    MANIFEST_NAMESPACE,
    AllowedSigner,
    Change,
    PublicKey,
    Revocation,
    SignedRotation,
    follow,
    parse_public_key,
)

SCHEMA = "adaptergit.source/1"
MAX_BYTES = 64 * 1024


@dataclass(frozen=True)
class SourceKey:
    """A key that may sign the releases of a source."""

    public: PublicKey
    comment: str = ""
    valid_after: datetime | None = None
    valid_before: datetime | None = None
    """What the index saw from it before then stays; nothing new by it is taken."""


def _check_kinds(raw: Mapping[str, Any], where: str) -> None:
    """Check what the schema says of kinds: shards hold thousands of sources, and validating each takes too long.

    Raises:
        PackageError: A value of another kind, or a threshold that is none.
    """
    texts = ("repository", "url", "contact", "homepage", "since")
    good = isinstance(raw, Mapping) and all(isinstance(raw.get(name, ""), str) for name in texts)
    good = good and isinstance(raw.get("keys", []), list) and isinstance(raw.get("mirrors", []), list)
    good = good and all(isinstance(url, str) for url in raw.get("mirrors", []))
    good = good and isinstance(raw.get("legacy", False), bool) and isinstance(raw.get("tracks") or "", str)
    good = good and "repository" in raw and "url" in raw
    for item in raw.get("keys", []) if good else ():
        good = good and isinstance(item, Mapping) and isinstance(item.get("key"), str)
        good = good and all(isinstance(item.get(name) or "", str) for name in ("valid_after", "valid_before"))
    threshold = raw.get("threshold", 1) if good else 0
    if type(threshold) is not int or not 1 <= threshold <= 16 or len(raw.get("keys", [])) > 16:
        raise PackageError("not a source", where=where)


def retired(key: SourceKey, when: datetime) -> SourceKey:
    """Return a key that signs nothing new from a time on."""
    if key.valid_before is not None and key.valid_before <= when:
        return key
    return replace(key, valid_before=when)


def looser(key: SourceKey, was: SourceKey) -> bool:
    """Tell whether a key would count at a time at which it did not."""
    before = was.valid_before is not None and (key.valid_before is None or key.valid_before > was.valid_before)
    after = was.valid_after is not None and (key.valid_after is None or key.valid_after < was.valid_after)
    return before or after


@dataclass(frozen=True)
class SourceFile:
    """What an index knows of a repository."""

    repository: str
    """The principal."""
    url: str
    keys: tuple[SourceKey, ...]
    contact: str
    threshold: int = 1
    mirrors: tuple[str, ...] = ()
    tracks: str | None = None
    """The principal whose releases it copies."""
    homepage: str = ""
    since: str = ""
    """When it was accepted."""
    legacy: bool = False
    """An archive that nobody signs: its entries are found, and never fetched as releases."""

    @property
    def path(self) -> str:
        """Where the file lies in an index."""
        return f"sources/{self.repository}.yaml"

    @property
    def signature_path(self) -> str:
        """Where its keys' signatures of the last change lie."""
        return f"{self.path}.sig"

    def counting(self, now: datetime) -> set[PublicKey]:
        """Return the keys whose signatures count at a time."""
        return {signer.key for signer in self.signers("") if not signer.refusal(MANIFEST_NAMESPACE, now)}

    def signers(self, index: str) -> list[AllowedSigner]:
        """Return whose signatures count, on the word of an index."""
        return [
            AllowedSigner(
                (self.repository,),
                key.public,
                (MANIFEST_NAMESPACE,),
                key.valid_after,
                key.valid_before,
                key.comment,
                f"the index {index}",
                vouched=True,
            )
            for key in self.keys
        ]

    def follow(
        self,
        kept: Sequence[SignedRotation],
        revocations: Sequence[Revocation],
        now: datetime,
        *,
        found: Iterable[SignedRotation] = (),
    ) -> Change:
        """Follow rotations from the listed keys.

        Args:
            kept: Those that the index holds.
            revocations: Keys that count no more.
            now: Rotations that take effect later are not followed.
            found: Those of the repository; what contradicts one that was followed before is passed over.
        """
        signers = self.signers("sources/")
        return follow(found, self.repository, signers, revocations, now, threshold=self.threshold, kept=kept)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; what is empty is left out."""
        keys = [
            {
                "key": " ".join(part for part in (key.public.line, key.comment) if part),
                **({"valid_after": moment(key.valid_after)} if key.valid_after else {}),
                **({"valid_before": moment(key.valid_before)} if key.valid_before else {}),
            }
            for key in self.keys
        ]
        data: dict[str, Any] = {
            "schema": SCHEMA,
            "repository": self.repository,
            "url": self.url,
            "keys": keys,
            "threshold": self.threshold,
            "mirrors": list(self.mirrors),
            "tracks": self.tracks,
            "contact": self.contact,
            "homepage": self.homepage,
            "since": self.since,
            "legacy": self.legacy,
        }
        return {name: value for name, value in data.items() if value}

    def to_yaml(self) -> bytes:
        """Serialise to the file people propose."""
        return yamlfile.dumps(self.to_dict())

    @classmethod
    def from_yaml(cls, data: bytes, *, where: str) -> SourceFile:
        """Read the file strictly.

        Raises:
            PackageError: Naming line and field.
            TrustError: A key that is not accepted.
        """
        document = yamlfile.loads(data, where=where, limit=MAX_BYTES)
        for field, message in schemas.problems("source", document.data):
            raise PackageError(
                f"{schemas.dotted(field) or 'document'}: {message}", where=f"{where}:{document.line(field)}"
            )
        return cls.from_dict(document.data, where=where)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], *, where: str) -> SourceFile:
        """Build it of plain data that the schema accepts.

        Raises:
            PackageError: A time or an address that is none.
            TrustError: A key that is not accepted, or fewer than the threshold.
        """
        _check_kinds(raw, where)
        keys = []
        for item in raw.get("keys", ()):
            parts = item["key"].split(None, 2)
            times = [when(item[n], where) if item.get(n) else None for n in ("valid_after", "valid_before")]
            keys.append(SourceKey(parse_public_key(item["key"]), parts[2] if len(parts) > 2 else "", *times))
        source = cls(
            raw["repository"],
            raw["url"],
            tuple(keys),
            raw.get("contact", ""),
            raw.get("threshold", 1),
            tuple(raw.get("mirrors", ())),
            raw.get("tracks"),
            raw.get("homepage", ""),
            raw.get("since", ""),
            raw.get("legacy", False),
        )
        if not source.keys and not source.legacy:
            raise PackageError("keys: nobody may sign", where=where)
        if source.keys and len({key.public for key in source.keys}) < max(source.threshold, len(source.keys)):
            raise TrustError(f"{source.threshold} different keys must sign", where=where, hint="list each key once")
        try:
            parsed = [Source.parse(url.rstrip("/")) for url in (source.url, *source.mirrors)]
        except UsageError as error:
            raise PackageError(f"url or mirrors: {error.what}", where=where) from error
        if parsed[0].principal not in (None, source.repository):
            raise PackageError(
                f"url: it leads to {parsed[0].principal}, not to {source.repository}",
                where=where,
                hint="repository is host/org/repo of the url",
            )
        return source
