"""The indexes a person has added: fetched, checked, searched and asked on this machine.

What is trusted (the newest root, the last snapshot, the keys of every source) is kept with the settings; what was
fetched (shards, the database made of them) with the store, and may be deleted at any time. An update is all or
nothing: nothing that was fetched counts before everything about it was checked.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol

import zstandard

from adaptergit.errors import AdaptergitError, NotFoundError, PackageError, TransportError, TrustError, UsageError
from adaptergit.index.build import shard_path
from adaptergit.index.database import Database
from adaptergit.index.documents import (
    MAX_CATALOG_BYTES,
    MAX_ROOT_BYTES,
    MAX_SIGNATURES_BYTES,
    MAX_SNAPSHOT_BYTES,
    Root,
    Shard,
    check_recovery,
    check_snapshot,
    first_root,
    next_root,
    parse_catalog,
    parse_root,
)
from adaptergit.index.entry import Entry
from adaptergit.index.repository import Proof
from adaptergit.index.repository import replace as write
from adaptergit.index.sources import SourceFile, looser
from adaptergit.locks import exclusively
from adaptergit.package import canonical
from adaptergit.reference import expand
from adaptergit.settings import Settings, cache_dir, config_dir
from adaptergit.trust import PublicKey, Revocation, follow, parse_revocations

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_MAX_SHARD_BYTES = 256 * 2**20
_MAX_ROOTS = 256
_MAX_REVOKED_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Subscription:
    """An index that was added."""

    name: str
    url: str
    """A static host's folder, a folder of this machine, or a git repository (``….git``)."""
    root: str
    """sha256 of the root that was told."""
    priority: int = 100
    """Small ones are asked first."""
    scope: tuple[str, ...] = ()
    """Globs over principals that only indexes with such a scope speak for, and that no other is asked about."""
    lazy: bool = False
    """Fetch only the shards of sources that are asked for; there is nothing to search then."""


@dataclass(frozen=True)
class State:
    """What an update must not go behind."""

    root_version: int = 0
    snapshot_version: int = 0
    snapshot_sha256: str = ""
    updated: str = ""
    expires: str = ""
    sources: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Keys, with their times, and threshold of every source that was seen, by principal."""


@dataclass(frozen=True)
class Update:
    """What an update did."""

    name: str
    sources: int
    adapters: int
    changed: int
    """Shards that were fetched."""
    received: int
    """Bytes."""
    refused: tuple[str, ...] = ()
    """Sources whose news were not taken, and why."""
    expires: str = ""


@dataclass(frozen=True)
class Known:
    """What an index says of one source."""

    index: str
    source: SourceFile
    proofs: tuple[Proof, ...]
    lines: tuple[bytes, ...]
    """Of its releases."""

    def entries(self, adapter: str | None = None) -> list[Entry]:
        """Return its releases, or those of one adapter."""
        mark = None if adapter is None else f'@{adapter}"'.encode()
        where = f"the index {self.index}"
        found = [Entry.from_line(line, where=where) for line in self.lines if mark is None or mark in line]
        for entry in found:
            if entry.principal != self.source.repository:
                raise PackageError(f"{entry.id} is of another source", where=where)
        return [entry for entry in found if adapter is None or entry.name == adapter]


class Place(Protocol):
    """Where the files of an index are."""

    def read(self, path: str, limit: int) -> bytes:
        """Return a file.

        Raises:
            NotFoundError: There is none.
            TransportError: It cannot be had.
        """


@dataclass
class Client:
    """All indexes of a person."""

    settings: Settings
    opened: Callable[[Subscription], Place]
    """Gives the place of an index; network and git are elsewhere."""

    @property
    def _list(self) -> Path:
        return config_dir() / "indexes.json"

    def subscriptions(self) -> list[Subscription]:
        """Return the indexes, those to be asked first in front.

        Raises:
            UsageError: The file cannot be understood.
        """
        try:
            raw = json.loads(self._list.read_bytes())
            found = [Subscription(**{**item, "scope": tuple(item.get("scope", ()))}) for item in raw]
        except FileNotFoundError:
            return []
        except (ValueError, TypeError, AttributeError) as error:
            raise UsageError(f"not a list of indexes: {error}", where=str(self._list)) from error
        return sorted(found, key=lambda one: (one.priority, one.name))

    def get(self, name: str) -> Subscription:
        """Return one index.

        Raises:
            UsageError: There is none of that name.
        """
        found = next((one for one in self.subscriptions() if one.name == name), None)
        if found is None:
            known = ", ".join(one.name for one in self.subscriptions()) or "none"
            raise UsageError(f"there is no index {name!r}", hint=f"there is: {known}; see adaptergit index ls")
        return found

    def add(
        self,
        url: str,
        root: str,
        *,
        name: str | None = None,
        priority: int = 100,
        scope: Iterable[str] = (),
        lazy: bool = False,
    ) -> Update:
        """Add an index and fetch it; if anything is wrong with it, nothing is added.

        Args:
            url: Of its ``dist/``, or its git repository.
            root: ``sha256:`` and the digest of one of its roots.
            name: Default: what it calls itself.
            priority: Small ones are asked first.
            scope: Globs over principals that it alone speaks for.
            lazy: See :class:`Subscription`.

        Raises:
            UsageError: The digest is malformed, or the name is taken.
            TrustError, PackageError, TransportError: It cannot be believed, or had.
        """
        digest = root.removeprefix("sha256:")
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise UsageError(f"{root!r} is no digest", hint="--root sha256:… as the index's page says")
        if "://" not in url and expand(url).is_dir():
            url = str(expand(url).resolve())
        one = Subscription(name or "", url, digest, priority, tuple(scope), lazy)
        found = self._first_root(self.opened(one), one)
        one = replace(one, name=name or found.index)
        if not _NAME.fullmatch(one.name):
            raise UsageError(f"{one.name!r} is no name of an index", hint="a-z 0-9 . _ -")
        if any(other.name == one.name for other in self.subscriptions()):
            raise UsageError(f"there is an index {one.name!r} already", hint="give this one another --name")
        try:
            update = self._update(one, found)
        except BaseException:
            self._forget(one.name)
            raise
        with exclusively(cache_dir() / "locks", str(self._list)):
            self._save([*self.subscriptions(), one])
        return update

    def remove(self, name: str) -> None:
        """Forget an index and everything it said.

        Raises:
            UsageError: There is none of that name.
        """
        self.get(name)
        with exclusively(cache_dir() / "locks", str(self._list)):
            self._save([one for one in self.subscriptions() if one.name != name])
        self._forget(name)

    def update(self, name: str) -> Update:
        """Fetch what is new.

        Raises:
            TrustError: It is older than what was seen, expired, mixed or not signed by whom it should be.
            TransportError: It cannot be reached. What was there stays as it was.
        """
        one = self.get(name)
        with exclusively(cache_dir() / "locks", f"index {name}"):
            return self._update(one, self.root(name))

    def root(self, name: str) -> Root:
        """Return the newest root of an index that is trusted."""
        return parse_root((_trusted(name) / "root.json").read_bytes())

    def state(self, name: str) -> State:
        """Return what is remembered of an index.

        Raises:
            UsageError: It cannot be read: without it, an old index could be passed off as a new one.
        """
        path = _trusted(name) / "state.json"
        try:
            found = State(**json.loads(path.read_bytes()))
            if not isinstance(found.sources, dict) or not all(isinstance(v, dict) for v in found.sources.values()):
                raise TypeError("sources")
            return found
        except (OSError, ValueError, TypeError) as error:
            if not (_trusted(name) / "root.json").exists():
                return State()  # it was never updated
            raise UsageError(
                "what was remembered of this index is damaged",
                where=str(path),
                hint=f"adaptergit index remove {name}, then add it again with the root its maintainers tell you",
            ) from error

    def database(self, name: str) -> Database:
        """Open the database of an index, to be read.

        Raises:
            PackageError: It is damaged.
        """
        return Database.read(_database(name))

    def speaks_for(self, principal: str) -> list[Subscription]:
        """Return the indexes that may be asked about a repository, in order."""
        every = self.subscriptions()
        scoped = [one for one in every if any(fnmatchcase(principal, glob) for glob in one.scope)]
        return scoped or [one for one in every if not one.scope]

    def known(self, principal: str, *, offline: bool = False) -> list[Known]:
        """Return what every index that speaks for a repository says of it.

        Raises:
            TransportError: A shard of a lazy index cannot be had.
        """
        found = []
        for one in self.speaks_for(principal):
            database = self.database(one.name)
            try:
                digest = database.shard(principal)
            finally:
                database.close()
            if digest is None and not _database(one.name).is_file() and principal in self.state(one.name).sources:
                raise TrustError(
                    f"what the index {one.name} said of {principal} is no longer here",
                    where=str(_fetched(one.name)),
                    hint=f"adaptergit index update {one.name}",
                )
            if digest is not None and (data := self._shard(one, digest, offline)) is not None:
                known = _parse_shard(one.name, data, principal)
                if one.lazy:
                    self._meet(one, known)
                found.append(known)
        return found

    def _meet(self, one: Subscription, known: Known) -> None:
        """Judge the keys of a source that a lazy index meets only now, and remember them.

        Raises:
            TrustError: They were changed, and nobody who may signed that.
        """
        principal, now = known.source.repository, datetime.now(UTC)
        with exclusively(cache_dir() / "locks", f"index {one.name}"):
            state = self.state(one.name)
            gone = [each for each in self.revocations() if each.source == f"the index {one.name}"]
            if (why := _rekeyed(known, state.sources.get(principal), self.root(one.name), gone, now)) is not None:
                raise TrustError(f"{principal}: {why}", where=f"the index {one.name}")
            if state.sources.get(principal) != (new := _of_source(known.source)):
                self._remember(one.name, replace(state, sources={**state.sources, principal: new}))

    def revocations(self) -> list[Revocation]:
        """Return what every index has revoked.

        Raises:
            TrustError: A line that cannot be understood.
        """
        found = []
        for one in self.subscriptions():
            path = _trusted(one.name) / "revoked.jsonl"
            if path.is_file():
                found += parse_revocations(path.read_bytes(), source=f"the index {one.name}")
        return found

    # --- one update: fetched and checked in the order in which things vouch for each other ----------------------------

    def _update(self, one: Subscription, root: Root) -> Update:
        place, now, state = _Counted(self.opened(one)), datetime.now(UTC), self.state(one.name)
        root = self._follow_roots(place, root)
        data = place.read("snapshot.json", MAX_SNAPSHOT_BYTES)
        unchanged = canonical.sha256(data) == state.snapshot_sha256 and root.version == state.root_version
        if unchanged and self._complete(one, state):
            # Signed and believed before: only its age can have changed.
            check_snapshot_age(data, root, now)
            return Update(one.name, len(state.sources), self._adapters(one), 0, place.received, (), state.expires)
        try:
            signatures = place.read("snapshot.json.sig", MAX_SIGNATURES_BYTES)
        except NotFoundError as error:
            hint = "its maintainers are at it, or forgot: try again later"
            raise TrustError("the snapshot is not signed", where=one.url, hint=hint) from error
        snapshot = check_snapshot(
            data,
            signatures,
            root,
            now,
            last_version=state.snapshot_version,
            last_digest=state.snapshot_sha256,
        )
        if snapshot.catalog_size > MAX_CATALOG_BYTES:
            raise PackageError("the catalog is far too large", where=one.url)
        catalog = _unpack(place.read("catalog.json.zst", MAX_CATALOG_BYTES), snapshot.catalog_size, "catalog.json")
        shards = parse_catalog(catalog, snapshot)
        if snapshot.revoked_size > _MAX_REVOKED_BYTES:
            raise PackageError("the revocations are far too many", where=one.url)
        revoked = place.read("revoked.jsonl", snapshot.revoked_size) if snapshot.revoked_size else b""
        if canonical.sha256(revoked) != snapshot.revoked:
            raise TrustError("not the revocations that the snapshot names", where=f"{one.url} revoked.jsonl")
        revoked = self._joined(one, revoked, root, state)
        gone = parse_revocations(revoked, source=f"the index {one.name}")
        folder = _trusted(one.name)
        with Database.rewritten(_database(one.name)) as database:
            sources, refused, changed = self._take(one, place, shards, state, root, gone, now, database)
            kept = {digest for digest, _ in database.shards().values()}
            database.mark(snapshot.version)
            # What is trusted first, then what it vouches for: a crash in between costs a download, not a protection.
            write(folder / "revoked.jsonl", revoked)
            new = State(
                root.version,
                snapshot.version,
                canonical.sha256(data),
                f"{now:%Y-%m-%dT%H:%M:%SZ}",
                f"{snapshot.expires:%Y-%m-%dT%H:%M:%SZ}",
                sources,
            )
            self._remember(one.name, new)
            write(folder / "root.json", root.data)
        self._sweep(one, kept)
        return Update(one.name, len(shards), self._adapters(one), changed, place.received, tuple(refused), new.expires)

    @staticmethod
    def _joined(one: Subscription, revoked: bytes, root: Root, state: State) -> bytes:
        """Keep what was revoked before: the online key cannot take it back, only maintainers with a new root can."""
        parse_revocations(revoked, source=f"the index {one.name}")
        path = _trusted(one.name) / "revoked.jsonl"
        if root.version > state.root_version or not path.is_file():
            return revoked
        lines = [*path.read_bytes().split(b"\n"), *revoked.split(b"\n")]
        return b"".join(line + b"\n" for line in dict.fromkeys(lines) if line.strip())

    def _first_root(self, place: Place, one: Subscription) -> Root:
        """Find the root that was told among the index's roots."""
        for version in range(1, _MAX_ROOTS):
            try:
                data = place.read(f"roots/{version}.json", MAX_ROOT_BYTES)
            except NotFoundError as error:
                if version == 1:
                    raise NotFoundError(
                        "there is no index", where=one.url, hint="give the address of its dist/"
                    ) from error
                break
            if canonical.sha256(data) == one.root:
                return first_root(data, place.read(f"roots/{version}.json.sig", MAX_SIGNATURES_BYTES), one.root)
        raise TrustError(
            f"none of the index's roots has the digest sha256:{one.root}",
            where=one.url,
            hint="compare it with what the index's maintainers say; this may not be their index",
        )

    def _follow_roots(self, place: Place, root: Root) -> Root:
        for _ in range(_MAX_ROOTS):
            path = f"roots/{root.version + 1}.json"
            try:
                data = place.read(path, MAX_ROOT_BYTES)
            except NotFoundError:
                return root
            root = next_root(root, data, place.read(f"{path}.sig", MAX_SIGNATURES_BYTES))
        raise TrustError("too many roots", where=root.index)

    def _take(
        self,
        one: Subscription,
        place: Place,
        shards: Mapping[str, Shard],
        state: State,
        root: Root,
        gone: list[Revocation],
        now: datetime,
        database: Database,
    ) -> tuple[dict[str, Mapping[str, Any]], list[str], int]:
        """Take over the shards that changed; return what is known of all sources, what was refused, the changes."""
        sources = dict(state.sources)
        refused: list[str] = []
        changed = 0
        have = database.shards()

        def taken() -> Iterator[tuple[str, str, list[Entry] | None]]:
            nonlocal changed
            for principal, shard in shards.items():
                digest, loaded = have.get(principal, ("", False))
                if digest == shard.sha256 and (one.lazy or (loaded and principal in sources)):
                    continue
                if one.lazy:
                    yield principal, shard.sha256, None
                    continue
                data = self._fetch(one, place, shard, principal)
                changed += 1
                try:
                    known = _parse_shard(one.name, data, principal)
                    entries = known.entries()
                    why = _rekeyed(known, sources.get(principal), root, gone, now)
                except (PackageError, TrustError) as error:
                    why = error.what
                if why is not None:
                    refused.append(f"{principal}: {why}")
                    continue
                sources[principal] = _of_source(known.source)
                yield principal, shard.sha256, entries

        database.replace(have.keys() - shards.keys(), taken())
        return sources, refused, changed

    def _fetch(self, one: Subscription, place: Place, shard: Shard, principal: str) -> bytes:
        if shard.size > _MAX_SHARD_BYTES:
            raise PackageError(f"{shard.size} bytes, the limit is {_MAX_SHARD_BYTES}", where=principal)
        path = shard_path(shard.sha256)
        packed = place.read(path, shard.size + 4096)
        data = _unpack(packed, shard.size, path)
        if canonical.sha256(data) != shard.sha256:
            raise TrustError(f"the shard of {principal} is not the one that the catalog names", where=one.url)
        write(_fetched(one.name) / path, packed)
        return data

    def _shard(self, one: Subscription, digest: str, offline: bool) -> bytes | None:
        """Return a shard that is here, or that a lazy index has."""
        path = _fetched(one.name) / shard_path(digest)
        if not path.is_file():
            if offline:
                return None
            packed = self.opened(one).read(shard_path(digest), _MAX_SHARD_BYTES)
            data = _unpack(packed, _MAX_SHARD_BYTES, str(path))
            if canonical.sha256(data) != digest:
                raise TrustError("the shard is not the one that the catalog names", where=one.url)
            write(path, packed)
            return data
        data = _unpack(path.read_bytes(), _MAX_SHARD_BYTES, str(path))
        if canonical.sha256(data) != digest:
            path.unlink()
            raise PackageError("the shard is damaged", where=str(path), hint=f"adaptergit index update {one.name}")
        return data

    def _complete(self, one: Subscription, state: State) -> bool:
        """Tell whether the database holds the snapshot that was believed last."""
        database = self.database(one.name)
        try:
            return database.marked() == state.snapshot_version
        finally:
            database.close()

    def _adapters(self, one: Subscription) -> int:
        database = self.database(one.name)
        try:
            return database.count()
        finally:
            database.close()

    @staticmethod
    def _sweep(one: Subscription, kept: set[str]) -> None:
        for path in (_fetched(one.name) / "shards").glob("*/*.jsonl.zst"):
            if path.name.removesuffix(".jsonl.zst") not in kept:
                path.unlink(missing_ok=True)

    def _save(self, subscriptions: Iterable[Subscription]) -> None:
        listed = [{key: value for key, value in asdict(one).items() if value} for one in subscriptions]
        write(self._list, (json.dumps(listed, indent=1) + "\n").encode())

    @staticmethod
    def _remember(name: str, state: State) -> None:
        write(_trusted(name) / "state.json", json.dumps(asdict(state), sort_keys=True).encode())

    @staticmethod
    def _forget(name: str) -> None:
        for folder in (_trusted(name), _fetched(name)):
            shutil.rmtree(folder, ignore_errors=True)


def check_snapshot_age(data: bytes, root: Root, now: datetime) -> None:
    """Refuse a snapshot that was believed before and has expired since.

    Raises:
        TrustError: It has.
    """
    from adaptergit.index.documents import parse_snapshot

    expires = min(parse_snapshot(data).expires, root.expires)
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


def _of_source(source: SourceFile) -> dict[str, Any]:
    """What an update must not change by itself."""
    return {"keys": source.to_dict().get("keys", []), "threshold": source.threshold}


def _rekeyed(
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
    raw = {"repository": source.repository, "url": source.url, **before}
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
    change = follow(rotations, source.repository, old.signers(known.index), gone, now, threshold=old.threshold)
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


def _parse_shard(index: str, data: bytes, principal: str) -> Known:
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


def _json(line: bytes, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise PackageError(f"not JSON: {error}", where=where) from error


def _unpack(packed: bytes, limit: int, where: str) -> bytes:
    """Decompress at most ``limit`` bytes."""
    try:
        with zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(packed) as reader:
            data = reader.read(limit + 1)
    except zstandard.ZstdError as error:
        raise TransportError(f"not compressed as it should be: {error}", where=where) from error
    if len(data) > limit:
        raise PackageError(f"more than {limit} bytes", where=where)
    return data


def _trusted(name: str) -> Path:
    return config_dir() / "indexes" / name


def _database(name: str) -> Path:
    return _fetched(name) / "search.sqlite"


def _fetched(name: str) -> Path:
    return cache_dir() / "indexes" / name
