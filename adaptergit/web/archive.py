"""Archives that forges make of a tag: a release without git.

Their bytes differ from day to day, so nothing is expected of the archive itself; the files in it are verified like any
others.
"""

from __future__ import annotations

import tarfile
import tempfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import IO
from urllib.parse import quote, urlsplit

from adaptergit.errors import PackageError, TransportError
from adaptergit.package.archive import BoundedMember, OverlongHeaderError
from adaptergit.package.folder import check_entry_name, check_sizes
from adaptergit.reference import Source
from adaptergit.settings import Limits
from adaptergit.web.download import Download

_OVERHEAD = 2**20


def archive_urls(source: Source, adapter: str, version: str) -> list[str]:
    """Return where forges serve the archive of a release: GitHub and Gitea's kind, then GitLab's; none for ssh."""
    parts = urlsplit(source.url)
    if source.kind == "scp" or parts.scheme not in ("http", "https"):
        return []
    base = f"{parts.scheme}://{parts.netloc}{parts.path.removesuffix('.git')}"
    tag = quote(f"adapters/{adapter}/{version}")
    name = f"{base.rpartition('/')[2]}-{tag.replace('/', '-')}"
    github = f"{base}/archive/refs/tags/{tag}.tar.gz"
    gitea = f"{base}/archive/{tag}.tar.gz"
    gitlab = f"{base}/-/archive/{tag}/{name}.tar.gz"
    if parts.hostname == "github.com":
        return [github]
    return [gitlab] if parts.hostname == "gitlab.com" else [gitea, gitlab, github]


def fetch_archive(url: str, target: Path, limits: Limits, *, allow_http: Collection[str] = ()) -> None:
    """Download an archive and write its files into the empty folder ``target``; nothing is verified yet.

    Raises:
        NotFoundError: There is none.
        TransportError: It cannot be had, or is something else, for example a page to log in.
        PackageError: It holds what a package may not hold.
    """
    with tempfile.TemporaryDirectory(prefix="archive-", dir=target.parent, ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "archive"
        Download(allow_http, limits.seconds_left, limits.deadline).save(url, path, limits.package_bytes + _OVERHEAD)
        try:
            with path.open("rb") as packed, tarfile.open(fileobj=packed, mode="r|gz", tarinfo=BoundedMember) as archive:
                _unpack(archive, target, limits, url)
        except (tarfile.TarError, zlib.error, OSError, EOFError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk, not the archive
            # A page to log in, or half an archive, is nobody's lie: others are asked.
            kind = PackageError if isinstance(error, OverlongHeaderError) else TransportError
            raise kind(f"not a readable archive: {error}", where=url) from error


def _unpack(archive: tarfile.TarFile, target: Path, limits: Limits, url: str) -> None:
    """Write plain files of one folder; every member is judged before a byte of it is written."""
    sizes: dict[str, int] = {}
    for number, member in enumerate(archive):
        inner = member.name.split("/")
        if number > limits.files + 8:
            raise PackageError(f"more than the limit of {limits.files} files", where=url)
        if member.isdir() and len(inner) == 1:
            continue
        name = inner[-1]
        where = f"{url}: {member.name[:200]}"
        if not member.isreg() or len(inner) != 2 or inner[0] in ("", ".", "..") or member.issparse():
            raise PackageError("a package holds plain files in one folder only", where=where)
        check_entry_name(name, where)
        if member.mode & 0o111:
            raise PackageError("a package holds no executables", where=where)
        if name in sizes:
            raise PackageError("the archive holds this file twice", where=where)
        sizes[name] = member.size
        check_sizes(sizes, limits, url)
        content = archive.extractfile(member)
        assert content is not None
        with (target / name).open("xb") as file:
            _copy(content, file, member.size, where)


def _copy(source: IO[bytes], target: IO[bytes], size: int, where: str) -> None:
    while size:
        block = source.read(min(size, 1 << 20))
        if not block:
            raise TransportError(f"the archive ends {size} bytes early", where=where)
        target.write(block)
        size -= len(block)
