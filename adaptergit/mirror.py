"""Mirrors and bundles: verified releases copied to where others, or a machine without network, can have them."""

from __future__ import annotations

import errno
import tarfile
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from adaptergit.errors import NotFoundError, PackageError, TrustError, UsageError
from adaptergit.package.names import is_allowed
from adaptergit.pins import add_pin, known_signers
from adaptergit.reference import Reference, Source, check_adapter_name, expand
from adaptergit.resolve import Fetched, fetch, parse_reference, verify
from adaptergit.settings import Settings, cache_dir, load_settings
from adaptergit.store import Seen, Store
from adaptergit.store.lockfile import read_lock
from adaptergit.store.mirror import MARK, SIGNERS, Mirrored, add_signers, add_to_mirror, parse_listing
from adaptergit.trust import AllowedSigner, format_signer, parse_allowed_signers
from adaptergit.yanks import Answers, ask_for_yanks

_MAX_BUNDLE_FILES = 100_000
_PARTS = ("releases", "packages")


@dataclass(frozen=True)
class Copied:
    """One release of a copy."""

    repository: str
    name: str
    version: str
    digest: str
    new: bool
    """False: it was there."""


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
    """
    settings = settings or load_settings()
    found, answers = _fetched(references, lock, policy, settings)
    if not (isinstance(to, str) and ("://" in to or ":" in to.partition("/")[0])):
        return _to_folder(expand(to), found, settings, answers)
    from adaptergit.git import Remote, push_copies

    remote = Remote.of(Source.parse(to), allow_http=settings.allow_http)
    copies = [(one.path, one.verdict.manifest) for one in found]
    new = push_copies(remote, copies, _withdrawn(found, settings, answers))
    return [_copied(one, fresh) for one, fresh in zip(found, new, strict=True)]


def export_bundle(
    file: str | Path,
    references: Iterable[str] = (),
    *,
    lock: str | Path | None = None,
    policy: str | None = None,
    settings: Settings | None = None,
) -> list[Copied]:
    """Write releases with their publishers' keys, as far as the user knows them, to one file.

    Args:
        file: A new tar file; an existing one is replaced.
        references: See :func:`mirror`, as ``lock``, ``policy`` and ``settings``.

    Raises:
        See :func:`mirror`.
    """
    settings = settings or load_settings()
    found, answers = _fetched(references, lock, policy, settings)
    file = expand(file)
    with tempfile.TemporaryDirectory(dir=file.resolve().parent, prefix=f".{file.name}.") as folder:
        root = Path(folder) / "bundle"
        copied = _to_folder(root, found, settings, answers)
        packed = Path(folder) / "packed"
        with tarfile.open(packed, "w") as archive:
            for path in sorted(path for path in root.rglob("*") if path.is_file()):
                archive.add(path, path.relative_to(root).as_posix(), recursive=False, filter=_anonymous)
        packed.chmod(0o644)
        packed.replace(file)
    return copied


def import_bundle(
    file: str | Path,
    *,
    trust_keys: bool = False,
    policy: str | None = None,
    settings: Settings | None = None,
) -> list[Copied]:
    """Verify the releases of a bundle and put them into the store; nothing is asked of any network.

    Args:
        file: From :func:`export_bundle`.
        trust_keys: Also pin the keys in it: whoever gave you the bundle then says who may sign.
        policy: See :func:`adaptergit.fetch`.
        settings: Default: the user's.

    Raises:
        NotFoundError: No such file.
        PackageError: Not a bundle, or a package in it is not what its manifest says.
        TrustError: A release was refused; those before it are in the store.
    """
    settings = settings or load_settings()
    file = expand(file)
    store = Store(cache_dir())
    with store.workspace() as folder:
        _unpack(file, folder, settings)
        listed = _listed(folder)
        brought: list[AllowedSigner] = []
        if trust_keys and (folder / SIGNERS).is_file():
            brought = _brought(folder / SIGNERS, {principal for principal, _, _ in listed})
        signers = [*known_signers(settings), *brought]
        try:
            copied = [
                _take_in(folder, principal, adapter, release, store, policy, settings, signers)
                for principal, adapter, release in listed
            ]
        except TrustError as error:
            if not trust_keys and "nobody you know" in error.what and (folder / SIGNERS).is_file():
                error.hint = f"{error.hint}\n        or take the bundle's word for whose it is: --trust-keys"
            raise
        for signer in brought:  # only after everything in it was accepted
            add_pin(settings, signer)
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


def _fetched(
    references: Iterable[str], lock: str | Path | None, policy: str | None, settings: Settings
) -> tuple[list[Fetched], Answers]:
    """Fetch and verify everything that is to be copied; ask what of it was withdrawn."""
    named = [parse_reference(text, settings) for text in references]
    locked = [] if lock is None else [parse_reference(one.reference, settings) for one in read_lock(lock).values()]
    if not (named or locked):
        raise UsageError("there is nothing to copy", hint="name references, or a lock file")
    answers = ask_for_yanks([*named, *locked], settings)
    found = [fetch(one, policy=policy, settings=settings) for one in named]
    return [*found, *(fetch(one, policy=policy, lock=lock, settings=settings) for one in locked)], answers


def _to_folder(root: Path, found: Sequence[Fetched], settings: Settings, answers: Answers) -> list[Copied]:
    if root.exists() and not root.is_dir():
        raise UsageError("this is not a folder", where=str(root))
    if root.is_dir() and any(root.iterdir()) and not (root / MARK).is_file():
        raise UsageError("the folder holds something else than a mirror", where=str(root), hint="choose an empty one")
    copied, signers, withdrawn = [], known_signers(settings), _withdrawn(found, settings, answers)
    for one in found:
        manifest = one.verdict.manifest
        fresh = add_to_mirror(
            root,
            one.path,
            principal=manifest.repository,
            adapter=manifest.name,
            version=manifest.version,
            digest=one.digest,
            tree=one.tree,
            yanked=withdrawn.get((manifest.repository, manifest.name)),
        )
        own = [s for s in signers if s.names(manifest.repository) and s.key.fingerprint in one.verdict.signers]
        add_signers(root, [format_signer(replace(s, principals=(manifest.repository,))) for s in own])
        copied.append(_copied(one, fresh))
    return copied


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


def _copied(one: Fetched, new: bool) -> Copied:
    manifest = one.verdict.manifest
    return Copied(manifest.repository, manifest.name, manifest.version, one.digest, new)


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """The same bytes whoever writes them, whenever."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime, member.mode = 0, 0o644
    return member


def _unpack(file: Path, folder: Path, settings: Settings) -> None:
    """Write the files of a bundle below ``folder``: plain files with plain names in the two places there are."""
    if not file.is_file():
        raise NotFoundError("there is no such bundle", where=str(file))
    try:
        with tarfile.open(file, "r:") as archive:
            for number, member in enumerate(archive):
                path = PurePosixPath(member.name)
                known = (len(path.parts) == 1 and path.name in (MARK, SIGNERS)) or path.parts[:1][0] in _PARTS
                plain = all(part not in ("", ".", "..") and "\\" not in part for part in path.parts)
                where = f"{file}: {member.name[:200]}"
                if not (member.isreg() and not member.issparse() and known and plain) or path.is_absolute():
                    raise PackageError("a bundle holds plain files below releases/ and packages/", where=where)
                if member.size > settings.limits.file_bytes or number > _MAX_BUNDLE_FILES:
                    raise PackageError("too many files, or one that is too large", where=where)
                target = folder.joinpath(*path.parts)
                content = archive.extractfile(member)
                assert content is not None
                try:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with target.open("xb") as written:
                        while block := content.read(1 << 20):
                            written.write(block)
                except (FileExistsError, NotADirectoryError) as error:
                    raise PackageError("the bundle holds this file twice", where=where) from error
                except OSError as error:
                    if error.errno != errno.ENAMETOOLONG:
                        raise
                    raise PackageError("a name that is too long", where=where) from error
    except (tarfile.TarError, EOFError, ValueError, IndexError) as error:
        raise PackageError(f"not a bundle: {error}", where=str(file)) from error
    if not (folder / MARK).is_file():
        raise PackageError(f"not a bundle: it holds no {MARK}", where=str(file))


def _listed(folder: Path) -> list[tuple[str, str, Mirrored]]:
    """Return principal, adapter and release of everything that is listed."""
    root = folder / "releases"
    found = []
    for path in sorted(root.rglob("*.json")):
        principal = path.parent.relative_to(root).as_posix()
        found += [
            (principal, path.stem, one)
            for one in parse_listing(path.read_bytes(), str(path.relative_to(folder))).releases
        ]
    return found


def _take_in(
    folder: Path,
    principal: str,
    adapter: str,
    release: Mirrored,
    store: Store,
    policy: str | None,
    settings: Settings,
    signers: Sequence[AllowedSigner],
) -> Copied:
    from packaging.specifiers import SpecifierSet

    package = folder / "packages" / release.manifest_sha256
    if not package.is_dir() or not all(is_allowed(path.name) for path in package.iterdir()):
        raise PackageError(f"the package {release.manifest_sha256} is missing", where=f"{principal}@{adapter}")
    source = Source.parse(principal)
    exact = SpecifierSet(f"=={release.version}")
    reference = Reference(source, check_adapter_name(adapter), exact, release.manifest_sha256)
    verify(
        package, policy=policy, reference=reference, version=release.version, allowed_signers=signers, settings=settings
    )
    new = store.find(release.manifest_sha256) is None
    with store.workspace() as work:  # the store takes the folder away; a release may be listed by two names
        inner = work / "package"
        inner.mkdir()
        for path in package.iterdir():
            (inner / path.name).write_bytes(path.read_bytes())
        store.add(inner, settings.limits)
    known = store.known(source.publisher, adapter)
    seen = known.fetched.get(release.version)
    if seen is None or seen.digest != release.manifest_sha256:
        seen = Seen(release.manifest_sha256, release.tree, time.time())
    store.remember(source.publisher, adapter, replace(known, fetched={**known.fetched, release.version: seen}))
    return Copied(principal, adapter, release.version, release.manifest_sha256, new)
