"""Publish: a folder with weights and a card becomes a signed release in the clone's repository.

validate → pack → sign → write objects → push branch and tag in one step → let the clone follow. Until the server has
taken the push, nothing in the clone has changed.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from adaptergit.durable import scratch
from adaptergit.errors import (
    NotFoundError,
    PackageError,
    ReleaseError,
    TransportError,
    UsageError,
    counted,
    quoted,
    what_is_there,
)
from adaptergit.indexes import revoked
from adaptergit.package import (
    MANIFEST,
    Card,
    File,
    Manifest,
    canonical,
)
from adaptergit.package.names import PRINCIPAL, as_typed, needs_host
from adaptergit.package.version import check_named_version
from adaptergit.packing import Report, card_to_publish, check_weights, packed, sign_package
from adaptergit.pins import known_revocations, known_signers
from adaptergit.reference import Source, check_adapter_name, check_flags, check_needed_paths, check_no_adapter, expand
from adaptergit.settings import Limits, Settings, cache_dir, check_online, load_settings
from adaptergit.store import Store
from adaptergit.trust import (
    MANIFEST_NAMESPACE,
    AllowedSigner,
    PublicKey,
    SignedRotation,
    SigningKey,
    follow,
    parse_allowed_signers,
)
from adaptergit.trust.rotation import MAX_ROTATIONS
from adaptergit.trust.signing import unlocked

if TYPE_CHECKING:
    from adaptergit.git import Clone, Last, Plan, Remote
    from adaptergit.git.previous import Asked as Before
    from adaptergit.git.pushing import Pushed

_LOOKED_AT = 20
_ANNOUNCED = ".adaptergit/allowed_signers"


_ANOTHER = "make another key (adaptergit keygen PATH), announce it (adaptergit init), and sign with it: --key PATH"


@dataclass(frozen=True)
class Release:
    """What was, or with ``dry_run`` would be, published."""

    reference: str
    """Pinned by version and digest; ready to be loaded. In a dry run without the digest."""
    repository: str
    name: str
    version: str
    digest: str
    """sha256 of the manifest; empty in a dry run: it depends on when the manifest is made."""
    tree: str | None
    """Git tree oid; None in a dry run."""
    tag: str
    branch: str
    remote: str | None
    files: tuple[File, ...]
    signer: str
    """Fingerprint of the key; empty in a dry run without one."""
    previous: str | None
    dry_run: bool
    pull_request: str | None = None
    """Where it is opened, or, without a forge, how the branch is merged by hand; None where none was asked for."""


def publish(
    path: str | Path,
    *,
    name: str | None = None,
    version: str | None = None,
    clone: str | Path = ".",
    key: str | Path | None = None,
    cosigners: Sequence[str | Path] = (),
    remote: str | None = "origin",
    repository: str | None = None,
    pull_request: bool = False,
    model_signing_key: str | Path | None = None,
    to: str | None = None,
    dry_run: bool = False,
    report: Report = lambda _: None,
) -> Release:
    """Publish the adapter in a folder from a clone.

    Args:
        path: Folder with ``card.yaml`` and the weights. It is not changed.
        name: Adapter name; default: the card's.
        version: PEP 440 version in normal form; default: the card's.
        clone: Any folder inside the clone to publish from.
        key: Private key file, or ``.pub`` file of a key in the agent; default: :func:`default_key`.
        cosigners: More keys that sign, for users who ask for more than one.
        remote: Git remote to push to; None releases locally only.
        repository: The principal, where the remote's URL does not tell it (a bare repository on a local path).
        pull_request: Push the files to a new branch, where the branch itself is protected; the release then says
            where it is proposed. The tag is pushed all the same: it alone is the release.
        model_signing_key: PEM file of an elliptic-curve key, to sign an OpenSSF model-signing bundle too.
        to: ``hf:org/repo[/folder]``, to publish to the Hugging Face Hub instead; there is no clone then.
        dry_run: Do everything but sign, write objects and push.
        report: Called with one line per step.

    Raises:
        UsageError: A flag, the clone or the key cannot be used.
        NotFoundError: No such folder, or no such key file.
        PackageError: The folder or its card is not valid.
        TrustError: Signing failed.
        ReleaseError: The version exists or is too old, or the server refused the push.
        TransportError: The server cannot be reached.
    """
    check_needed_paths(path=path, clone=clone)
    if to is not None:
        from adaptergit.hf_publish import publish_to_hub

        if pull_request or repository is not None or (remote, Path(clone)) != ("origin", Path()):
            raise UsageError("clone, remote, repository and pull_request are not for the Hub", where=to)
        return publish_to_hub(
            path,
            to,
            name=name,
            version=version,
            key=key,
            cosigners=cosigners,
            model_signing_key=model_signing_key,
            dry_run=dry_run,
            report=report,
        )
    (release,) = publish_all(
        [path],
        name=name,
        version=version,
        clone=clone,
        key=key,
        cosigners=cosigners,
        remote=remote,
        repository=repository,
        pull_request=pull_request,
        model_signing_key=model_signing_key,
        dry_run=dry_run,
        report=report,
    )
    return release


def publish_all(
    paths: Sequence[str | Path],
    *,
    name: str | None = None,
    version: str | None = None,
    clone: str | Path = ".",
    key: str | Path | None = None,
    cosigners: Sequence[str | Path] = (),
    remote: str | None = "origin",
    repository: str | None = None,
    pull_request: bool = False,
    model_signing_key: str | Path | None = None,
    dry_run: bool = False,
    report: Report = lambda _: None,
) -> list[Release]:
    """Publish the adapters in several folders in one push: all of them, or none.

    Args:
        paths: See :func:`publish`, as everything else; ``name`` is for one folder only. Files among several are left
            out.

    Raises:
        See :func:`publish`.
    """
    from adaptergit.git import Clone, complete, last_releases, moved_on, publish_releases, rotations_in
    from adaptergit.ladder import rotations_at

    check_flags(pull_request=pull_request, dry_run=dry_run)
    sources = [Path(path) for path in paths]
    if len(sources) > 1:  # of a pattern such as out/*: a file beside the folders is no mistake
        for stray in [source for source in sources if source.is_file()]:
            report(f"note: {stray} is a file, not the folder of an adapter: left out")
            sources.remove(stray)
    if not sources or (name is not None and len(sources) > 1):
        raise UsageError(
            "one name for several adapters" if sources else "there is nothing to publish", hint="each card has a name"
        )
    cards = [card_to_publish(source, name, version) for source in sources]
    names = [card.name for card in cards]
    if twice := next((one for one in names if names.count(one) > 1), None):
        raise UsageError(f"two folders are named {twice!r}", hint="publish one version after the other")
    here = Clone.at(Path(clone))
    where = _destination(here, remote) if remote is not None else None
    proposal = f"refs/heads/publish/{names[0]}-{cards[0].version}" if pull_request else None
    target = _Target(_principal(repository, where or _origin(here)), where, remote, proposal)
    signers = signing_keys(key, cosigners, model_signing_key, dry_run=dry_run)
    asked = here.reached(where) if where else None
    complete(here, asked, [_ANNOUNCED, *(f"adapters/{one}/{MANIFEST}" for one in names)], Limits())
    if dry_run:  # what else is found out at the first commit
        here.check_identity()
    rotations = [SignedRotation.of(files) for files in rotations_in(here, MAX_ROTATIONS)]
    for one in signers:
        _check_counts(rotations, target.principal, one.public)
        check_announced(here, one)
    if _announced(here) is None:
        report("note: the repository announces no key; 'adaptergit init' does, and indexes ask for it")
    for source, card in zip(sources, cards, strict=True):
        check_weights(source, card, report)
    said = last_releases(here, names, asked, Limits())
    if said.unpushed:
        tags = " ".join(tag.removeprefix("refs/tags/") for tag in said.unpushed)
        raise ReleaseError(
            f"the release before it was never pushed: {tags}",
            where=str(here.root),
            hint=f"git push {remote} HEAD {tags}; or, if it is not to be, git tag -d {tags}",
        )
    if asked is not None and said.rotated:
        for one in signers:
            _check_counts(rotations_at(asked, Limits()), target.principal, one.public)
    if said.behind and remote is not None and proposal is None:
        for card in cards:
            said.last[card.name].check_new(card.name, card.version)  # it may be this very release that it lacks
        raise moved_on(here, remote, "publish")
    page: str | None = None
    with contextlib.ExitStack() as stack:
        drafts: list[_Draft] = []
        for source, card in zip(sources, cards, strict=True):
            folder = stack.enter_context(scratch())
            head = drafts[-1].plan.branch_commit if drafts and drafts[-1].plan else here.head
            drafts.append(
                _draft(
                    source,
                    card,
                    folder,
                    replace(here, head=head),
                    target,
                    said.last[card.name],
                    signers,
                    model_signing_key,
                    dry_run=dry_run,
                    report=report,
                )
            )
        plans = [draft.plan for draft in drafts if draft.plan is not None]
        if plans:
            if plans[0].unpushed and remote is not None:
                report(f"the push also carries {counted(plans[0].unpushed, 'unpushed commit')} of {here.branch}")
            if remote is not None:
                report(f"pushing {proposal or here.branch} and {', '.join(plan.tag for plan in plans)} to {remote}")
            # Every plan is made for the branch as it was here.
            try:
                pushed = publish_releases([replace(plan, clone=here) for plan in plans], remote, branch=proposal)
            except KeyboardInterrupt as stopped:
                if remote is not None:
                    tags = " ".join(plan.tag for plan in plans)
                    stopped.add_note(f"the server may have taken it all the same: git ls-remote {remote} {tags}")
                raise
            tags = " ".join(plan.tag for plan in plans)
            later = f"tagged, and nothing pushed; to release it: git push origin HEAD {tags}"
            report("the server has them" if remote else later)
            if proposal is not None and remote is not None:
                _check_alone(here, remote, asked, said, drafts, proposal)
                page = _proposal_page(where, remote, here.branch, proposal, pushed)
    if remote is not None and not dry_run:
        _ask_anew(where, names)
        tell_trust(target.principal, signers[0].public, report)
    return [replace(draft.release, pull_request=page) for draft in drafts]


def _check_alone(
    here: Clone, remote: str, asked: Remote | None, said: Before, drafts: Sequence[_Draft], proposal: str
) -> None:
    """Find out whether somebody else released meanwhile: no branch that both push stands in the way of a proposal.

    Raises:
        ReleaseError: Somebody did. Two releases that follow the same one are a fork, and whoever has one refuses the
            other.
    """
    from adaptergit.git import last_releases

    names = [draft.release.name for draft in drafts]
    with contextlib.suppress(TransportError):  # it was pushed all the same
        now = last_releases(here, names, asked, Limits())
        for draft in drafts:
            name, version = draft.release.name, draft.release.version
            if others := now.last[name].versions - said.last[name].versions - {version}:
                raise ReleaseError(
                    f"{name} {', '.join(sorted(others))} was released meanwhile, and follows the same release as "
                    f"{version}: whoever has one of the two will refuse the other",
                    hint=f"take yours back, and publish anew: git push {remote} :{draft.release.tag} :{proposal}",
                )


def yank(
    name: str,
    version: str,
    *,
    reason: str,
    clone: str | Path = ".",
    remote: str = "origin",
    undo: bool = False,
) -> None:
    """Withdraw a release: nobody is given it who does not name its version. The release itself stays.

    Args:
        name: Of the adapter.
        version: Of the release.
        reason: For people.
        clone: Any folder inside a clone that may push.
        remote: Git remote to push the mark to.
        undo: Take the mark away.

    Raises:
        ReleaseError: No such release, or it is (not) yanked already.
        UsageError: Not inside a clone, or credentials in the remote's address.
        TransportError: The server cannot be reached, or refuses.
    """
    from adaptergit.git import Clone, yank_release

    check_named_version(version)
    here = Clone.at(Path(clone))
    destination = _destination(here, remote)
    where = here.reached(destination)
    yank_release(here, remote, where, check_adapter_name(name), version, reason, undo=undo)
    _ask_anew(destination, [name])


def tell_trust(principal: str, key: PublicKey, report: Report) -> None:
    """Say what has to be done before the release is loaded anywhere, if it has not been done here."""
    if not any(one.key == key and one.names(principal) for one in known_signers(load_settings())):
        add = f"adaptergit trust add {as_typed(principal)} {quoted(key.line)}"
        report(f"whoever loads it says once that your key counts: {add}")


def _ask_anew(where: Source | None, names: Iterable[str]) -> None:
    """Let the next load on this machine ask: what the repository answered before is no longer so."""
    store = Store(cache_dir())
    if where is not None:
        for name in names:
            store.remember(where.publisher, name, lambda known: replace(known, asked=0.0))


@dataclass(frozen=True)
class _Target:
    """Where releases go."""

    principal: str
    where: Source | None
    remote: str | None
    branch: str | None = None
    """Pushed to instead of the clone's own."""


@dataclass(frozen=True)
class _Draft:
    """A release before the push; in a dry run without its objects."""

    release: Release
    plan: Plan | None


def principal_of(clone: Clone, remote: str, repository: str | None) -> str:
    """Return a clone's public name, to be pushed for: what was said, or what the remote's URL tells.

    Raises:
        UsageError: Neither tells it, or nothing may be pushed.
    """
    return _principal(repository, _destination(clone, remote))


def _principal(repository: str | None, where: Source | None) -> str:
    known = where.principal if where else None
    if repository is not None:
        check_no_adapter(repository)
    principal = repository or known
    if principal is None:
        raise UsageError(
            "the repository's public name is not known: there is no remote, or it is a local path",
            hint="say it with --repository host/org/repo",
        )
    if needs_host(principal) and principal != known:
        raise UsageError(f"{principal!r} names no host", hint=f"write host/org/repo: github.com/{principal}")
    if not PRINCIPAL.fullmatch(principal):
        raise UsageError(f"{principal!r} is not the public name of a repository", hint="write host/org/repo")
    return principal


def _draft(
    source: Path,
    card: Card,
    folder: Path,
    here: Clone,
    target: _Target,
    last: Last,
    signers: Sequence[SigningKey],
    model_signing_key: str | Path | None,
    *,
    dry_run: bool,
    report: Report,
) -> _Draft:
    """Validate, pack and sign one folder, and write its objects; nothing is pushed."""
    from adaptergit.git import plan_release
    from adaptergit.git.release import check_place

    last.check_new(card.name, card.version)
    _check_repository(here, last, card.name, target, report)
    previous = canonical.sha256(last.manifest) if last.manifest else None
    address = _address(target.where, target.principal)
    manifest = packed(
        source, folder, card, repository=target.principal, previous=previous, address=address, report=report
    )
    digest = "" if dry_run else canonical.sha256((folder / MANIFEST).read_bytes())
    plan = None
    if dry_run:
        check_place(here, card.name, folder, source)
        to = f"push them to {target.remote}" if target.remote else "push nothing"
        key_name = signers[0].public.fingerprint if signers else "a key you make with 'adaptergit keygen'"
        tag = f"adapters/{card.name}/{card.version}"
        report(f"dry run: would sign with {key_name}, commit to {here.branch}, tag {tag}, {to}")
    else:
        sign_package(folder, card, signers, model_signing_key, report)
        plan = plan_release(here, folder, card.name, card.version, source=source)
    release = Release(
        reference=f"{address}@{card.name}=={card.version}{f'#sha256:{digest}' if digest else ''}",
        repository=target.principal,
        name=card.name,
        version=card.version,
        digest=digest,
        tree=plan.tree if plan else None,
        tag=f"refs/tags/adapters/{card.name}/{card.version}",
        branch=target.branch or here.branch,
        remote=target.remote,
        files=manifest.files,
        signer=signers[0].public.fingerprint if signers else "",
        previous=previous,
        dry_run=dry_run,
    )
    return _Draft(release, plan)


def _check_repository(here: Clone, last: Last, name: str, target: _Target, report: Report) -> None:
    """Refuse another public name than that of the release before: whoever trusts that would refuse this one.

    Where it is the remote's own URL that says so, the repository has moved.

    Raises:
        ReleaseError: It is another one, and only ``repository`` says so.
    """
    if last.manifest is None and (others := _repositories(here.root / "adapters") - {target.principal}):
        report(f"note: other releases here are of {', '.join(sorted(others))}, this one is of {target.principal}")
    before = Manifest.from_bytes(last.manifest).repository if last.manifest else target.principal
    if before == target.principal:
        return
    if target.where is None or target.where.principal != target.principal:
        raise ReleaseError(
            f"{name} {last.newest} is of {before}, and this release would be of {target.principal}",
            hint=f"--repository {before}; if the repository moved, let the remote's URL say so (git remote set-url)",
        )
    report(f"note: {name} was of {before} so far: whoever trusts that has to trust {target.principal} anew")


def _repositories(folder: Path) -> set[str]:
    """Return whose the releases in a clone are, as far as some of its files say so: there may be very many."""
    found = set()
    for path in itertools.islice(folder.glob(f"*/{MANIFEST}"), _LOOKED_AT):
        with contextlib.suppress(PackageError, OSError):
            found.add(Manifest.from_bytes(path.read_bytes()).repository)
    return found


def default_key(settings: Settings | None = None) -> Path | None:
    """Return the key that the settings name, or else the one that ``adaptergit keygen`` makes, if it exists."""
    settings = settings or load_settings()
    path = settings.signing_key_path
    return path if settings.signing_key is not None or path.is_file() else None


def _address(where: Source | None, principal: str) -> str:
    """What people load it from: the short name where https and the usual ports lead there, else the URL itself."""
    if where is not None and where.principal is None:  # a folder, or file://: no name leads there
        return where.text
    if where is None or where.kind == "hosted" or where.principal != principal:
        return principal
    parts = urlsplit(where.url)
    usual = where.kind == "scp" or (parts.scheme == "https" and parts.port in (None, 443))
    return principal if usual else where.text


def _check_counts(rotations: Sequence[SignedRotation], principal: str, public: PublicKey) -> None:
    """Sign with no key that users refuse: one that was revoked here or by an index, or replaced by a rotation.

    Raises:
        ReleaseError: It is one.
    """
    settings = load_settings()
    known, revocations = known_signers(settings), [*known_revocations(settings), *revoked(settings)]
    itself = AllowedSigner((principal,), public, (MANIFEST_NAMESPACE,))
    change = follow(rotations, principal, [itself], (), datetime.now(UTC))
    refusing = [one for one in (*revocations, *change.removed) if one.severity == "refuse"]
    for one in refusing:
        if one.speaks_of(public.fingerprint, principal):
            gone = {other.key for other in refusing if other.holds_for(principal)}
            counting = {each.key.fingerprint for each in (*known, *change.added) if each.names(principal)} - gone
            named = ", ".join(sorted(counting))
            hint = f"name the file of a key that counts with --key: the one of {named}" if named else _ANOTHER
            if one in change.removed:
                hint += f"\nif that rotation was taken back: git tag -d adapters-rotations/{change.path[-1].mark}"
            raise ReleaseError(f"the key {public.fingerprint} is {one}: users would refuse the release", hint=hint)


def check_announced(clone: Clone, signer: SigningKey) -> None:
    """A repository that says which keys sign for it is not signed for by another: users would refuse the release.

    Raises:
        ReleaseError: The key is not among those that are announced.
    """
    announced = _announced(clone)
    if announced is not None and signer.public not in {
        s.key for s in parse_allowed_signers(announced, source=_ANNOUNCED)
    }:
        at = "" if clone.root == Path.cwd() else f" --repo {quoted(clone.root)}"
        raise ReleaseError(
            f"the key {signer.public.fingerprint} is not among those the repository announces",
            where=str(clone.root / _ANNOUNCED),
            hint="sign with an announced key (--key); with one of those, this one is added by: "
            f"adaptergit rotate --keep {signer.path}{at}; before the first release: "
            f"adaptergit init --key {signer.path}{at}",
        )


def _announced(clone: Clone) -> str | None:
    path = clone.root / _ANNOUNCED
    if path.is_file():
        return path.read_text("utf-8")
    committed = clone.read(_ANNOUNCED)  # a sparse clone does not check it out
    return None if committed is None else committed.decode("utf-8", "replace")


def _proposal_page(where: Source | None, remote: str, into: str, branch: str, pushed: Pushed | None) -> str:
    """Where the pull request is opened: forges answer a push with it. Without a forge, the branch is merged by hand."""
    from adaptergit.web.forges import PullRequest, kind_of, page_for

    base, head = into.removeprefix("refs/heads/"), branch.removeprefix("refs/heads/")
    if where is not None and where.principal is not None:
        host = where.principal.partition("/")[0]
        if pushed is not None and (told := pushed.address(host)) is not None:
            return told
        if (kind := kind_of(where.url)) is not None:
            return page_for(PullRequest(where.url, head, base, "", ""), kind)
    return f"git fetch {remote} and git merge {remote}/{head}, in a clone that may push to {base}"


def _destination(clone: Clone, remote: str) -> Source:
    """Return where pushes to a remote go, if they may go there."""
    where = push_source(clone.remote_url(remote), clone.root)
    if clone.reached(where).protocols != ("file",):
        check_online(where.url)
    return where


def _origin(clone: Clone) -> Source | None:
    """Return where releases that are not pushed yet will go, if that is known: it names the repository."""
    with contextlib.suppress(UsageError):
        return push_source(clone.remote_url("origin"), clone.root)
    return None


def push_source(url: str, root: Path) -> Source:
    """Return what a remote's URL names, seen from a clone.

    Raises:
        UsageError: It is no URL, nor a folder.
    """
    path = expand(url)
    if "://" not in url and (path.is_absolute() or (root / path).exists()):  # else host:path, as ssh is written
        return Source.parse((root / path).resolve().as_uri())
    return Source.named(url)


def signing_keys(
    key: str | Path | None, cosigners: Sequence[str | Path], model_signing_key: str | Path | None, *, dry_run: bool
) -> list[SigningKey]:
    """Open every key to sign with, the publisher's own first; a dry run needs none.

    Raises:
        UsageError: There is none to sign with.
        NotFoundError: One is not there.
        TrustError: In a dry run, which does not sign: ``ssh-keygen`` cannot use one.
    """
    if model_signing_key is not None and not expand(model_signing_key).is_file():
        raise NotFoundError(
            "no such key file", where=str(model_signing_key), hint=what_is_there(expand(model_signing_key))
        )
    signer = None if dry_run and key is None and default_key() is None else signing_key(key)
    signers = [*((signer,) if signer else ()), *(signing_key(path) for path in cosigners)]
    for one in signers if dry_run else ():
        if one.path.suffix != ".pub":
            unlocked(one.path)
    return signers


def signing_key(key: str | Path | None) -> SigningKey:
    """Open the key to sign with; default: :func:`default_key`.

    Raises:
        UsageError: There is none.
        NotFoundError: No such file.
    """
    path = Path(key) if key is not None else default_key()
    if path is None:
        raise UsageError("there is no signing key", hint="make one with 'adaptergit keygen', or name one with --key")
    return SigningKey.open(path)


__all__ = ["Release", "ReleaseError", "default_key", "publish", "publish_all", "yank"]
