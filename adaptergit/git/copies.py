"""Copying releases to another repository: the same tree under the same tag, written anew and pushed at once."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from adaptergit.durable import scratch
from adaptergit.errors import (
    AdaptergitWarning,
    PackageError,
    ReleaseError,
    StorageError,
    TransportError,
    without_secrets,
)
from adaptergit.git.files import rotation_mark, rotations_by_repository
from adaptergit.git.listing import list_refs
from adaptergit.git.objects import read_blobs
from adaptergit.git.pushing import push
from adaptergit.git.remote import ROTATIONS, SMALL, TAGS, YANKED, Remote, fetch_objects
from adaptergit.git.runner import Git, init_bare
from adaptergit.git.worktree import Clone
from adaptergit.package import MANIFEST, Manifest
from adaptergit.package.manifest import MAX_BYTES as MAX_MANIFEST_BYTES
from adaptergit.settings import Limits

_WHO = {"NAME": "adaptergit", "EMAIL": "mirror@adaptergit.invalid"}
_ROTATION = "rotation.json"
_LONGEST = 256
Withdrawn = Mapping[tuple[str, str], Mapping[str, str]]
"""Reasons by version, by repository and adapter."""
Rotations = Mapping[str, tuple[Sequence[Mapping[str, bytes]], bool]]
"""Files by name of each rotation of a repository, and whether these are all that there shall be of it."""


def push_copies(
    remote: Remote,
    releases: Sequence[tuple[Path, Manifest]],
    withdrawn: Withdrawn | None = None,
    rotations: Rotations | None = None,
) -> list[bool]:
    """Push releases as tags; tell of each whether it was new there.

    The commit of a tag says when the release was made and who copied it, so that copying twice gives the same commit.

    Args:
        remote: Where to.
        releases: Verified package folders with their manifests.
        withdrawn: What was withdrawn of their adapters: marks are copied too, and those that were taken back removed.
        rotations: What is to be there of the rotations of their keys.

    Raises:
        ReleaseError: A tag is there and holds something else: releases never change. Or the name is that of another
            repository's adapter there.
        TransportError: The server cannot be reached, or refuses.
    """
    names = sorted({manifest.name for _, manifest in releases})
    prefixes = [f"{kind}/{name}/" for kind in (TAGS, YANKED) for name in names]
    there = list_refs(remote, (*prefixes, f"{ROTATIONS}/"), Limits())
    _check_owners(remote, releases, there)
    known = next(iter(there.values()), "")
    withdrawn, rotations = withdrawn or {}, rotations or {}
    try:
        return _push(remote, releases, withdrawn, rotations, there, "sha256" if len(known) == 64 else "sha1")
    except TransportError as error:
        if known or "hash algorithm" not in error.what:
            raise
        return _push(remote, releases, withdrawn, rotations, there, "sha256")  # an empty repository does not say


def _push(
    remote: Remote,
    releases: Sequence[tuple[Path, Manifest]],
    withdrawn: Withdrawn,
    rotations: Rotations,
    there: Mapping[str, str],
    object_format: str,
) -> list[bool]:
    with scratch() as folder:
        git = init_bare(folder / "copy", object_format=object_format)
        clone = Clone(folder, git, "", None)
        new, refspecs, gone = [], [], []
        for package, manifest in releases:
            commit = _commit(clone, package, f"publish {manifest.name} {manifest.version}", manifest.created)
            tag = f"{TAGS}/{manifest.name}/{manifest.version}"
            known = there.get(tag)
            if known is not None and not _same(git, remote, tag, known, commit):
                raise ReleaseError(
                    f"the mirror holds another {manifest.name} {manifest.version}",
                    where=remote.url,
                    hint="copy to a repository that holds no other's",
                )
            new.append(known is None)
            if known is None:
                refspecs.append(f"{commit}:{tag}")
        for (_, name), reasons in withdrawn.items():
            prefix = f"{YANKED}/{name}/"
            marked = {ref.removeprefix(prefix) for ref in there if ref.startswith(prefix)}
            gone += [f"{prefix}{version}" for version in sorted(marked - reasons.keys())]
            for version in sorted(reasons.keys() - marked):
                text = f"yank {name} {version}\n\n{reasons[version]}"
                commit = clone.commit(clone.make_tree(()), text, (), _identity("2000-01-01T00:00:00Z"))
                refspecs.append(f"{commit}:{prefix}{version}")
        complete = {principal for principal, (_, all_of_it) in rotations.items() if all_of_it}
        wanted, changed = set(), dict.fromkeys(gone, "")
        for principal, (listed, _) in rotations.items():
            for files in listed:
                ref = f"{ROTATIONS}/{rotation_mark(files[_ROTATION])}"
                place = folder / rotation_mark(files[_ROTATION])
                place.mkdir(exist_ok=True)
                for name, data in files.items():
                    (place / name).write_bytes(data)
                commit = _commit(clone, place, "rotate the signing key", "2000-01-01T00:00:00Z")
                wanted.add(ref)
                if ref not in there:
                    refspecs.append(f"{commit}:{ref}")
                elif principal in complete and not _same(git, remote, ref, there[ref], commit):  # a new signature
                    changed[ref] = commit
        changed |= dict.fromkeys(_stale(remote, folder, wanted, complete, there), "")
        if refspecs:
            fresh = [package for (package, _), is_new in zip(releases, new, strict=True) if is_new]
            size = sum(file.stat().st_size for package in fresh for file in package.iterdir())
            pushed = push(git, remote.url, refspecs, protocols=remote.protocols, size=size)
            if pushed.refused is not None:
                raise pushed.refused
        _change(git, remote, changed)  # apart: many servers refuse that
        return new


def _check_owners(remote: Remote, releases: Sequence[tuple[Path, Manifest]], there: Mapping[str, str]) -> None:
    """Refuse an adapter whose name is another repository's in the mirror: tags and marks would be of both.

    Raises:
        ReleaseError: It is.
    """
    owners: dict[str, str] = {}
    oids: dict[str, str] = {}
    for _, manifest in releases:
        prefix = f"{TAGS}/{manifest.name}/"
        if held := next((oid for ref, oid in there.items() if ref.startswith(prefix)), None):
            oids[manifest.name] = held
    if oids:
        with scratch() as folder:
            git = fetch_objects(folder / "git", remote, list(oids.values()), Limits(), only=SMALL, history=True)
            files = {name: f"{oid}:{MANIFEST}" for name, oid in oids.items()}
            for name, data in read_blobs(git, files, MAX_MANIFEST_BYTES):
                with suppress(PackageError):  # junk is nobody's
                    owners[name] = Manifest.from_bytes(data, where=remote.url).repository
    for _, manifest in releases:
        owner = owners.setdefault(manifest.name, manifest.repository)
        if owner != manifest.repository:
            raise ReleaseError(
                f"the mirror has {manifest.name} of {owner}, and cannot have that of {manifest.repository} too",
                where=remote.url,
                hint="mirror it to another repository, or to a folder, which holds any number",
            )


def _commit(clone: Clone, folder: Path, message: str, moment: str) -> str:
    """Write the files of a flat folder as a commit that is the same whenever it is made."""
    oids = clone.store_files({path.name: path for path in sorted(folder.iterdir())})
    tree = clone.make_tree(("100644", "blob", oid, name) for name, oid in oids.items())
    return clone.commit(tree, message, (), _identity(moment))


def _same(git: Git, remote: Remote, ref: str, known: str, commit: str) -> bool:
    """Tell whether a tag, as it is there, holds the same tree as a commit of ours."""
    if known == commit:
        return True
    most = Limits().package_bytes + 2**20
    git.text("fetch", "--quiet", "--depth=1", "--", remote.url, ref, protocols=remote.protocols, max_file_bytes=most)
    try:
        theirs = git.text("rev-parse", "FETCH_HEAD^{tree}")
    except TransportError:  # of a blob, or the like
        return False
    return theirs == git.text("rev-parse", f"{commit}^{{tree}}")


def _stale(
    remote: Remote, folder: Path, wanted: Collection[str], repositories: set[str], there: Mapping[str, str]
) -> list[str]:
    """Return the tags of what a mirror holds of some repositories' rotations and shall not, and of what is none."""
    # Of names as long as a command line may be, nothing can be said to a server.
    held = {ref: oid for ref, oid in there.items() if ref.startswith(f"{ROTATIONS}/") and len(ref) < _LONGEST}
    if not repositories:
        return []
    said = rotations_by_repository(remote, held, Limits(), beside=folder)
    return [ref for ref in held if ref not in wanted and (ref not in said or said[ref] in repositories)]


def _change(git: Git, remote: Remote, commits: Mapping[str, str]) -> None:
    """Move tags, or delete those without a commit. What a server keeps is told: the releases are there all the same."""
    if not commits:
        return
    refspecs = [f"+{commit}:{ref}" if commit else f":{ref}" for ref, commit in commits.items()]
    try:
        refused = push(git, remote.url, refspecs, protocols=remote.protocols).refused
    except StorageError:
        raise
    except TransportError as error:
        refused = error
    if refused is not None:
        url = without_secrets(remote.url)
        warnings.warn(
            f"{url} lets nobody remove what was taken back, is no rotation, or lacks a signature ({refused.what}): it "
            f"goes on telling that to others, until it is removed there: git push {url} "
            f"{' '.join(f':{ref}' for ref in commits)}; then mirror once more",
            AdaptergitWarning,
            stacklevel=2,
        )


def _identity(moment: str) -> dict[str, str]:
    roles = ("AUTHOR", "COMMITTER")
    who = {f"GIT_{role}_{key}": value for role in roles for key, value in _WHO.items()}
    return who | {f"GIT_{role}_DATE": moment for role in roles}
