"""Reading a static mirror (see ``store/mirror.py``), over https or from a folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from adaptergit.errors import NotFoundError, PackageError, TransportError
from adaptergit.package import CARD, MANIFEST, unlisted_names
from adaptergit.package.card import MAX_BYTES as MAX_CARD_BYTES
from adaptergit.package.folder import check_entry_name, check_sizes
from adaptergit.package.manifest import MAX_BYTES as MAX_MANIFEST_BYTES
from adaptergit.settings import Limits
from adaptergit.store.mirror import (
    MAX_LISTING_BYTES,
    Mirrored,
    Shelf,
    listing_path,
    package_path,
    parse_listing,
    rotations_path,
)
from adaptergit.web.download import Download

_MAX_SIGNATURE_BYTES = 128 * 1024


@dataclass(frozen=True)
class StaticMirror:
    """A mirror at an address that ends with ``/``."""

    url: str
    download: Download

    def shelf(self, principal: str, adapter: str) -> Shelf:
        """Return what there is of an adapter; what a mirror says is verified when it is fetched.

        Raises:
            NotFoundError: The mirror has none.
            TransportError: It cannot be reached, or is no mirror.
            PackageError: Its listing is malformed.
        """
        path = listing_path(principal, adapter)
        data, where = self._read(path, MAX_LISTING_BYTES), f"{self.url}{path}"
        if not data.lstrip().startswith(b"{"):  # some servers answer whatever is asked with a page
            raise TransportError("this is no listing of a mirror", where=where, hint="is the mirror's address right?")
        return parse_listing(data, where)

    def rotations(self, principal: str, limit: int) -> bytes:
        """Return the lines that say which keys of a repository came after which; they are verified by who reads them.

        Raises:
            NotFoundError: The mirror has none.
            TransportError: It cannot be reached.
            PackageError: They are more than ``limit`` bytes.
        """
        return self._read(rotations_path(principal), limit)

    def fetch(
        self, release: Mirrored, target: Path, limits: Limits, judge: Callable[[Path], Mapping[str, int]] | None
    ) -> None:
        """Download a release into the empty folder ``target``: manifest, signatures and card first, then the rest.

        Raises:
            NotFoundError, TransportError: It cannot be had.
            PackageError: It is not what its manifest says.
        """
        where = f"{self.url}{package_path(release.manifest_sha256)}"
        if len(release.files) > limits.files or len(set(release.files)) != len(release.files):
            raise PackageError(f"more than {limits.files} files, or one twice", where=where)
        for name in release.files:
            check_entry_name(name, where)
        bounds = {MANIFEST: MAX_MANIFEST_BYTES, CARD: MAX_CARD_BYTES}
        bounds |= dict.fromkeys(unlisted_names(release.files), _MAX_SIGNATURE_BYTES)
        first = [name for name in release.files if name in bounds]
        for name in first:
            self._save(release, name, target, bounds[name])
        rest = [name for name in release.files if name not in bounds]
        stated = judge(target) if judge is not None else dict.fromkeys(rest, limits.file_bytes)
        if unlisted := sorted(set(rest) - stated.keys()):
            raise PackageError(f"not listed in the manifest: {', '.join(unlisted)}", where=where)
        check_sizes({name: stated[name] for name in rest} if judge is not None else {}, limits, where)
        for name in rest:
            self._save(release, name, target, stated[name])

    def _save(self, release: Mirrored, name: str, target: Path, limit: int) -> None:
        path = f"{package_path(release.manifest_sha256)}/{name}"
        if (local := self._local(path)) is None:
            # One byte more than stated is enough to know that it is another file.
            self.download.save(self.url + quote(path), target / name, limit, exceeded=PackageError)
            return
        with _opened(local, limit) as blocks, (target / name).open("xb") as file:
            file.writelines(blocks)

    def _read(self, path: str, limit: int) -> bytes:
        if (local := self._local(path)) is None:
            return self.download.read(self.url + quote(path), limit)
        with _opened(local, limit) as blocks:
            return b"".join(blocks)

    def _local(self, path: str) -> Path | None:
        parts = urlsplit(self.url)
        return Path(unquote(parts.path)) / path if parts.scheme == "file" else None


@contextmanager
def _opened(local: Path, limit: int) -> Iterator[Iterator[bytes]]:
    """Give the blocks of a plain file of a folder that somebody else filled.

    Raises:
        NotFoundError: It cannot be read.
        PackageError: It is a pipe or a device, or has more bytes than it may.
    """

    def blocks() -> Iterator[bytes]:
        left = limit
        while block := _read(handle, min(1 << 20, left + 1), local):
            left -= len(block)
            if left < 0:
                raise PackageError(f"more than the limit of {limit} bytes", where=str(local))
            yield block

    try:
        # Whoever opens a pipe to read it would wait for somebody to write.
        handle = os.open(local, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise NotFoundError(f"cannot be read: {error.strerror}", where=str(local)) from error
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise PackageError("this is no plain file", where=str(local))
        yield blocks()
    finally:
        os.close(handle)


def _read(handle: int, size: int, local: Path) -> bytes:
    try:
        return os.read(handle, size)
    except OSError as error:
        raise NotFoundError(f"cannot be read: {error.strerror}", where=str(local)) from error
