"""Submit: propose a repository as a source of an index, from the publisher's own clone.

The source file is written, checked with the rules that the index's CI uses, committed on a branch of its own, pushed
and proposed. Nothing of the index is checked out; only commits are read and written.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from adaptergit.errors import ReleaseError, TransportError, UsageError
from adaptergit.git import Clone, Git
from adaptergit.index.changes import CHANGE_NAMESPACE, change_statement
from adaptergit.index.propose import check_change
from adaptergit.index.repository import IndexRepository
from adaptergit.index.sources import SourceFile, SourceKey, retired
from adaptergit.prepare import replaced_keys
from adaptergit.publish import principal_of, signing_key
from adaptergit.reference import Source, expand
from adaptergit.settings import load_settings
from adaptergit.trust import parse_allowed_signers, sign
from adaptergit.web.download import Download
from adaptergit.web.forges import PullRequest, kind_of, open_pull_request, page_for

_PROTOCOLS = ("https", "http", "ssh", "file")
_PARTS = ("policy.yaml", "revoked.jsonl", "roots")
TOKEN = "ADAPTERGIT_FORGE_TOKEN"  # noqa: S105 - the name of a variable


@dataclass(frozen=True)
class Submitted:
    """What was proposed."""

    source: SourceFile
    branch: str
    address: str
    """Of the pull request, or of the page that opens it; empty in a dry run."""
    opened: bool
    """Whether the forge has opened it."""


def submit(
    index: str,
    *,
    clone: str | Path = ".",
    keys: Sequence[str | Path] = (),
    sign_with: Sequence[str | Path] = (),
    threshold: int | None = None,
    mirrors: Sequence[str] | None = None,
    contact: str | None = None,
    tracks: str | None = None,
    remote: str = "origin",
    repository: str | None = None,
    url: str | None = None,
    fork: str | None = None,
    forge: str | None = None,
    dry_run: bool = False,
    report: Callable[[str], None] = lambda _: None,
) -> Submitted:
    """Propose the repository of a clone to an index.

    Args:
        index: URL of the index's git repository.
        clone: Any folder inside the publisher's clone.
        keys: Public keys to enrol; default: those that ``.adaptergit/allowed_signers`` announces, else the signing key.
        sign_with: Keys that sign a change of a source that is listed, as many as sign its releases; default: ``keys``,
            else the signing key.
        threshold: How many different keys sign each release; default: as it is listed, else 1.
        mirrors: Where else the releases are; default: as it is listed, else nowhere.
        contact: For the maintainers; default: as it is listed, else git's ``user.email``.
        tracks: The repository (``host/org/repo``) that this one is a copy of; default: as it is listed, else none.
        remote: Git remote of the clone.
        repository: The principal, where the remote's URL does not tell it.
        url: What people fetch from; default: https at the principal, or the remote's URL.
        fork: URL of your fork of the index, where you may not push to the index itself.
        forge: ``github``, ``gitlab`` or ``gitea``; default: from the host's name.
        dry_run: Check, and push nothing.
        report: Called with one line per step.

    Raises:
        UsageError: Not a clone, no key, or none that signs a change.
        ReleaseError: A rule of the index is broken, or the forge refuses. Nothing was pushed, or, if the forge refused,
            the branch was.
        TransportError: The index or the repository cannot be reached.
    """
    settings = load_settings()
    # Git is started elsewhere, where a relative path means something else.
    index, fork = _found_anywhere(index), _found_anywhere(fork) if fork is not None else None
    here = Clone.at(Path(clone))
    principal = principal_of(here, remote, repository)
    with tempfile.TemporaryDirectory(prefix="adaptergit-submit-") as folder:
        target = _bring(index, principal, Path(folder))
        data = target.read(f"sources/{principal}.yaml")
        before = None if data is None else SourceFile.from_yaml(data, where=f"sources/{principal}.yaml")
        source = SourceFile(
            principal,
            url or _public_url(here.remote_url(remote), principal),
            tuple(_keys(here, keys)),
            contact or (before.contact if before else _contact(here)),
            threshold or (before.threshold if before else 1),
            tuple(mirrors) if mirrors is not None else before.mirrors if before else (),
            tracks or (before.tracks if before else None),
        )
        if before is not None:
            source = _continued(source, before)
        elif gone := sorted(replaced_keys(here)):
            report(f"note: releases signed by {', '.join(gone)}, which a rotation replaced, will not be listed")
        SourceFile.from_yaml(source.to_yaml(), where=source.path)  # as strictly as the index will read it
        if source == before:
            raise ReleaseError(
                f"the index lists {principal} exactly so already", where=index, hint="there is nothing to propose"
            )
        title = f"{'Add' if before is None else 'Change'} {principal}"
        commit = _commit(target, source, title, Path(folder), _signed(target, source, data, sign_with or keys))
        report(f"{'would write' if dry_run else 'wrote'} {source.path}")
        checked = check_change(IndexRepository(target.root), settings, base=target.head or "HEAD", head=commit)
        if not checked.passed:
            said = "\n".join(f"  {rule}: {why}" for broken in checked.problems.values() for rule, why in broken)
            raise ReleaseError(
                f"the index would refuse this:\n{said}",
                where=index,
                hint="nothing was sent: mend what the rules name, and propose again"
                + ("" if url else f"; if people fetch from elsewhere than {source.url}: --url"),
            )
        report("it keeps every rule of the index")
        branch = f"add-{re.sub(r'[^a-z0-9]+', '-', principal.casefold()).strip('-')}"
        if dry_run:
            return Submitted(source, branch, "", False)
        target.git.text("push", "--quiet", "--", fork or index, f"+{commit}:refs/heads/{branch}", protocols=_PROTOCOLS)
        report(f"pushed {branch} to {fork or index}")
        return _propose(index, fork, forge, source, title, target, branch, settings.allow_http)


def _found_anywhere(address: str) -> str:
    folder = expand(address)
    return str(folder.resolve()) if address and folder.is_dir() else address


def _propose(
    index: str,
    fork: str | None,
    forge: str | None,
    source: SourceFile,
    title: str,
    target: Clone,
    branch: str,
    allow_http: Sequence[str],
) -> Submitted:
    body = f"Source: {source.url}\n\nKeys: {', '.join(key.public.fingerprint for key in source.keys)}\n"
    one = PullRequest(index, branch, target.branch.removeprefix("refs/heads/"), title, body, fork)
    kind = forge or kind_of(index)
    if kind is not None and (token := _token(index)) is not None:
        return Submitted(source, branch, open_pull_request(one, kind, token, Download(allow_http, 120.0)), True)
    return Submitted(source, branch, page_for(one, kind), False)


def _bring(index: str, principal: str, folder: Path) -> Clone:
    """Clone the index without checking it out; only what the rules look at is written to files."""
    Source.named(index)  # no options, no helpers
    git = Git(folder, trusted=True)
    try:
        git.text("clone", "--quiet", "--no-checkout", "--depth=1", "--", index, "index", protocols=_PROTOCOLS)
    except TransportError as error:
        raise TransportError(error.what, where=index, hint=error.hint) from error
    root = folder / "index"
    inner = Git(root, trusted=True)
    try:
        clone = Clone(root, inner, inner.text("symbolic-ref", "HEAD"), inner.text("rev-parse", "--verify", "HEAD"))
    except TransportError as error:
        what = "the repository is empty, or its HEAD names a branch that is not there"
        hint = "push a branch; in a bare repository, git symbolic-ref HEAD refs/heads/main names another one"
        raise UsageError(what, where=index, hint=hint) from error
    if not inner.text("ls-tree", "--full-tree", "HEAD", "--", "roots"):
        raise UsageError("this is not an index: it has no roots", where=index, hint="give the URL of an index")
    parts = (*_PARTS, f"entries/{principal}.jsonl", f"rotations/{principal}.jsonl")
    for entry in inner.raw("ls-tree", "-r", "-z", "--full-tree", "HEAD", "--", *parts).split(b"\0"):
        fields, _, name = entry.partition(b"\t")
        path = name.decode("utf-8", "replace")
        if fields.startswith(b"100644") and ".." not in path:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(inner.raw("cat-file", "blob", fields.split()[2].decode()))
    return clone


def _continued(source: SourceFile, before: SourceFile) -> SourceFile:
    """Carry over what the index has of a source: what people do not say again, and keys that were replaced."""
    now = datetime.now(UTC).replace(microsecond=0)
    known = {key.public: key for key in before.keys}
    mine = tuple(replace(known.get(key.public, key), comment=key.comment) for key in source.keys)
    # What the index saw from keys that were replaced stays, nothing new by them is taken.
    kept = tuple(retired(key, now) for key in before.keys if key.public not in {key.public for key in mine})
    return replace(source, since=before.since, homepage=before.homepage, keys=(*mine, *kept))


def _signed(target: Clone, source: SourceFile, before: bytes | None, keys: Sequence[str | Path]) -> bytes | None:
    """Sign the change of a source that is listed; a new one proves itself by the keys its repository announces."""
    if before is None:
        return None
    name = IndexRepository(target.root).current_root().index
    statement = change_statement(name, source.repository, before, source.to_yaml())
    opened = dict.fromkeys([signing_key(key) for key in keys] or [signing_key(None)])
    return b"".join(sign(statement, key, namespace=CHANGE_NAMESPACE) for key in opened)


def _commit(target: Clone, source: SourceFile, title: str, folder: Path, signatures: bytes | None) -> str:
    """Write the proposal as a commit."""
    files = {source.path: source.to_yaml()} | ({} if signatures is None else {source.signature_path: signatures})
    tree = target.head
    for path, data in files.items():
        file = folder / "file"
        file.write_bytes(data)
        (oid,) = target.store_files({"file": file}).values()
        tree = replace(target, head=tree).replace(path, "blob", oid)
    return target.commit(tree or "", title, [target.head] if target.head else [])


def _keys(here: Clone, keys: Sequence[str | Path]) -> list[SourceKey]:
    if keys:
        return [SourceKey(signing_key(path).public) for path in keys]
    announced = here.read(".adaptergit/allowed_signers")
    if announced is None:
        raise UsageError(
            "the repository announces no key",
            where=str(here.root),
            hint="adaptergit init, then commit and push .adaptergit/allowed_signers",
        )
    signers = parse_allowed_signers(announced.decode("utf-8"), source=".adaptergit/allowed_signers")
    return [SourceKey(signer.key, signer.comment) for signer in signers]


def _public_url(url: str, principal: str) -> str:
    """What everybody can fetch from: of an ssh address, https at the same place."""
    source = Source.parse(url)
    return f"https://{principal}.git" if source.kind == "scp" or urlsplit(source.url).scheme == "ssh" else source.url


def _contact(here: Clone) -> str:
    try:
        return here.git.text("config", "--get", "user.email")
    except TransportError as error:
        raise UsageError("nobody to contact", hint="--contact you@example.org") from error


def _token(url: str) -> str | None:
    """A token for the forge: from the environment, ``~/.netrc``, or git's credential helper, in this order."""
    if token := os.environ.get(TOKEN):
        return token
    from requests.utils import get_netrc_auth

    parts = urlsplit(url)
    if parts.scheme not in ("https", "http"):
        return None
    found = get_netrc_auth(url)
    if found is not None:
        return str(found[1])
    with tempfile.TemporaryFile() as wanted:
        wanted.write(f"protocol={parts.scheme}\nhost={parts.netloc}\n\n".encode())
        wanted.seek(0)
        try:
            said = Git(Path.cwd(), trusted=True).text("credential", "fill", stdin=wanted)
        except TransportError:
            return None
    lines = dict(line.partition("=")[::2] for line in said.splitlines())
    return lines.get("password") or None
