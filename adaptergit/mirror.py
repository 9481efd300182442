"""Mirrors: verified releases copied to where others can have them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adaptergit.durable import disk_errors
from adaptergit.errors import UsageError
from adaptergit.indexes import word_on
from adaptergit.locks import exclusively
from adaptergit.pins import known_signers
from adaptergit.progress import each
from adaptergit.reference import Source, check_no_adapter, expand
from adaptergit.resolve import Fetched, fetch, parse_reference
from adaptergit.settings import Settings, load_settings
from adaptergit.store.lockfile import read_lock
from adaptergit.store.mirror import LOCKS, MARK, Added, add_signers, add_to_mirror, begin_mirror, put_rotations
from adaptergit.trust import SignedRotation, format_signer
from adaptergit.trust.rotation import carried
from adaptergit.yanks import Answers, ask_for_yanks


@dataclass(frozen=True)
class Copied:
    """One release of a copy."""

    repository: str
    name: str
    version: str
    digest: str
    new: bool
    """False: it was there."""
    mended: bool = False
    """It was there, but not whole."""


def mirror(
    references: Iterable[str] = (),
    *,
    to: str | Path,
    lock: str | Path | None = None,
    policy: str | None = None,
    settings: Settings | None = None,
) -> list[Copied]:
    """Copy releases to another git repository, or to a folder that any web server can serve.

    Args:
        references: What to copy.
        to: URL of a git repository, or a folder (made if it is missing).
        lock: Also copy everything in this lock file.
        policy: See :func:`adaptergit.fetch`.
        settings: Default: the user's.

    Raises:
        UsageError: Nothing to copy, or a release of a local path, which names nobody.
        PackageError, ReleaseError: The mirror holds another release of a version.
        NotFoundError, TransportError, TrustError: A release cannot be had or was refused.
        StorageError: The folder cannot be written to; what is in it already is as good as before.
    """
    settings = settings or load_settings()
    if isinstance(to, str):
        check_no_adapter(to)
    found, answers = fetched_all(references, lock, policy, settings)
    if not (isinstance(to, str) and ("://" in to or ":" in to.partition("/")[0])):
        root = expand(to)
        with disk_errors("the mirror", root, "free some space, or choose another folder; then do it once more"):
            begin_mirror(root)
            # Two at once, also of two machines, would lose what one of them lists.
            with exclusively(root / LOCKS, MARK):
                return copy_to_folder(root, found, settings, answers)
    from adaptergit.git import Remote, push_copies

    remote = Remote.of(Source.named(to), allow_http=settings.allow_http)
    copies = [(one.path, one.verdict.manifest) for one in found]
    rotations = {
        principal: ([one.files() for one in listed], own)
        for principal, (listed, own) in _rotations(found, settings).items()
    }
    new = push_copies(remote, copies, _withdrawn(found, settings, answers), rotations)
    return [_copied(one, fresh) for one, fresh in zip(found, new, strict=True)]


def fetched_all(
    references: Iterable[str], lock: str | Path | None, policy: str | None, settings: Settings
) -> tuple[list[Fetched], Answers]:
    """Fetch and verify everything that is to be copied; ask what of it was withdrawn.

    Raises:
        UsageError: Nothing is to be.
    """
    named = [parse_reference(text, settings) for text in references]
    locked = [] if lock is None else [parse_reference(one.reference, settings) for one in read_lock(lock).values()]
    if not (named or locked):
        raise UsageError("there is nothing to copy", hint="name references, or a lock file: --lock adaptergit.lock")
    answers = ask_for_yanks([*named, *locked], settings)
    wanted = [*((one, None) for one in named), *((one, lock) for one in locked)]
    found = [
        fetch(one, policy=policy, lock=held, settings=settings) for one, held in each(wanted, "fetching", "releases")
    ]
    return found, answers


def copy_to_folder(root: Path, found: Sequence[Fetched], settings: Settings, answers: Answers) -> list[Copied]:
    """Add releases to a mirror in a folder, and mend those that are there.

    Raises:
        UsageError: The folder is something else.
        PackageError: The mirror holds another release of a version.
    """
    from adaptergit.git import tree_oid

    begin_mirror(root)
    for principal, (rotations, said) in _rotations(found, settings).items():
        put_rotations(root, principal, [one.line() for one in rotations], keep=not said)
    copied, signers, withdrawn = [], known_signers(settings), _withdrawn(found, settings, answers)
    for one in each(found, str(root), "releases"):
        manifest = one.verdict.manifest
        added = add_to_mirror(
            root,
            one.path,
            principal=manifest.repository,
            adapter=manifest.name,
            version=manifest.version,
            digest=one.digest,
            tree=tree_oid(one.path, len(one.tree)) if one.tree else "",  # a signature may have been added
            yanked=withdrawn.get((manifest.repository, manifest.name)),
        )
        vouched = word_on(manifest.repository, settings, offline=True).signers
        own = [
            s for s in (*signers, *vouched)
            if s.names(manifest.repository) and s.key.fingerprint in one.verdict.signers
        ]  # fmt: skip
        add_signers(root, [format_signer(replace(s, principals=(manifest.repository,))) for s in own])
        copied.append(_copied(one, added is Added.NEW, added is Added.MENDED))
    return copied


def _rotations(found: Sequence[Fetched], settings: Settings) -> dict[str, tuple[list[SignedRotation], bool]]:
    """Return what there is to know of the repositories' keys, for those who know one, and whether they said it."""
    from adaptergit.ladder import rotations_of

    made = {}
    for principal, source in {one.verdict.manifest.repository: one.reference.source for one in found}.items():
        rotations, own = rotations_of(source, settings)
        made[principal] = carried(rotations, principal), own
    return made


def _withdrawn(found: Sequence[Fetched], settings: Settings, answers: Answers) -> dict[tuple[str, str], dict[str, str]]:
    """Return why publishers have withdrawn what they have, by version, by repository and adapter."""
    from adaptergit.git import Remote, yank_reason

    marks: dict[tuple[str, str], dict[str, str]] = {}
    for one in found:
        manifest, source = one.verdict.manifest, one.reference.source
        key, versions = (manifest.repository, manifest.name), answers.get((source.publisher, manifest.name))
        if versions is not None and key not in marks:
            remote = Remote.of(source, allow_http=settings.allow_http)
            marks[key] = {v: yank_reason(remote, manifest.name, v, settings.limits) for v in sorted(versions)}
    return marks


def _copied(one: Fetched, new: bool, mended: bool = False) -> Copied:
    manifest = one.verdict.manifest
    return Copied(manifest.repository, manifest.name, manifest.version, one.digest, new, mended)
