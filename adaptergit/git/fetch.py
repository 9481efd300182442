"""Fetching one release: exactly one adapter's bytes, into a fresh bare repository that is thrown away.

A release is found by its subtree oid when something pinned it (two requests on any protocol-v2 server), else by what a
list of tags just said of it, else by its tag, else in the branch. Where nothing was pinned, the small files come first,
if the server can filter, and the caller judges them before the weights move.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adaptergit.errors import NotFoundError, PackageError, TransportError, UsageError, did_you_mean
from adaptergit.git.listing import list_refs
from adaptergit.git.objects import Judge, Missing, extract, find_tree
from adaptergit.git.remote import OID, SMALL, TAGS, YANKED, Remote, fetch_objects
from adaptergit.git.runner import Git
from adaptergit.settings import Limits

_MAX_LISTING_BYTES = 16 * 2**20
_SHOWN = 10


@dataclass(frozen=True)
class Fetched:
    """What arrived: the names and sizes of the files now in the target folder, and where they came from."""

    files: dict[str, int]
    tree: str
    """Oid of the release's tree, which can be fetched again directly."""
    version: str | None
    yanked: bool | None = None
    """Whether the repository marks it as withdrawn; None: it was not asked."""


def fetch_release(
    remote: Remote,
    adapter: str,
    target: Path,
    *,
    version: str | None = None,
    tree: str | None = None,
    tagged: str | None = None,
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
        tagged: Oid of what the version's tag is of, where the repository itself just listed it with its yanks.
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
    limits = limits.started()
    # Beside the target: the store sweeps away what a killed process leaves there.
    with tempfile.TemporaryDirectory(prefix="git-", dir=target.parent, ignore_cleanup_errors=True) as folder:
        work = Path(folder)
        if tree is not None:
            try:
                git = fetch_objects(work / "tree", remote, [tree], limits)
                return Fetched(extract(git, _pinned(git, tree), target, limits, None), tree, version)
            except (TransportError, NotFoundError):  # a copy with other object ids has it by its tag
                if version is None:
                    raise
        tag = f"{TAGS}/{adapter}/{version}"
        only = SMALL if judge is not None else None
        git, yanked = _tagged(work, remote, tag, tagged, limits, only)
        found = find_tree(git, "FETCH_HEAD")
        if found is None:
            raise PackageError("the tag is of something that has no files", where=f"{remote.url} {tag}")

        def rest(sizes: Mapping[str, int], oids: Mapping[str, str]) -> Git:
            size = sum(sizes[name] for name in oids)
            # A repository of its own: git does not fetch what it believes to have.
            try:
                return fetch_objects(work / "rest", remote, list(oids.values()), limits, size=size)
            except TransportError:
                # A server of protocol v0 gives no object that it did not advertise: it comes with the whole tag.
                return fetch_objects(work / "whole", remote, [tag], limits, size=sum(sizes.values()))

        missing = None if judge is None else Missing(judge, rest)
        return Fetched(extract(git, found, target, limits, missing), found[0], version, yanked)


def _tagged(
    work: Path, remote: Remote, tag: str, oid: str | None, limits: Limits, only: str | None
) -> tuple[Git, bool | None]:
    """Fetch what a tag is of; tell whether the version is marked as withdrawn, where that had to be asked."""
    mark, yanked = tag.replace(TAGS, YANKED, 1), None
    if oid is None and remote.speaks_http:
        # Asked for by its beginning, a mark brings every other one that begins so, each of them a file.
        said = list_refs(remote, (tag, mark), limits)
        if tag not in said:
            raise NotFoundError(f"there is no {tag} in {remote.url}")
        oid, yanked = said[tag], mark in said
    if oid is not None:
        try:
            return fetch_objects(work / "tagged", remote, [oid], limits, only=only, history=True), yanked
        except (TransportError, NotFoundError):
            if yanked is not None:
                return fetch_objects(work / "tag", remote, [tag], limits, only=only), yanked
    # It gives what has a name, or the tag was moved a moment ago. A name of its own would have to be there.
    seen = f"refs/yanked/{tag.rpartition('/')[2]}"
    git = fetch_objects(work / "tag", remote, [tag, f"{mark}*:{seen}*"], limits, only=only)
    return git, (git.directory / seen).is_file()


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
    limits = limits.started()
    with tempfile.TemporaryDirectory(prefix="git-", dir=target.parent, ignore_cleanup_errors=True) as folder:
        work = Path(folder)
        tree = _tree_in_branch(work / "branch", remote, adapter, limits)
        try:
            git = fetch_objects(work / "tree", remote, [tree], limits)
        except TransportError:
            # A server of protocol v0 gives no object that it did not advertise: it comes with the whole branch.
            git = fetch_objects(work / "whole", remote, ["HEAD"], limits)
        return Fetched(extract(git, _pinned(git, tree), target, limits, None), tree, None)


def _pinned(git: Git, tree: str) -> tuple[str, bytes]:
    found = find_tree(git, tree)
    if found is None:
        raise TransportError(f"the server did not send the tree {tree}")
    return found


def _tree_in_branch(directory: Path, remote: Remote, adapter: str, limits: Limits) -> str:
    """Return the oid of the tree that an adapter has in the branch; only trees are fetched where the server filters."""
    git = fetch_objects(directory, remote, ["HEAD"], limits, only="tree:2")
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
    names = [one.partition(b"\t")[2].decode("utf-8", "replace") for one in listing.split(b"\0") if one]
    hint = did_you_mean(adapter, names) or f"it has {', '.join(names[:_SHOWN])}"
    raise NotFoundError(f"the branch has no adapter {adapter!r} in {remote.url}", hint=hint)
