"""Fetching one release: exactly one adapter's bytes, into a fresh bare repository that is thrown away.

A release is found by its subtree oid when something pinned it (two requests on any protocol-v2 server), else by its
tag, else in the branch. Nothing is ever checked out: the tree is listed, every entry is judged, and blobs are streamed
to files. Where nothing was pinned, the small files come first, if the server can filter, and the caller judges them
before the weights move.
"""

from __future__ import annotations

import hashlib
import ipaddress
import random
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
YANKED = "refs/tags/adapters-yanked"
ROTATIONS = "refs/tags/adapters-rotations"
_INDEX_PATH = re.compile(
    r"snapshot\.json(\.sig)?|catalog\.json\.zst|revoked\.jsonl|roots/[0-9]+\.json(\.sig)?|shards/[0-9a-f]{2}/[0-9a-f]{64}\.jsonl\.zst"
)
_MAX_INDEX_BYTES = 2**31
_MAX_TREE_BYTES = 64 * 1024
_MAX_LISTING_BYTES = 16 * 2**20
_SMALL = "blob:limit=256k"
_ATTEMPTS = 3
_TRANSIENT = re.compile(
    r"early EOF|unexpected disconnect|RPC failed|hung up unexpectedly|Connection (reset|timed out)|Operation too slow"
    r"|returned error: (429|50[0234])|Empty reply|Couldn't connect|Could not connect|Connection closed",
    re.IGNORECASE,
)
Judge = Callable[[Path], Mapping[str, int]]
"""Looks at manifest and signatures, refuses or says how large each file may be."""


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


@dataclass(frozen=True)
class Listing:
    """What a repository says of one adapter."""

    versions: Mapping[str, str]
    """Commit oid of every released version."""
    yanked: frozenset[str] = frozenset()
    """Versions that were withdrawn: chosen only by those who name them."""


def list_versions(remote: Remote, adapter: str, *, timeout: float = 120.0) -> Listing:
    """Return the releases of ``adapter``.

    Raises:
        TransportError: The repository cannot be reached.
    """
    return _list(remote, f"{adapter}/", timeout)[0].get(adapter, Listing({}))


def list_all(remote: Remote, *, timeout: float = 120.0) -> tuple[dict[str, Listing], int]:
    """Return the releases of every adapter of a repository, by name, and how many rotations it holds.

    Raises:
        TransportError: The repository cannot be reached.
    """
    return _list(remote, "", timeout, f"{ROTATIONS}/*")


def _list(remote: Remote, below: str, timeout: float, *more: str) -> tuple[dict[str, Listing], int]:
    with tempfile.TemporaryDirectory(prefix="adaptergit-list-") as folder:
        git = init_bare(Path(folder))
        patterns = [f"{TAGS}/{below}*", f"{YANKED}/{below}*", *more]
        options = ("--quiet", "--tags", "--refs")
        try:
            output = git.text(
                "ls-remote", *options, "--", remote.url, *patterns, protocols=remote.protocols, timeout=timeout
            )
        except TransportError as error:
            raise _located(error, remote) from error
    versions: dict[str, dict[str, str]] = {}
    yanked: dict[str, set[str]] = {}
    rotations = 0
    for line in output.splitlines():
        oid, _, ref = line.partition("\t")
        rotations += ref.startswith(f"{ROTATIONS}/")
        for prefix in (TAGS, YANKED):
            adapter, _, version = ref.removeprefix(f"{prefix}/").partition("/")
            if not ref.startswith(f"{prefix}/") or not OID.fullmatch(oid) or not is_version(version):
                continue
            if prefix == TAGS:
                versions.setdefault(adapter, {})[version] = oid
            else:
                yanked.setdefault(adapter, set()).add(version)
    found = {
        adapter: Listing(versions.get(adapter, {}), frozenset(yanked.get(adapter, ())))
        for adapter in versions.keys() | yanked.keys()
    }
    return found, rotations


def fetch_release(
    remote: Remote,
    adapter: str,
    target: Path,
    *,
    version: str | None = None,
    tree: str | None = None,
    limits: Limits,
    judge: Judge | None = None,
) -> Fetched:
    """Fetch one release into the empty folder ``target``.

    Args:
        remote: Where from.
        adapter: Its name.
        target: Existing empty folder; what is written there is not yet verified.
        version: Which release; may be None if ``tree`` is given.
        tree: Oid of its tree, if something pinned it. Where the server does not serve it, the version's tag is used.
        limits: Bounds on files, bytes and time.
        judge: Called when the small files are there and the others are not yet, if the server can filter.

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
        work = Path(folder)
        if tree is not None:
            try:
                git = _fetch(work / "tree", remote, [tree], limits)
                return Fetched(_extract(git, tree, target, limits, None), tree, version)
            except TransportError:
                if version is None:
                    raise
        tag = f"{TAGS}/{adapter}/{version}"
        git = _fetch(work / "tag", remote, [tag], limits, filtered=judge is not None)
        try:
            found = git.text("rev-parse", "--verify", "--quiet", "--end-of-options", "FETCH_HEAD^{tree}")
        except TransportError as error:
            raise PackageError("the tag is of something that has no files", where=f"{remote.url} {tag}") from error

        def rest(sizes: Mapping[str, int], oids: Mapping[str, str]) -> Git:
            # A repository of its own: git does not fetch what it believes to have.
            check_sizes(dict(sizes), limits, f"release {found[:12]}")
            try:
                return _fetch(work / "rest", remote, list(oids.values()), limits)
            except TransportError:
                # A server of protocol v0 gives no object that it did not advertise: it comes with the whole tag.
                return _fetch(work / "whole", remote, [tag], limits)

        missing = None if judge is None else _Missing(judge, rest)
        return Fetched(_extract(git, found, target, limits, missing), found, version)


def fetch_from_branch(remote: Remote, adapter: str, target: Path, *, limits: Limits) -> Fetched:
    """Fetch what the default branch holds of an adapter, for repositories that lost their tags.

    Args:
        remote: Where from.
        adapter: Its name.
        target: Existing empty folder; what is written there is not yet verified.
        limits: Bounds on files, bytes and time.

    Raises:
        NotFoundError: The branch has no such adapter.
        TransportError: The server cannot be reached or failed.
        PackageError: The tree holds what a package may not hold.
    """
    with tempfile.TemporaryDirectory(prefix="git-", dir=target.parent) as folder:
        work = Path(folder)
        tree = _tree_in_branch(work / "branch", remote, adapter, limits)
        try:
            git = _fetch(work / "tree", remote, [tree], limits)
        except TransportError:
            # A server of protocol v0 gives no object that it did not advertise: it comes with the whole branch.
            git = _fetch(work / "whole", remote, ["HEAD"], limits)
        return Fetched(_extract(git, tree, target, limits, None), tree, None)


def _tree_in_branch(directory: Path, remote: Remote, adapter: str, limits: Limits) -> str:
    """Return the oid of the tree that an adapter has in the branch; only trees are fetched where the server filters."""
    git = _fetch(directory, remote, ["HEAD"], limits, filtered=True, only="tree:2")
    try:
        listing = git.raw(
            "ls-tree", "-z", "--full-tree", "--end-of-options", "FETCH_HEAD:adapters", max_output=_MAX_LISTING_BYTES
        )
    except TransportError as error:
        raise NotFoundError(f"the branch has no adapters in {remote.url}") from error
    for entry in listing.split(b"\0"):
        fields, _, name = entry.partition(b"\t")
        if name == adapter.encode() and fields.split()[1] == b"tree":
            return fields.split()[2].decode()
    raise NotFoundError(f"the branch has no adapter {adapter!r} in {remote.url}")


def fetch_rotations(remote: Remote, limits: Limits, *, beside: Path, most: int) -> list[dict[str, bytes]]:
    """Return the files of every rotation that a repository holds, by name; none if it holds none.

    Args:
        remote: Where from.
        limits: Bounds on bytes and time.
        beside: Existing folder for what is fetched.
        most: How many at most; more is an error.

    Raises:
        TransportError: The server cannot be reached or failed.
        PackageError: What is there is no rotation.
    """
    with tempfile.TemporaryDirectory(prefix="git-", dir=beside) as folder:
        probe = init_bare(Path(folder) / "probe")
        options = {"protocols": remote.protocols, "timeout": limits.fetch_seconds}
        try:
            listing = probe.text(
                "ls-remote", "--quiet", "--tags", "--refs", "--", remote.url, f"{ROTATIONS}/*", **options
            )
        except TransportError as error:
            raise _located(error, remote) from error
        oids = [line.partition("\t")[0] for line in listing.splitlines()]
        if len(oids) > most or not all(OID.fullmatch(oid) for oid in oids):
            raise PackageError(f"{len(oids)} rotations, the limit is {most}", where=remote.url)
        if not oids:
            return []
        refs = [line.partition("\t")[2] for line in listing.splitlines()]
        git = _fetch(Path(folder) / "rotations", remote, refs, limits)
        found = []
        for number, oid in enumerate(oids):
            target = Path(folder) / f"files-{number}"
            target.mkdir()
            tree = git.text("rev-parse", "--verify", "--quiet", "--end-of-options", f"{oid}^{{tree}}")
            small = replace(limits, files=32, file_bytes=2**16, package_bytes=2**20)
            _extract(git, tree, target, small, None)
            found.append({path.name: path.read_bytes() for path in target.iterdir()})
        return found


def yank_reason(remote: Remote, adapter: str, version: str, limits: Limits) -> str:
    """Return why a publisher withdrew a release, in one line of plain text; empty if that cannot be had."""
    with tempfile.TemporaryDirectory(prefix="adaptergit-yank-") as folder:
        try:
            git = _fetch(Path(folder) / "git", remote, [f"{YANKED}/{adapter}/{version}"], limits)
            said = git.text("log", "-1", "--format=%b", "FETCH_HEAD", max_output=2**16)
        except (TransportError, NotFoundError):
            return ""
    return " ".join("".join(char if char.isprintable() else " " for char in said).split())[:500]


def fetch_file(remote: Remote, path: str, limits: Limits, *, most: int) -> bytes | None:
    """Return one small file of the default branch, or None if there is none.

    Raises:
        TransportError: The server cannot be reached or failed.
    """
    depth = path.count("/") + 2
    with tempfile.TemporaryDirectory(prefix="adaptergit-file-") as folder:
        try:
            git = _fetch(Path(folder) / "git", remote, ["HEAD"], limits, filtered=True, only=f"tree:{depth}")
        except NotFoundError:
            return None
        if not git.text("ls-tree", "--full-tree", "FETCH_HEAD", "--", path).startswith("100"):
            return None
        return git.raw("cat-file", "blob", f"FETCH_HEAD:{path}", max_output=most)


def fetch_files(remote: Remote, beside: Path, limits: Limits) -> Path:
    """Bring the branch ``dist`` of a repository, or the folder ``dist`` of its default branch, into a folder.

    The folder belongs to the address and is brought up to date when it is asked for again.

    Args:
        remote: Where from.
        beside: Folder for such folders.
        limits: Bounds on bytes and time.

    Raises:
        TransportError: The server cannot be reached or failed.
        NotFoundError: There is neither.
        PackageError: The tree holds something else than plain files in plain folders.
    """
    target = beside / hashlib.sha256(remote.url.encode()).hexdigest()[:16]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="git-", dir=beside) as folder:
        try:
            git = _fetch(Path(folder) / "dist", remote, ["refs/heads/dist"], limits)
            top = "FETCH_HEAD"
        except NotFoundError:
            git = _fetch(Path(folder) / "head", remote, ["HEAD"], limits)
            top = "FETCH_HEAD:dist"
        try:
            listing = git.raw("ls-tree", "-r", "-z", "--full-tree", "--end-of-options", top)
        except TransportError as error:
            raise NotFoundError("neither a branch nor a folder 'dist'", where=remote.url) from error
        oids: dict[str, str] = {}
        for entry in listing.split(b"\0"):
            if entry:
                fields, _, raw_name = entry.partition(b"\t")
                mode, _, oid = fields.decode("ascii", "replace").split()
                name = raw_name.decode("utf-8", "replace")
                # The site, and what a host needs for it, are not of interest here.
                if mode == "100644" and _INDEX_PATH.fullmatch(name):
                    oids[name] = oid
        fresh = Path(folder) / "files"
        for name in oids:
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
        sizes = _sizes(git, oids)
        if sum(sizes.values()) > _MAX_INDEX_BYTES:
            raise PackageError(f"more than {_MAX_INDEX_BYTES} bytes", where=remote.url)
        _write(git, oids, sizes, fresh)
        if target.exists():
            target.rename(Path(folder) / "old")
        fresh.rename(target)
    return target


def _fetch(
    directory: Path, remote: Remote, wants: Sequence[str], limits: Limits, *, filtered: bool = False, only: str = _SMALL
) -> Git:
    """Fetch refs or oids into a fresh repository of the server's object format."""
    want = wants[0]
    by_oid = bool(OID.fullmatch(want))
    git = init_bare(directory, object_format="sha256" if len(want) == 64 and by_oid else "sha1")
    depth = () if by_oid else ("--depth=1",)
    options = {
        "protocols": remote.protocols,
        "timeout": limits.fetch_seconds,
        "max_file_bytes": limits.package_bytes + 2**20,
    }
    plain = (git.directory / "config").read_bytes()
    for attempt in range(1, _ATTEMPTS + 2):
        # Where filters are not supported they are ignored, or refused (Azure DevOps refuses some).
        narrow = (f"--filter={only}",) if filtered else ()
        try:
            git.text("fetch", "--quiet", "--no-tags", *depth, *narrow, "--", remote.url, *wants, **options)
        except TransportError as error:
            if "mismatched algorithms" in error.what or "object format" in error.what:
                git = init_bare(directory.with_name(directory.name + "-sha256"), object_format="sha256")
                plain = (git.directory / "config").read_bytes()
            elif "couldn't find remote ref" in error.what:
                raise NotFoundError(f"there is no {want} in {remote.url}") from error
            elif filtered and "filter" in error.what:
                filtered = False
            elif attempt < _ATTEMPTS and _TRANSIENT.search(error.what):
                time.sleep(random.uniform(0.5, 1.0) * 2 ** (attempt - 1))  # noqa: S311 - politeness, no secret
            else:
                raise _located(error, remote) from error
        else:
            # A filter makes the server a promisor, whom every look at a missing object would ask.
            (git.directory / "config").write_bytes(plain)
            return git
    raise TransportError(f"{_ATTEMPTS} attempts failed", where=remote.url)


@dataclass(frozen=True)
class _Missing:
    """What to do when a filter kept the large files back."""

    judge: Judge
    fetch: Callable[[Mapping[str, int], Mapping[str, str]], Git]
    """Of sizes and oids by name."""


def _extract(git: Git, tree: str, target: Path, limits: Limits, missing: _Missing | None) -> dict[str, int]:
    """Write the blobs of a flat tree to files. Everything is judged by name, mode and size before a byte is written."""
    where = f"release {tree[:12]}"
    if int(git.text("cat-file", "-s", tree)) > _MAX_TREE_BYTES:
        raise PackageError("the release's tree is far too large", where=where)
    oids = _entries(git, tree, limits, where)
    sizes = _sizes(git, oids)
    later = {name: oid for name, oid in oids.items() if name not in sizes}
    if later and missing is None:
        raise TransportError(f"the server kept back {', '.join(later)}", where=where)
    check_sizes(sizes, limits, where)
    _write(git, {name: oid for name, oid in oids.items() if name in sizes}, sizes, target)
    if later and missing is not None:
        stated = missing.judge(target)
        if unlisted := sorted(later.keys() - stated.keys()):
            raise PackageError(f"not listed in the manifest: {', '.join(unlisted)}", where=where)
        rest = missing.fetch({**sizes, **{name: stated[name] for name in later}}, later)
        found = _sizes(rest, later)
        for name in later:
            if found.get(name) != stated[name]:
                raise PackageError(f"{name} has {found.get(name)} bytes, the manifest says {stated[name]}", where=where)
        _write(rest, later, found, target)
        sizes |= found
    return sizes


def _entries(git: Git, tree: str, limits: Limits, where: str) -> dict[str, str]:
    """Return the oids of a flat tree of plain files by name."""
    oids: dict[str, str] = {}
    for entry in git.raw("ls-tree", "-z", "--full-tree", "--end-of-options", tree).split(b"\0"):
        if not entry:
            continue
        fields, _, raw_name = entry.partition(b"\t")
        mode, kind, oid = fields.decode("ascii", "replace").split()
        name = raw_name.decode("utf-8", "replace")
        if mode != "100644" or kind != "blob":
            what = {"120000": "a link", "160000": "a submodule", "040000": "a folder", "100755": "an executable"}
            raise PackageError(
                f"a package holds plain files only, this is {what.get(mode, mode)}", where=f"{where}/{name}"
            )
        check_entry_name(name, f"{where}/{name}")
        oids[name] = oid
        if len(oids) > limits.files:
            raise PackageError(f"more than {limits.files} files", where=where)
    return oids


def _sizes(git: Git, oids: Mapping[str, str]) -> dict[str, int]:
    """Return the sizes of the blobs that are here, by name."""
    with tempfile.TemporaryFile() as wanted:
        wanted.write("".join(f"{oid}\n" for oid in oids.values()).encode())
        wanted.seek(0)
        lines = git.text("cat-file", "--batch-check", stdin=wanted).splitlines()
    found = [line.split() for line in lines]
    return {
        name: int(fields[2])
        for name, fields in zip(oids, found, strict=True)
        if len(fields) == 3 and fields[1] == "blob"
    }


def _write(git: Git, oids: Mapping[str, str], sizes: Mapping[str, int], target: Path) -> None:
    if not oids:
        return
    with tempfile.TemporaryFile() as wanted:
        wanted.write("".join(f"{oid}\n" for oid in oids.values()).encode())
        wanted.seek(0)
        with git.stream("cat-file", "--batch", stdin=wanted) as output:
            for name, oid in oids.items():
                _copy_blob(output, oid, sizes[name], target / name)


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
