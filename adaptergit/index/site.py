"""The pages of an index: static, without requests to anybody else, and readable without JavaScript.

Everything in it comes from strangers' cards: it is text for the templates, which escape it, and never markup or an
address; links lead only to pages that are written here.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as replace_entry
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from packaging.version import Version

from adaptergit.index.documents import Root
from adaptergit.index.entry import Entry, newest
from adaptergit.index.release_rules import RELEASE_RULES
from adaptergit.index.repository import IndexRepository, replace
from adaptergit.index.source_rules import SOURCE_RULES
from adaptergit.trust import parse_revocations

_TEMPLATES = Path(__file__).parent / "templates"
_ASSETS = ("site.css", "site.js", "icon.svg")
_PART = 4000
"""Adapters in one file of the search."""
_KINDS: tuple[tuple[str, str, Callable[[Entry], list[str]]], ...] = (
    ("tasks", "Tasks", lambda e: [part for part in e.task.split("/") if part]),
    ("languages", "Languages", lambda e: list(e.languages)),
    ("bases", "Base models", lambda e: [e.base_model]),
    ("methods", "Methods", lambda e: [e.method]),
)
_TOP = 24
_LOW = {"loss", "mae", "mse", "perplexity", "rmse", "wer", "cer"}
"""Metrics of which less is better."""


@dataclass(frozen=True)
class Link:
    """Text, and the page it leads to, if there is one."""

    label: str
    page: str = ""


@dataclass(frozen=True)
class Adapter:
    """One adapter with its page."""

    entry: Entry
    releases: tuple[Entry, ...]
    """Newest first."""
    page: str
    links: tuple[Link, ...]

    @property
    def summary(self) -> str:
        """The first sentence or so of its description."""
        text = " ".join(self.entry.description.split())
        return text if len(text) <= 180 else text[:177].rsplit(" ", 1)[0] + " …"

    @property
    def size(self) -> str:
        """For people."""
        return _bytes(self.entry.size)

    @property
    def score(self) -> str:
        """The first number of its evaluation."""
        one = next(iter(self.entry.metrics), None)
        return f"{one.name} {one.value:.4g}" if one else ""


@dataclass(frozen=True)
class Facet:
    """A task, a language, a base model or a method."""

    label: str
    page: str
    count: int


def build_site(index: IndexRepository, target: Path, *, root: Root) -> int:
    """Write the pages beside what was built; return how many adapters there are.

    Args:
        index: The repository.
        target: ``dist/``.
        root: For the command that adds the index.

    Raises:
        PackageError, TrustError: A source or entry that is malformed.
    """
    found: dict[str, list[Entry]] = defaultdict(list)
    sources = 0
    for source in index.sources():
        sources += 1
        for entry in index.entries(source.repository):
            found[entry.id].append(entry)
    revoked = {
        one.manifest_sha256: str(one).removesuffix(" (revoked.jsonl)")
        for one in parse_revocations(index.revoked(), source="revoked.jsonl")
        if one.manifest_sha256
    }
    for entries in found.values():
        entries[:] = [
            replace_entry(e, yanked=revoked[e.manifest_sha256]) if e.manifest_sha256 in revoked else e for e in entries
        ]
    shown = newest(entry for entries in found.values() for entry in entries)
    counts = {folder: Counter[str]() for folder, _, _ in _KINDS}
    for entry in shown.values():
        for folder, _, values in _KINDS:
            counts[folder].update(set(values(entry)))
    pages = {folder: _pages(folder, counts[folder]) for folder in counts}
    adapters = [
        Adapter(
            entry,
            tuple(sorted(found[entry.id], key=lambda e: Version(e.version), reverse=True)),
            f"adapters/{_path(entry.principal)}/{_path(entry.name)}.html",
            tuple(Link(value, pages[folder][value]) for folder, _, values in _KINDS for value in values(entry)),
        )
        for entry in sorted(shown.values(), key=lambda e: (e.first_seen or e.published, e.id), reverse=True)
    ]
    kinds = [_kind(folder, title, pages[folder], counts[folder]) for folder, title, _ in _KINDS]
    site = {
        "name": root.index,
        "root": root.digest,
        "sources": sources,
        "adapters": len(adapters),
        "updated": max((a.entry.first_seen or a.entry.published for a in adapters), default=""),
        "kinds": kinds,
        "newest": adapters[:12],
    }
    _Writer(target, site).write(adapters, kinds, pages)
    return len(adapters)


class _Writer:
    def __init__(self, target: Path, site: Mapping[str, Any]) -> None:
        self.target, self.site = target, site
        self.templates = Environment(
            loader=FileSystemLoader(_TEMPLATES),
            autoescape=select_autoescape(["html", "xml"]),
            undefined=StrictUndefined,
            trim_blocks=False,
            keep_trailing_newline=True,
        )

    def write(
        self, adapters: Sequence[Adapter], kinds: Sequence[Mapping[str, Any]], pages: Mapping[str, Mapping[str, str]]
    ) -> None:
        for folder in ("adapters", "search", "assets", *(folder for folder, _, _ in _KINDS)):
            shutil.rmtree(self.target / folder, ignore_errors=True)
        for name in _ASSETS:
            replace(self.target / "assets" / name, (_TEMPLATES / name).read_bytes())
        self._page("index.html", "home.html")
        tables = (("Sources, in a pull request", SOURCE_RULES), ("Releases, in every crawl", RELEASE_RULES))
        self._page("rules.html", "rules.html", tables=tables, current="rules")
        self._page("feed.xml", "feed.xml", releases=adapters[:50])
        members: dict[tuple[str, str], list[Adapter]] = defaultdict(list)
        for adapter in adapters:
            for folder, _, values in _KINDS:
                for value in dict.fromkeys(values(adapter.entry)):
                    members[folder, value].append(adapter)
        for kind in kinds:
            folder = kind["folder"]
            self._page(f"{folder}/index.html", "facets.html", kind=kind, current=folder)
            for facet in kind["all"]:
                inside = members[folder, facet.label]
                boards = list(_boards(inside)) if folder in ("tasks", "bases") else []
                self._page(
                    facet.page, "facet.html", kind=kind, facet=facet, adapters=inside, boards=boards, current=folder
                )
        by_id = {adapter.entry.id: adapter.page for adapter in adapters}
        rivals: dict[tuple[str, str], list[Adapter]] = defaultdict(list)
        for adapter in adapters:
            rivals[adapter.entry.task, adapter.entry.base_model].append(adapter)
        for adapter in adapters:
            same = rivals[adapter.entry.task, adapter.entry.base_model]
            boards = list(_boards(same, adapter)) if len(same) > 1 else []
            releases = [_release(entry) for entry in adapter.releases]
            facts = _facts(adapter, pages, by_id)
            self._page(adapter.page, "adapter.html", a=adapter, releases=releases, facts=facts, boards=boards)
        self._search(adapters)

    def _page(self, path: str, template: str, **values: Any) -> None:
        root = "../" * path.count("/")
        values = {"current": "", **values}
        text = self.templates.get_template(template).render(site=self.site, root=root, **values)
        replace(self.target / path, text.encode())

    def _search(self, adapters: Sequence[Adapter]) -> None:
        names = []
        for start in range(0, max(len(adapters), 1), _PART):
            rows = [_row(adapter) for adapter in adapters[start : start + _PART]]
            names.append(f"{start // _PART}.json")
            data = json.dumps(rows, ensure_ascii=False, separators=(",", ":"))
            replace(self.target / "search" / names[-1], data.encode())
        replace(self.target / "search" / "index.json", json.dumps({"parts": names}).encode())


def _kind(folder: str, title: str, pages: Mapping[str, str], counts: Counter[str]) -> dict[str, Any]:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    facets = [Facet(label, pages[label], count) for label, count in ordered]
    return {"folder": folder, "title": title, "top": facets[:_TOP], "all": facets, "more": len(facets) > _TOP}


def _pages(folder: str, labels: Iterable[str]) -> dict[str, str]:
    """Give every label a page of its own, also where two look the same in an address."""
    found: dict[str, str] = {}
    taken: set[str] = {"index"}
    for label in sorted(labels):
        name, number = _path(label.replace("/", "-")).lower(), 1
        while name in taken:
            number += 1
            name = f"{_path(label.replace('/', '-')).lower()}-{number}"
        taken.add(name)
        found[label] = f"{folder}/{name}.html"
    return found


def _path(text: str) -> str:
    """A part of an address: letters, digits and what does no harm."""
    plain = "/".join(re.sub(r"[^A-Za-z0-9_-]+", "-", part).strip("-") or "x" for part in text.split("/"))
    return plain[:200]


def _boards(adapters: Sequence[Adapter], here: Adapter | None = None) -> Iterator[dict[str, Any]]:
    """Yield a leaderboard for every data set and metric that several adapters have a number of."""
    scores: dict[tuple[str, str], list[tuple[Adapter, float]]] = defaultdict(list)
    for adapter in adapters:
        for metric in adapter.entry.metrics:
            if math.isfinite(metric.value):
                scores[metric.dataset, metric.name].append((adapter, metric.value))
    ordered = sorted(scores.items(), key=lambda item: (-len(item[1]), item[0]))
    shown = [item for item in ordered if here is None or any(adapter is here for adapter, _ in item[1])]
    for number, ((dataset, name), found) in enumerate(shown[:6]):
        if len(found) < 2:
            continue
        sign = 1 if name.lower() in _LOW else -1
        found.sort(key=lambda item: (sign * item[1], item[0].entry.id))
        rows = [{"adapter": a, "value": f"{v:.4g}", "here": a is here} for a, v in found[:25]]
        title = f"{name} on {dataset}"
        yield {"title": title, "metric": name, "rows": rows, "plot": _plot(f"plot-{number}", title, found, here)}


def _plot(name: str, title: str, found: Sequence[tuple[Adapter, float]], here: Adapter | None) -> dict[str, Any] | None:
    """Lay out a scatter plot of score against size."""
    points = [(a.entry.size, value, a) for a, value in found[:200] if a.entry.size]
    if len(points) < 2:
        return None
    sizes, values = [math.log10(size) for size, _, _ in points], [value for _, value, _ in points]
    if max(values) == min(values) and max(sizes) == min(sizes):
        return None
    left, right = min(sizes) - 0.1, max(sizes) + 0.1
    margin = (max(values) - min(values)) * 0.1 or abs(values[0]) * 0.1 or 1.0
    low, high = min(values) - margin, max(values) + margin

    def x(size: float) -> float:
        return round(70 + 540 * (size - left) / (right - left), 1)

    def y(value: float) -> float:
        return round(245 - 215 * (value - low) / (high - low), 1)

    steps = [low + (high - low) * i / 4 for i in range(5)]
    across = [left + (right - left) * i / 3 for i in range(4)]
    return {
        "id": name,
        "title": f"{title} against size",
        "ys": [{"at": y(value), "label": f"{value:.3g}"} for value in steps],
        "xs": [{"at": x(size), "label": _bytes(int(10**size))} for size in across],
        "dots": [
            {
                "x": x(math.log10(size)),
                "y": y(value),
                "here": adapter is here,
                "title": f"{adapter.entry.name}: {value:.4g}, {_bytes(size)}",
            }
            for size, value, adapter in points
        ],
    }


def _facts(
    adapter: Adapter, pages: Mapping[str, Mapping[str, str]], by_id: Mapping[str, str]
) -> list[tuple[str, list[Link]]]:
    entry = adapter.entry
    built_on = [Link(ref, by_id.get(re.split(r"[=<>!~#]", ref)[0], "")) for ref in entry.dependencies]
    rows = [
        ("Task", [Link(part, pages["tasks"][part]) for part in entry.task.split("/") if part]),
        ("Data", [Link(entry.dataset)] if entry.dataset else []),
        ("Languages", [Link(tag, pages["languages"][tag]) for tag in entry.languages]),
        ("Base model", [Link(entry.base_model, pages["bases"][entry.base_model])]),
        ("Method", [Link(entry.method, pages["methods"][entry.method])]),
        ("Parameters", [Link(f"{entry.parameters:,}")] if entry.parameters else []),
        ("Size", [Link(adapter.size)]),
        ("Licence", [Link(entry.license)]),
        ("Authors", [Link(name) for name in entry.authors]),
        ("Built on", built_on),
        ("Keywords", [Link(word) for word in entry.keywords]),
        ("Repository", [Link(entry.url)]),
        ("Legacy file", [Link(entry.legacy)] if entry.legacy else []),
    ]
    return [(title, links) for title, links in rows if links]


def _release(entry: Entry) -> dict[str, Any]:
    return {
        "version": entry.version,
        "published": entry.published,
        "size": _bytes(entry.size),
        "digest": entry.manifest_sha256,
        "yanked": entry.yanked,
    }


def _row(adapter: Adapter) -> list[Any]:
    entry = adapter.entry
    parts = (entry.id, entry.task, entry.dataset, entry.base_model, entry.method, entry.license, entry.description)
    text = " ".join((*parts, *entry.languages, *entry.keywords)).lower()
    tags = [link.label for link in adapter.links] + [adapter.size]
    return [adapter.page, entry.name, entry.version, entry.principal, adapter.summary, text[:1500], tags]


def _bytes(size: int) -> str:
    if not size:
        return "size unknown"
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= step:
            return f"{size / step:.3g} {unit}"
    return f"{size} B"
