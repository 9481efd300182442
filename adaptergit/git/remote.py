"""Talking to somebody's repository: where it is, what may be used to reach it, and how long we are patient."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from adaptergit.errors import NotFoundError, PackageError, StorageError, TransportError, UsageError
from adaptergit.git.incoming import Incoming
from adaptergit.git.runner import Git, init_bare, transport_settings
from adaptergit.progress import Progress, watcher
from adaptergit.reference import Source
from adaptergit.settings import Limits

T = TypeVar("T")
OID = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
TAGS = "refs/tags/adapters"
YANKED = "refs/tags/adapters-yanked"
ROTATIONS = "refs/tags/adapters-rotations"
SMALL = "blob:limit=256k"
"""The filter that keeps weights back."""
_ATTEMPTS = 3
_TRANSIENT = re.compile(
    r"early EOF|unexpected disconnect|RPC failed|hung up unexpectedly|Connection reset"
    r"|returned error: (429|50[0234])|Empty reply|Couldn't connect|Could not connect|Connection closed",
    re.IGNORECASE,
)
_UNSOUND = re.compile("fsck error in pack|error in packed object")
"""Git itself refuses what was sent: a tree with ``.git`` in it, and the like."""
_OTHER_FORMAT = re.compile(r"mismatched algorithms|object format")
"""The server has a repository of the other object format: it says the same however often it is asked."""


@dataclass(frozen=True)
class Remote:
    """A repository on some server and the protocols that may be used to reach it."""

    url: str
    protocols: tuple[str, ...]
    settings: tuple[str, ...] = ()
    """What git must be told to reach it, besides what it is always told: of the publisher's own clone."""

    @property
    def speaks_http(self) -> bool:
        """Tell whether plain requests can be sent there, past git and its settings."""
        scheme = urlsplit(self.url).scheme
        if scheme not in ("http", "https") or scheme not in self.protocols:
            return False
        if scheme == "https" and {"GIT_SSL_CAINFO", "GIT_SSL_CAPATH"} & os.environ.keys():
            return False
        return not any(one.startswith(("http.", "url.")) for one in (*transport_settings(), *self.settings))

    @classmethod
    def of(cls, source: Source, *, allow_http: Sequence[str] = ()) -> Remote:
        """Decide how ``source`` may be reached.

        Raises:
            UsageError: Plain http to a host that is neither loopback nor opted in.
        """
        if source.kind == "scp":
            return cls(source.url, ("ssh",))
        parts = urlsplit(source.url)
        if parts.scheme == "http" and not _is_loopback(parts.hostname or "") and parts.hostname not in allow_http:
            raise UsageError(
                f"{source.url}: plain http is allowed on loopback only",
                hint=f'use https, or list "{parts.hostname}" under allow_http in the settings',
            )
        return cls(source.url, (parts.scheme,))


def patiently(remote: Remote, limits: Limits, action: Callable[[float], T]) -> T:
    """Ask a server, and once more if it only stumbled.

    Args:
        remote: Who is asked.
        limits: With the time there is for it, attempts and all.
        action: Is given the seconds that are left.

    Raises:
        TransportError: The server cannot be reached or failed.
    """
    limits = limits.started()
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return action(limits.seconds_left)
        except StorageError:
            raise
        except TransportError as error:
            pause = random.uniform(0.5, 1.0) * 2 ** (attempt - 1)  # noqa: S311 - politeness, no secret
            if limits.seconds_left <= 0:
                raise TransportError(
                    f"no end within {limits.fetch_seconds:.0f} s",
                    where=remote.url,
                    hint="check the network, or try again later",
                ) from error
            lasting = not _TRANSIENT.search(error.what) or _OTHER_FORMAT.search(error.what)
            if attempt == _ATTEMPTS or lasting or pause > limits.seconds_left:
                raise TransportError(error.what, where=remote.url, hint=error.hint) from error
        time.sleep(pause)
    raise AssertionError("unreachable")


def fetch_objects(
    directory: Path,
    remote: Remote,
    wants: Sequence[str],
    limits: Limits,
    *,
    only: str | None = None,
    size: int | None = None,
    history: bool = False,
) -> Git:
    """Fetch refs or oids into a fresh repository of the server's object format.

    Args:
        directory: Where to make it.
        remote: Where from.
        wants: Names of refs, refspecs or oids; the first one may be looked up as ``FETCH_HEAD``.
        limits: Bounds on bytes and time.
        only: A filter, for servers that can.
        size: How many bytes there will be, for those who watch.
        history: The oids are of something that has a history, which stays where it is.

    Raises:
        NotFoundError: The server has no such ref.
        TransportError: The server cannot be reached or failed.
        PackageError: It sent what git does not take.
    """
    limits = limits.started()
    by_oid = bool(OID.fullmatch(wants[0]))
    wide = by_oid and len(wants[0]) == 64
    while True:
        git = init_bare(directory, object_format="sha256" if wide else "sha1")
        plain = (git.directory / "config").read_bytes()
        # Where filters are not supported they are ignored, or refused (Azure DevOps refuses some).
        options = [*(("--depth=1",) if history or not by_oid else ()), *((f"--filter={only}",) if only else ())]
        try:
            _fetch(git, remote, options, wants, limits, size)
        except StorageError:
            raise
        except TransportError as error:
            if _UNSOUND.search(error.what):
                raise PackageError(f"git refuses what was sent: {error.what}", where=remote.url) from error
            if not wide and _OTHER_FORMAT.search(error.what):
                directory, wide = directory.with_name(f"{directory.name}-sha256"), True
            elif "couldn't find remote ref" in error.what:
                hint = "is the repository empty? push a branch first" if wants[0] == "HEAD" else None
                raise NotFoundError(f"there is no {wants[0]} in {remote.url}", hint=hint) from error
            elif only is not None and "filter" in error.what:
                only = None
            else:
                raise
        else:
            # A filter makes the server a promisor, whom every look at a missing object would ask.
            (git.directory / "config").write_bytes(plain)
            return git


def _fetch(
    git: Git, remote: Remote, options: Sequence[str], wants: Sequence[str], limits: Limits, size: int | None
) -> None:
    report = watcher()

    def attempt(seconds: float) -> bytes:
        return git.raw(
            "fetch", "--quiet", "--no-tags", *options, "--", remote.url, *wants,
            protocols=remote.protocols, settings=remote.settings,
            timeout=seconds, max_file_bytes=limits.package_bytes + 2**20,
            meanwhile=_Received(git, lambda *come: report(Progress(remote.url, *come)), size) if report else None,
        )  # fmt: skip

    patiently(remote, limits, attempt)


class _Received:
    """Looks how much has come of the pack that git writes: git itself says nothing before its first object is whole."""

    def __init__(self, git: Git, report: Callable[[int, int | None], None], size: int | None) -> None:
        self._packs, self._report, self._last = git.directory / "objects" / "pack", report, 0
        self._size, self._incoming = size, Incoming()

    def __call__(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            packs = [(path.stat().st_size, path) for path in self._packs.glob("*pack*") if path.suffix != ".idx"]
            done, path = max(packs, default=(0, self._packs))
            if done == self._last:
                return
            if path.suffix == ".pack":  # it is whole
                total: int | None = done
            elif (total := self._size) is None:
                self._incoming.follow(path)
                total = self._incoming.total
            self._last = done
            self._report(done, total)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
