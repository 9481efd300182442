"""An index that a person has added, and what is remembered of it on this machine.

What is trusted (the newest root, the last snapshot, the keys of every source) is kept with the settings; what was
fetched (shards, the database made of them) with the store, and may be deleted at any time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol

from adaptergit.durable import replace_file
from adaptergit.errors import AdaptergitError, UsageError
from adaptergit.index.repository import replace as write
from adaptergit.settings import cache_dir, config_dir

_FAILED = "failed"


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
    """Keys, with their times, threshold, and shard of every source that was seen, by principal."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Sources whose news were not taken, and why."""
    created: str = ""
    """When the snapshot was made."""
    etag: str = ""
    """What the server calls it."""


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


class Place(Protocol):
    """Where the files of an index are."""

    def read(self, path: str, limit: int) -> bytes:
        """Return a file.

        Raises:
            NotFoundError: There is none.
            TransportError: It cannot be had.
        """

    def changed(self, path: str, limit: int, etag: str) -> tuple[bytes | None, str]:
        """Return a file, or None if the server says that it still has this ETag; and its ETag, if it has one.

        Raises:
            NotFoundError, TransportError: See :meth:`read`.
        """


def speakers(every: Iterable[Subscription], principal: str) -> list[Subscription]:
    """Return the indexes that may be asked about a repository: those with a scope for it, else those without one."""
    every = list(every)
    scoped = [one for one in every if any(fnmatchcase(principal, glob) for glob in one.scope)]
    return scoped or [one for one in every if not one.scope]


def read_state(name: str) -> State:
    """Return what is remembered of an index.

    Raises:
        UsageError: It cannot be read: without it, an old index could be passed off as a new one.
    """
    path = trusted_dir(name) / "state.json"
    try:
        found = State(**json.loads(path.read_bytes()))
        if not isinstance(found.sources, dict) or not all(isinstance(v, dict) for v in found.sources.values()):
            raise TypeError("sources")
        return found
    except (OSError, ValueError, TypeError) as error:
        if not (trusted_dir(name) / "root.json").exists():
            return State()  # it was never updated
        raise UsageError(
            "what was remembered of this index is damaged",
            where=str(path),
            hint=f"adaptergit index remove {name}, then add it again with the root its maintainers tell you",
        ) from error


def remember(name: str, state: State) -> None:
    """Keep what an update must not go behind."""
    write(trusted_dir(name) / "state.json", json.dumps(asdict(state), sort_keys=True).encode())


def read_late(name: str) -> dict[str, str]:
    """Return when releases really came whose ``first_seen`` was not believed, by ``id==version``."""
    try:
        found = json.loads((trusted_dir(name) / "late.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}


def remember_late(name: str, late: Mapping[str, str]) -> None:
    """Keep when releases really came."""
    write(trusted_dir(name) / "late.json", json.dumps(late, sort_keys=True).encode())


def failed_update(name: str) -> str:
    """Return when and why the last update of an index failed, or nothing if it did not."""
    try:
        return (fetched_dir(name) / _FAILED).read_text("utf-8")
    except (OSError, ValueError):
        return ""


def remember_failure(name: str, error: AdaptergitError | None) -> None:
    """Keep when and why an update failed; None: it did not."""
    path = fetched_dir(name) / _FAILED
    with suppress(OSError):  # only for people
        if error is None:
            path.unlink(missing_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}: {error.what}".encode())


def trusted_dir(name: str) -> Path:
    """Where it is kept what is trusted."""
    return config_dir() / "indexes" / name


def database_path(name: str) -> Path:
    """Where the database is."""
    return fetched_dir(name) / "search.sqlite"


def fetched_dir(name: str) -> Path:
    """Where it is kept what can be fetched again."""
    return cache_dir() / "indexes" / name
