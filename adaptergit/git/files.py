"""Small things a repository holds beside its releases: rotations, reasons, single files, an index."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from adaptergit.durable import scratch
from adaptergit.errors import NotFoundError, PackageError, TransportError, printable
from adaptergit.git.listing import list_refs
from adaptergit.git.objects import extract, find_tree, read_blobs, sizes_of, write_blobs
from adaptergit.git.remote import ROTATIONS, YANKED, Remote, fetch_objects
from adaptergit.git.runner import Git
from adaptergit.git.worktree import Clone
from adaptergit.settings import Limits

_INDEX_PATH = re.compile(
    r"snapshot\.json(\.sig)?|catalog\.json\.zst|revoked\.jsonl|roots/[0-9]+\.json(\.sig)?|shards/[0-9a-f]{2}/[0-9a-f]{64}\.jsonl\.zst"
)
_ROTATION = re.compile(rf"{ROTATIONS}/[0-9a-f]{{16}}")
_MAX_INDEX_BYTES = 2**31
_MOST_MIRRORED = 4096
"""Rotations of all repositories that a mirror holds releases of."""


def rotation_mark(data: bytes) -> str:
    """Return what the tag of a rotation is called: who sees the name knows what it holds."""
    return hashlib.sha256(data).hexdigest()[:16]


def fetch_rotations(
    remote: Remote, limits: Limits, *, beside: Path, most: int, of: str | None = None
) -> list[dict[str, bytes]]:
    """Return the files of every rotation that a repository holds, by name; what is none is left out.

    Args:
        remote: Where from.
        limits: Bounds on bytes and time.
        beside: Existing folder for what is fetched.
        most: How many at most; more is an error.
        of: Only those of this repository: a mirror holds others' too.

    Raises:
        TransportError: The server cannot be reached or failed.
        PackageError: There are more.
    """
    limits = limits.started()
    with tempfile.TemporaryDirectory(prefix="git-", dir=beside, ignore_cleanup_errors=True) as folder:
        refs = _named(list_refs(remote, (f"{ROTATIONS}/",), limits))
        _check_number(refs, most if of is None else _MOST_MIRRORED, remote)
        if not refs:
            return []
        git = fetch_objects(Path(folder) / "rotations", remote, list(refs), limits)
        if of is not None:
            said = _repositories(git, refs)
            refs = {ref: oid for ref, oid in refs.items() if said.get(ref) == of}
            _check_number(refs, most, remote)
        small = replace(limits, files=32, file_bytes=2**16, package_bytes=2**20)
        found = []
        for number, (ref, oid) in enumerate(refs.items()):
            target = Path(folder) / f"files-{number}"
            target.mkdir()
            with suppress(PackageError, NotFoundError):  # somebody's junk takes nothing from the others
                if (tree := find_tree(git, oid)) is not None:
                    extract(git, tree, target, small, None)
                    files = {path.name: path.read_bytes() for path in target.iterdir()}
                    if ref == f"{ROTATIONS}/{rotation_mark(files.get('rotation.json', b''))}":
                        found.append(files)
        return found


def rotations_by_repository(remote: Remote, refs: Mapping[str, str], limits: Limits, *, beside: Path) -> dict[str, str]:
    """Return which repository the rotations of a mirror say they are of, by tag; of what is no rotation, nothing.

    Args:
        remote: Where from.
        refs: Oids of the tags, by name.
        limits: Bounds on bytes and time.
        beside: Existing folder for what is fetched.

    Raises:
        TransportError: The server cannot be reached or failed.
        PackageError: There are more than a mirror holds.
    """
    refs = _named(refs)
    _check_number(refs, _MOST_MIRRORED, remote)
    if not refs:
        return {}
    return _repositories(fetch_objects(beside / "mirrored", remote, list(refs), limits), refs)


def _named(refs: Mapping[str, str]) -> dict[str, str]:
    """Leave out what is not called as a rotation is."""
    return {ref: oid for ref, oid in refs.items() if _ROTATION.fullmatch(ref)}


def _check_number(refs: Mapping[str, str], most: int, remote: Remote) -> None:
    if len(refs) > most:
        raise PackageError(f"{len(refs)} rotations, the limit is {most}", where=remote.url)


def _repositories(git: Git, refs: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for ref, data in read_blobs(git, {ref: f"{oid}:rotation.json" for ref, oid in refs.items()}, 2**16):
        with suppress(ValueError, RecursionError, AttributeError):  # no rotation
            repository = json.loads(data).get("repository")
            if isinstance(repository, str) and ref == f"{ROTATIONS}/{rotation_mark(data)}":
                found[ref] = repository
    return found


def rotations_in(clone: Clone, most: int) -> list[dict[str, bytes]]:
    """Return the files of the rotations that a clone has the tags of, by name; nothing is asked of any server."""
    listing = clone.git.text("for-each-ref", f"--count={most}", "--format=%(refname)", f"{ROTATIONS}/")
    found = []
    for ref in listing.split():
        with suppress(TransportError):  # junk, or not in a partial clone
            names = clone.git.text("ls-tree", "--name-only", ref).split()
            found.append(
                {name: clone.git.raw("cat-file", "blob", f"{ref}:{name}", max_output=2**16) for name in names[:32]}
            )
    return found


def yank_reason(remote: Remote, adapter: str, version: str, limits: Limits) -> str:
    """Return why a publisher withdrew a release, in one line of plain text; empty if that cannot be had."""
    with scratch() as folder:
        try:
            git = fetch_objects(folder / "git", remote, [f"{YANKED}/{adapter}/{version}"], limits)
            said = git.text("log", "-1", "--format=%b", "FETCH_HEAD", max_output=2**16)
        except (TransportError, NotFoundError):
            return ""
    return " ".join(printable(said).split())[:500]


def fetch_file(remote: Remote, path: str, limits: Limits, *, most: int) -> bytes | None:
    """Return one small file of the default branch, or None if there is none.

    Raises:
        TransportError: The server cannot be reached or failed.
    """
    depth = path.count("/") + 2
    with scratch() as folder:
        try:
            git = fetch_objects(folder / "git", remote, ["HEAD"], limits, only=f"tree:{depth}")
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
    with tempfile.TemporaryDirectory(prefix="git-", dir=beside, ignore_cleanup_errors=True) as folder:
        try:
            git = fetch_objects(Path(folder) / "dist", remote, ["refs/heads/dist"], limits)
            top = "FETCH_HEAD"
        except NotFoundError:
            git = fetch_objects(Path(folder) / "head", remote, ["HEAD"], limits)
            top = "FETCH_HEAD:dist"
        try:
            listing = git.raw("ls-tree", "-r", "-z", "--full-tree", "--end-of-options", top)
        except TransportError as error:
            raise NotFoundError(
                "neither a branch nor a folder 'dist'",
                where=remote.url,
                hint="an index has one from adaptergit index publish",
            ) from error
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
        sizes = sizes_of(git, oids)
        if sum(sizes.values()) > _MAX_INDEX_BYTES:
            raise PackageError(f"more than {_MAX_INDEX_BYTES} bytes", where=remote.url)
        write_blobs(git, oids, sizes, fresh)
        if target.exists():
            target.rename(Path(folder) / "old")
        fresh.rename(target)
    return target
