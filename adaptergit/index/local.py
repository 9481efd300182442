"""One local index file: the aggregated form of an index, ``index.json``.

A JSON object ``{"schema": "adaptergit.index/1", "entries": [...]}``; every entry is one release and is described by
``schema/index.schema.json``. An entry pins the digest and the tree of a release; whose keys count is decided elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from adaptergit.durable import replace_file
from adaptergit.errors import NotFoundError, PackageError
from adaptergit.index.entry import Entry, check_document, sort_key
from adaptergit.locks import exclusively
from adaptergit.reference import Reference
from adaptergit.settings import cache_dir

SCHEMA = "adaptergit.index/1"
MAX_BYTES = 256 * 2**20


def read_index(path: str | Path) -> list[Entry]:
    """Read and validate an index file.

    Raises:
        NotFoundError: No such file.
        PackageError: Not a valid index; names the entry and the field.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise NotFoundError(
            "there is no such index file", where=str(path), hint="adaptergit index list FILE REFERENCE"
        ) from error
    except IsADirectoryError as error:
        raise PackageError(
            "this is a folder, not an index file",
            where=str(path),
            hint="name a file that adaptergit index list wrote; a whole index is added: adaptergit index add",
        ) from error
    try:
        return check_document(data, str(path), MAX_BYTES)
    except PackageError as error:
        error.hint = error.hint or "name a file that adaptergit index list wrote"
        raise


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
    replace_file(path, document([*kept, entry]).encode())


def document(entries: Iterable[Entry]) -> str:
    """Return the text of an aggregated index."""
    listed = [entry.to_dict() for entry in sorted(entries, key=sort_key)]
    return json.dumps({"schema": SCHEMA, "entries": listed}, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


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
