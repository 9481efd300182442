"""What an index's CI does every few hours: crawl, commit, build, sign, and push what is served."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from adaptergit.errors import ReleaseError, TransportError, UsageError
from adaptergit.git import Git, commit_time
from adaptergit.index.build import Built, build
from adaptergit.index.crawl import Crawled, crawl
from adaptergit.index.maintain import check_index, check_online, sign_snapshot
from adaptergit.index.repository import IndexRepository
from adaptergit.index.site import build_site
from adaptergit.settings import Settings
from adaptergit.trust import SigningKey

_WRITTEN = ("entries", "rotations")
_PROTOCOLS = ("https", "http", "ssh", "file")
_ATTEMPTS = 3
_WHO = {
    "GIT_AUTHOR_NAME": "adaptergit index",
    "GIT_AUTHOR_EMAIL": "index@example.invalid",
    "GIT_COMMITTER_NAME": "adaptergit index",
    "GIT_COMMITTER_EMAIL": "index@example.invalid",
}


@dataclass(frozen=True)
class Published:
    """What was done."""

    crawled: tuple[Crawled, ...]
    problems: Mapping[str, str]
    """Files that are left out, and why."""
    built: Built
    adapters: int
    """With pages."""
    pushed: bool


def publish_index(
    index: IndexRepository,
    settings: Settings,
    key: SigningKey,
    *,
    out: Path | None = None,
    remote: str | None = "origin",
    branch: str | None = None,
    dist_branch: str | None = "dist",
    token: str | None = None,
    now: datetime | None = None,
    report: Callable[[Crawled], None] = lambda _: None,
) -> Published:
    """Crawl the sources, commit what is new, build and sign what users fetch, and push both.

    Args:
        index: A clone of the index with its own branch checked out.
        settings: Limits, and hosts plain http is spoken to.
        key: The online key.
        out: Where what is served is built; default: ``dist/`` in the index.
        remote: Where to push; None: nowhere.
        branch: The index's own branch; default: the one that is checked out.
        dist_branch: Branch that gets what was built, without a history; None: none.
        token: For pushing over https, where git has no credentials of its own.
        now: Instead of the clock.
        report: Called with every source when it was looked at.

    Raises:
        TrustError, PackageError, NotFoundError: Roots, policy or revocations are not sound: nothing is published.
        ReleaseError: Something that was listed was changed: nothing is published.
        TransportError: The remote cannot be reached or does not take it.
    """
    root, git = index.current_root(), Git(index.root, trusted=True)
    check_online(root, key)
    index.policy()
    sound = check_index(index)
    for where, why in sound.changed.items():
        hint = "put back what was listed: users refuse the source otherwise"
        raise ReleaseError(f"what was listed was changed: {why}", where=where, hint=hint)
    moment = (now or datetime.now(UTC)).replace(microsecond=0)
    found = crawl(index, settings, now=moment, report=report)
    _commit(git)
    if remote is not None:
        if changed := git.text("status", "--porcelain", "--untracked-files=no"):
            hint = "commit it, or put it back; what is published is what is committed"
            raise UsageError(f"not committed: {changed.splitlines()[0][3:]}", where=str(index.root), hint=hint)
        _push(git, remote, branch or _branch(git), token)
    target = out or index.root / "dist"
    built = build(index, target, root=root, now=commit_time(index.root))
    adapters = build_site(index, target, root=root)
    sign_snapshot(index, target, key, now=moment)
    if remote is not None and dist_branch is not None:
        commit = _tree_of(git, target)
        git.text("push", "--quiet", "--", remote, f"+{commit}:refs/heads/{dist_branch}", **_access(token))
    return Published(tuple(found), sound.problems, built, adapters, remote is not None)


def _branch(git: Git) -> str:
    try:
        return git.text("symbolic-ref", "--short", "HEAD")
    except TransportError as error:
        raise UsageError("HEAD is detached", hint="name the index's own branch: --branch main") from error


def _commit(git: Git) -> None:
    """Commit what the crawl wrote, if it wrote anything."""
    if git.text("status", "--porcelain", "--", *_WRITTEN):
        git.text("add", "--", *(name for name in _WRITTEN if (git.directory / name).exists()))
        git.text("commit", "--quiet", "-m", "crawl", env=_WHO)


def _push(git: Git, remote: str, branch: str, token: str | None) -> None:
    """Push to a branch that others push to as well: what they did comes first."""
    for attempt in range(_ATTEMPTS):
        git.text("fetch", "--quiet", "--no-tags", "--", remote, f"refs/heads/{branch}", **_access(token))
        git.text("rebase", "--quiet", "FETCH_HEAD", env=_WHO)
        try:
            git.text("push", "--quiet", "--", remote, f"HEAD:refs/heads/{branch}", **_access(token))
        except TransportError:
            if attempt == _ATTEMPTS - 1:
                raise
        else:
            return


def _tree_of(git: Git, folder: Path) -> str:
    """Return a commit, without parents, of what lies in a folder."""
    with tempfile.TemporaryDirectory(prefix="adaptergit-dist-") as temporary:
        place = {"GIT_INDEX_FILE": f"{temporary}/index", "GIT_WORK_TREE": str(folder.resolve())}
        inside = Git(folder.resolve(), trusted=True)
        where = {**place, "GIT_DIR": git.text("rev-parse", "--absolute-git-dir")}
        inside.text("add", "--all", "--force", "--", ".", env=where)
        tree = inside.text("write-tree", env=where)
    return git.text("commit-tree", tree, "-m", "dist", env=_WHO)


def _access(token: str | None) -> dict[str, object]:
    """Allow the network, with a token that is seen neither in the list of processes nor in an address."""
    if token is None:
        return {"protocols": _PROTOCOLS}
    basic = base64.b64encode(f"oauth2:{token}".encode()).decode()
    header = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "http.extraHeader",
        "GIT_CONFIG_VALUE_0": f"Authorization: Basic {basic}",
    }
    return {"protocols": _PROTOCOLS, "env": header}
