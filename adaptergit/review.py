"""Review: what an index's CI does with pull requests, in two steps that never meet in one process.

``review`` fetches proposals as git objects and judges them with the rules: it needs no secret, and nothing of a fork
runs. ``settle`` holds the token: it writes what was found as a comment, and merges what keeps the rules and has waited,
exactly the commit that was looked at. The time that a proposal waits counts from our own comment on that very commit:
by the forge's clock, whatever somebody else writes, and anew after a push.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from adaptergit.errors import NotFoundError, PackageError, ReleaseError, TransportError, UsageError
from adaptergit.git import Git
from adaptergit.index.propose import check_change
from adaptergit.index.repository import IndexRepository
from adaptergit.progress import each
from adaptergit.reference import Source
from adaptergit.settings import load_settings
from adaptergit.web.download import Download
from adaptergit.web.forges import kind_of
from adaptergit.web.reviews import Reviews

SCHEMA = "adaptergit.review/1"
_PROTOCOLS = ("https", "http", "ssh", "file")
_REFS = {"github": ("pull",), "gitea": ("pull",), "gitlab": ("merge-requests",), None: ("pull", "merge-requests")}
_MAX_BYTES = 16 * 2**20
_MAX_PROPOSAL = 64 * 2**20
"""Bytes of objects that a pull request may bring."""


@dataclass(frozen=True)
class Review:
    """What was found in one pull request."""

    number: int
    head: str
    """Commit that was looked at."""
    passed: bool
    """It keeps every rule but for the waiting period, which is for :func:`settle` to know."""
    report: str
    """For the pull request, as Markdown."""


@dataclass(frozen=True)
class Settled:
    """What became of one pull request."""

    number: int
    outcome: str
    """``refused``, ``waiting``, ``merged``, or ``ready`` where nothing is to be merged."""
    until: str = ""
    """Until when it waits."""
    error: str = ""
    """Why the forge would not."""


def review(
    numbers: Sequence[int] = (),
    *,
    clone: str | Path = ".",
    of: str | None = None,
    remote: str = "origin",
    forge: str | None = None,
    token: str | None = None,
    report: Callable[[Review], None] = lambda _: None,
) -> list[Review]:
    """Judge pull requests.

    Args:
        numbers: Which ones; default: all that are open, for which the forge is asked.
        clone: A clone of the index with its own branch checked out.
        of: URL of the index, to be cloned for this; ``clone`` and ``remote`` do not matter then.
        remote: Git remote of the clone, where the pull requests are.
        forge: ``github``, ``gitlab`` or ``gitea``; default: from the host's name.
        token: That may read, where the forge wants one.
        report: Called with each.

    Raises:
        UsageError: Not a clone of an index, or an unknown kind of forge.
        NotFoundError: No such pull request.
        TransportError: It cannot be had.
    """
    settings = load_settings()
    with _own_branch(clone, of) as index:
        git = Git(index.root, trusted=True)
        url = of or _url(git, remote)
        kind = forge or kind_of(url)
        if not numbers:
            numbers = [one.number for one in _reviews(url, kind, token).open()]
        base = git.text("rev-parse", "--verify", "HEAD^{commit}")
        found = []
        for number in each(numbers, "reviews", "pull requests"):
            head = _fetched(git, of or remote, number, kind)
            checked = check_change(index, settings, base=base, head=head)
            found.append(Review(number, head, checked.passed, checked.report))
            report(found[-1])
        return found


def settle(
    reviews: Sequence[Review],
    *,
    clone: str | Path = ".",
    remote: str = "origin",
    forge: str | None = None,
    token: str,
    merge: bool = False,
    now: datetime | None = None,
) -> list[Settled]:
    """Comment on pull requests, and merge those that keep the rules and have waited.

    Args:
        reviews: What :func:`review` found.
        clone: A clone of the index with its own branch checked out.
        remote: Git remote of the clone.
        forge: See :func:`review`.
        token: That may comment and merge.
        merge: Merge; default: only comment.
        now: For the waiting period.

    Raises:
        UsageError: Not a clone of an index, or an unknown kind of forge.
        ReleaseError: The forge refuses the token.
        TransportError: It cannot be reached.
    """
    index = _here(clone)
    url = _url(Git(index.root, trusted=True), remote)
    forge_side = _reviews(url, forge or kind_of(url), token)
    hours = index.policy().waiting_hours
    me, still_open = forge_side.me(), {one.number: one.head for one in forge_side.open()}
    done = []
    for one in each(reviews, "settled", "pull requests"):
        if still_open.get(one.number) != one.head:
            continue  # closed, or pushed to: the next review looks at what it is now
        try:
            done.append(_settled(forge_side, one, me, hours, merge, now or datetime.now(UTC)))
        except ReleaseError as error:  # the others are settled all the same
            done.append(Settled(one.number, "refused", error=error.what))
    return done


def write_reviews(path: Path, reviews: Sequence[Review]) -> None:
    """Write what was found, for the step that holds the token."""
    path.write_text(
        json.dumps({"schema": SCHEMA, "reviews": [asdict(one) for one in reviews]}, indent=1) + "\n", "utf-8"
    )


def read_reviews(path: Path) -> list[Review]:
    """Read what :func:`write_reviews` wrote.

    Raises:
        NotFoundError: There is no such file.
        PackageError: It holds something else.
    """
    try:
        with path.open("rb") as file:
            raw = json.loads(file.read(_MAX_BYTES))
        if raw["schema"] != SCHEMA:
            raise ValueError(raw["schema"])
        return [_parsed(one) for one in raw["reviews"]]
    except FileNotFoundError as error:
        raise NotFoundError("there is no such file", where=str(path), hint="adaptergit index review --out …") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PackageError(
            f"not what adaptergit index review writes: {error}",
            where=str(path),
            hint=f"write it anew: adaptergit index review --out {path}",
        ) from error


def _parsed(raw: Any) -> Review:
    one = Review(int(raw["number"]), str(raw["head"]), raw["passed"] is True, str(raw["report"]))
    if not re.fullmatch(r"[0-9a-f]{40}([0-9a-f]{24})?", one.head):
        raise ValueError(f"{one.head!r} is no commit")
    return one


def _settled(forge: Reviews, one: Review, me: str, hours: int, merge: bool, now: datetime) -> Settled:
    mark = f"<!-- adaptergit index: {one.head} -->"
    ours = [comment for comment in forge.comments(one.number) if comment.author == me and mark in comment.body]
    seen = ours[0].created if ours else now
    until = seen + timedelta(hours=hours)
    if not ours or one.report.strip() not in ours[-1].body:
        forge.comment(one.number, f"{mark}\n{one.report}\n{_prospect(one, until, hours)}")
    if not one.passed:
        return Settled(one.number, "refused")
    if now < until:
        return Settled(one.number, "waiting", f"{until:%Y-%m-%dT%H:%M:%SZ}")
    if not merge:
        return Settled(one.number, "ready")
    forge.merge(one.number, one.head)
    return Settled(one.number, "merged")


def _prospect(one: Review, until: datetime, hours: int) -> str:
    commit = f"Commit {one.head[:12]}"
    if not one.passed:
        return f"{commit}: mend what is marked, and push again.\n"
    return f"{commit} waits {hours} hours for objections, until {until:%Y-%m-%d %H:%M} UTC; a push begins anew.\n"


def _reviews(url: str, kind: str | None, token: str | None) -> Reviews:
    if kind is None:
        raise UsageError("what kind of forge is this?", where=url, hint="--forge github, gitlab or gitea")
    return Reviews(url, kind, token, Download(load_settings().allow_http, 120.0))


@contextmanager
def _own_branch(clone: str | Path, of: str | None) -> Iterator[IndexRepository]:
    """Give the index with its own branch checked out: what the rules read is never the proposal's."""
    if of is None:
        yield _here(clone)
        return
    Source.parse(of)  # no options, no helpers
    with tempfile.TemporaryDirectory(prefix="adaptergit-review-") as folder:
        git = Git(Path(folder), trusted=True)
        git.text("clone", "--quiet", "--", of, "index", protocols=_PROTOCOLS)
        yield IndexRepository(Path(folder) / "index")


def _here(clone: str | Path) -> IndexRepository:
    """Return the index that a clone holds; in CI, no branch is checked out."""
    try:
        root = Git(Path(clone), trusted=True).text("rev-parse", "--show-toplevel")
    except TransportError as error:
        raise UsageError(
            "not inside a git clone", where=str(clone), hint="--of URL clones the index for this"
        ) from error
    index = IndexRepository(Path(root))
    index.current_root()
    return index


def _url(git: Git, remote: str) -> str:
    try:
        return git.text("remote", "get-url", "--", remote)
    except TransportError as error:
        hint = "git remote add origin URL"
        raise UsageError(f"the clone has no remote {remote!r}", where=str(git.directory), hint=hint) from error


def _fetched(git: Git, remote: str, number: int, kind: str | None) -> str:
    """Bring the commit of a pull request, and return it."""
    for name in _REFS.get(kind, _REFS[None]):
        wanted = f"refs/{name}/{int(number)}/head"
        try:
            git.text(
                "fetch",
                "--quiet",
                "--no-tags",
                "--",
                remote,
                wanted,
                protocols=_PROTOCOLS,
                max_file_bytes=_MAX_PROPOSAL,
            )
            return git.text("rev-parse", "--verify", "FETCH_HEAD^{commit}")
        except TransportError as error:
            failed = error
    if "couldn't find remote ref" in failed.what.lower():
        raise NotFoundError(
            f"there is no pull request {number}", where=remote, hint="give no numbers to judge all that are open"
        )
    raise failed
