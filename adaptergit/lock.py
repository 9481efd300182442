"""Lock files: from references to exactly the same releases, everywhere and later."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adaptergit.dependencies import DEPTH, dependencies_of
from adaptergit.errors import NotFoundError, PackageError, TrustError, UsageError
from adaptergit.locks import exclusively
from adaptergit.package import CARD, Card, Manifest, Package
from adaptergit.progress import each
from adaptergit.reference import Reference
from adaptergit.resolve import Fetched, fetch, parse_reference
from adaptergit.settings import Settings, cache_dir, load_settings
from adaptergit.store import Store
from adaptergit.store.lockfile import DEFAULT, Locked, lock_id, read_lock, relock, write_lock
from adaptergit.trust import parse_signature
from adaptergit.yanks import ask_for_yanks


@dataclass(frozen=True)
class Change:
    """What became of one entry of a lock file."""

    id: str
    before: str | None
    """Version, or None: it is new."""
    after: str


def lock(
    references: Iterable[str] = (),
    *,
    path: str | Path = DEFAULT,
    upgrade: bool = False,
    policy: str | None = None,
    settings: Settings | None = None,
) -> list[Change]:
    """Fetch and verify releases, and write down exactly which they are.

    Args:
        references: What to lock, with all it depends on; what the file holds already stays. Without any, all that it
            holds.
        path: The lock file.
        upgrade: Take the newest release that fits the reference, not the one that is locked.
        policy: See :func:`adaptergit.fetch`.
        settings: Default: the user's.

    Raises:
        UsageError: Nothing to lock, an adapter asked for twice, or two that need different releases of a third.
        NotFoundError, TransportError, TrustError, PackageError: A release cannot be had or was refused; the file is
            as it was.
        StorageError: The file cannot be written, and is as it was.
    """
    settings = settings or load_settings()
    path = Path(path)
    entries = read_lock(path) if path.exists() else {}
    wanted = [parse_reference(text, settings) for text in references]
    chosen = wanted or [parse_reference(one.reference, settings) for one in entries.values()]
    if not chosen:
        raise UsageError("there is nothing to lock", where=str(path), hint=relock(path, "org/repo@adapter"))
    ids = [lock_id(reference) for reference in chosen]
    if twice := next((one for one in ids if ids.count(one) > 1), None):
        raise UsageError(f"{twice} is asked for twice")

    def keeps(reference: Reference) -> bool:
        known = entries.get(lock_id(reference))
        return known is not None and not upgrade and _fits(reference, known)

    ask_for_yanks(chosen, settings)
    changes: list[Change] = []
    made: dict[str, Locked] = {}
    needs: list[tuple[str, Reference]] = []
    depths = dict.fromkeys(ids, 1)
    for reference in each(chosen, "locking", "releases"):  # grows by what its members depend on
        known = entries.get(lock_id(reference))
        keep = keeps(reference)
        options: dict[str, Any] = {"policy": policy, "refresh": upgrade, "settings": settings}
        try:
            found = fetch(reference, lock=path if keep else None, **options)
        except TrustError as error:
            if known is not None and keep:
                more = f"{path} holds {known.version}: {relock(path, reference, upgrade=True)}"
                error.hint = f"{error.hint}; {more}" if error.hint else more
            raise
        entry = _locked(reference, found)
        if keep and known is not None:
            entry = replace(entry, tree=entry.tree or known.tree)
        changes.append(Change(entry.id, known.version if known else None, entry.version))
        entries[entry.id] = made[entry.id] = entry
        below = dependencies_of(found.card, settings, of=reference.source.principal)
        needs += [(f"{found.card.name} {found.version}", one) for one in below]
        new = [one for one in below if lock_id(one) not in depths]
        depths |= {lock_id(one): depths[entry.id] + 1 for one in new}
        if max(depths.values()) > DEPTH:
            raise PackageError(f"more than {DEPTH} adapters on top of each other", where=f"{found.card.name}/{CARD}")
        ask_for_yanks(new, settings)
        chosen += new
    for asker, reference in needs:
        if not _fits(reference, entries[lock_id(reference)]):
            other = f"{reference.adapter} {entries[lock_id(reference)].version}"
            raise UsageError(
                f"{asker} was trained on {reference}, and {other} is to be locked",
                where=str(path),
                hint=f"name the version that fits all, or lock {asker} in a file of its own (--lock)",
            )
    with exclusively(cache_dir() / "locks", str(path.resolve())):  # two at once would lose an entry
        now = read_lock(path) if path.exists() else {}  # others may have written while this one fetched
        write_lock(path, (now | made).values())
    return changes


def check_lock(
    references: Iterable[str] = (), *, path: str | Path = DEFAULT, settings: Settings | None = None
) -> list[Locked]:
    """Check, without network, that a lock file is valid and says what references ask for.

    Whatever it says of a release that is in the store must be so; of others see :func:`not_compared`.

    Args:
        references: What a project uses; without any, what the file says was asked for.
        path: The lock file.
        settings: Default: the user's.

    Raises:
        NotFoundError: A reference is not locked, or locked to something that does not fit.
        PackageError: The file is not valid, or says something else of a release than the release itself.
    """
    settings = settings or load_settings()
    entries = read_lock(path)
    wanted = [parse_reference(text, settings) for text in references]
    for reference in wanted or [parse_reference(one.reference, settings) for one in entries.values()]:
        known = entries.get(lock_id(reference))
        if known is None or not _fits(reference, known):
            what = "is not locked" if known is None else f"is locked to {known.version}, which does not fit"
            raise NotFoundError(
                f"{reference} {what}", where=str(path), hint=relock(path, reference, upgrade=known is not None)
            )
    for one in entries.values():
        if lock_id(parse_reference(one.reference, settings)) != one.id:
            raise PackageError(f"{one.id} is not what {one.reference} asks for", where=str(path))
    store = Store(cache_dir())
    for one in each(entries.values(), str(path), "releases"):
        if store.find(one.manifest_sha256) is not None and (why := store.damage(one.manifest_sha256, settings.limits)):
            hint = "adaptergit store verify --remove takes it away, and adaptergit sync fetches it again"
            raise PackageError(f"what is stored of {one.id} is damaged: {why}", hint=hint)
        if (difference := _difference(one, parse_reference(one.reference, settings), store)) is not None:
            raise PackageError(
                f"{one.id}: {difference}",
                where=str(path),
                hint=f"somebody edited it: {relock(path, one.reference, upgrade=True)} writes it anew",
            )
        for below in _below(one, settings, store):
            there = entries.get(lock_id(below))
            if there is None or not _fits(below, there):
                what = "is not locked" if there is None else f"is locked to {there.version}"
                raise PackageError(
                    f"{one.id} was trained on {below}, which {what}",
                    where=str(path),
                    hint=relock(path, one.reference, upgrade=True),
                )
    return list(entries.values())


def _below(one: Locked, settings: Settings, store: Store) -> list[Reference]:
    """Return what a release depends on, if it is stored."""
    try:
        card = Card.from_yaml((store.open(one.manifest_sha256).path / CARD).read_bytes(), where=one.id)
        of = parse_reference(one.reference, settings).source.principal
        return dependencies_of(card, settings, of=of)
    except (NotFoundError, PackageError, UsageError, OSError):
        return []  # not here, or damaged: it is judged when it is needed


def not_compared(entries: Iterable[Locked]) -> list[Locked]:
    """Return those whose releases are not in the store, so that nothing can be said of what is recorded of them."""
    store = Store(cache_dir())
    return [one for one in entries if store.find(one.manifest_sha256) is None]


def sync(
    *,
    path: str | Path = DEFAULT,
    policy: str | None = None,
    offline: bool = False,
    settings: Settings | None = None,
) -> list[Fetched]:
    """Bring every release of a lock file into the store, verified, and ask which of them were withdrawn.

    Where all are stored, a repository that cannot be asked is no obstacle.

    Raises:
        NotFoundError, TransportError, TrustError, PackageError: One cannot be had or was refused.
    """
    settings = settings or load_settings()
    entries = list(read_lock(path).values())
    if not offline:
        ask_for_yanks([parse_reference(one.reference, settings) for one in entries], settings)
    return [
        fetch(one.reference, policy=policy, offline=offline, lock=path, settings=settings)
        for one in each(entries, str(path), "releases")
    ]


def _fits(reference: Reference, known: Locked) -> bool:
    return reference.specifier.contains(known.version, prereleases=True) and reference.digest in (
        None,
        known.manifest_sha256,
    )


def _difference(one: Locked, reference: Reference, store: Store) -> str | None:
    """Say what a lock file records of a stored release that is not so, or None."""
    try:
        package = store.open(one.manifest_sha256)
        manifest = Manifest.from_bytes(package.manifest_bytes, where=str(package.path))
        keys = {parse_signature(armored).key.fingerprint for armored in package.signatures.values()}
    except (NotFoundError, PackageError, TrustError, OSError):
        return None  # not here, or damaged: it is fetched, and judged, when it is needed
    base = manifest.base_model
    said = {
        "the adapter": (reference.adapter, manifest.name),
        "version": (one.version, manifest.version),
        "the first of urls": (one.urls[0], reference.source.url),
        "base_model.id": (one.base_model["id"], base.id),
        "base_model.fingerprint": (one.base_model["fingerprint"], base.fingerprint),
    }
    for field, (recorded, real) in said.items():
        if recorded != real:
            return f"{field} is {recorded!r}, and should be {real!r}"
    if odd := sorted({file.path for file in {*one.files} ^ {*manifest.files}}):
        return f"files are not the release's: {', '.join(odd)}"
    if not set(one.signers) <= keys or (keys and not one.signers):  # not all that signed must count for everybody
        return f"signers are {', '.join(one.signers) or 'nobody'}, and should be {', '.join(sorted(keys)) or 'nobody'}"
    # What came through git, or was compared with its files, had this tree; a signature may have been added since.
    seen = store.known(reference.source.publisher, reference.adapter).fetched.get(one.version)
    if one.tree and (seen is None or seen.tree != one.tree) and (tree := _tree(package, one.tree)) != one.tree:
        return f"tree is {one.tree}, and should be {tree}"
    return None


def _tree(package: Package, like: str) -> str:
    from adaptergit.git import tree_oid

    return tree_oid(package.path, len(like))


def _locked(reference: Reference, found: Fetched) -> Locked:
    manifest = found.verdict.manifest
    return Locked(
        reference=_full(reference),
        id=lock_id(reference),
        version=found.version,
        manifest_sha256=found.digest,
        tree=found.tree,
        urls=(reference.source.url,),  # whose mirrors are whose is a matter of each machine's settings
        signers=found.verdict.signers,
        base_model={"id": manifest.base_model.id, "fingerprint": manifest.base_model.fingerprint},
        files=manifest.files,
    )


def _full(reference: Reference) -> str:
    """Return the reference with its host: another machine may have another default."""
    source = reference.source.principal if reference.source.kind == "hosted" else reference.source.text
    if reference.source.kind == "path":
        source = reference.source.url
    digest = f"#sha256:{reference.digest}" if reference.digest else ""
    return f"{source}@{reference.adapter}{reference.specifier}{digest}"
