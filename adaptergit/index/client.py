"""The indexes a person has added: fetched, checked, searched and asked on this machine.

What is trusted (the newest root, the last snapshot, the keys of every source) is kept with the settings; what was
fetched (shards, the database made of them) with the store, and may be deleted at any time.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from adaptergit.durable import disk_errors
from adaptergit.errors import AdaptergitError, NotFoundError, PackageError, TransportError, TrustError, UsageError
from adaptergit.index.build import shard_path
from adaptergit.index.database import Database
from adaptergit.index.documents import (
    INDEX_NAME,
    Root,
    parse_root,
)
from adaptergit.index.repository import replace as write
from adaptergit.index.shards import Known, of_source, parse_shard, unpack
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
    remember_failure,
    speakers,
    trusted_dir,
)
from adaptergit.index.updating import MAX_SHARD_BYTES, judged, told_root, updated
from adaptergit.locks import exclusively
from adaptergit.package import canonical
from adaptergit.reference import check_no_adapter, expand
from adaptergit.settings import Settings, cache_dir, config_dir
from adaptergit.trust import Revocation, parse_revocations


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
            raise UsageError(
                f"not a list of indexes: {error}",
                where=str(self._list),
                hint="move it away, and adaptergit index add them again",
            ) from error
        return sorted(found, key=lambda one: (one.priority, one.name))

    def get(self, name: str) -> Subscription:
        """Return one index.

        Raises:
            UsageError: There is none of that name.
        """
        found = next((one for one in self.subscriptions() if one.name == name), None)
        if found is None:
            known = ", ".join(one.name for one in self.subscriptions())
            some, none = f"there is: {known}; see adaptergit index ls", "adaptergit index add URL --root sha256:…"
            raise UsageError(f"there is no index {name!r}", hint=some if known else none)
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
            TrustError, PackageError, TransportError: It cannot be believed, had, or kept.
        """
        digest = root_digest(root)
        check_no_adapter(url)
        if "://" not in url and expand(url).is_dir():
            url = str(expand(url).resolve())
        one = Subscription(name or "", url, digest, priority, tuple(scope), lazy)
        found = told_root(one, self.opened(one))
        one = replace(one, name=name or found.index)
        if not INDEX_NAME.fullmatch(one.name):
            raise UsageError(f"{one.name!r} is no name of an index", hint="a-z 0-9 . _ -")
        if any(other.name == one.name for other in self.subscriptions()):
            raise UsageError(f"there is an index {one.name!r} already", hint="give this one another --name")
        try:
            update = _updated(one, self.opened(one), found)
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
            try:
                done = _updated(one, self.opened(one), self.root(name))
                remember_failure(name, None)
                return done
            except (TrustError, PackageError, NotFoundError, TransportError) as error:
                remember_failure(name, error)
                if error.where is None or name not in error.where:
                    error.where = f"index {name}" if error.where is None else f"index {name}: {error.where}"
                raise

    def take_news(self, name: str, place: Place, principals: Collection[str]) -> Update:
        """Take over what was carried here of an index: roots, revocations, and what it says of some sources.

        What it said of the others stays, and is brought up to date by the next :meth:`update`.

        Raises:
            TrustError, PackageError: See :meth:`update`.
            NotFoundError: Something of it was not carried along.
        """
        one = self.get(name)
        with exclusively(cache_dir() / "locks", f"index {name}"):
            return _updated(one, place, self.root(name), frozenset(principals))

    def root(self, name: str) -> Root:
        """Return the newest root of an index that is trusted.

        Raises:
            PackageError, TrustError: It was damaged here.
        """
        path = trusted_dir(name) / "root.json"
        try:
            return parse_root(path.read_bytes())
        except AdaptergitError as error:
            error.where = str(path)
            error.hint = f"it was damaged here: adaptergit index remove {name}, then add it once more with its --root"
            raise

    def state(self, name: str) -> State:
        """Return what is remembered of an index.

        Raises:
            UsageError: It cannot be read: without it, an old index could be passed off as a new one.
        """
        return read_state(name)

    def database(self, name: str) -> Database:
        """Open the database of an index, to be read.

        Raises:
            PackageError: It is damaged.
        """
        return Database.read(database_path(name))

    def lost(self, name: str) -> bool:
        """Tell whether what an index said was fetched, and is no longer here."""
        return not database_path(name).is_file() and bool(self.state(name).sources)

    def speaks_for(self, principal: str) -> list[Subscription]:
        """Return the indexes that may be asked about a repository, in order."""
        return speakers(self.subscriptions(), principal)

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
            if digest is None and not database_path(one.name).is_file() and principal in self.state(one.name).sources:
                raise TrustError(
                    f"what the index {one.name} said of {principal} is no longer here",
                    where=str(fetched_dir(one.name)),
                    hint=f"adaptergit index update {one.name}",
                )
            if digest is not None and (data := self._shard(one, digest, offline)) is not None:
                known = parse_shard(one.name, data, principal)
                if one.lazy:
                    self._meet(one, known, digest)
                late = read_late(one.name).items()
                mine = {key.rpartition("@")[2]: at for key, at in late if key.startswith(f"{principal}@")}
                found.append(replace(known, late=mine))
        return found

    def copies(self, principal: str) -> list[str]:
        """Return the addresses of the copies of a repository that indexes list.

        Those count of the first index that knows the repository, and those that lie in an index's own scope: another
        index could have every load told to a server of its choice.
        """
        every, found = self.subscriptions(), list[str]()
        first = True
        for one in every:
            database = self.database(one.name)
            try:
                knows = one in speakers(every, principal) and database.shard(principal) is not None
                for copy, url in database.copies(principal):
                    if (knows and first) or (one.scope and one in speakers(every, copy)):
                        found.append(url)
            finally:
                database.close()
            first = first and not knows
        return found

    def _meet(self, one: Subscription, known: Known, digest: str) -> None:
        """Judge what a lazy index says of a source that is met only now, and remember it.

        Raises:
            TrustError: Its keys or its releases were changed, and nobody who may sign that.
            PackageError: It is malformed.
        """
        principal, now = known.source.repository, datetime.now(UTC)
        known.entries()
        with exclusively(cache_dir() / "locks", f"index {one.name}"):
            state = self.state(one.name)
            gone = [each for each in self.revocations() if each.source == f"the index {one.name}"]
            before = state.sources.get(principal)
            _, why = judged(one, known, before, self.root(one.name), gone, now, "")
            if why is not None:
                raise TrustError(f"{principal}: {why}", where=f"the index {one.name}")
            if before != (new := of_source(known.source, digest)):
                remember(one.name, replace(state, sources={**state.sources, principal: new}))

    def revocations(self) -> list[Revocation]:
        """Return what every index has revoked.

        Raises:
            TrustError: A line that cannot be understood.
        """
        found = []
        for one in self.subscriptions():
            path = trusted_dir(one.name) / "revoked.jsonl"
            if path.is_file():
                found += parse_revocations(path.read_bytes(), source=f"the index {one.name}")
        return found

    def _shard(self, one: Subscription, digest: str, offline: bool) -> bytes | None:
        """Return a shard that is here, or that a lazy index has."""
        path = fetched_dir(one.name) / shard_path(digest)
        if not path.is_file():
            if offline:
                return None
            packed = self.opened(one).read(shard_path(digest), MAX_SHARD_BYTES)
            data = unpack(packed, MAX_SHARD_BYTES, str(path))
            if canonical.sha256(data) != digest:
                raise TrustError("the shard is not the one that the catalog names", where=one.url)
            write(path, packed)
            return data
        data = unpack(path.read_bytes(), MAX_SHARD_BYTES, str(path))
        if canonical.sha256(data) != digest:
            path.unlink()
            raise PackageError("the shard is damaged", where=str(path), hint=f"adaptergit index update {one.name}")
        return data

    def _save(self, subscriptions: Iterable[Subscription]) -> None:
        listed = [{key: value for key, value in asdict(one).items() if value} for one in subscriptions]
        write(self._list, (json.dumps(listed, indent=1) + "\n").encode())

    @staticmethod
    def _forget(name: str) -> None:
        for folder in (trusted_dir(name), fetched_dir(name)):
            shutil.rmtree(folder, ignore_errors=True)


def root_digest(root: str) -> str:
    """Return the digits of a root's digest, with or without ``sha256:`` before them.

    Raises:
        UsageError: It is none.
    """
    digest = root.removeprefix("sha256:")
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise UsageError(f"{root!r} is no digest", hint="sha256: and 64 hex digits, as the index's page says")
    return digest


def _updated(one: Subscription, place: Place, root: Root, only: Collection[str] | None = None) -> Update:
    hint = "free some space, or choose another folder with ADAPTERGIT_CACHE_DIR"
    with disk_errors("what indexes say", fetched_dir(one.name), hint):
        return updated(one, place, root, only)
