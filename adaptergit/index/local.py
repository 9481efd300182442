"""One local index file: the aggregated form of an index, ``index.json``.

A JSON object ``{"schema": "adaptergit.index/1", "entries": [...]}``; every entry is one release and is described by
``schema/index.schema.json``. An entry pins the digest and the tree of a release; whose keys count is decided elsewhere.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from packaging.version import Version

from adaptergit.errors import NotFoundError, PackageError
from adaptergit.locks import exclusively
from adaptergit.package import Card, Manifest, canonical, schemas
from adaptergit.package.version import check_version
from adaptergit.reference import Reference
from adaptergit.settings import cache_dir

SCHEMA = "adaptergit.index/1"
MAX_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Entry:
    """One release."""

    id: str
    """``host/org/repo@adapter``."""
    url: str
    version: str
    manifest_sha256: str
    tree: str
    """Git tree oid that fetches exactly this release."""
    size: int
    """Bytes of all files."""
    method: str
    task: str
    base_model: str
    license: str
    description: str
    languages: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    dataset: str = ""
    signers: tuple[str, ...] = ()
    published: str = ""
    yanked: str | None = None
    """Reason, if the release was withdrawn."""


def entry_of(manifest: Manifest, card: Card, *, digest: str, url: str, tree: str, signers: Iterable[str]) -> Entry:
    """Describe a verified release."""
    task = card.data["task"]
    return Entry(
        id=f"{manifest.repository}@{manifest.name}",
        url=url,
        version=manifest.version,
        manifest_sha256=digest,
        tree=tree,
        size=sum(f.size for f in manifest.files),
        method=manifest.method,
        task="/".join(part for part in (task["type"], task.get("id")) if part),
        base_model=manifest.base_model.id,
        license=manifest.license,
        description=card.data["description"],
        languages=tuple(task.get("languages", ())),
        keywords=tuple(card.data.get("keywords", ())),
        dataset=task.get("dataset", ""),
        signers=tuple(signers),
        published=manifest.created,
    )


def read_index(path: str | Path) -> list[Entry]:
    """Read and validate an index file.

    Raises:
        NotFoundError: No such file.
        PackageError: Not a valid index; names the entry and the field.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise PackageError(f"more than {MAX_BYTES} bytes", where=str(path))
        data = path.read_bytes()
        canonical.refuse_surrogates(data, str(path))
        raw = json.loads(data)
    except FileNotFoundError as error:
        raise NotFoundError(
            "there is no such index file", where=str(path), hint="adaptergit index add FILE REFERENCE"
        ) from error
    except IsADirectoryError as error:
        raise PackageError("this is a folder, not an index file", where=str(path)) from error
    except (ValueError, RecursionError) as error:
        raise PackageError(f"not JSON: {error}", where=str(path)) from error
    for where, message in schemas.problems("index", raw):
        raise PackageError(f"{schemas.dotted(where) or 'document'}: {message}", where=str(path))
    for number, item in enumerate(raw["entries"]):
        check_version(item["version"], where=f"{path}: entries[{number}]")
    return [_entry(item) for item in raw["entries"]]


def add_entry(path: str | Path, entry: Entry) -> None:
    """Add a release to an index file, creating the file if needed; the file is replaced in one step.

    Raises:
        PackageError: The same release is listed with another digest: releases never change.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with exclusively(cache_dir() / "locks", str(path.resolve())):  # two at once would lose an entry
        _add(path, entry)


def _add(path: Path, entry: Entry) -> None:
    entries = read_index(path) if path.exists() else []
    for known in entries:
        if (known.id, known.version) == (entry.id, entry.version) and known.manifest_sha256 != entry.manifest_sha256:
            raise PackageError(
                f"{entry.id}=={entry.version} is listed with another digest: releases never change", where=str(path)
            )
    kept = [e for e in entries if (e.id, e.version) != (entry.id, entry.version)]
    ordered = sorted([*kept, entry], key=lambda e: (e.id, Version(e.version)))
    text = json.dumps(
        {"schema": SCHEMA, "entries": [asdict(e) for e in ordered]}, indent=1, sort_keys=True, ensure_ascii=False
    )
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text + "\n")
    Path(temporary).chmod(0o644)
    Path(temporary).replace(path)


def search_index(entries: Iterable[Entry], text: str = "", **filters: str | None) -> list[Entry]:
    """Return the newest release of every adapter that matches, best match first.

    Args:
        entries: From :func:`read_index`.
        text: Words; each must occur somewhere in the entry.
        filters: ``task``, ``base_model``, ``method``, ``language`` or ``license``; compared without case, a prefix is
            enough.
    """
    newest: dict[str, Entry] = {}
    for entry in entries:
        if entry.yanked is None and not Version(entry.version).is_prerelease:
            known = newest.get(entry.id)
            if known is None or Version(entry.version) > Version(known.version):
                newest[entry.id] = entry
    words = text.casefold().split()
    wanted = {key: value.casefold() for key, value in filters.items() if value}
    found = [(score, entry) for entry in newest.values() if (score := _score(entry, words)) and _passes(entry, wanted)]
    return [entry for _, entry in sorted(found, key=lambda item: (-item[0], item[1].id))]


def find_release(path: str | Path, reference: Reference) -> Entry | None:
    """Return the entry of the release a reference means, or None if the index knows nothing of the adapter.

    Raises:
        NotFoundError: The index knows the adapter, but no release that fits and is not yanked.
    """
    principal = reference.source.principal
    mine = [e for e in read_index(path) if principal is not None and e.id == f"{principal}@{reference.adapter}"]
    if not mine:
        return None
    wanted = {
        e.version: e
        for e in mine
        if (e.yanked is None or str(reference.specifier) == f"=={e.version}")
        and (reference.digest is None or e.manifest_sha256 == reference.digest)
    }
    version = reference.newest(wanted)
    if version is None:
        listed = ", ".join(f"{e.version}{' (yanked: ' + e.yanked + ')' if e.yanked else ''}" for e in mine)
        raise NotFoundError(
            f"the index lists no release that fits {reference}", where=str(path), hint=f"listed: {listed}"
        )
    return wanted[version]


def _entry(raw: Mapping[str, Any]) -> Entry:
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
    return Entry(**fields)


def _score(entry: Entry, words: list[str]) -> int:
    name = entry.id.rpartition("@")[2].casefold()
    head = " ".join((name, entry.task, entry.dataset, *entry.keywords)).casefold()
    body = " ".join((head, entry.id, entry.description, entry.base_model, entry.method, *entry.languages)).casefold()
    if not all(word in body for word in words):
        return 0
    return 1 + sum(4 * (word == name) + 2 * (word in head) for word in words)


def _passes(entry: Entry, wanted: Mapping[str, str]) -> bool:
    values = {
        "task": [*entry.task.split("/"), entry.task],
        "base_model": [entry.base_model, entry.base_model.rpartition("/")[2]],
        "method": [entry.method],
        "language": list(entry.languages),
        "license": [entry.license],
    }
    return all(any(v.casefold().startswith(value) for v in values[key]) for key, value in wanted.items())
