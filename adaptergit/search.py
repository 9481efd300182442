"""Search: a query over the indexes a person has added, or one index file; nothing leaves the machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.version import Version

from adaptergit.errors import NotFoundError, PackageError, UsageError
from adaptergit.index import Entry, add_entry, entry_of, read_index
from adaptergit.index.database import Database
from adaptergit.index.words import Query
from adaptergit.indexes import any_index, client, revoked, word_on
from adaptergit.reference import Reference
from adaptergit.resolve import fetch, parse_reference
from adaptergit.settings import Settings, load_settings

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Shown:
    """Everything the indexes know of one adapter."""

    id: str
    releases: tuple[Entry, ...]
    """Newest first."""
    indexes: tuple[str, ...]
    """Those that list it."""
    signers: tuple[str, ...]
    """Fingerprints of the keys that may sign its releases."""
    revoked: Mapping[str, str] = field(default_factory=dict)
    """Why releases are revoked, by the digest of their manifests."""


def search(
    text: str = "",
    *,
    index: str | Path | None = None,
    task: str | None = None,
    base_model: str | None = None,
    method: str | None = None,
    language: str | None = None,
    license: str | None = None,
    base_of: str | Path | nn.Module | None = None,
    sort: str = "best",
    limit: int = 50,
) -> list[Entry]:
    """Return the newest release of every matching adapter, best match first.

    Args:
        text: Words; each must occur in the entry. Where none has them all, the last may be the beginning of a word.
        index: Name of an index that was added, or an index file; default: all that were added, else the settings' file.
        task: Words of the task's type, id or data set, as the other filters compared without case.
        base_model: Base model id, with or without its organisation.
        method: Adapter method.
        language: BCP 47 tag, or its first part.
        license: SPDX identifier.
        base_of: A model, or the folder of one: only adapters that were trained in this base model, by fingerprint.
        sort: ``best``, ``newest``, ``smallest`` or ``name``.
        limit: How many at most.

    Raises:
        UsageError: No index was added and none is named; an unknown order.
        NotFoundError, PackageError: The index file is not there or not valid.
    """
    filters = {"task": task, "base_model": base_model, "method": method, "language": language, "license": license}
    query = Query(text, tuple((name, value) for name, value in filters.items() if value), sort, limit)
    settings = load_settings()
    found: dict[str, Entry] = {}
    for database in _databases(index, settings):
        try:
            if base_of is None:
                entries: Iterable[Entry] = database.search(query)
            else:
                fitting = {entry.id for entry in database.of_fingerprints(_same_base(base_of, database), 10_000)}
                entries = [e for e in database.search(Query(text, query.filters, sort, 10_000)) if e.id in fitting]
        finally:
            database.close()
        for entry in entries:
            found.setdefault(entry.id, entry)
    gone = {one.manifest_sha256 for one in revoked(settings) if one.severity == "refuse"}
    return [entry for entry in found.values() if entry.manifest_sha256 not in gone][:limit]


def show(ref: str) -> Shown:
    """Return what the indexes know of one adapter, without fetching it.

    Raises:
        UsageError: Malformed.
        NotFoundError: No index lists it.
        TrustError: Two indexes contradict each other.
    """
    settings = load_settings()
    reference: Reference = parse_reference(ref, settings)
    word = word_on(reference.source.principal, settings)
    releases = word.releases(reference.adapter)
    if not releases:
        raise NotFoundError(
            f"no index lists {reference.source.principal}@{reference.adapter}",
            hint=f"adaptergit info {ref} asks the repository itself",
        )
    ordered = sorted((entry for entry, _ in releases.values()), key=lambda e: Version(e.version), reverse=True)
    names = tuple(dict.fromkeys(one.index for one in word.known if one.entries(reference.adapter)))
    gone = {one.manifest_sha256: str(one) for one in revoked(settings) if one.manifest_sha256}
    return Shown(ordered[0].id, tuple(ordered), names, tuple(s.key.fingerprint for s in word.signers), gone)


def add_to_index(file: str | Path, ref: str, *, policy: str | None = None) -> Entry:
    """Fetch and verify a release and list it in an index file.

    Raises:
        AdaptergitError: It cannot be had or verified, or the index lists it with another digest; the file is as it was.
    """
    found = fetch(ref, policy=policy)
    entry = entry_of(
        found.verdict.manifest,
        found.card,
        digest=found.digest,
        url=found.reference.source.url,
        tree=found.tree,
        signers=found.verdict.signers,
    )
    add_entry(file, entry)
    return entry


def _databases(index: str | Path | None, settings: Settings) -> Iterable[Database]:
    """Yield what is to be searched, the most important first."""
    added = client(settings) if any_index() else None
    if added is not None and (index is None or any(one.name == str(index) for one in added.subscriptions())):
        for one in added.subscriptions():
            if index is None or one.name == str(index):
                yield added.database(one.name)
        if index is not None or settings.index_path is None:
            return
    path = index or settings.index_path
    if path is None:
        raise UsageError(
            "no index to search",
            hint='add one: adaptergit index add URL --root sha256:…; or name a file with --index, or set index = "…"',
        )
    database = Database()
    entries = read_index(path)
    principals = dict.fromkeys(entry.principal for entry in entries)
    database.replace((), [(one, "", [entry for entry in entries if entry.principal == one]) for one in principals])
    yield database


def _same_base(base_of: str | Path | nn.Module, database: Database) -> list[str]:
    """Return the fingerprints in the database that are of this base model."""
    from adaptergit.splice.fingerprint import Fingerprint, fingerprint_of

    if isinstance(base_of, str | Path):
        from transformers import AutoModel

        if not Path(base_of).is_dir():
            raise NotFoundError("no such model folder", where=str(base_of))
        model: nn.Module = AutoModel.from_pretrained(str(base_of), local_files_only=True)
    else:
        model = base_of
    mine, same = fingerprint_of(model), []
    for text in database.fingerprints():
        try:
            other = Fingerprint.parse(text)
        except PackageError:
            continue
        if mine.same_base(other):
            same.append(text)
    return same
