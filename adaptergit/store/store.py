"""The content-addressed store.

::

    <root>/packages/<first two>/<manifest digest>/   the package folder, complete or absent
    <root>/resolved/<sha256 of publisher and adapter>.json which versions a repository had, and which are here
    <root>/locks/                                    one lock per key, only to avoid doing the same work twice
    <root>/tmp/                                      folders being written

Correctness rests on ``rename`` of complete folders and on checking every digest at every load, never on locks. Whoever
loses a race finds the same bytes already there.
"""

from __future__ import annotations

import errno
import filecmp
import hashlib
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from adaptergit.durable import disk_errors, remove_tree, replace_file, sync
from adaptergit.errors import NotFoundError, PackageError
from adaptergit.locks import exclusively
from adaptergit.package import Manifest, Package, check_files, read_package
from adaptergit.settings import Limits

_DIGEST = re.compile(r"[0-9a-f]{64}")
_LAST_MOMENT = 253402214400.0
"""Where the year 10000 begins somewhere."""
_STALE_SECONDS = 86400.0


@dataclass(frozen=True)
class Seen:
    """One version that was fetched."""

    digest: str
    """sha256 of its manifest."""
    tree: str
    """Git oid of its tree."""
    at: float = 0.0
    """When it was first fetched, seconds since 1970; 0 if that is not known."""
    vouched: bool = True
    """False if it was looked at under the policy ``unsigned``: nothing that comes later has to agree with it."""


@dataclass(frozen=True)
class Known:
    """What was seen of one adapter of one repository."""

    fetched: Mapping[str, Seen]
    """By version."""
    released: tuple[str, ...]
    """Every version the repository had when it was last asked, but for those that were yanked."""
    asked: float
    """When that was, seconds since 1970; 0 if never."""
    yanked: tuple[str, ...] = ()

    def seeing(self, version: str, digest: str, tree: str, *, vouched: bool) -> Known:
        """Return what is known after a release was fetched; what nobody vouches for takes no vouched one's place."""
        before = self.fetched.get(version)
        same = before is not None and before.digest == digest
        vouched = vouched or (before is not None and same and before.vouched)
        if before is not None and before.vouched and not vouched:
            return self
        at = before.at if before is not None and same and before.vouched == vouched else time.time()
        return replace(self, fetched={**self.fetched, version: Seen(digest, tree, at, vouched)})


@dataclass(frozen=True)
class Stored:
    """One package of the store."""

    digest: str
    path: Path
    manifest: Manifest | None
    """None if it cannot be read."""
    size: int
    """Bytes."""
    since: float
    """When it was stored, seconds since 1970."""


@dataclass(frozen=True)
class Store:
    """A folder of packages. Reading needs no lock, no network and no process."""

    root: Path

    def find(self, digest: str) -> Path | None:
        """Return the folder of a stored package, or None."""
        path = self._path(digest)
        return path if path.is_dir() else None

    def open(self, digest: str) -> Package:
        """Read manifest and signatures of a stored package; its files are to be checked by the caller.

        Raises:
            NotFoundError: Not in the store.
            PackageError: What is there is damaged.
        """
        path = self.find(digest)
        if path is None:
            raise NotFoundError(
                f"sha256:{digest} is not in the store", where=str(self.root), hint="adaptergit store ls lists what is"
            )
        package = read_package(path)
        if package.digest != digest:
            raise PackageError(f"the manifest was changed: its sha256 is {package.digest}", where=str(path))
        return package

    def add(self, folder: Path, limits: Limits) -> Package:
        """Move a complete package folder into the store after checking every byte against its manifest.

        Args:
            folder: From :meth:`workspace`; gone afterwards.
            limits: Bounds on its size.

        Raises:
            PackageError: The folder is not what its manifest says; nothing is stored.
            StorageError: The disk is full or read-only.
        """
        package = read_package(folder, limits)
        check_files(package, Manifest.from_bytes(package.manifest_bytes, where=f"{folder}/manifest.json"), limits)
        target = self._path(package.digest)
        with self._disk_errors():
            for path in sorted(folder.iterdir()):
                sync(path)
                path.chmod(0o444)
            sync(folder)
            self._clear(target.parent)
            target.parent.mkdir(parents=True, exist_ok=True)
            for _ in range(10):  # others may be putting the same package there
                try:
                    folder.rename(target)
                    break
                except OSError as error:
                    if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                        raise
                    if _same(folder, target):
                        break
                    self.remove(package.digest)
            sync(target.parent)
        return Package(target, package.manifest_bytes, package.signatures)

    def remove(self, digest: str) -> None:
        """Forget a package; a process that has it open keeps its bytes."""
        path = self._path(digest)
        with suppress(FileNotFoundError), self._disk_errors():
            doomed = Path(tempfile.mkdtemp(dir=self._make("tmp"))) / digest
            path.rename(doomed)
            remove_tree(doomed.parent)

    def contents(self) -> Iterator[Stored]:
        """Yield every package that is here, damaged ones without a manifest."""
        for path in sorted((self.root / "packages").glob("??/*")):
            if not _DIGEST.fullmatch(path.name):
                continue
            size = since = 0.0
            manifest = None
            with suppress(OSError):
                since = path.stat().st_mtime
                size = sum(entry.stat().st_size for entry in path.iterdir())
            with suppress(OSError, PackageError, NotFoundError):
                manifest = Manifest.from_bytes(self.open(path.name).manifest_bytes, where=path.name)
            yield Stored(path.name, path, manifest, int(size), since)

    def damage(self, digest: str, limits: Limits) -> str | None:
        """Read every byte of a package and say what is wrong with it, or None."""
        try:
            package = self.open(digest)
            check_files(package, Manifest.from_bytes(package.manifest_bytes, where=digest), limits)
        except (PackageError, NotFoundError, OSError) as error:
            return str(error).partition("\n")[0]  # what is wrong; its hint is for a folder of one's own
        return None

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """Give an empty folder on the store's file system; whatever is left in it is removed."""
        with self._disk_errors():
            self._sweep()
            folder = Path(tempfile.mkdtemp(dir=self._make("tmp")))
        try:
            with self._disk_errors():
                yield folder
        finally:
            remove_tree(folder)

    @contextmanager
    def once(self, key: str) -> Iterator[None]:
        """Let one process at a time work on ``key``; others wait, then usually find the work done."""
        with exclusively(self.root / "locks", key):
            yield

    def known(self, who: str, adapter: str) -> Known:
        """Return what was seen of an adapter. A missing or damaged record is nothing seen."""
        try:
            raw = json.loads(self._record(who, adapter).read_text("utf-8"))
            fetched = {
                str(v): Seen(str(d), str(t), _moment(at[0]) if at else 0.0, len(at) < 2 or at[1] is not False)
                for v, (d, t, *at) in raw["fetched"].items()
                if _DIGEST.fullmatch(str(d))
            }
            released, yanked = (tuple(str(v) for v in raw.get(name, ())) for name in ("released", "yanked"))
            return Known(fetched, released, _moment(raw["asked"]), yanked)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
            return Known({}, (), 0.0)

    def remember(self, who: str, adapter: str, change: Callable[[Known], Known]) -> Known:
        """Change what was seen of an adapter; return what is known then. No other process changes it meanwhile."""
        with self.once(str(self._record(who, adapter))):
            before = self.known(who, adapter)
            after = change(before)
            if after != before:
                self._write(who, adapter, after)
        return after

    def _write(self, who: str, adapter: str, known: Known) -> None:
        fetched = {version: (seen.digest, seen.tree, seen.at, seen.vouched) for version, seen in known.fetched.items()}
        record = {"fetched": fetched, "released": known.released, "asked": known.asked, "yanked": known.yanked}
        path = self._record(who, adapter)
        with suppress(OSError):  # only economy: without it, the repository is asked again
            replace_file(path, json.dumps(record, sort_keys=True).encode(), mode=0o600)

    def _clear(self, folder: Path) -> None:
        """Move away what is no folder where a folder must be."""
        for path in (folder.parent, folder):
            if path.is_symlink() or (path.exists() and not path.is_dir()):
                path.unlink()

    def _sweep(self) -> None:
        """Remove what killed processes left behind a day ago or earlier."""
        for path in self._make("tmp").iterdir():
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                    remove_tree(path)

    def _path(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise PackageError(f"{digest!r} is not a sha256 digest")
        return self.root / "packages" / digest[:2] / digest

    def _record(self, who: str, adapter: str) -> Path:
        return self.root / "resolved" / f"{hashlib.sha256(f'{who}@{adapter}'.encode()).hexdigest()}.json"

    def _make(self, name: str) -> Path:
        path = self.root / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def _disk_errors(self) -> AbstractContextManager[None]:
        hint = "free some space, or choose another folder with ADAPTERGIT_CACHE_DIR"
        return disk_errors("the store", self.root, hint)


def _moment(raw: object) -> float:
    """Read seconds since 1970.

    Raises:
        ValueError: No moment of any calendar.
    """
    seconds = float(str(raw))
    if not 0 <= seconds < _LAST_MOMENT:
        raise ValueError(raw)
    return seconds


def _same(folder: Path, existing: Path) -> bool:
    """Tell whether a stored package is, signatures included, the one that was just verified."""
    try:
        names = {p.name for p in folder.iterdir()}
        return names == {p.name for p in existing.iterdir()} and all(
            filecmp.cmp(folder / name, existing / name, shallow=False) for name in names
        )
    except OSError:
        return False
