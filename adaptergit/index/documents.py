"""The signed documents of an index, and the rules by which they are believed. No input or output, no clock.

``root.json``: who maintains the index (m of n), and which online key signs its snapshots. Version n+1 counts if it is
signed by the threshold of version n *and* by its own; so maintainers change without anybody starting anew, and the
first root, whose digest a person was told, is enough for ever. ``snapshot.json``: which catalog is the newest, signed
by the online key, with an expiry. ``catalog.json``: digest and size of the shard of every source. ``recovery``: a new
key for a publisher who lost theirs, signed by the maintainers.

The online key can add sources and hide news until its snapshot expires. It cannot change the keys of a source that is
known: that takes a rotation signed by the old key, or a recovery.

Sources: The Update Framework specification 1.0.34, §5.3 (root rotation) and §5.4-5.6 (rollback, freeze, mix and
match).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from adaptergit.errors import PackageError, TrustError
from adaptergit.package import canonical, schemas
from adaptergit.trust import PublicKey, parse_public_key, parse_signature, verify_signature

ROOT_NAMESPACE = "root.v1@adaptergit"
SNAPSHOT_NAMESPACE = "snapshot.v1@adaptergit"
RECOVERY_NAMESPACE = "recovery.v1@adaptergit"
MAX_ROOT_BYTES = 64 * 1024
MAX_SNAPSHOT_BYTES = 16 * 1024
MAX_CATALOG_BYTES = 64 * 2**20
MAX_SIGNATURES_BYTES = 64 * 1024
INDEX_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_ARMOR = re.compile(rb"-----BEGIN SSH SIGNATURE-----.*?-----END SSH SIGNATURE-----\r?\n?", re.DOTALL)


@dataclass(frozen=True)
class Root:
    """Who speaks for an index."""

    index: str
    """Its name."""
    version: int
    expires: datetime
    threshold: int
    """How many maintainers must sign."""
    maintainers: tuple[PublicKey, ...]
    online: tuple[PublicKey, ...]
    """Keys that sign snapshots."""
    snapshot_days: int
    """How long a snapshot counts."""
    data: bytes = b""
    """As it was signed."""

    @property
    def digest(self) -> str:
        """What people are told: sha256 of its bytes."""
        return canonical.sha256(self.data)

    def to_bytes(self) -> bytes:
        """Serialise to the bytes that are signed."""
        data = canonical.dumps(
            {
                "schema": "adaptergit.root/1",
                "index": self.index,
                "version": self.version,
                "expires": moment(self.expires),
                "threshold": self.threshold,
                "maintainers": [key.line for key in self.maintainers],
                "online": [key.line for key in self.online],
                "snapshot_days": self.snapshot_days,
            }
        )
        parse_root(data)
        return data


@dataclass(frozen=True)
class Snapshot:
    """Which catalog is the newest."""

    index: str
    root_version: int
    version: int
    created: datetime
    expires: datetime
    catalog: str
    """sha256."""
    catalog_size: int
    revoked: str
    revoked_size: int

    def to_bytes(self) -> bytes:
        """Serialise to the bytes that are signed."""
        data = canonical.dumps(
            {
                "schema": "adaptergit.snapshot/1",
                "index": self.index,
                "root_version": self.root_version,
                "version": self.version,
                "created": moment(self.created),
                "expires": moment(self.expires),
                "catalog": {"sha256": self.catalog, "size": self.catalog_size},
                "revoked": {"sha256": self.revoked, "size": self.revoked_size},
            }
        )
        parse_snapshot(data)
        return data


@dataclass(frozen=True)
class Shard:
    """Where everything about one source lies: ``shards/<sha256>.jsonl.zst``."""

    sha256: str
    """Of its bytes before they were compressed."""
    size: int
    releases: int


@dataclass(frozen=True)
class Recovery:
    """A publisher's new key, on the word of an index's maintainers."""

    index: str
    repository: str
    keys: tuple[PublicKey, ...]
    created: datetime
    reason: str

    def to_bytes(self) -> bytes:
        """Serialise to the bytes that are signed."""
        return canonical.dumps(
            {
                "schema": "adaptergit.recovery/1",
                "index": self.index,
                "repository": self.repository,
                "keys": [key.line for key in self.keys],
                "created": moment(self.created),
                "reason": self.reason,
            }
        )


def parse_root(data: bytes) -> Root:
    """Read a root; whether it counts is decided by :func:`next_root` or by its digest.

    Raises:
        PackageError: Naming the field.
        TrustError: A key that is not accepted, or fewer keys than the threshold.
    """
    raw = _checked("root", data, MAX_ROOT_BYTES)
    root = Root(
        raw["index"],
        raw["version"],
        when(raw["expires"], "root.json"),
        raw["threshold"],
        tuple(map(parse_public_key, raw["maintainers"])),
        tuple(map(parse_public_key, raw["online"])),
        raw["snapshot_days"],
        data,
    )
    if len(set(root.maintainers)) < max(root.threshold, len(root.maintainers)):
        raise TrustError(
            f"{len(set(root.maintainers))} different maintainers, {root.threshold} must sign",
            hint="name each maintainer once, with a key of their own; --threshold is at most their number",
        )
    return root


def first_root(data: bytes, signatures: bytes, digest: str) -> Root:
    """Believe the root whose digest a person was told.

    Raises:
        TrustError: Another root, or not signed by its own threshold.
    """
    if canonical.sha256(data) != digest:
        raise TrustError(f"the root's sha256 is {canonical.sha256(data)}, you were told {digest}", where="root.json")
    root = parse_root(data)
    _check_threshold(
        data, signatures, ROOT_NAMESPACE, root.maintainers, root.threshold, "root.json", hint=_signing(root)
    )
    return root


def next_root(trusted: Root, data: bytes, signatures: bytes) -> Root:
    """Follow from one root to the next.

    Raises:
        TrustError: It does not come after ``trusted``: another index, another number, too few signatures.
    """
    root = parse_root(data)
    where = f"roots/{root.version}.json"
    if (root.index, root.version) != (trusted.index, trusted.version + 1):
        raise TrustError(
            f"{root.index} {root.version} does not come after {trusted.index} {trusted.version}", where=where
        )
    for one in (trusted, root):
        _check_threshold(data, signatures, ROOT_NAMESPACE, one.maintainers, one.threshold, where, hint=_signing(root))
    return root


def parse_snapshot(data: bytes) -> Snapshot:
    """Read a snapshot; whether it counts is decided by :func:`check_snapshot`.

    Raises:
        PackageError: Naming the field.
    """
    raw = _checked("snapshot", data, MAX_SNAPSHOT_BYTES)
    return Snapshot(
        raw["index"],
        raw["root_version"],
        raw["version"],
        when(raw["created"], "snapshot.json"),
        when(raw["expires"], "snapshot.json"),
        raw["catalog"]["sha256"],
        raw["catalog"]["size"],
        raw["revoked"]["sha256"],
        raw["revoked"]["size"],
    )


def check_snapshot(
    data: bytes, signatures: bytes, root: Root, now: datetime, *, last_version: int = 0, last_digest: str = ""
) -> Snapshot:
    """Believe a snapshot.

    Args:
        data: Its bytes.
        signatures: Armored SSHSIGs, one after the other.
        root: The newest root.
        now: For expiry.
        last_version: Of the snapshot believed before; 0 if there was none.
        last_digest: sha256 of that snapshot.

    Raises:
        TrustError: Signed by nobody the root names, older than the last (rollback), another one of the same version
            (equivocation), expired (freeze), or of another index.
    """
    if now >= root.expires:
        raise TrustError(
            f"the root of {root.index} expired on {root.expires:%Y-%m-%d}",
            where="root.json",
            hint="its maintainers must sign a new one; what is locked or stored can still be loaded",
        )
    _check_threshold(data, signatures, SNAPSHOT_NAMESPACE, root.online, 1, "snapshot.json")
    snapshot = parse_snapshot(data)
    if snapshot.index != root.index:
        raise TrustError(f"the snapshot is of {snapshot.index}, not of {root.index}", where="snapshot.json")
    ahead = now + timedelta(days=1)
    if snapshot.created > ahead or snapshot.version > ahead.timestamp():
        # A version counts seconds: one from the future would shut out every honest one.
        raise TrustError("it is from the future", where="snapshot.json", hint="check this machine's clock")
    if snapshot.expires > snapshot.created + timedelta(days=root.snapshot_days, hours=1):
        raise TrustError(
            f"it counts for more than the {root.snapshot_days} days the root allows", where="snapshot.json"
        )
    if snapshot.version < last_version:
        raise TrustError(
            f"version {snapshot.version} is older than {last_version}, which this machine has seen: a rollback",
            where="snapshot.json",
            hint="the server is out of date, or somebody replays an old index: try another mirror",
        )
    if snapshot.version == last_version and canonical.sha256(data) != last_digest:
        raise TrustError(
            f"two different snapshots have the version {last_version}: somebody shows people different indexes",
            where="snapshot.json",
            hint="tell the maintainers of the index",
        )
    if now >= snapshot.expires:
        raise TrustError(
            f"expired on {snapshot.expires:%Y-%m-%d %H:%M} UTC: it is not maintained, or somebody holds back news",
            where="snapshot.json",
            hint="what was fetched, or is locked, can still be loaded",
        )
    return snapshot


def parse_catalog(data: bytes, snapshot: Snapshot) -> dict[str, Shard]:
    """Read the catalog a snapshot names; shards by principal.

    Raises:
        TrustError: It is another catalog.
        PackageError: It is none.
    """
    if canonical.sha256(data) != snapshot.catalog:
        raise TrustError("not the catalog that the snapshot names", where="catalog.json")
    raw = canonical.loads(data, where="catalog.json", limit=MAX_CATALOG_BYTES)
    try:
        if raw["schema"] != "adaptergit.catalog/1":
            raise ValueError(raw["schema"])
        shards = {}
        for principal, (digest, size, releases) in raw["shards"].items():
            if len(digest) != 64 or int(digest, 16) < 0 or type(size) is not int or not 0 <= size < 2**31:
                raise ValueError(principal)
            if type(releases) is not int:
                raise ValueError(principal)
            shards[principal] = Shard(digest, size, releases)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PackageError(f"not a catalog: {error}", where="catalog.json") from error
    return shards


def catalog_bytes(shards: Mapping[str, Shard]) -> bytes:
    """Serialise a catalog."""
    listed = {principal: [one.sha256, one.size, one.releases] for principal, one in shards.items()}
    return canonical.dumps({"schema": "adaptergit.catalog/1", "shards": listed})


def check_recovery(data: bytes, signatures: bytes, root: Root) -> Recovery:
    """Believe a recovery.

    Raises:
        PackageError: It is none.
        TrustError: Too few maintainers signed it, or it is of another index.
    """
    raw = _checked("recovery", data, MAX_ROOT_BYTES)
    _check_threshold(data, signatures, RECOVERY_NAMESPACE, root.maintainers, root.threshold, "recovery")
    if raw["index"] != root.index:
        raise TrustError(f"the recovery is of the index {raw['index']}, not of {root.index}")
    keys = tuple(map(parse_public_key, raw["keys"]))
    return Recovery(raw["index"], raw["repository"], keys, when(raw["created"], "recovery"), raw["reason"])


def split_signatures(data: bytes) -> list[bytes]:
    """Return the armored signatures of a file that holds several, one after the other.

    Raises:
        TrustError: There is something else in it.
    """
    found = _ARMOR.findall(data)
    if len(data) > MAX_SIGNATURES_BYTES or b"".join(found).strip() != data.strip():
        raise TrustError("not a file of armored SSH signatures")
    return found


def moment(value: datetime) -> str:
    """Write a time as documents hold it: UTC, to the second."""
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def when(text: str, where: str) -> datetime:
    """Read a time.

    Raises:
        PackageError: It is none.
    """
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError as error:
        raise PackageError(f"{text!r} is no time", where=where, hint="2026-11-24T00:00:00Z") from error


def _checked(kind: str, data: bytes, limit: int) -> Any:
    where = f"{kind}.json"
    raw = canonical.loads(data, where=where, limit=limit)
    for field, message in schemas.problems(kind, raw):
        raise PackageError(f"{schemas.dotted(field) or 'document'}: {message}", where=where)
    return raw


def signed_by(data: bytes, signatures: Iterable[bytes], namespace: str, keys: Sequence[PublicKey]) -> set[PublicKey]:
    """Return which of the keys signed the bytes validly; signatures of others are passed over.

    Raises:
        TrustError: A signature that is broken.
    """
    found = set()
    for armored in signatures:
        signature = parse_signature(armored)
        verify_signature(signature, data, namespace)
        if signature.key in keys:
            found.add(signature.key)
    return found


def _signing(root: Root) -> str:
    return f"adaptergit index sign --root {root.version} --key …"


def _check_threshold(
    data: bytes,
    signatures: bytes,
    namespace: str,
    keys: Sequence[PublicKey],
    threshold: int,
    where: str,
    *,
    hint: str | None = None,
) -> None:
    try:
        count = len(signed_by(data, split_signatures(signatures), namespace, keys))
    except TrustError as error:
        raise TrustError(error.what, where=where, hint=error.hint) from error
    if count < threshold:
        raise TrustError(f"signed by {count} of the keys that count, {threshold} must sign", where=where, hint=hint)
