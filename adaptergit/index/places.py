"""Where the files of an index are: a static host, a folder of this machine, or a git repository."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from adaptergit.errors import NotFoundError, PackageError, UsageError
from adaptergit.git import Remote, fetch_files
from adaptergit.index.subscription import Place, Subscription
from adaptergit.reference import Source, expand
from adaptergit.settings import Settings, cache_dir
from adaptergit.web.download import Download

_PATH = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")


def place_of(one: Subscription, settings: Settings) -> Place:
    """Return the place that an index's address means.

    Raises:
        NotFoundError: A folder that is not there.
        UsageError: No address that may be asked.
        TransportError: A git repository that cannot be reached.
    """
    url = one.url
    if "://" not in url and expand(url).is_dir():
        return FolderPlace(expand(url))
    local = url.startswith((".", "/", "~")) or ("://" not in url and expand(url).exists())
    if local and not url.endswith(".git"):
        hint = "name a folder that 'adaptergit index build' wrote, or the address of an index"
        raise NotFoundError("there is no such folder", where=url, hint=hint)
    if settings.offline:
        raise UsageError("offline was asked for", where=url, hint="unset ADAPTERGIT_OFFLINE to update an index")
    if url.endswith(".git") or url.startswith(("ssh://", "git@")):
        remote = Remote.of(Source.parse(url), allow_http=settings.allow_http)
        return FolderPlace(fetch_files(remote, cache_dir() / "index-clones", settings.limits))
    if url.startswith("file://"):
        return FolderPlace(Path(url2pathname(urlsplit(url).path)))
    download = Download(settings.allow_http, settings.limits.fetch_seconds)
    download.check(url)
    return StaticPlace(url.rstrip("/"), download)


@dataclass(frozen=True)
class StaticPlace:
    """A folder on a web server."""

    url: str
    download: Download

    def read(self, path: str, limit: int) -> bytes:
        """Return a file; see :class:`adaptergit.index.subscription.Place`."""
        return self.download.read(f"{self.url}/{_checked(path)}", limit)

    def changed(self, path: str, limit: int, etag: str) -> tuple[bytes | None, str]:
        """Return a file unless it is the one that is here; see :class:`adaptergit.index.subscription.Place`."""
        return self.download.read_changed(f"{self.url}/{_checked(path)}", limit, etag)


@dataclass(frozen=True)
class FolderPlace:
    """A folder of this machine."""

    folder: Path

    def read(self, path: str, limit: int) -> bytes:
        """Return a file; see :class:`adaptergit.index.subscription.Place`."""
        file = self.folder / _checked(path)
        try:
            with file.open("rb") as stream:
                data = stream.read(limit + 1)
        except (FileNotFoundError, NotADirectoryError) as error:
            built = self.folder / "dist"
            hint = f"did you mean {built}?" if (built / path).is_file() else None
            raise NotFoundError("there is no such file", where=str(file), hint=hint) from error
        if len(data) > limit:
            raise PackageError(f"more than the limit of {limit} bytes", where=str(file))
        return data

    def changed(self, path: str, limit: int, etag: str) -> tuple[bytes | None, str]:
        """Return a file: here, looking costs nothing."""
        return self.read(path, limit), ""


def _checked(path: str) -> str:
    if not _PATH.fullmatch(path):
        raise PackageError(f"{path!r} is no path of an index")
    return path
