"""Search: a query over a local index file; nothing leaves the machine."""

from __future__ import annotations

from pathlib import Path

from adaptergit.errors import UsageError
from adaptergit.index import Entry, add_entry, entry_of, read_index, search_index
from adaptergit.resolve import fetch
from adaptergit.settings import load_settings


def search(
    text: str = "",
    *,
    index: str | Path | None = None,
    task: str | None = None,
    base_model: str | None = None,
    method: str | None = None,
    language: str | None = None,
    license: str | None = None,
) -> list[Entry]:
    """Return the newest release of every matching adapter, best match first.

    Args:
        text: Words; each must occur in the entry.
        index: Index file; default: the one in the settings.
        task: Text of the task type or id, as are the other filters: compared without case, a prefix is enough.
        base_model: Base model id, with or without its organisation.
        method: Adapter method.
        language: BCP 47 tag.
        license: SPDX expression.

    Raises:
        UsageError: No index is named and none is configured.
        NotFoundError, PackageError: The index is not there or not valid.
    """
    path = index or load_settings().index_path
    if path is None:
        raise UsageError(
            "no index to search", hint='name one with --index, or set index = "index.json" in the settings'
        )
    return search_index(
        read_index(path), text, task=task, base_model=base_model, method=method, language=language, license=license
    )


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
