"""Carrying what indexes say to a machine without network: their signed documents, and the shards of some sources."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

from adaptergit.durable import replace_file
from adaptergit.errors import NotFoundError, PackageError
from adaptergit.index.build import shard_path
from adaptergit.index.client import Client, root_digest
from adaptergit.index.documents import (
    MAX_CATALOG_BYTES,
    MAX_ROOT_BYTES,
    MAX_SIGNATURES_BYTES,
    MAX_SNAPSHOT_BYTES,
    parse_catalog,
    parse_snapshot,
)
from adaptergit.index.places import FolderPlace
from adaptergit.index.shards import unpack
from adaptergit.index.subscription import Place, Subscription, Update
from adaptergit.index.updating import MAX_REVOKED_BYTES, MAX_SHARD_BYTES
from adaptergit.package import canonical

_MAX_ROOTS = 256
_MAX_URL_BYTES = 2048


def copy_index(place: Place, principals: Collection[str], folder: Path) -> bool:
    """Copy what an index says now into a folder; return whether it knows any of the sources.

    Nothing is judged here: whoever takes it over does, as if they had asked the index themselves.

    Args:
        place: Where the index is.
        principals: Sources whose shards are copied.
        folder: A new folder.

    Raises:
        TransportError, NotFoundError: It cannot be had.
        TrustError, PackageError: It is not what its snapshot says.
    """
    snapshot_bytes = place.read("snapshot.json", MAX_SNAPSHOT_BYTES)
    snapshot = parse_snapshot(snapshot_bytes)
    packed = place.read("catalog.json.zst", MAX_CATALOG_BYTES)
    shards = parse_catalog(unpack(packed, min(snapshot.catalog_size, MAX_CATALOG_BYTES), "catalog.json"), snapshot)
    wanted = [shards[principal] for principal in sorted(principals) if principal in shards]
    if not wanted:
        return False
    files = {"snapshot.json": snapshot_bytes, "catalog.json.zst": packed}
    files["snapshot.json.sig"] = place.read("snapshot.json.sig", MAX_SIGNATURES_BYTES)
    if snapshot.revoked_size:
        files["revoked.jsonl"] = place.read("revoked.jsonl", min(snapshot.revoked_size, MAX_REVOKED_BYTES))
    for shard in wanted:
        path = shard_path(shard.sha256)
        files[path] = place.read(path, min(shard.size, MAX_SHARD_BYTES) + 4096)
    for version in range(1, _MAX_ROOTS):
        try:
            files[f"roots/{version}.json"] = place.read(f"roots/{version}.json", MAX_ROOT_BYTES)
        except NotFoundError:
            break
        files[f"roots/{version}.json.sig"] = place.read(f"roots/{version}.json.sig", MAX_SIGNATURES_BYTES)
    for name, data in files.items():
        replace_file(folder / name, data)
    return True


def add_carried(client: Client, folder: Path, root: str) -> bool:
    """Add the index that was carried here, if it has this root; return whether it has. Its shards come when asked for.

    Raises:
        UsageError: No digest, or there is an index of that name already.
        TrustError, PackageError, NotFoundError: It cannot be believed, or is not complete. Nothing was added.
    """
    place, digest = FolderPlace(folder), root_digest(root)
    if not any(canonical.sha256(data) == digest for data in _roots(place)):
        return False
    url = place.read("url", _MAX_URL_BYTES).decode("utf-8", "replace")
    if "://" not in url or not url.isprintable() or "@" in url.partition("://")[2].partition("/")[0]:
        raise PackageError(
            "the bundle does not say where the index is",
            where=str(folder),
            hint="an index that was added as a folder has no address for others: import without --index-root, or add "
            "it by its address where the bundle is made",
        )
    replace(client, opened=lambda _: place).add(url, root, lazy=True)
    return True


def take_news(client: Client, one: Subscription, folder: Path, principals: Collection[str]) -> Update | None:
    """Take over what was carried here of an index that was added, if it is this one; return what changed.

    Raises:
        TrustError, PackageError, NotFoundError: It cannot be believed, or is not complete. Nothing was taken over.
    """
    place = FolderPlace(folder)
    if not any(canonical.sha256(data) == one.root for data in _roots(place)):
        return None
    return client.take_news(one.name, place, principals)


def _roots(place: Place) -> Iterator[bytes]:
    for version in range(1, _MAX_ROOTS):
        try:
            yield place.read(f"roots/{version}.json", MAX_ROOT_BYTES)
        except NotFoundError:
            return
