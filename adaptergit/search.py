"""Search: a query over the indexes a person has added, or one index file; nothing leaves the machine."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.version import Version

from adaptergit.errors import AdaptergitWarning, NotFoundError, PackageError, UsageError, did_you_mean
from adaptergit.index import Entry, add_entry, entry_of, read_index
from adaptergit.index.client import Client
from adaptergit.index.database import Database, News
from adaptergit.index.entry import newest
from adaptergit.index.standing import Standing
from adaptergit.index.subscription import Subscription, speakers
from adaptergit.index.words import Query, ordered, words_of
from adaptergit.indexes import any_index, client, revoked, word_on
from adaptergit.pins import known_revocations
from adaptergit.reference import Reference, expand
from adaptergit.resolve import fetch, parse_reference
from adaptergit.settings import Settings, config_dir, load_settings

if TYPE_CHECKING:
    from torch import nn

    from adaptergit.splice.fingerprint import Fingerprint

_MAX_BASES = 500
"""Fingerprints of one base model: they differ where weights were stored in other ways."""


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
    """Why releases are refused, by the digest of their manifests."""
    warned: Mapping[str, str] = field(default_factory=dict)
    """What is said of releases at every load, by the digest of their manifests."""
    revoked_keys: Mapping[str, str] = field(default_factory=dict)
    """Why keys no longer count, by their fingerprints."""

    @property
    def chosen(self) -> Entry | None:
        """The release that somebody who names no version is given, if there is one."""
        return next(iter(newest(e for e in self.releases if e.manifest_sha256 not in self.revoked).values()), None)


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
    if not isinstance(text, str):
        raise UsageError(f"words are a text, not {type(text).__name__}", hint='search("sentiment german")')
    filters = {"task": task, "base_model": base_model, "method": method, "language": language, "license": license}
    query = Query(text, tuple((name, value) for name, value in filters.items() if value), sort, limit)
    if isinstance(base_of, str | Path) and not Path(base_of).is_dir():
        raise NotFoundError(
            "no such model folder", where=str(base_of), hint="name a folder with config.json and model.safetensors"
        )
    settings = load_settings()
    standing = Standing([*revoked(settings), *known_revocations(settings)])
    fingerprint: Fingerprint | None = None
    found: dict[str, tuple[Entry, str]] = {}
    for searched in _searched(index, settings):
        try:
            # Not before: nobody waits for a model where there is no index to search.
            if base_of is not None and fingerprint is None:
                fingerprint = _fingerprint(base_of)
            same = None if fingerprint is None else _same_base(fingerprint, searched.database)
            hits = _hits(searched, replace(query, fingerprints=same), standing)
        finally:
            searched.database.close()
        for entry in hits:
            other, name = found.setdefault(entry.id, (entry, searched.name))
            if other.version == entry.version and other.manifest_sha256 != entry.manifest_sha256:
                told = (
                    f"{entry.id}=={entry.version} is {other.manifest_sha256[:16]}… in the index {name}, and "
                    f"{entry.manifest_sha256[:16]}… in the index {searched.name}: one of them was deceived"
                )
                warnings.warn(told, AdaptergitWarning, stacklevel=2)
    return ordered((entry for entry, _ in found.values()), query)[:limit]


def meant(
    text: str, *, index: str | Path | None = None, task: str | None = None, base_model: str | None = None
) -> str | None:
    """Return a hint that names what a word may have been meant to be: an adapter, a task, or a base model; or None.

    Args:
        text: As for :func:`search`, and so are the others.

    Raises:
        UsageError, NotFoundError, PackageError: As :func:`search`.
    """
    words, names = text.split()[:5], set[str]()
    filters = {"task": words_of(task or ""), "base_model": words_of(base_model or "")}
    known: dict[str, set[str]] = {name: set() for name in filters}
    for searched in _searched(index, load_settings()):
        try:
            names |= {name for word in words for name in searched.database.alike(word)}
            for name, asked in filters.items():
                known[name] |= searched.database.facets(name) if asked else set()
        finally:
            searched.database.close()
    near = (did_you_mean(word, sorted(names)) for word in words if word not in names)
    others = (
        did_you_mean(word, sorted(known[name]))
        for name, asked in filters.items()
        for word in asked
        if word not in known[name]
    )
    return next((hint for hint in (*near, *others) if hint is not None), None)


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
        listed = sorted({entry.name for one in word.known for entry in one.entries()})
        raise NotFoundError(
            f"no index lists {reference.source.publisher}@{reference.adapter}",
            hint=did_you_mean(reference.adapter, listed) or f"adaptergit info {ref} asks the repository itself",
        )
    every = sorted((entry for entry, _ in releases.values()), key=lambda e: Version(e.version), reverse=True)
    names = tuple(dict.fromkeys(one.index for one in word.known if one.entries(reference.adapter)))
    standing = Standing([*revoked(settings), *known_revocations(settings)])
    gone = {entry.manifest_sha256: why for entry in every if (why := standing.refusal(entry, word.threshold))}
    warned = {entry.manifest_sha256: why for entry in every if (why := standing.warning(entry))}
    signers = tuple(signer.key.fingerprint for signer in word.signers)
    principal = reference.source.principal or ""
    keys = {key: str(one) for key in signers if (one := standing.of_key(key, principal)) is not None}
    return Shown(every[0].id, tuple(every), names, signers, gone, warned, keys)


def add_to_index(file: str | Path, ref: str, *, policy: str | None = None) -> Entry:
    """Fetch and verify a release and list it in an index file.

    Raises:
        AdaptergitError: It cannot be had or verified, or the index lists it with another digest; the file is as it was.
    """
    found = fetch(ref, policy=policy, refresh=True)
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


@dataclass(frozen=True)
class _Searched:
    """One index, to be searched."""

    name: str
    database: Database
    speaks: Callable[[str], bool] = lambda _: True
    """Whether it speaks for a repository."""
    threshold: Callable[[str], int] = lambda _: 1
    """How many keys must sign the releases of a repository."""


def _hits(searched: _Searched, query: Query, standing: Standing) -> list[Entry]:
    """Return what an index finds and may say, and what still counts."""

    def counts(entry: Entry) -> bool:
        if not searched.speaks(entry.principal):
            return False
        return not standing.touches(entry) or not standing.refusal(entry, searched.threshold(entry.principal))

    asked = query.limit
    while True:
        found = searched.database.search(replace(query, limit=asked))
        kept = [entry for entry in found if counts(entry)]
        if len(kept) >= query.limit or len(found) < asked:
            return kept[: query.limit]
        asked *= 4


def _searched(index: str | Path | None, settings: Settings) -> Iterable[_Searched]:
    """Yield what is to be searched, the most important first."""
    added = client(settings) if any_index() else None
    if added is not None and (index is None or any(one.name == str(index) for one in added.subscriptions())):
        every = added.subscriptions()
        for one in every:
            if index is None or one.name == str(index):
                yield _of_index(one, every, added)
        if index is not None or settings.index_path is None:
            return
    named = settings.index_path
    if index is None and named is not None and not named.exists():
        raise NotFoundError(
            f"there is no index file {named}, which the settings name",
            where=str(config_dir() / "config.toml"),
            hint='mend index = "…" there, or make the file: adaptergit index list FILE REFERENCE',
        )
    path = index or named
    if added is not None and index is not None and not expand(index).exists():
        hint = did_you_mean(index, [one.name for one in added.subscriptions()]) or "see adaptergit index ls"
        raise NotFoundError(f"there is no index {str(index)!r}, nor a file of that name", hint=hint)
    if path is None:
        raise UsageError(
            "no index to search",
            hint='add one: adaptergit index add URL --root sha256:…; or name a file with --index, or set index = "…"',
        )
    database = Database()
    try:
        entries = read_index(path)
    except PackageError as error:
        error.hint = (
            f'the settings name it: mend index = "…" in {config_dir() / "config.toml"}, or mend the file'
            if index is None
            else "--index takes the name of an index (adaptergit index ls), or a file of 'index list'"
        )
        raise
    principals = dict.fromkeys(entry.principal for entry in entries)
    database.replace((), [News(one, "", [entry for entry in entries if entry.principal == one]) for one in principals])
    yield _Searched(str(path), database)


def _of_index(one: Subscription, every: Sequence[Subscription], added: Client) -> _Searched:
    @functools.cache
    def speaks(principal: str) -> bool:
        return one in speakers(every, principal)

    @functools.cache
    def sources() -> Mapping[str, Mapping[str, Any]]:
        return added.state(one.name).sources

    def threshold(principal: str) -> int:
        return int(sources().get(principal, {}).get("threshold", 1))

    if added.lost(one.name):
        told = f"what the index {one.name} said is no longer here: adaptergit index update {one.name}"
        warnings.warn(told, AdaptergitWarning, stacklevel=1)
    return _Searched(one.name, added.database(one.name), speaks, threshold)


def _fingerprint(base_of: str | Path | nn.Module) -> Fingerprint:
    """Return the fingerprint of a model, or of a folder with one."""
    from adaptergit.splice.fingerprint import fingerprint_of

    if not isinstance(base_of, str | Path):
        return fingerprint_of(base_of)
    from safetensors import SafetensorError
    from transformers import AutoModel

    from adaptergit.base_place import not_loaded

    try:
        return fingerprint_of(AutoModel.from_pretrained(str(base_of), local_files_only=True))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        hint = "name a folder with config.json and model.safetensors"
        raise not_loaded("the model cannot be loaded", str(base_of), error, hint) from error


def _same_base(mine: Fingerprint, database: Database) -> tuple[str, ...]:
    """Return the fingerprints in the database that are of this base model."""
    from adaptergit.splice.fingerprint import Fingerprint

    same = []
    for text in database.fingerprints():
        try:
            other = Fingerprint.parse(text)
        except PackageError:
            continue
        if mine.same_base(other):
            same.append(text)
    return tuple(same[:_MAX_BASES])
