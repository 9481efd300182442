"""Fetching one release: exactly one adapter's bytes, into a fresh bare repository that is thrown away.

A release is found by its subtree oid when something pinned it (two requests on any protocol-v2 server), else by its
tag. Nothing is ever checked out: the tree is listed, every entry is judged, and blobs are streamed to files.
"""

from __future__ import annotations

import ipaddress
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from adaptergit.errors import NotFoundError, PackageError, TransportError, UsageError
from adaptergit.git.runner import Git, init_bare
from adaptergit.package.folder import check_entry_name, check_sizes
from adaptergit.package.version import is_version
from adaptergit.reference import Source
from adaptergit.settings import Limits

OID = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
TAGS = "refs/tags/adapters"
_MAX_TREE_BYTES = 64 * 1024


@dataclass(frozen=True)
class Remote:
    """A repository on some server and the protocols that may be used to reach it."""

    url: str
    protocols: tuple[str, ...]

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


@dataclass(frozen=True)
class Fetched:
    """What arrived: the names and sizes of the files now in the target folder, and where they came from."""

    files: dict[str, int]
    tree: str
    """Oid of the release's tree, which can be fetched again directly."""
    version: str | None


def list_versions(remote: Remote, adapter: str, *, timeout: float = 120.0) -> dict[str, str]:
    """Return the commit oid of every released version of ``adapter``.

    Raises:
        TransportError: The repository cannot be reached.
    """
    with tempfile.TemporaryDirectory(prefix="adaptergit-list-") as folder:
        git = init_bare(Path(folder))
        prefix = f"{TAGS}/{adapter}/"
        arguments = ("ls-remote", "--quiet", "--tags", "--refs", "--", remote.url, f"{prefix}*")
        try:
            output = git.text(*arguments, protocols=remote.protocols, timeout=timeout)
        except TransportError as error:
            raise _located(error, remote) from error
    versions = {}
    for line in output.splitlines():
        oid, _, ref = line.partition("\t")
        if OID.fullmatch(oid) and ref.startswith(prefix) and is_version(version := ref.removeprefix(prefix)):
            versions[version] = oid
    return versions


def fetch_release(
    remote: Remote, adapter: str, target: Path, *, version: str | None = None, tree: str | None = None, limits: Limits
) -> Fetched:
    """Fetch one release into the empty folder ``target``.

    Args:
        remote: Where from.
        adapter: Its name.
        target: Existing empty folder; what is written there is not yet verified.
        version: Fetch the tag of this version.
        tree: Fetch this tree oid instead; falls back to the tag where the server refuses to serve it.
        limits: Bounds on files, bytes and time.

    Raises:
        NotFoundError: No such release.
        TransportError: The server cannot be reached or failed.
        PackageError: The tree holds what a package may not hold.
    """
    if tree is None and version is None:
        raise ValueError("either a version or a tree must be given")
    if tree is not None and not OID.fullmatch(tree):
        raise UsageError(f"{tree!r} is not an object id")
    # Beside the target: the store sweeps away what a killed process leaves there.
    with tempfile.TemporaryDirectory(prefix="git-", dir=target.parent) as folder:
        if tree is not None:
            try:
                git = _fetch(Path(folder) / "tree", remote, tree, limits)
                return Fetched(_extract(git, tree, target, limits), tree, version)
            except TransportError:
                if version is None:
                    raise
        git = _fetch(Path(folder) / "tag", remote, f"{TAGS}/{adapter}/{version}", limits)
        found = git.text("rev-parse", "--verify", "--quiet", "--end-of-options", "FETCH_HEAD^{tree}")
        return Fetched(_extract(git, found, target, limits), found, version)


def _fetch(directory: Path, remote: Remote, want: str, limits: Limits) -> Git:
    """Fetch one ref or oid into a fresh repository of the server's object format."""
    git = init_bare(directory, object_format="sha256" if len(want) == 64 and OID.fullmatch(want) else "sha1")
    depth = () if OID.fullmatch(want) else ("--depth=1",)
    arguments = ("fetch", "--quiet", "--no-tags", *depth, "--", remote.url, want)
    options = {
        "protocols": remote.protocols,
        "timeout": limits.fetch_seconds,
        "max_file_bytes": limits.package_bytes + 2**20,
    }
    try:
        git.text(*arguments, **options)
    except TransportError as error:
        if "mismatched algorithms" in error.what or "object format" in error.what:
            git = init_bare(directory.with_name(directory.name + "-sha256"), object_format="sha256")
            git.text(*arguments, **options)
            return git
        if "couldn't find remote ref" in error.what:
            raise NotFoundError(f"there is no {want} in {remote.url}") from error
        raise _located(error, remote) from error
    return git


def _extract(git: Git, tree: str, target: Path, limits: Limits) -> dict[str, int]:
    """Write the blobs of a flat tree to files. Everything is judged by name, mode and size before a byte is written."""
    oids: dict[str, str] = {}
    sizes: dict[str, int] = {}
    if int(git.text("cat-file", "-s", tree)) > _MAX_TREE_BYTES:
        raise PackageError("the release's tree is far too large", where=f"release {tree[:12]}")
    for entry in git.raw("ls-tree", "-z", "-l", "--full-tree", "--end-of-options", tree).split(b"\0"):
        if not entry:
            continue
        fields, _, raw_name = entry.partition(b"\t")
        mode, kind, oid, size = fields.decode("ascii", "replace").split()
        name = raw_name.decode("utf-8", "replace")
        where = f"release {tree[:12]}/{name}"
        if mode != "100644" or kind != "blob":
            what = {"120000": "a link", "160000": "a submodule", "040000": "a folder", "100755": "an executable"}
            raise PackageError(f"a package holds plain files only, this is {what.get(mode, mode)}", where=where)
        check_entry_name(name, where)
        oids[name], sizes[name] = oid, int(size)
        if len(oids) > limits.files:
            break
    check_sizes(sizes, limits, f"release {tree[:12]}")
    with tempfile.TemporaryFile() as wanted:
        wanted.write("".join(f"{oid}\n" for oid in oids.values()).encode())
        wanted.seek(0)
        with git.stream("cat-file", "--batch", stdin=wanted) as output:
            for name, oid in oids.items():
                _copy_blob(output, oid, sizes[name], target / name)
    return sizes


def _copy_blob(output: IO[bytes], oid: str, size: int, target: Path) -> None:
    header = output.readline(256).decode("ascii", "replace").split()
    if header != [oid, "blob", str(size)]:
        raise TransportError(f"git answered {' '.join(header)!r} for the object {oid}")
    with target.open("xb") as file:
        remaining = size
        while remaining:
            block = output.read(min(remaining, 1 << 20))
            if not block:
                raise TransportError(f"git stopped {remaining} bytes early in the object {oid}")
            file.write(block)
            remaining -= len(block)
    target.chmod(0o644)
    output.read(1)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _located(error: TransportError, remote: Remote) -> TransportError:
    return TransportError(error.what, where=remote.url, hint=error.hint)
