"""What became of the entries of an index in its own history: every commit, and what is not committed yet.

Read as a stream of differences, so that an index of a million entries needs little memory. Only what a commit of the
main line changes counts, however it got there: a merge is compared with the branch that it was merged into.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from adaptergit.errors import PackageError, TransportError, UsageError
from adaptergit.git import Git
from adaptergit.index.entry import Entry
from adaptergit.index.entry_rules import Listing

_OPTIONS = ("-U0", "--no-renames", "--no-color", "--no-ext-diff", "--no-textconv", "--diff-filter=MD")


def listings(root: Path, since: str | None = None) -> Iterator[tuple[str, Listing]]:
    """Yield where lines of entries were changed or taken away, with the lines of that change.

    Args:
        root: Of the index; where it is no clone, there is no history.
        since: Commit to begin after; default: with the first.

    Raises:
        UsageError: No such commit.
        TransportError: Git failed.
    """
    git = Git(root, trusted=True)
    try:
        git.text("rev-parse", "--verify", "--quiet", "HEAD^{commit}")
    except TransportError:
        return  # no clone, or nothing committed
    if since is not None:
        try:
            since = git.text("rev-parse", "--verify", "--quiet", "--end-of-options", f"{since}^{{commit}}")
        except TransportError as error:
            raise UsageError(f"{since!r} is not a commit", where=str(root), hint="git log lists them") from error
    span = [f"{since}..HEAD"] if since else ["HEAD"]
    log = (
        "log",
        "--first-parent",
        "--diff-merges=first-parent",
        "--format=commit %h",
        *_OPTIONS,
        *span,
        "--",
        "entries",
    )
    yield from _read(git, log, "")
    yield from _read(git, ("diff", *_OPTIONS, "HEAD", "--", "entries"), "not committed")


def _read(git: Git, arguments: tuple[str, ...], where: str) -> Iterator[tuple[str, Listing]]:
    path, before, now = "", list[bytes](), list[bytes]()
    with tempfile.TemporaryFile() as nothing, git.stream(*arguments, stdin=nothing) as output:
        for line in output:
            if line.startswith((b"commit ", b"diff --git ")):
                if before:
                    yield f"{path} ({where})", _listing(before, now, path)
                path, before, now = "", [], []
                if line.startswith(b"commit "):
                    where = line.decode().strip()
            elif line.startswith(b"--- a/"):
                path = line[6:].decode("utf-8", "replace").strip()
            elif line.startswith(b'-{"'):
                before.append(line[1:])
            elif line.startswith(b'+{"'):
                now.append(line[1:])
    if before:
        yield f"{path} ({where})", _listing(before, now, path)


def _listing(before: list[bytes], now: list[bytes], where: str) -> Listing:
    return Listing(_entries(before, where), _entries(now, where))


def _entries(lines: list[bytes], where: str) -> tuple[Entry, ...]:
    found = []
    for line in lines:
        try:
            found.append(Entry.from_line(line, where=where))
        except PackageError:
            continue  # what is no entry now is said where the index is read
    return tuple(found)
