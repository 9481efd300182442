"""One update of an index: fetched and checked in the order in which things vouch for each other.

It is all or nothing: nothing that was fetched counts before everything about it was checked.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from adaptergit.errors import NotFoundError, PackageError, TransportError, TrustError
from adaptergit.index.build import shard_path
from adaptergit.index.database import Database, News
from adaptergit.index.documents import (
    MAX_CATALOG_BYTES,
    MAX_ROOT_BYTES,
    MAX_SIGNATURES_BYTES,
    MAX_SNAPSHOT_BYTES,
    Root,
    Shard,
    Snapshot,
    check_snapshot,
    first_root,
    moment,
    next_root,
    parse_catalog,
    when,
)
from adaptergit.index.repository import replace as write
from adaptergit.index.rules import broken_by
from adaptergit.index.shards import Known, backdated, differing, of_source, parse_shard, rekeyed, unpack
from adaptergit.index.subscription import (
    Place,
    State,
    Subscription,
    Update,
    database_path,
    fetched_dir,
    read_late,
    read_state,
    remember,
    remember_late,
    trusted_dir,
)
from adaptergit.package import canonical
from adaptergit.trust import Revocation, parse_revocations

MAX_SHARD_BYTES = 256 * 2**20
MAX_REVOKED_BYTES = 16 * 2**20
_MAX_ROOTS = 256


def told_root(one: Subscription, place: Place) -> Root:
    """Find the root that a person was told among the index's roots.

    Raises:
        NotFoundError: There is no index.
        TrustError: There is no such root.
    """
    for version in range(1, _MAX_ROOTS):
        try:
            data = place.read(f"roots/{version}.json", MAX_ROOT_BYTES)
        except NotFoundError as error:
            if version == 1:
                raise NotFoundError("there is no index", where=one.url, hint="give the address of its dist/") from error
            break
        if canonical.sha256(data) == one.root:
            return first_root(data, place.read(f"roots/{version}.json.sig", MAX_SIGNATURES_BYTES), one.root)
    raise TrustError(
        f"none of the index's roots has the digest sha256:{one.root}",
        where=one.url,
        hint="compare it with what the index's maintainers say; this may not be their index",
    )


def updated(one: Subscription, source: Place, root: Root, only: Collection[str] | None = None) -> Update:
    """Fetch what is new.

    Args:
        one: The index.
        source: Where its files are.
        root: The newest that is trusted.
        only: Sources whose shards are there. What is known of the others stays, until an update of everything.

    Raises:
        TrustError: It is older than what was seen, expired, mixed or not signed by whom it should be.
        PackageError: It cannot be understood.
        TransportError: It cannot be had.
    """
    place, now, state = _Counted(source), datetime.now(UTC), read_state(one.name)
    root = _follow_roots(place, root)
    current = only is None and root.version == state.root_version and _complete(one, state)
    data, etag = place.changed("snapshot.json", MAX_SNAPSHOT_BYTES, state.etag if current else "")
    if current and (data is None or canonical.sha256(data) == state.snapshot_sha256):
        # Signed and believed before: only its age can have changed.
        _check_age(state, root, now)
        return _update(one, state, len(state.sources), 0, place.received)
    if data is None:
        raise TransportError("the server sends nothing, although nothing is here", where=one.url)
    try:
        signatures = place.read("snapshot.json.sig", MAX_SIGNATURES_BYTES)
    except NotFoundError as error:
        hint = "its maintainers are at it, or forgot: try again later"
        raise TrustError("the snapshot is not signed", where=one.url, hint=hint) from error
    snapshot = check_snapshot(
        data, signatures, root, now, last_version=state.snapshot_version, last_digest=state.snapshot_sha256
    )
    shards, revoked = _catalog(one, place, snapshot), _revoked(one, place, snapshot, root, state)
    if only is not None:
        shards = {principal: shard for principal, shard in shards.items() if principal in only}
    gone = parse_revocations(revoked, source=f"the index {one.name}")
    folder = trusted_dir(one.name)
    with Database.rewritten(database_path(one.name)) as database:
        taking = _Taking(one, place, state, root, gone, now, carried=only is not None)
        dropped = database.shards().keys() - shards.keys() if only is None else ()
        database.replace(dropped, taking.changed(shards, database.shards()))
        kept = {digest for digest, _ in database.shards().values()}
        if only is None:
            database.mark(snapshot.version)
        # What is trusted first, then what it vouches for: a crash in between costs a download, not a protection.
        write(folder / "revoked.jsonl", revoked)
        new = State(
            root.version,
            snapshot.version,
            canonical.sha256(data),
            moment(now),
            moment(snapshot.expires),
            taking.sources,
            taking.refused,
            moment(snapshot.created),
            etag,
        )
        remember(one.name, new)
        if taking.late:
            remember_late(one.name, {**read_late(one.name), **taking.late})
        write(folder / "root.json", root.data)
    kept |= {shard.sha256 for shard in shards.values()} | {str(v.get("shard")) for v in new.sources.values()}
    _sweep(one, kept)
    return _update(one, new, len(shards), taking.count, place.received)


def _update(one: Subscription, state: State, sources: int, changed: int, received: int) -> Update:
    refused = tuple(f"{principal}: {why}" for principal, why in sorted(state.refused.items()))
    return Update(one.name, sources, _adapters(one), changed, received, refused, state.expires)


def _follow_roots(place: Place, root: Root) -> Root:
    for _ in range(_MAX_ROOTS):
        path = f"roots/{root.version + 1}.json"
        try:
            data = place.read(path, MAX_ROOT_BYTES)
        except NotFoundError:
            return root
        root = next_root(root, data, place.read(f"{path}.sig", MAX_SIGNATURES_BYTES))
    raise TrustError("too many roots", where=root.index)


def _catalog(one: Subscription, place: Place, snapshot: Snapshot) -> dict[str, Shard]:
    if snapshot.catalog_size > MAX_CATALOG_BYTES:
        raise PackageError("the catalog is far too large", where=one.url)
    packed = place.read("catalog.json.zst", MAX_CATALOG_BYTES)
    return parse_catalog(unpack(packed, snapshot.catalog_size, "catalog.json"), snapshot)


def _revoked(one: Subscription, place: Place, snapshot: Snapshot, root: Root, state: State) -> bytes:
    """Return what is revoked, with what was before: the online key cannot take it back, only a new root can."""
    if snapshot.revoked_size > MAX_REVOKED_BYTES:
        raise PackageError("the revocations are far too many", where=one.url)
    revoked = place.read("revoked.jsonl", snapshot.revoked_size) if snapshot.revoked_size else b""
    if canonical.sha256(revoked) != snapshot.revoked:
        raise TrustError("not the revocations that the snapshot names", where=f"{one.url} revoked.jsonl")
    parse_revocations(revoked, source=f"the index {one.name}")
    path = trusted_dir(one.name) / "revoked.jsonl"
    if root.version > state.root_version or not path.is_file():
        return revoked
    lines = [*path.read_bytes().split(b"\n"), *revoked.split(b"\n")]
    return b"".join(line + b"\n" for line in dict.fromkeys(lines) if line.strip())


class _Taking:
    """Takes over the shards that changed, where nothing speaks against it."""

    def __init__(
        self,
        one: Subscription,
        place: Place,
        state: State,
        root: Root,
        gone: list[Revocation],
        now: datetime,
        *,
        carried: bool,
    ) -> None:
        self.one, self.place, self.state, self.root, self.gone, self.now = one, place, state, root, gone, now
        self.carried = carried
        self.sources: dict[str, Mapping[str, Any]] = dict(state.sources)
        self.refused: dict[str, str] = {}
        self.late: dict[str, str] = {}
        self.count = 0

    def changed(self, shards: Mapping[str, Shard], have: Mapping[str, tuple[str, bool]]) -> Iterator[News]:
        """Yield every shard that is taken; of a lazy index, without its entries."""
        for principal, shard in shards.items():
            digest, loaded = have.get(principal, ("", False))
            if self.one.lazy and self.carried:
                self._fetched(shard, principal)  # it is here now, and where it comes from is not
            if digest == shard.sha256 and (self.one.lazy or (loaded and principal in self.sources)):
                continue
            if self.one.lazy:
                yield News(principal, shard.sha256, None)
                continue
            data = self._fetched(shard, principal)
            try:
                known = parse_shard(self.one.name, data, principal)
                entries = known.entries()
                why = self._judged(known)
            except (PackageError, TrustError) as error:
                why = error.what
            if why is not None:
                self.refused[principal] = why
                if principal not in have and (old := self._had(principal)) is not None:
                    yield old
                continue
            self.sources[principal] = of_source(known.source, shard.sha256)
            yield News(principal, shard.sha256, entries, known.source.tracks or "", known.source.url)

    def _had(self, principal: str) -> News | None:
        """Return what was believed of a source before, where the database was lost and the shard was not."""
        digest = str(self.sources.get(principal, {}).get("shard", ""))
        data = shard_here(self.one, digest)
        if data is None:
            return None
        known = parse_shard(self.one.name, data, principal)
        return News(principal, digest, known.entries(), known.source.tracks or "", known.source.url)

    def _judged(self, known: Known) -> str | None:
        """Return why the news of a source are not taken, or None."""
        before = self.sources.get(known.source.repository)
        late, why = judged(self.one, known, before, self.root, self.gone, self.now, self.state.created)
        self.late |= late
        return why

    def _fetched(self, shard: Shard, principal: str) -> bytes:
        """Return a shard; what an interrupted update fetched, or a refused one, is here already."""
        if shard.size > MAX_SHARD_BYTES:
            raise PackageError(f"{shard.size} bytes, the limit is {MAX_SHARD_BYTES}", where=principal)
        path = shard_path(shard.sha256)
        if (data := shard_here(self.one, shard.sha256)) is not None:
            return data
        packed = self.place.read(path, shard.size + 4096)
        self.count += 1
        data = unpack(packed, shard.size, path)
        if canonical.sha256(data) != shard.sha256:
            where = self.one.url
            raise TrustError(f"the shard of {principal} is not the one that the catalog names", where=where)
        write(fetched_dir(self.one.name) / path, packed)
        return data


def judged(
    one: Subscription,
    known: Known,
    before: Mapping[str, Any] | None,
    root: Root,
    gone: list[Revocation],
    now: datetime,
    created: str,
) -> tuple[dict[str, str], str | None]:
    """Decide on news of a source.

    Args:
        one: The index.
        known: What it says now.
        before: What is remembered of the source.
        root: For recoveries.
        gone: What was revoked.
        now: For rotations.
        created: When the last snapshot was made that was believed.

    Returns:
        Releases that are said to have been seen before they can have been, with the time that counts instead; and why
        the news are not taken, or None.
    """
    if (why := rekeyed(known, before, root, gone, now)) is not None:
        return {}, why
    data = None if before is None else shard_here(one, str(before.get("shard", "")))
    if data is None:
        return {}, None
    old = parse_shard(one.name, data, known.source.repository)
    listing = differing(old, known)
    if broken := broken_by(listing):
        return {}, broken[0][1]
    late = backdated(listing, when(created, "state.json")) if created else []
    return {f"{entry.id}=={entry.version}": moment(now) for entry in late}, None


def shard_here(one: Subscription, digest: str) -> bytes | None:
    """Return a shard that was fetched before, if it is whole."""
    path = fetched_dir(one.name) / shard_path(digest)
    try:
        data = unpack(path.read_bytes(), MAX_SHARD_BYTES, str(path))
    except (OSError, TransportError, PackageError):
        return None
    return data if canonical.sha256(data) == digest else None


def _complete(one: Subscription, state: State) -> bool:
    """Tell whether the database holds the snapshot that was believed last."""
    try:
        database = Database.read(database_path(one.name))
    except PackageError:
        return False  # damaged, or of another version: it is made anew
    try:
        return database.marked() == state.snapshot_version
    finally:
        database.close()


def _adapters(one: Subscription) -> int:
    database = Database.read(database_path(one.name))
    try:
        return database.count()
    finally:
        database.close()


def _sweep(one: Subscription, kept: set[str]) -> None:
    for path in (fetched_dir(one.name) / "shards").glob("*/*.jsonl.zst"):
        if path.name.removesuffix(".jsonl.zst") not in kept:
            path.unlink(missing_ok=True)


def _check_age(state: State, root: Root, now: datetime) -> None:
    """Refuse a snapshot that was believed before and has expired since."""
    expires = min(when(state.expires, "state.json"), root.expires)
    if now >= expires:
        raise TrustError(
            f"expired on {expires:%Y-%m-%d %H:%M} UTC: the index is not maintained, or somebody holds back news",
            where="snapshot.json",
            hint="what was fetched, or is locked, can still be loaded",
        )


@dataclass
class _Counted:
    """Counts what a place sends."""

    place: Place
    received: int = 0

    def read(self, path: str, limit: int) -> bytes:
        """Return a file; see :class:`Place`."""
        data = self.place.read(path, limit)
        self.received += len(data)
        return data

    def changed(self, path: str, limit: int, etag: str) -> tuple[bytes | None, str]:
        """Return a file that is not here; see :class:`Place`."""
        data, etag = self.place.changed(path, limit, etag)
        self.received += len(data or b"")
        return data, etag
