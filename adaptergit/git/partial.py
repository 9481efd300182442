"""What a partial clone (``git clone --filter``) left out, brought before it is read.

A read never goes to the network by itself. What is missing is told apart from what does not exist, and is asked for by
its oid, of the server that is pushed to anyway.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from adaptergit.durable import scratch
from adaptergit.errors import TransportError
from adaptergit.git.remote import Remote, fetch_objects
from adaptergit.git.runner import Git
from adaptergit.git.worktree import Clone
from adaptergit.settings import Limits

_MARKS = re.compile(r"extensions\.partialclone|remote\..*\.(promisor|partialclonefilter)", re.IGNORECASE)
_NO_BLOBS = "blob:none"


def complete(clone: Clone, remote: Remote | None, paths: Sequence[str], limits: Limits) -> None:
    """Bring what a clone lacks of its last commit's folders, and of some of its files; a whole clone lacks nothing.

    Args:
        clone: The publisher's clone.
        remote: Whom to ask.
        paths: Of files that will be read.
        limits: Bounds on bytes and time.

    Raises:
        TransportError: The server cannot be asked, or there is none.
    """
    if clone.head is None or not is_partial(clone.git):
        return
    limits = limits.started()
    bring(clone, remote, left_out(clone.git, clone.head, f"--filter={_NO_BLOBS}"), limits)
    bring(clone, remote, left_out(clone.git, f"{clone.head}^{{tree}}", "--", *paths), limits)


def is_partial(git: Git) -> bool:
    """Tell whether a clone may lack objects that it knows of."""
    names = git.text("config", "--list", "--name-only").splitlines()
    return any(_MARKS.fullmatch(name) for name in names)


def left_out(git: Git, revision: str, *which: str) -> list[str]:
    """Return the oids of what something holds and the clone does not; of all, or as options of ``rev-list`` say."""
    listing = git.text("rev-list", "--objects", "--no-object-names", "--no-walk", "--missing=print", revision, *which)
    return [line.removeprefix("?") for line in listing.splitlines() if line.startswith("?")]


def bring(clone: Clone, remote: Remote | None, oids: Sequence[str], limits: Limits) -> None:
    """Bring objects into a partial clone.

    Raises:
        TransportError: The server cannot be asked, or there is none.
    """
    if not oids:
        return
    if remote is None:
        raise TransportError(
            "the clone is a partial one, and lacks files of the last release",
            where=str(clone.root),
            hint="git fetch --refetch --no-filter brings all there is",
        )
    with scratch() as folder:
        git = fetch_objects(folder / "git", remote, oids, limits, only=_NO_BLOBS)
        for pack in (git.directory / "objects" / "pack").glob("*.pack"):
            with pack.open("rb") as stream:
                # Marked as the server's: whatever these objects refer to may be missing too.
                clone.git.raw("index-pack", "--stdin", "--promisor", stdin=stream)
