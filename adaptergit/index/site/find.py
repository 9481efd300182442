"""What the search in the browser reads: small files, of which a query needs a few.

``search/index.json`` says how many files there are and what can be filtered by. The words of all adapters are shared
out over ``search/words/<n>.json`` by their first two letters, so that the beginning of a word is found in one file;
values of filters over ``search/facets/<n>.json``. Both hold lists of numbers, as differences: adapters are numbered in
the order of their rank, and ``search/rows/<n>.json`` holds what is shown of a hundred of them.

A browser cannot read the index's own shards, which are compressed with Zstandard; these files are made of the same
entries.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from adaptergit.index.entry import Entry
from adaptergit.index.repository import replace
from adaptergit.index.site.markdown import plain
from adaptergit.index.site.model import Adapter
from adaptergit.index.words import rank

_BLOCK = 100
_FILTERS: tuple[tuple[str, str, Callable[[Entry], list[str]]], ...] = (
    ("task", "Task", lambda e: [part for part in (*e.task.split("/"), e.dataset) if part]),
    ("language", "Language", lambda e: list(e.languages)),
    ("base", "Base model", lambda e: [e.base_model]),
    ("method", "Method", lambda e: [e.method]),
    ("license", "Licence", lambda e: [e.license]),
)
_CHOICES = 200
"""Values of one filter that a form offers."""


def write_search(target: Path, adapters: Iterable[Adapter]) -> None:
    """Write the files.

    Args:
        target: Folder ``search/``.
        adapters: That can be found.
    """
    ordered = sorted(adapters, key=lambda adapter: (rank(adapter.entry), adapter.entry.id))
    buckets = min(256, max(1, len(ordered) // 50))
    words: dict[str, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    facets: dict[str, list[int]] = defaultdict(list)
    counts: dict[str, Counter[str]] = {name: Counter() for name, _, _ in _FILTERS}
    for number, adapter in enumerate(ordered):
        e = adapter.entry
        head = _words((e.name, e.task, e.dataset, *e.keywords))
        rest = (e.principal, e.base_model, e.method, e.license, *e.languages, *e.authors, plain(e.description))
        for word in head | _words(rest):
            words[word][0].append(number)
        for word in head:
            words[word][1].append(number)
        for name, _, values in _FILTERS:
            for value in dict.fromkeys(values(e)):
                facets[f"{name}:{value}"].append(number)
                counts[name][value] += 1
    for start in range(0, len(ordered), _BLOCK):
        _write(target / "rows" / f"{start // _BLOCK}.json", [_row(one) for one in ordered[start : start + _BLOCK]])
    shared = _shared({word: [_gaps(every), _gaps(head)] for word, (every, head) in words.items()}, buckets, _beginning)
    for bucket, part in enumerate(shared):
        _write(target / "words" / f"{bucket}.json", part)
    for bucket, part in enumerate(_shared({key: _gaps(n) for key, n in facets.items()}, buckets, str)):
        _write(target / "facets" / f"{bucket}.json", part)
    offered = [
        [name, title, sorted(counts[name].items(), key=lambda item: (-item[1], item[0]))[:_CHOICES]]
        for name, title, _ in _FILTERS
    ]
    _write(target / "index.json", {"adapters": len(ordered), "block": _BLOCK, "buckets": buckets, "filters": offered})


def _words(texts: Iterable[str]) -> set[str]:
    """As ``site.js`` cuts texts."""
    return {word for text in texts for word in re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).lower())}


def _beginning(word: str) -> str:
    return word[:2]


def _gaps(numbers: Sequence[int]) -> list[int]:
    return [number - before for number, before in zip(numbers, (0, *numbers), strict=False)]


def _shared(values: dict[str, Any], buckets: int, part: Callable[[str], str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{} for _ in range(buckets)]
    for key in sorted(values):
        found[_hash(part(key)) % buckets][key] = values[key]
    return found


def _hash(text: str) -> int:
    """FNV-1a, which is two lines in any language."""
    found = 0x811C9DC5
    for byte in text.encode():
        found = (found ^ byte) * 0x01000193 & 0xFFFFFFFF
    return found


def _row(adapter: Adapter) -> list[Any]:
    entry = adapter.entry
    tags = [link.label for link in adapter.links] + [adapter.size] + ([adapter.score] if adapter.score else [])
    return [adapter.page, entry.name, entry.version, entry.principal, adapter.summary, tags]


def _write(path: Path, value: Any) -> None:
    replace(path, json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())
