"""What a pull request changes, read as data: nothing of it is checked out, and nothing of it runs."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from adaptergit.errors import AdaptergitError, NotFoundError, TransportError, TrustError, UsageError
from adaptergit.git import Git, Remote, fetch_file, fetch_rotations
from adaptergit.index.changes import change_signers, change_statement
from adaptergit.index.documents import check_recovery, when
from adaptergit.index.entry import check_document
from adaptergit.index.local import MAX_BYTES as MAX_INDEX_BYTES
from adaptergit.index.names import alike
from adaptergit.index.repository import IndexRepository
from adaptergit.index.rules import broken_by, comment
from adaptergit.index.source_rules import Proposal
from adaptergit.index.sources import MAX_BYTES, SourceFile
from adaptergit.reference import Source
from adaptergit.settings import Settings
from adaptergit.trust import PublicKey, SignedRotation, parse_allowed_signers, parse_revocations
from adaptergit.trust.rotation import MAX_ROTATIONS
from adaptergit.web.download import Download

_SOURCE = re.compile(r"sources/[A-Za-z0-9_.~/-]+\.yaml")
_COMMIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]*(~[0-9]+)?")


@dataclass(frozen=True)
class Checked:
    """The verdict on a change."""

    problems: Mapping[str, list[tuple[str, str]]]
    """By path: rules that are broken, and why."""
    report: str
    """For the pull request, as Markdown."""

    @property
    def passed(self) -> bool:
        """Tell whether it may be merged."""
        return not any(self.problems.values())


def check_change(
    index: IndexRepository,
    settings: Settings,
    *,
    base: str,
    head: str | None = None,
    proposed: datetime | None = None,
    now: datetime | None = None,
) -> Checked:
    """Check what ``head`` changes since it left ``base``.

    Args:
        index: A clone of the index, with ``base`` checked out or not: files are read from commits.
        settings: Limits, and hosts plain http is spoken to.
        base: Commit of the index's own branch.
        head: Commit of the proposal; None: the files as they lie in the clone.
        proposed: When the pull request was opened, for the waiting period; None: it is not asked for.
        now: For the waiting period.

    Raises:
        UsageError: Not a commit.
    """
    git = Git(index.root, trusted=True)
    for commit in (base, head):
        if commit is not None and not _COMMIT.fullmatch(commit):
            raise UsageError(f"{commit!r} is not a commit")
    problems: dict[str, list[tuple[str, str]]] = {}
    reports = []
    changed = _changed(git, base, head)
    for path in changed:
        if _signs(git, path, changed, base):
            continue
        if not _SOURCE.fullmatch(path) or ".." in path:
            problems[path] = [("scope", "a pull request of a publisher changes files below sources/ only")]
            reports.append(
                f"### ❌ `{re.sub(r'[^A-Za-z0-9_./-]', '?', path)}`: only files below `sources/` may change\n"
            )
            continue
        one = _proposal(index, git, settings, path, base, head, proposed, now or datetime.now(UTC))
        problems[path] = [(rule.id, why) for rule, why in broken_by(one)]
        reports.append(comment(path, one))
    return Checked(problems, "\n".join(reports) or "Nothing below `sources/` changes.\n")


def _signs(git: Git, path: str, changed: Collection[str], base: str) -> bool:
    """Tell whether a file holds signatures of a change of a listed source that comes with it."""
    signed = path.removesuffix(".sig")
    if signed == path or not _SOURCE.fullmatch(signed) or signed not in changed:
        return False
    return bool(git.text("ls-tree", "--full-tree", base, "--", signed))


def _changed(git: Git, base: str, head: str | None) -> list[str]:
    try:
        if head is not None:
            since = git.text("merge-base", base, head)
            output = git.raw("diff", "--name-only", "--no-renames", "-z", since, head, "--")
        else:
            output = git.raw("diff", "--name-only", "--no-renames", "-z", base, "--")
            output += git.raw("ls-files", "--others", "--exclude-standard", "-z")
    except TransportError as error:
        what = f"git cannot compare {base} with {head or 'the files here'}: {error.what}"
        hint = "name commits or branches that are here; --repo names the clone of the index"
        raise UsageError(what, where=str(git.directory), hint=hint) from error
    return sorted({name.decode("utf-8", "replace") for name in output.split(b"\0") if name})


def _proposal(
    index: IndexRepository,
    git: Git,
    settings: Settings,
    path: str,
    base: str,
    head: str | None,
    proposed: datetime | None,
    now: datetime,
) -> Proposal:
    data, problem = _content(index, git, head, path)
    source = None
    if not problem:
        source, problem = _parsed(data, path)
    old = _read(git, base, path)[0]
    before, _ = _parsed(old, path)
    asked, unreachable = _Asked(), ""
    if source is not None:
        try:
            asked = _ask(index, source, before, settings, now)
        except (AdaptergitError, OSError) as error:
            unreachable = f"{source.url} cannot be looked at: {str(error).partition(chr(10))[0]}"
    signed, listed = frozenset[PublicKey](), dict[str, datetime]()
    if source is not None and before is not None:
        statement = change_statement(index.current_root().index, before.repository, old, data)
        signatures, _ = _content(index, git, head, f"{path}.sig")
        signed = change_signers(statement, signatures, asked.counting)
        listed = _last_seen(index, before.repository)
    listing = git.raw("ls-tree", "-r", "-z", "--name-only", "--full-tree", base, "--", "sources/").split(b"\0")
    files = {name.decode() for name in listing if name.endswith(b".yaml")}
    names = {name.removeprefix("sources/").removesuffix(".yaml") for name in files}
    others = frozenset(names - {source.repository if source else ""})
    return Proposal(
        path=path,
        data=data,
        source=source,
        problem=problem,
        before=before,
        others=others,
        kin=_kin(git, base, source, others) if source is not None and before is None else frozenset(),
        policy=index.policy(),
        announced=asked.announced,
        unreachable=unreachable,
        followed=asked.followed,
        original=_original(git, base, source),
        signed=signed,
        listed=listed,
        peers=_peers(index.policy().peers, source, settings),
        proposed=proposed,
        now=now,
    )


def _original(git: Git, base: str, source: SourceFile | None) -> SourceFile | None:
    if source is None or source.tracks is None:
        return None
    path = f"sources/{source.tracks}.yaml"
    return _parsed(_read(git, base, path)[0], path)[0]


def _kin(git: Git, base: str, source: SourceFile, others: Iterable[str]) -> frozenset[str]:
    """Return the listed sources that are called alike and have a key in common with this one."""
    mine, found = {key.public for key in source.keys}, set()
    for other in others:
        if alike(source.repository, other) is not None:
            listed, _ = _parsed(_read(git, base, f"sources/{other}.yaml")[0], other)
            if listed is not None and mine & {key.public for key in listed.keys}:
                found.add(other)
    return frozenset(found)


def _last_seen(index: IndexRepository, principal: str) -> dict[str, datetime]:
    """Return when the newest listed release that a key signed was first seen, by the fingerprints of keys that are not
    revoked."""
    revoked = parse_revocations(index.revoked(), source="revoked.jsonl")
    gone = {one.key for one in revoked if one.severity == "refuse" and one.holds_for(principal)}
    found: dict[str, datetime] = {}
    for entry in index.entries(principal):
        for fingerprint in entry.signers if entry.first_seen else ():
            if fingerprint not in gone:
                seen = when(entry.first_seen, principal)
                found[fingerprint] = max(seen, found.get(fingerprint, seen))
    return found


def _content(index: IndexRepository, git: Git, head: str | None, path: str) -> tuple[bytes, str]:
    """Return a file of the proposal, empty if there is none; and what is wrong with it."""
    return _read(git, head, path) if head is not None else _on_disk(index.root / path)


def _read(git: Git, commit: str, path: str) -> tuple[bytes, str]:
    """Return a file of a commit, empty if there is none; and what is wrong with it."""
    entry = git.text("ls-tree", "--full-tree", "--long", commit, "--", path).split()
    if not entry:
        return b"", ""
    mode, kind, oid, size = entry[:4]
    if mode != "100644" or kind != "blob":
        return b"", "a source is a plain file: no link, no folder, no submodule, no executable"
    if int(size) == 0:
        return b"", "the file is empty"
    if int(size) > MAX_BYTES:
        return b"", f"{size} bytes, the limit is {MAX_BYTES}"
    return git.raw("cat-file", "blob", oid), ""


def _on_disk(path: Path) -> tuple[bytes, str]:
    if not path.exists() and not path.is_symlink():
        return b"", ""
    if path.is_symlink() or not path.is_file():
        return b"", "a source is a plain file: no link, no folder, no submodule, no executable"
    if not 0 < path.stat().st_size <= MAX_BYTES:
        return b"", f"a source has 1 to {MAX_BYTES} bytes"
    return path.read_bytes(), ""


def _parsed(data: bytes, path: str) -> tuple[SourceFile | None, str]:
    if not data:
        return None, ""
    try:
        return SourceFile.from_yaml(data, where=path), ""
    except AdaptergitError as error:
        return None, str(error)


@dataclass(frozen=True)
class _Asked:
    """What a repository says of its keys."""

    announced: frozenset[PublicKey] | None = None
    followed: frozenset[PublicKey] = frozenset()
    """What its rotations, or the maintainers' recoveries, lead to."""
    counting: frozenset[PublicKey] = frozenset()
    """Those of the listed source, and those that came after them, that count now."""


def _ask(
    index: IndexRepository, source: SourceFile, before: SourceFile | None, settings: Settings, now: datetime
) -> _Asked:
    """Ask the repository which keys it announces, and where the old ones lead.

    Raises:
        TransportError: It cannot be reached.
        TrustError: What it announces cannot be understood.
    """
    remote = Remote.of(Source.parse(source.url), allow_http=settings.allow_http)
    text = fetch_file(remote, ".adaptergit/allowed_signers", settings.limits, most=2**18) or b""
    announced = frozenset(s.key for s in parse_allowed_signers(text.decode("utf-8", "replace"), source=source.url))
    if before is None:
        return _Asked(announced)
    beside = index.root / ".git"
    found = fetch_rotations(
        remote, settings.limits, beside=beside if beside.is_dir() else index.root, most=MAX_ROTATIONS
    )
    proofs, gone = index.proofs(source.repository), parse_revocations(index.revoked(), source="revoked.jsonl")
    kept = [proof.rotation for proof in proofs if proof.kind == "rotation"]
    change = before.follow(kept, gone, now, found=map(SignedRotation.of, found))
    keys = {signer.key for signer in change.added}
    for proof in proofs:
        if proof.kind == "recovery":
            try:
                keys |= set(check_recovery(proof.data, b"".join(proof.signatures.values()), index.current_root()).keys)
            except (TrustError, NotFoundError):
                continue
    ours = [one for one in (*gone, *change.removed) if one.holds_for(source.repository)]
    over = {one.key for one in ours if one.severity == "refuse"}
    counting = {key for key in before.counting(now) | keys if key.fingerprint not in over}
    return _Asked(announced, frozenset(keys), frozenset(counting))


def _peers(urls: Iterable[str], source: SourceFile | None, settings: Settings) -> dict[str, frozenset[str]]:
    """What other indexes list of the repository; one that cannot be asked says nothing."""
    found: dict[str, frozenset[str]] = {}
    if source is None:
        return found
    download = Download(settings.allow_http, 60.0)
    for url in urls:
        try:
            entries = check_document(download.read(url, MAX_INDEX_BYTES), url, MAX_INDEX_BYTES)
        except AdaptergitError:
            continue
        signers = {signer for entry in entries if entry.principal == source.repository for signer in entry.signers}
        found[url] = frozenset(signers)
    return found
