"""What was asked for, where it was found, and what a place held before."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from adaptergit.hf.checkpoints import Kept
from adaptergit.hf.client import Hub, Listing
from adaptergit.hf.reference import HubReference
from adaptergit.indexes import Word
from adaptergit.settings import Settings, cache_dir
from adaptergit.store import Store


@dataclass(frozen=True)
class Wanted:
    """What was asked for, and everything that decides on it."""

    reference: HubReference
    settings: Settings
    policy: str | None
    pickles: bool
    word: Word

    @property
    def store(self) -> Store:
        """Of packages."""
        return Store(cache_dir())

    @property
    def kept(self) -> Kept:
        """Of checkpoints."""
        return Kept(cache_dir() / "checkpoints")

    @property
    def level(self) -> str:
        """The policy that decides."""
        return self.policy or self.settings.policy_for(self.reference.principal)

    @property
    def key(self) -> str:
        """What the place is remembered under."""
        return f"{self.reference.place}{' pickles' if self.pickles else ''}"


@dataclass(frozen=True)
class Found:
    """A folder of a commit."""

    hub: Hub
    reference: HubReference
    commit: str
    listing: Listing

    @property
    def address(self) -> str:
        """For people."""
        return self.hub.address(self.reference.repository, self.reference.folder)

    def save(self, name: str, target: Path) -> str:
        """Download one file of it into a folder, and return its sha256."""
        repository, folder = self.reference.repository, self.reference.folder
        path = f"{folder}/{name}" if folder else name
        return self.hub.save(repository, path, self.commit, self.listing.files[name], target / name)


@dataclass(frozen=True)
class Memory:
    """What a place held when the Hub was last asked."""

    commit: str
    digest: str
    asked: float
    """Seconds since 1970."""
    name: str = ""
    """Of the adapter, in a signed package."""


def recall(key: str) -> Memory | None:
    """Return what is known of a place. A missing or damaged record is nothing known."""
    try:
        raw = json.loads(_record(key).read_text("utf-8"))
        return Memory(str(raw["commit"]), str(raw["digest"]), float(raw["asked"]), str(raw["name"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def remember(key: str, memory: Memory) -> None:
    """Replace what is known of a place."""
    path = _record(key)
    with suppress(OSError):  # only economy: without it, the Hub is asked again
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(asdict(memory), file, sort_keys=True)
        Path(temporary).replace(path)


def _record(key: str) -> Path:
    return cache_dir() / "resolved" / f"hub-{hashlib.sha256(key.encode()).hexdigest()}.json"
