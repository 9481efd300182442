"""Copying releases to another repository: the same tree under the same tag, written anew and pushed at once."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from adaptergit.errors import ReleaseError
from adaptergit.git.remote import OID, TAGS, Remote
from adaptergit.git.runner import init_bare
from adaptergit.git.worktree import Clone
from adaptergit.package import Manifest

_WHO = {"NAME": "adaptergit", "EMAIL": "mirror@adaptergit.invalid"}


def push_copies(remote: Remote, releases: Sequence[tuple[Path, Manifest]]) -> list[bool]:
    """Push releases as tags; tell of each whether it was new there.

    The commit of a tag says when the release was made and who copied it, so that copying twice gives the same commit.

    Args:
        remote: Where to.
        releases: Verified package folders with their manifests.

    Raises:
        ReleaseError: A tag is there and holds something else: releases never change.
        TransportError: The server cannot be reached, or refuses.
    """
    with tempfile.TemporaryDirectory(prefix="adaptergit-mirror-") as folder:
        git = init_bare(Path(folder) / "probe")
        listing = git.text("ls-remote", "--quiet", "--tags", "--refs", "--", remote.url, protocols=remote.protocols)
        there = {ref: oid for oid, _, ref in (line.partition("\t") for line in listing.splitlines())}
        wide = any(len(oid) == 64 for oid in there.values() if OID.fullmatch(oid))
        git = init_bare(Path(folder) / "copy", object_format="sha256" if wide else "sha1")
        clone = Clone(Path(folder), git, "", None)
        new, refspecs = [], []
        for package, manifest in releases:
            oids = clone.store_files({path.name: path for path in sorted(package.iterdir())})
            tree = clone.make_tree(("100644", "blob", oid, name) for name, oid in oids.items())
            env = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in _WHO.items()}
            env |= {f"GIT_{role}_DATE": manifest.created for role in ("AUTHOR", "COMMITTER")}
            commit = clone.commit(tree, f"publish {manifest.name} {manifest.version}", (), env)
            tag = f"{TAGS}/{manifest.name}/{manifest.version}"
            known = there.get(tag)
            if known is not None and known != commit:
                git.text("fetch", "--quiet", "--depth=1", "--", remote.url, tag, protocols=remote.protocols)
                if git.text("rev-parse", "FETCH_HEAD^{tree}") != tree:
                    raise ReleaseError(f"the mirror holds another {manifest.name} {manifest.version}", where=remote.url)
            new.append(known is None)
            if known is None:
                refspecs.append(f"{commit}:{tag}")
        if refspecs:
            git.text(
                "push", "--quiet", "--atomic", "--", remote.url, *refspecs, protocols=remote.protocols, timeout=600.0
            )
        return new
