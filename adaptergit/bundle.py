"""Bundles: one file that carries verified releases, and what is said of them, to a machine without network.

A tar file (``store/bundle.py``) of a static mirror (``store/mirror.py``), and beside it::

    allowed_signers              keys of the publishers
    revoked.jsonl                which of these keys no longer count, and since when
    indexes/<name>/…             what indexes say of these publishers: signed documents, and their shards
    indexes/<name>/url           where the index is
"""

from __future__ import annotations

import tarfile
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from packaging.specifiers import SpecifierSet

from adaptergit.durable import disk_errors, replace_file
from adaptergit.errors import AdaptergitError, AdaptergitWarning, NotFoundError, PackageError, TrustError, UsageError
from adaptergit.git import check_tree
from adaptergit.index.carry import add_carried, copy_index, take_news
from adaptergit.indexes import client, word_on
from adaptergit.judge import Asked, take_over, verified
from adaptergit.mirror import Copied, copy_to_folder, fetched_all
from adaptergit.package.names import is_allowed
from adaptergit.pins import all_remembered, known_revocations, known_signers, remember
from adaptergit.progress import tell
from adaptergit.reference import Reference, Source, check_adapter_name, expand
from adaptergit.settings import Settings, cache_dir, load_settings
from adaptergit.store import Known, Store
from adaptergit.store.bundle import INDEXES, REVOKED, pack, unpack
from adaptergit.store.mirror import SIGNERS, Mirrored, Shelf, parse_listing, rotations_path
from adaptergit.trust import (
    AllowedSigner,
    Revocation,
    SignedRotation,
    Verdict,
    parse_allowed_signers,
    parse_revocations,
)
from adaptergit.trust.rotation import parse_rotations
from adaptergit.yanks import noted


def export_bundle(
    file: str | Path,
    references: Iterable[str] = (),
    *,
    lock: str | Path | None = None,
    policy: str | None = None,
    settings: Settings | None = None,
) -> list[Copied]:
    """Write releases to one file, with their publishers' keys, as far as the user knows them, and the indexes' news.

    An index that cannot be asked now is left out, with a warning.

    Args:
        file: A new tar file; an existing tar file is replaced.
        references: See :func:`mirror`, as ``lock``, ``policy`` and ``settings``.

    Raises:
        See :func:`mirror`.
        UsageError: There is no such folder to write to, or the file is one, or holds something else.
        StorageError: The file cannot be written; one that was there is as it was.
    """
    settings = settings or load_settings()
    file = expand(file)
    if file.is_dir():
        raise UsageError("this is a folder", where=str(file), hint="name a file: adapters.tar")
    if file.is_file() and file.stat().st_size and not tarfile.is_tarfile(file):
        raise UsageError("there is a file that is no bundle", where=str(file), hint="name another file: adapters.tar")
    if not file.resolve().parent.is_dir():
        raise UsageError("there is no such folder", where=str(file.parent), hint="make it, or name a file elsewhere")
    found, answers = fetched_all(references, lock, policy, settings)
    with (
        disk_errors("the bundle", file, "free some space, or name a file elsewhere"),
        tempfile.TemporaryDirectory(dir=file.resolve().parent, prefix=f".{file.name}.") as folder,
    ):
        root = Path(folder) / "bundle"
        copied = copy_to_folder(root, found, settings, answers)
        _add_revocations(root, settings)
        _add_indexes(root, {one.repository for one in copied}, settings)
        packed = Path(folder) / "packed"
        pack(root, packed)
        packed.replace(file)
    return copied


def import_bundle(
    file: str | Path,
    *,
    trust_keys: bool = False,
    index_root: str | None = None,
    policy: str | None = None,
    settings: Settings | None = None,
) -> list[Copied]:
    """Verify the releases of a bundle and put them into the store, all or none; nothing is asked of any network.

    What indexes that were added say, and the bundle brings, is taken over first: it may revoke a key or a release.

    Args:
        file: From :func:`export_bundle`.
        trust_keys: Also pin the keys in it: whoever gave you the bundle then says who may sign.
        index_root: Also add the index in it that has the root with this digest, ``sha256:…``.
        policy: See :func:`adaptergit.fetch`.
        settings: Default: the user's.

    Raises:
        NotFoundError: No such file.
        PackageError: Not a bundle, or not all of one, or a package in it is not what its manifest says.
        TrustError: A release was refused.
    """
    settings = settings or load_settings()
    file = expand(file)
    store = Store(cache_dir())
    with store.workspace() as folder:
        unpack(file, folder, settings.limits)
        listed = _listed(folder)
        if not any(shelf.releases for _, _, shelf in listed):
            raise PackageError("the bundle holds no releases", where=str(file))
        principals = {principal for principal, _, _ in listed}
        known = {one.name for one in client(settings).subscriptions()}
        try:
            with _undone(store) as takes_in:
                if index_root is not None:
                    takes_in.undo.append(lambda: _drop_index(index_root, known, settings))
                _take_indexes(folder, principals, index_root, settings)
                brings_keys = trust_keys and (folder / SIGNERS).is_file()
                brought = _brought(folder / SIGNERS, principals) if brings_keys else []
                revoked = _revoked(folder / REVOKED, brought)
                copied, verdicts = _all_in(folder, listed, takes_in, brought, policy, settings)
                with all_remembered(settings):  # only after everything in it was accepted
                    remember(settings, brought, revoked)
                    for verdict in verdicts:
                        take_over(verdict, settings)
        except TrustError as error:
            brings = (folder / SIGNERS).is_file() and (folder / SIGNERS).stat().st_size > 0
            if not trust_keys and "nobody you know" in error.what and brings:
                error.hint = f"{error.hint}\n        or take the bundle's word for whose it is: --trust-keys"
            raise
        return copied


def _brought(path: Path, principals: set[str]) -> list[AllowedSigner]:
    """Read the keys of the publishers in the bundle, and of nobody else: no glob, no other name."""
    try:
        signers = parse_allowed_signers(path.read_text("utf-8"), source=SIGNERS)
    except (UnicodeDecodeError, OSError) as error:
        raise PackageError("not a file of keys", where=SIGNERS) from error
    for signer in signers:
        if not set(signer.principals) <= principals or any(set(name) & set("*?!,") for name in signer.principals):
            raise PackageError(
                f"the bundle wants a key to sign for {', '.join(signer.principals)}, of whom it holds nothing",
                where=SIGNERS,
            )
    return signers


def _listed(folder: Path) -> list[tuple[str, str, Shelf]]:
    """Return principal, adapter and what there is of it."""
    root, found = folder / "releases", []
    for path in sorted(path for path in root.rglob("*.json") if path.is_file()):
        principal, where = path.parent.relative_to(root).as_posix(), path.relative_to(folder).as_posix()
        try:
            _source(principal)
            check_adapter_name(path.stem)
        except UsageError as error:
            raise PackageError(f"this is the place of no adapter: {error.what}", where=where) from error
        found.append((principal, path.stem, parse_listing(path.read_bytes(), where)))
    return found


def _source(principal: str) -> Source:
    return Source.parse(f"https://{principal}.git")


def _all_in(
    folder: Path,
    listed: Sequence[tuple[str, str, Shelf]],
    takes_in: _Undoing,
    brought: Sequence[AllowedSigner],
    policy: str | None,
    settings: Settings,
) -> tuple[list[Copied], list[Verdict]]:
    """Verify everything, one after the other: what came first is the history of what comes next."""
    copied, verdicts = [], []
    signers = [*known_signers(settings), *brought]
    total = sum(len(shelf.releases) for _, _, shelf in listed)
    for principal, adapter, shelf in listed:
        source = _source(principal)
        word, rotations = word_on(principal, settings, offline=True), partial(_rotations, folder, principal)
        for release in shelf.releases:
            where = f"{principal}@{adapter}"
            package = folder / "packages" / release.manifest_sha256
            if not package.is_dir() or not all(is_allowed(path.name) for path in package.iterdir()):
                raise PackageError(f"the package {release.manifest_sha256} is missing", where=where)
            exact = SpecifierSet(f"=={release.version}")
            reference = Reference(source, check_adapter_name(adapter), exact, release.manifest_sha256)
            # Who makes a bundle does not say whose the repository is, unless he is believed: --trust-keys.
            asked = Asked(
                settings, policy, reference, release.version, tuple(signers), rotations, word, first_use=False
            )
            verdict, _ = verified(package, asked)
            check_tree(package, release.tree, where)
            signers += verdict.change.added
            vouched = verdict.level != "unsigned"
            new = takes_in.package(package, release, source, adapter, settings, vouched=vouched)
            verdicts.append(verdict)
            copied.append(Copied(principal, adapter, release.version, release.manifest_sha256, new))
            tell("the bundle", len(copied), total, "releases")
        takes_in.yanks(source, adapter, shelf)
    return copied, verdicts


def _rotations(folder: Path, principal: str) -> list[SignedRotation]:
    """Read what the bundle says of a repository's keys: the keys before them say it."""
    path = folder / rotations_path(principal)
    return parse_rotations(path.read_bytes(), rotations_path(principal)) if path.is_file() else []


class _Undoing:
    """Puts packages into the store, and takes back what it did if something goes wrong later."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.undo: list[Callable[[], None]] = []

    def package(
        self, package: Path, release: Mirrored, source: Source, adapter: str, settings: Settings, *, vouched: bool
    ) -> bool:
        """Store a package that was verified; return whether it was new."""
        digest = release.manifest_sha256
        new = self.store.find(digest) is None
        with self.store.workspace() as work:  # the store takes the folder away; a release may be listed by two names
            inner = work / "package"
            inner.mkdir()
            for path in package.iterdir():
                (inner / path.name).write_bytes(path.read_bytes())
            if new:
                self.undo.append(lambda: self.store.remove(digest))
            self.store.add(inner, settings.limits)

        def seeing(known: Known) -> Known:
            seen = known.fetched.get(release.version)
            tree = seen.tree if seen is not None and seen.digest == digest and seen.vouched >= vouched else release.tree
            return known.seeing(release.version, digest, tree, vouched=vouched)

        self._remember(source, adapter, seeing)
        return new

    def yanks(self, source: Source, adapter: str, shelf: Shelf) -> None:
        """Remember what the bundle says was withdrawn."""

        def marked(known: Known) -> Known:
            for version in shelf.yanked:
                known = noted(known, version, True, own=False)
            return known

        self._remember(source, adapter, marked)

    def _remember(self, source: Source, adapter: str, change: Callable[[Known], Known]) -> None:
        before = self.store.known(source.publisher, adapter)
        after = self.store.remember(source.publisher, adapter, change)

        def undo() -> None:  # what somebody else saw meanwhile stays
            self.store.remember(source.publisher, adapter, lambda now: before if now == after else now)

        self.undo.append(undo)


@contextmanager
def _undone(store: Store) -> Iterator[_Undoing]:
    doing = _Undoing(store)
    try:
        yield doing
    except BaseException:
        for step in reversed(doing.undo):
            with suppress(OSError, AdaptergitError):  # the others all the same
                step()
        raise


def _add_revocations(root: Path, settings: Settings) -> None:
    """Write down which of the keys that go along no longer count for everything."""
    path = root / SIGNERS
    signers = parse_allowed_signers(path.read_text("utf-8"), source=SIGNERS) if path.is_file() else []
    keys = {signer.key.fingerprint for signer in signers}
    lines = [one.line() for one in known_revocations(settings) if one.key in keys]
    if lines:
        replace_file(root / REVOKED, "".join(f"{line}\n" for line in lines).encode())


def _revoked(path: Path, brought: Sequence[AllowedSigner]) -> list[Revocation]:
    """Read which of the keys that are to be pinned no longer count for everything; elsewhere, a bundle says nothing."""
    found = parse_revocations(path.read_bytes(), source=REVOKED) if path.is_file() else []
    return [
        replace(one, repository=name)
        for one in found
        for name in sorted({n for s in brought if s.key.fingerprint == one.key for n in s.principals})
        if one.holds_for(name)
    ]


def _add_indexes(root: Path, principals: set[str], settings: Settings) -> None:
    indexes = client(settings)
    for one in {one.name: one for principal in sorted(principals) for one in indexes.speaks_for(principal)}.values():
        folder = root / INDEXES / one.name
        try:
            if copy_index(indexes.opened(one), principals, folder):
                replace_file(folder / "url", one.url.encode())
        except AdaptergitError as error:
            _warn(f"the bundle holds no news of the index {one.name}: {error.what}")


def _take_indexes(folder: Path, principals: set[str], index_root: str | None, settings: Settings) -> None:
    indexes = client(settings)
    carried = sorted(path for path in (folder / INDEXES).glob("*") if path.is_dir())
    if index_root is not None and not any(add_carried(indexes, path, index_root) for path in carried):
        raise NotFoundError(
            f"the bundle holds no index with the root {index_root}",
            hint=None if carried else "export it where that index is added",
        )
    for path in carried:
        for one in indexes.subscriptions():
            try:
                take_news(indexes, one, path, principals)
            except AdaptergitError as error:
                _warn(f"what the bundle brings of the index {one.name} is not taken over: {error.what}")


def _drop_index(root: str, known: set[str], settings: Settings) -> None:
    """Take back the index that was added, and none that somebody else added meanwhile."""
    indexes = client(settings)
    for one in indexes.subscriptions():
        if one.name not in known and one.root == root.removeprefix("sha256:"):
            indexes.remove(one.name)


def _warn(text: str) -> None:
    warnings.warn_explicit(text, AdaptergitWarning, __file__, 1, registry={})
