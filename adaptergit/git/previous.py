"""What was released before: what the next release must be newer than, and what it follows.

The server is asked, and not only the clone: release tags point at commits of their own, which ``git pull`` does not
bring, so that an honest publisher would fork the history.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from packaging.version import Version

from adaptergit.durable import scratch
from adaptergit.errors import PackageError, ReleaseError
from adaptergit.git.listing import list_refs
from adaptergit.git.objects import sizes_of
from adaptergit.git.partial import bring, is_partial, left_out
from adaptergit.git.remote import ROTATIONS, SMALL, TAGS, Remote, fetch_objects
from adaptergit.git.runner import Git
from adaptergit.git.worktree import FOLDER, Clone
from adaptergit.package import MANIFEST, Manifest
from adaptergit.package.manifest import MAX_BYTES
from adaptergit.package.version import is_version
from adaptergit.settings import Limits


@dataclass(frozen=True)
class Last:
    """The releases of one adapter so far, as far as the server and the clone know."""

    versions: frozenset[str] = frozenset()
    newest: str | None = None
    manifest: bytes | None = None
    """``manifest.json`` of the newest one."""

    def check_new(self, name: str, version: str) -> None:
        """Refuse a version that exists, or that is not newer than the last one.

        Raises:
            ReleaseError: It does or is not.
        """
        if version in self.versions:
            raise ReleaseError(
                f"{name} {version} was released already, and releases never change",
                hint="choose a higher --version; if it is yours, of a push that was interrupted: git pull",
            )
        if self.newest is not None and Version(version) <= Version(self.newest):
            raise ReleaseError(
                f"{version} is not newer than {self.newest}, the last release of {name}",
                hint="choose a higher --version",
            )


@dataclass(frozen=True)
class Asked:
    """What a repository says of some adapters before something is published in it."""

    last: Mapping[str, Last]
    """By name of the adapter."""
    rotated: bool
    """It holds a rotation of its keys that the clone has not: a pull brings no tags that belong to no branch."""
    unpushed: tuple[str, ...] = ()
    """Tags of the newest releases, which the clone alone has."""
    behind: bool = False
    """The branch has commits there that the clone has not: no server takes another on top of an older one."""


def last_releases(clone: Clone, names: Sequence[str], remote: Remote | None, limits: Limits) -> Asked:
    """Find out what was released of some adapters, withdrawn releases and those that wait for a pull request included.

    Args:
        clone: The publisher's clone.
        names: Of the adapters.
        remote: Whom to ask, once for all of them; None: what the clone knows is all there is.
        limits: Bounds on bytes and time.

    Raises:
        TransportError: The server cannot be asked.
        ReleaseError: A tag that should be a release is none.
    """
    limits = limits.started()
    prefixes = tuple(f"{TAGS}/{name}/" for name in names)
    local = _refs(clone.git, prefixes)
    asked = (*prefixes, f"{ROTATIONS}/", clone.branch)
    found = {} if remote is None else list_refs(remote, asked, limits, git=clone.git)
    listed = {ref: oid for ref, oid in found.items() if ref.startswith(prefixes)}
    tags = {**local, **listed}
    newest = {name: _newest(tags, name) for name in names}
    # The server's word goes before the clone's; what both have need not be fetched.
    strange = [tag for tag in newest.values() if tag is not None and tag in listed and local.get(tag) != listed[tag]]
    manifests: dict[str, bytes] = {}
    for tag in (tag for tag in newest.values() if tag is not None and tag not in strange):
        lacking = _lacking(clone, tags[tag])
        if lacking and tag in listed:
            strange.append(tag)
            continue
        bring(clone, remote, lacking, limits)
        manifests[tag] = _manifest(clone.git, tags[tag], tag)
    if strange and remote is not None:
        manifests |= _fetched(remote, {tag: listed[tag] for tag in strange}, limits)
    rotations = {ref for ref in found if ref.startswith(f"{ROTATIONS}/")}
    rotated = not rotations <= _refs(clone.git, (f"{ROTATIONS}/",)).keys()
    unpushed = tuple(tag for tag in newest.values() if tag is not None and remote is not None and tag not in listed)
    behind = clone.branch in found and not clone.has(found[clone.branch])
    return Asked({name: _last(clone, name, tags, newest[name], manifests) for name in names}, rotated, unpushed, behind)


def _last(clone: Clone, name: str, tags: Mapping[str, str], newest: str | None, manifests: Mapping[str, bytes]) -> Last:
    versions = frozenset(_versions(tags, name))
    version = None if newest is None else newest.rpartition("/")[2]
    path = f"{FOLDER}/{name}/{MANIFEST}"
    on_branch = clone.read(path)
    if on_branch is not None:  # of a repository that lost its tags
        there = Manifest.from_bytes(on_branch, where=path).version
        if version is None or Version(there) > Version(version):
            return Last(versions, there, on_branch)
    return Last(versions, version, None if newest is None else manifests[newest])


def _fetched(remote: Remote, tags: Mapping[str, str], limits: Limits) -> dict[str, bytes]:
    """Fetch manifests by tag; without the weights, where the server can filter."""
    bounds = replace(limits, package_bytes=limits.package_bytes * len(tags))
    with scratch() as folder:
        git = fetch_objects(folder / "git", remote, list(tags), bounds, only=SMALL)
        return {tag: _manifest(git, oid, tag) for tag, oid in tags.items()}


def _lacking(clone: Clone, oid: str) -> list[str]:
    """Return what a partial clone left out of a release that it has a tag of; nothing if the manifest is there."""
    return left_out(clone.git, oid) if is_partial(clone.git) and _size(clone.git, oid) is None else []


def _size(git: Git, oid: str) -> int | None:
    return sizes_of(git, {MANIFEST: f"{oid}:{MANIFEST}"}).get(MANIFEST)


def _manifest(git: Git, oid: str, tag: str) -> bytes:
    _, name, version = tag.rsplit("/", 2)
    hint = "somebody pushed it by hand: have the tag removed, then publish again"
    size = _size(git, oid)
    if size is None or size > MAX_BYTES:
        what = f"it holds no {MANIFEST}" if size is None else f"its {MANIFEST} has {size} bytes"
        raise ReleaseError(f"the tag is not a release: {what}", where=tag, hint=hint)
    data = git.raw("cat-file", "blob", f"{oid}:{MANIFEST}")
    try:
        manifest = Manifest.from_bytes(data, where=tag)
    except PackageError as error:
        raise ReleaseError(f"the tag is not a release: {error.what}", where=tag, hint=hint) from error
    if (manifest.name, manifest.version) != (name, version):
        raise ReleaseError(f"the tag holds {manifest.name} {manifest.version}", where=tag, hint=hint)
    return data


def _refs(git: Git, prefixes: Iterable[str]) -> dict[str, str]:
    output = git.text("for-each-ref", "--format=%(refname) %(objectname)", *prefixes)
    return dict(line.split(" ") for line in output.splitlines())


def _versions(tags: Iterable[str], name: str) -> list[str]:
    prefix = f"{TAGS}/{name}/"
    return [version for tag in tags if tag.startswith(prefix) and is_version(version := tag.removeprefix(prefix))]


def _newest(tags: Iterable[str], name: str) -> str | None:
    version = max(_versions(tags, name), key=Version, default=None)
    return None if version is None else f"{TAGS}/{name}/{version}"
