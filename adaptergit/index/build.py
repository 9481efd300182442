"""Build what users fetch: the same bytes whoever builds it.

``dist/``: ``snapshot.json`` (to be signed), ``catalog.json.zst``, ``revoked.jsonl``, ``roots/``, one shard per source
under the digest of its content, and, while the index is small, everything in one ``index.json``. Names and digests
are those of the content before compression: two builders may use different compressors.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import zstandard

from adaptergit.errors import AdaptergitError
from adaptergit.index.documents import Root, Shard, Snapshot, catalog_bytes
from adaptergit.index.entry import Entry
from adaptergit.index.local import document
from adaptergit.index.repository import IndexRepository, replace
from adaptergit.package import canonical
from adaptergit.progress import each

AGGREGATED = 20_000
"""Releases up to which there is an ``index.json``."""
_LEVEL = 12


@dataclass(frozen=True)
class Built:
    """What was built."""

    sources: int
    releases: int
    snapshot: Snapshot
    changed: int
    """Shards that were not there before."""
    skipped: Mapping[str, str]
    """Sources that cannot be read, and why: one broken file stops nobody else's news."""


def build(index: IndexRepository, target: Path, *, root: Root, now: datetime) -> Built:
    """Build ``dist/``.

    Args:
        index: The repository.
        target: Folder to write; what no longer belongs there is removed.
        root: From :meth:`IndexRepository.current_root`.
        now: Becomes the snapshot's version and time; the same time gives the same bytes.

    Raises:
        PackageError, TrustError: Roots or revocations that are malformed; nothing is removed.
    """
    shards: dict[str, Shard] = {}
    everything: list[Entry] | None = []
    changed = releases = 0
    compressor = zstandard.ZstdCompressor(level=_LEVEL)
    skipped: dict[str, str] = {}
    for principal, data, entries in _shards(index, skipped):
        digest = canonical.sha256(data)
        shards[principal] = Shard(digest, len(data), len(entries))
        releases += len(entries)
        path = target / shard_path(digest)
        if not path.is_file():
            changed += 1
            replace(path, compressor.compress(data))
        if everything is not None:
            everything = [*everything, *entries] if releases <= AGGREGATED else None
    catalog, revoked = catalog_bytes(shards), index.revoked()
    now = now.astimezone(UTC).replace(microsecond=0)
    snapshot = Snapshot(
        index=root.index,
        root_version=root.version,
        version=int(now.timestamp()),
        created=now,
        expires=now + timedelta(days=root.snapshot_days),
        catalog=canonical.sha256(catalog),
        catalog_size=len(catalog),
        revoked=canonical.sha256(revoked),
        revoked_size=len(revoked),
    )
    replace(target / "catalog.json.zst", compressor.compress(catalog))
    replace(target / "revoked.jsonl", revoked)
    for path in sorted((index.root / "roots").iterdir()):
        replace(target / "roots" / path.name, path.read_bytes())
    if everything is not None:
        replace(target / "index.json", document(everything).encode())
    else:
        (target / "index.json").unlink(missing_ok=True)
    # Last, what points to all of it; and without a signature until somebody signs it.
    replace(target / "snapshot.json", snapshot.to_bytes())
    (target / "snapshot.json.sig").unlink(missing_ok=True)
    _sweep(target, {shard.sha256 for shard in shards.values()})
    return Built(len(shards), releases, snapshot, changed, skipped)


def shard_path(digest: str) -> str:
    """Where a shard lies below ``dist/``."""
    return f"shards/{digest[:2]}/{digest}.jsonl.zst"


def _shards(index: IndexRepository, skipped: dict[str, str]) -> Iterator[tuple[str, bytes, list[Entry]]]:
    """Yield principal, content and entries of every shard: the source, its proofs, its releases, one per line."""
    for principal in each(index.principals(), "shards", "sources"):
        try:
            source, proofs, entries = index.source(principal), index.proofs(principal), index.entries(principal)
        except (AdaptergitError, OSError) as error:
            skipped[principal] = str(error)
            continue
        head = json.dumps({"source": source.to_dict()}, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        lines = b"".join((*(proof.to_line() for proof in proofs), *(entry.to_line() for entry in entries)))
        yield principal, head.encode() + b"\n" + lines, entries


def _sweep(target: Path, kept: set[str]) -> None:
    for path in (target / "shards").glob("*/*.jsonl.zst"):
        if path.name.removesuffix(".jsonl.zst") not in kept:
            path.unlink()
    for folder in (target / "shards").glob("*"):
        if folder.is_dir() and not any(folder.iterdir()):
            shutil.rmtree(folder)
