"""A shard: what an index says of one source, and the rules by which news of it are taken over what was there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import zstandard

from adaptergit.errors import AdaptergitError, PackageError, TransportError, TrustError
from adaptergit.index.documents import Root, check_recovery
from adaptergit.index.entry import Entry
from adaptergit.index.entry_rules import Listing
from adaptergit.index.repository import Proof
from adaptergit.index.sources import SourceFile, looser
from adaptergit.package import canonical
from adaptergit.trust import PublicKey, Revocation

_SLACK = timedelta(days=1)
"""Between a crawl and the snapshot that lists what it found."""


@dataclass(frozen=True)
class Known:
    """What an index says of one source."""

    index: str
    source: SourceFile
    proofs: tuple[Proof, ...]
    lines: tuple[bytes, ...]
    """Of its releases."""
    late: Mapping[str, str] = field(default_factory=dict)
    """When releases really came, by ``adapter==version``, where the index states an earlier time than it could have."""

    def entries(self, adapter: str | None = None) -> list[Entry]:
        """Return its releases, or those of one adapter."""
        mark = None if adapter is None else f'@{adapter}"'.encode()
        where = f"the index {self.index}"
        found = [Entry.from_line(line, where=where) for line in self.lines if mark is None or mark in line]
        seen: set[tuple[str, str]] = set()
        for entry in found:
            if entry.principal != self.source.repository:
                raise PackageError(f"{entry.id} is of another source", where=where)
            if (entry.id, entry.version) in seen:
                raise PackageError(f"{entry.id} {entry.version} is listed twice", where=where)
            seen.add((entry.id, entry.version))
        mine = [entry for entry in found if adapter is None or entry.name == adapter]
        if not self.late:
            return mine
        return [replace(e, first_seen=self.late.get(f"{e.name}=={e.version}", e.first_seen)) for e in mine]


def of_source(source: SourceFile, shard: str) -> dict[str, Any]:
    """What an update must not change by itself, and where what was listed lies."""
    return {"keys": source.to_dict().get("keys", []), "threshold": source.threshold, "shard": shard}


def differing(before: Known, now: Known) -> Listing:
    """Return what was listed and what is, without the lines that are the same, which are most of them."""
    had, has = set(before.lines), set(now.lines)
    return Listing(
        tuple(replace(before, lines=tuple(line for line in before.lines if line not in has)).entries()),
        tuple(replace(now, lines=tuple(line for line in now.lines if line not in had)).entries()),
    )


def backdated(one: Listing, since: datetime) -> list[Entry]:
    """Return the releases that are new, and are said to have been seen long before."""
    had = {(entry.name, entry.version) for entry in one.before}
    limit = f"{since - _SLACK:%Y-%m-%dT%H:%M:%SZ}"
    return [e for e in one.now if (e.name, e.version) not in had and "" < e.first_seen < limit]


def rekeyed(
    known: Known, before: Mapping[str, Any] | None, root: Root, gone: list[Revocation], now: datetime
) -> str | None:
    """Return why the keys of a source may not be what the shard says, or None.

    Keys of a source that is known change by a rotation that the old ones signed, or by a recovery that the maintainers
    signed; the online key alone cannot change them, nor the time a key counts, nor how many must sign. Taking a key
    away is always allowed.
    """
    source = known.source
    if before is None or not before.get("keys"):
        return None
    raw = {"repository": source.repository, "url": source.url, "keys": before["keys"], "threshold": before["threshold"]}
    old = SourceFile.from_dict(raw, where=known.index)
    recovered: set[PublicKey] = set()
    for proof in known.proofs:
        if proof.kind == "recovery":
            try:
                recovery = check_recovery(proof.data, b"".join(proof.signatures.values()), root)
            except AdaptergitError:
                continue
            if recovery.repository == source.repository:
                recovered |= set(recovery.keys)
    rotations = [proof.rotation for proof in known.proofs if proof.kind == "rotation"]
    change = old.follow(rotations, list(gone), now)
    added = {signer.key for signer in change.added} | recovered
    earlier = {key.public: key for key in old.keys}
    for key in source.keys:
        was = earlier.get(key.public)
        if was is None and key.public not in added:
            return (
                f"its keys were changed to {key.public.fingerprint}, and neither its old key nor the index's "
                "maintainers signed that"
            )
        if was is not None and key.public not in added and looser(key, was):
            return f"the key {key.public.fingerprint} would count for longer than it did"
    if source.threshold < old.threshold and not recovered:
        return f"{old.threshold} keys had to sign, now {source.threshold}"
    return None


def parse_shard(index: str, data: bytes, principal: str) -> Known:
    """Read a shard.

    Raises:
        PackageError: It is none.
        TrustError: It is of another source.
    """
    first, *rest = data.split(b"\n")
    where = f"the index {index}"
    try:
        source = SourceFile.from_dict(_json(first, where)["source"], where=where)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise PackageError(f"not a shard: {error}", where=where) from error
    if source.repository != principal:
        raise TrustError(f"the shard of {principal} is of {source.repository}", where=where)
    proofs, at = [], 0
    for line in rest:
        if not line.startswith((b'{"rotation"', b'{"recovery"')):
            break
        proofs.append(Proof.from_dict(_json(line, where), where))
        at += 1
    return Known(index, source, tuple(proofs), tuple(line for line in rest[at:] if line))


def unpack(packed: bytes, limit: int, where: str) -> bytes:
    """Decompress at most ``limit`` bytes.

    Raises:
        TransportError: Not compressed data.
        PackageError: More than that.
    """
    try:
        with zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(packed) as reader:
            data = reader.read(limit + 1)
    except zstandard.ZstdError as error:
        raise TransportError(f"not compressed as it should be: {error}", where=where) from error
    if len(data) > limit:
        raise PackageError(f"more than {limit} bytes", where=where)
    return data


def _json(line: bytes, where: str) -> Any:
    try:
        value = json.loads(line.decode())  # strictly: json would take half of a character
    except (ValueError, RecursionError) as error:
        raise PackageError(f"not JSON: {error}", where=where) from error
    canonical.refuse_half_characters(line, value, where)
    return value
