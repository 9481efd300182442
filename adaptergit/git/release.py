"""Writing a release: files on the branch under ``adapters/<name>/``, and an immutable tag whose tree *is* the package.

Everything is written as loose objects first; then branch and tag are pushed in one atomic push; only when the server
has both do the local index, branch, tag and work tree follow. A failed push therefore leaves the repository as it was
(but for unreachable objects, which git's own housekeeping removes).
"""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

from adaptergit.durable import scratch_file
from adaptergit.errors import AdaptergitError, AdaptergitWarning, ReleaseError, TransportError, did_you_mean, quoted
from adaptergit.git.listing import list_all
from adaptergit.git.partial import is_partial
from adaptergit.git.pushing import Pushed, push
from adaptergit.git.remote import ROTATIONS, TAGS, YANKED, Remote
from adaptergit.git.worktree import FOLDER, Clone
from adaptergit.locks import exclusively
from adaptergit.package import CARD, MANIFEST, README, WEIGHTS, Manifest, is_generated, unlisted_names
from adaptergit.settings import Limits, cache_dir

_PROTOCOLS = ("https", "http", "ssh", "file")
_FIRST = {CARD, README, WEIGHTS}
"""What may lie committed in an adapter's folder before its first release."""


@dataclass(frozen=True)
class Plan:
    """A release written as objects, not yet pushed."""

    clone: Clone
    package: Path
    name: str
    version: str
    tree: str
    """Tree of the package: also what the tag's commit holds."""
    branch_commit: str
    tag_commit: str
    unpushed: int
    """Commits of the branch that the push would carry along."""

    @property
    def tag(self) -> str:
        """Full name of the release's tag."""
        return f"{TAGS}/{self.name}/{self.version}"


def plan_release(clone: Clone, package: Path, name: str, version: str, *, source: Path | None = None) -> Plan:
    """Write the objects of a release; no ref, file or remote changes.

    Args:
        clone: The publisher's clone.
        package: Signed package folder.
        name: Adapter name.
        version: Version.
        source: Folder the package was made from; files there may lie uncommitted in the work tree.

    Raises:
        ReleaseError: Uncommitted changes would be overwritten.
    """
    path = f"{FOLDER}/{name}"
    check_place(clone, name, package, source)
    oids = clone.store_files({entry.name: entry for entry in sorted(package.iterdir())})
    tree = clone.make_tree(("100644", "blob", oid, file) for file, oid in oids.items())
    title = f"publish {name} {version}"
    parents = [clone.head] if clone.head else []
    branch_commit = clone.commit(clone.replace(path, "tree", tree), title, parents)
    tag_commit = clone.commit(tree, title, ())
    return Plan(clone, package, name, version, tree, branch_commit, tag_commit, _unpushed(clone))


def check_place(clone: Clone, name: str, package: Path, source: Path | None) -> None:
    """Refuse, before anything is pushed, whatever would keep the clone from following or cost a person work.

    Raises:
        ReleaseError: What is in the way, and where.
    """
    path = f"{FOLDER}/{name}"
    lock = clone.git.text("rev-parse", "--git-path", "index.lock")
    if (clone.root / lock).exists():
        raise ReleaseError(
            "another git command is running in the clone",
            where=str(clone.root / lock),
            hint="wait for it, or remove a stale lock",
        )
    folder = clone.root
    for part in path.split("/"):
        folder /= part
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise ReleaseError(
                "this is not a folder", where=str(folder), hint="releases are written below adapters/; move it away"
            )
    names = {p.name for p in package.iterdir()}
    in_place = source is not None and source.resolve() == folder.resolve()
    listed = _listed(clone, path) | (names if in_place else set())
    if others := sorted(clone.names_in(path) - listed):
        what = f"{path} holds files that no release lists: {', '.join(others[:5])}"
        raise ReleaseError(what, hint="a release is the whole folder: move them elsewhere, then publish again")
    inside = list(folder.iterdir()) if in_place else []
    changes = clone.local_changes(path, ignore=inside)
    if changes and not _is_unfinished(clone, path, changes):
        raise ReleaseError(
            f"uncommitted changes below {path}: {', '.join(changes[:5])}",
            hint="commit or remove them; if a publish was interrupted: git pull, then "
            f"git restore --staged --worktree {path}",
        )
    for entry in inside:
        # Published from its own place: only what the release holds unchanged, or renders anew from the card, may go.
        kept = entry.name in names and entry.read_bytes() == (package / entry.name).read_bytes()
        if not kept and not is_generated(entry):
            raise ReleaseError("publishing would replace this file", where=str(entry), hint="move it away first")


def _is_unfinished(clone: Clone, path: str, changes: Sequence[str]) -> bool:
    """Tell whether all that differs from the last release is that its files were not, or not all, written."""
    before = clone.tree_before(path)
    ours = {f"{path}/{_unfinished(name)}" for name in clone.names_in(path)}
    for change in changes:
        kind, file = change[:2], change[3:]
        if kind in ("??", "!!") and file in ours:
            continue
        name = file.removeprefix(f"{path}/")
        if kind == " D" and name not in before:
            continue
        if kind != " M" or before.get(name) != clone.git.text("hash-object", "--no-filters", "--", file):
            return False
    return True


def _listed(clone: Clone, path: str) -> set[str]:
    """What the last release on the branch holds: what its manifest names, and the manifest with its signatures."""
    data = clone.read(f"{path}/{MANIFEST}")
    if data is None:
        return set(_FIRST)
    names = {f.path for f in Manifest.from_bytes(data, where=f"{path}/{MANIFEST}").files}
    return names | set(unlisted_names(clone.names_in(path)))


def publish_releases(plans: Sequence[Plan], remote: str | None, *, branch: str | None = None) -> Pushed | None:
    """Push the branch and all tags together, then let the local refs, index and files follow.

    Args:
        plans: From :func:`plan_release`, each made on the branch commit of the one before it.
        remote: Name of the remote; None releases locally only.
        branch: Push to this new branch instead, for a pull request; the clone's branch and files stay as they are.

    Returns:
        What came of the push; None if there was none, or its answer was lost.

    Raises:
        ReleaseError: The server refused: the branch moved on, or a tag exists.
        TransportError: The server cannot be reached. The repository is as it was.
    """
    clone, last = plans[0].clone, plans[-1]
    if remote is None:
        _follow_or_warn(plans, branch, pushed=False)
        return None
    # Tags first: where a server takes no push as a whole, a release without its branch is whole, and nothing else is.
    refspecs = [*(f"{plan.tag_commit}:{plan.tag}" for plan in plans), f"{last.branch_commit}:{branch or clone.branch}"]
    options = ("--no-follow-tags", "--signed=no")
    # Else a partial clone fetches the files of the last release, to send only what is new in them.
    settings = ("pack.window=0",) if is_partial(clone.git) else ()
    size = sum(file.stat().st_size for plan in plans for file in plan.package.iterdir())
    try:
        pushed = push(clone.git, remote, refspecs, options=options, settings=settings, size=size)
    except TransportError as error:
        if _has(last, remote):  # the answer was lost, not the push
            _follow_or_warn(plans, branch)
            return None
        if _is_refusal(error):
            raise _refused(error, clone, remote, "publish") from error
        raise
    if pushed.refused is not None:
        _released_in_part(plans, pushed.count, pushed.refused)
    else:
        _follow_or_warn(plans, branch)
    return pushed


def _is_refusal(error: TransportError) -> bool:
    """Tell a server that does not want the push from one that cannot be reached."""
    return any(word in error.what for word in ("rejected", "atomic", "fetch first"))


def moved_on(clone: Clone, remote: str, action: str) -> ReleaseError:
    """Return the error for a clone that lacks what others pushed to its branch."""
    branch = clone.branch.removeprefix("refs/heads/")
    what = f"{branch} of {remote} has commits that this clone has not"
    hint = f"git -C {quoted(clone.root)} pull {remote} {branch}, then {action} again"
    return ReleaseError(what, where=str(clone.root), hint=hint)


def _refused(error: TransportError, clone: Clone, remote: str, action: str) -> ReleaseError:
    """Say why a server does not want a push; nothing was changed here."""
    behind = moved_on(clone, remote, action)
    if "non-fast-forward" in error.what or "fetch first" in error.what:
        return behind
    hint = f"if the branch moved on: {behind.hint}; if it is protected: --pull-request; nothing was changed here"
    return ReleaseError(f"the server refused the push: {error.what}", hint=hint)


def _released_in_part(plans: Sequence[Plan], count: int, refused: TransportError) -> None:
    """Say what became of releases of which a server, that takes no push as a whole, refused a part."""
    done = plans[:count]
    for plan in done:
        plan.clone.git.text("update-ref", plan.tag, plan.tag_commit)
    released = ", ".join(f"{plan.name} {plan.version}" for plan in done)
    if len(done) == len(plans):
        message = f"{released}: released, but the server did not take the branch ({refused.what})"
        warnings.warn(f"{message}: git pull, or --pull-request the next time", AdaptergitWarning, stacklevel=2)
        return
    raise ReleaseError(
        f"the server refused {plans[count].name} {plans[count].version}: {refused.what}",
        hint=f"it takes no push as a whole, and has {released}: publish the others again",
    ) from refused


def yank_release(clone: Clone, remote: str, where: Remote, name: str, version: str, reason: str, *, undo: bool) -> None:
    """Mark a release as withdrawn, or take that back: a tag beside the release's own, which stays.

    Args:
        clone: The publisher's clone.
        remote: Name of the remote.
        where: What it leads to.
        name: Of the adapter.
        version: Of the release.
        reason: For people.
        undo: Take the mark away.

    Raises:
        ReleaseError: There is no such release, or it is (not) yanked already.
        TransportError: The server cannot be reached.
    """
    tag, mark = f"{TAGS}/{name}/{version}", f"{YANKED}/{name}/{version}"
    listing = clone.git.text("ls-remote", "--tags", "--refs", "--", where.url, tag, mark, protocols=where.protocols)
    there = {line.partition("\t")[2] for line in listing.splitlines()}
    if tag not in there:
        hint = _released(where, name)
        raise ReleaseError(f"{name} {version} was never released", where=where.url, hint=hint)
    if (mark in there) is not undo:
        hint = None if undo else "--undo takes it back"
        raise ReleaseError(
            f"{name} {version} is {'not yanked' if undo else 'yanked already'}", where=where.url, hint=hint
        )
    commit = "" if undo else clone.commit(clone.make_tree(()), f"yank {name} {version}\n\n{reason}", ())
    push(clone.git, remote, [f"{commit}:{mark}"])


def _released(where: Remote, name: str) -> str | None:
    """Say which versions of an adapter there are, or else which adapter may be meant."""
    found = {adapter: listing.versions for adapter, listing in list_all(where, Limits())[0].items() if listing.versions}
    if name in found:
        return f"released: {', '.join(sorted(found[name], key=Version)[-10:])}"
    names = sorted(found)
    return did_you_mean(name, names) or (
        f"it has {', '.join(names[:20])}{' …' if names[20:] else ''}" if names else None
    )


def push_rotation(
    clone: Clone,
    remote: str,
    files: Mapping[str, Path],
    allowed_signers: bytes,
    mark: str,
    *,
    branch: str | None = None,
) -> bool:
    """Push a rotation as a tag of its own, and the branch with the keys it announces, in one step.

    Args:
        clone: The publisher's clone.
        remote: Name of the remote.
        files: The rotation and its signatures.
        allowed_signers: The new ``.adaptergit/allowed_signers``.
        mark: Name of the tag below ``refs/tags/adapters-rotations/``.
        branch: Push the keys to this new branch instead, for a pull request; the clone's branch and files stay.

    Returns:
        Whether nobody else can have pushed one at the same time: the clone's branch moved on with it.

    Raises:
        ReleaseError: The server refused: the branch moved on, or is protected. The clone is as it was.
        TransportError: The server cannot be reached. The clone is as it was.
    """
    oids = clone.store_files(files)
    tree = clone.make_tree(("100644", "blob", oid, name) for name, oid in oids.items())
    title = "rotate the signing key"
    tag_commit, tag = clone.commit(tree, title, ()), f"{ROTATIONS}/{mark}"
    with tempfile.TemporaryDirectory() as folder:
        listing = Path(folder) / "allowed_signers"
        listing.write_bytes(allowed_signers)
        (blob,) = clone.store_files({"allowed_signers": listing}).values()
    path = ".adaptergit/allowed_signers"
    commit = clone.commit(clone.replace(path, "blob", blob), title, [clone.head] if clone.head else [])
    # The tag is what counts; the branch only announces it.
    try:
        pushed = push(clone.git, remote, (f"{tag_commit}:{tag}", f"{commit}:{branch or clone.branch}"))
    except TransportError as error:
        if _is_refusal(error):
            raise _refused(error, clone, remote, "rotate") from error
        raise
    clone.git.text("update-ref", tag, tag_commit)
    if branch is not None and pushed.refused is None:
        return False
    if pushed.refused is not None:
        message = f"the key is rotated, but the server did not take the branch ({pushed.refused.what}): add the new key"
        warnings.warn(f"{message} to {clone.root / '.adaptergit' / 'allowed_signers'}", AdaptergitWarning, stacklevel=2)
        return False
    clone.git.text("update-ref", clone.branch, commit)
    clone.git.text("reset", "--quiet", commit, "--", path)
    target = clone.root / path
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(allowed_signers)
    return True


def _has(plan: Plan, remote: str) -> bool:
    """Tell whether the server holds the release's tag, after a push that seemed to fail."""
    try:
        listing = plan.clone.git.text("ls-remote", "--tags", "--refs", "--", remote, plan.tag, protocols=_PROTOCOLS)
    except TransportError:
        return False
    return listing.split("\t")[0] == plan.tag_commit


def _follow_or_warn(plans: Sequence[Plan], branch: str | None, *, pushed: bool = True) -> None:
    """Let the clone follow: index, refs, files.

    In this order, an interruption leaves nothing staged that would take the release back, and what is there is brought
    up to date by ``git pull``, ``git restore`` or the next release.
    """
    clone = plans[0].clone
    # Two that publish the same at once would undo each other's half.
    with exclusively(cache_dir() / "locks", str(clone.root.resolve())):
        if branch is not None or not _has_followed(plans[-1]):
            _follow(plans, branch, pushed=pushed)


def _has_followed(plan: Plan) -> bool:
    with contextlib.suppress(AdaptergitError):  # to be told of where the clone is changed
        return Clone.at(plan.clone.root).head == plan.branch_commit
    return False


def _follow(plans: Sequence[Plan], branch: str | None, *, pushed: bool) -> None:
    clone = plans[0].clone
    staged = plans if branch is None and clone.checked_out else ()
    folders = [f"{FOLDER}/{plan.name}" for plan in staged]
    released = f"{', '.join(f'{plan.name} {plan.version}' for plan in plans)}: released, but the clone could not follow"
    try:
        for plan, folder in zip(staged, folders, strict=True):
            clone.stage(folder, plan.tree)
        _follow_refs(plans, branch)
    except (TransportError, OSError) as error:
        for folder in folders:
            with contextlib.suppress(TransportError, OSError):
                clone.stage(folder, clone.tree_of(folder))
        if not pushed:
            raise
        warnings.warn(f"{released} ({error}): git pull brings it up to date", AdaptergitWarning, stacklevel=2)
        return
    try:
        for plan in staged:
            _write(plan)
    except (TransportError, OSError) as error:
        advice = f"git restore {' '.join(folders)} brings its files up to date"
        warnings.warn(f"{released} ({error}): {advice}", AdaptergitWarning, stacklevel=2)


def _follow_refs(plans: Sequence[Plan], branch: str | None) -> None:
    clone, zero = plans[0].clone, "0" * len(plans[0].tree)
    with scratch_file() as script:
        created = "".join(f"create {plan.tag} {plan.tag_commit}\n" for plan in plans)
        before = zero if branch else clone.head or zero
        moved = f"update {branch or clone.branch} {plans[-1].branch_commit} {before}\n"
        script.write(f"start\n{moved}{created}prepare\ncommit\n".encode())
        script.seek(0)
        clone.git.text("update-ref", "--stdin", stdin=script)


def _write(plan: Plan) -> None:
    """Bring the files of an adapter's folder up to the release."""
    clone = plan.clone
    target = clone.root / FOLDER / plan.name
    target.mkdir(parents=True, exist_ok=True)
    before = clone.names_in(f"{FOLDER}/{plan.name}")
    kept = {entry.name for entry in plan.package.iterdir()}
    for entry in plan.package.iterdir():
        temporary = target / _unfinished(entry.name)
        try:
            temporary.write_bytes(entry.read_bytes())
            temporary.replace(target / entry.name)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    # Only what the last release tracked is removed: anything else in the folder is the person's own.
    for name in (before - kept) | {_unfinished(name) for name in before}:
        (target / name).unlink(missing_ok=True)


def _unfinished(name: str) -> str:
    return f".{name}.new"


def _unpushed(clone: Clone) -> int:
    """Count the commits that no remote branch holds, as far as the clone knows."""
    return int(clone.git.text("rev-list", "--count", clone.head, "--not", "--remotes")) if clone.head else 0
