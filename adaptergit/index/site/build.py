"""Deciding what there is to say, and writing the pages."""

from __future__ import annotations

import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from packaging.version import Version

from adaptergit.errors import AdaptergitError
from adaptergit.index.documents import Root
from adaptergit.index.entry import Entry
from adaptergit.index.repository import IndexRepository, replace
from adaptergit.index.rules import TABLES
from adaptergit.index.site.boards import Board, boards
from adaptergit.index.site.find import write_search
from adaptergit.index.site.markdown import rendered
from adaptergit.index.site.model import (
    KINDS,
    PER_PAGE,
    Adapter,
    Facet,
    Kind,
    Link,
    Release,
    facet_pages,
    kind_of,
    page_of,
    paged,
)
from adaptergit.index.standing import Standing
from adaptergit.package.curve import FAR, Series, picture
from adaptergit.progress import each
from adaptergit.trust import parse_revocations

_TEMPLATES = Path(__file__).parent.parent / "templates"
_ASSETS = ("site.css", "site.js", "icon.svg")
_LABELS = 600
"""Facets on one page."""
_VERSIONS = 100
"""Releases in the table of one adapter."""
_NEWS = 100
"""Releases in the feed."""


@dataclass(frozen=True)
class Site:
    """What every page knows."""

    name: str
    root: str
    """Digest, for the command that adds the index."""
    sources: int
    adapters: int
    updated: str
    kinds: tuple[Kind, ...]
    newest: tuple[Adapter, ...]


def build_site(index: IndexRepository, target: Path, *, root: Root) -> int:
    """Write the pages beside what was built; return how many adapters there are to be found.

    Sources that cannot be read are left out, as :func:`adaptergit.index.build.build` leaves them out.

    Args:
        index: The repository.
        target: ``dist/``.
        root: For the command that adds the index.

    Raises:
        PackageError, TrustError: Revocations that are malformed.
    """
    sources, found = _releases(index)
    shown = {id: _shown(releases) for id, releases in found.items()}
    usable = [one.entry for one in shown.values() if not one.refused and one.entry.yanked is None]
    counts = {folder: Counter[str]() for folder, _, _ in KINDS}
    for entry in usable:
        for folder, _, values in KINDS:
            counts[folder].update(set(values(entry)))
    pages = {folder: facet_pages(folder, counts[folder]) for folder in counts}
    every = [
        Adapter(one, tuple(found[id]), page_of(id), tuple(_links(one.entry, pages)))
        for id, one in sorted(shown.items(), key=lambda item: (_came(item[1].entry), item[0]), reverse=True)
    ]
    adapters = [adapter for adapter in every if adapter.usable]
    kinds = tuple(kind_of(folder, title, pages[folder], counts[folder]) for folder, title, _ in KINDS)
    updated = max((_came(release.entry) for releases in found.values() for release in releases), default="")
    site = Site(root.index, root.digest, sources, len(adapters), updated, kinds, tuple(adapters[:12]))
    _Writer(target, site).write(every, adapters, pages)
    return len(adapters)


def _releases(index: IndexRepository) -> tuple[int, dict[str, list[Release]]]:
    """Return the number of sources, and all releases by adapter, newest first."""
    standing = Standing(parse_revocations(index.revoked(), source="revoked.jsonl"))
    found: dict[str, list[Release]] = defaultdict(list)
    sources = 0
    for principal in each(index.principals(), "reading", "sources"):
        try:
            source, entries = index.source(principal), index.entries(principal)
        except (AdaptergitError, OSError):
            continue
        sources += 1
        for entry in entries:
            refused, warned = standing.refusal(entry, source.threshold), standing.warning(entry)
            found[entry.id].append(Release(entry, _said(refused), _said(warned)))
    for releases in found.values():
        releases.sort(key=lambda release: Version(release.entry.version), reverse=True)
    return sources, found


def _said(text: str | None) -> str:
    return (text or "").replace(" (revoked.jsonl)", "")


def _shown(releases: Sequence[Release]) -> Release:
    """Return the release a page is about: the newest that is to be used, final ones first."""

    def worth(release: Release) -> tuple[bool, bool]:
        good = not release.refused and release.entry.yanked is None
        return good, good and not Version(release.entry.version).is_prerelease

    return max(releases, key=worth)  # the first of equals is the newest


def _came(entry: Entry) -> str:
    return entry.first_seen or entry.published


def _links(entry: Entry, pages: Mapping[str, Mapping[str, str]]) -> Iterable[Link]:
    for folder, _, values in KINDS:
        for value in dict.fromkeys(values(entry)):
            yield Link(value, pages[folder].get(value, ""))


class _Writer:
    def __init__(self, target: Path, site: Site) -> None:
        self.target, self.site = target, site
        self.templates = Environment(
            loader=FileSystemLoader(_TEMPLATES),
            autoescape=select_autoescape(["html", "xml"]),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        self.templates.filters["markdown"] = rendered

    def write(
        self, every: Sequence[Adapter], adapters: Sequence[Adapter], pages: Mapping[str, Mapping[str, str]]
    ) -> None:
        for folder in ("adapters", "search", "assets", *(folder for folder, _, _ in KINDS)):
            shutil.rmtree(self.target / folder, ignore_errors=True)
        for name in _ASSETS:
            replace(self.target / "assets" / name, (_TEMPLATES / name).read_bytes())
        self._page("index.html", "home.html", current="home")
        self._page("rules.html", "rules.html", tables=TABLES, current="rules")
        self._feed(every)
        self._facets(adapters)
        self._adapters(every, adapters, pages)
        write_search(self.target / "search", adapters)

    def _feed(self, every: Sequence[Adapter]) -> None:
        releases = [
            (release, adapter) for adapter in every for release in adapter.releases if release.state == "listed"
        ]
        releases.sort(key=lambda item: (_came(item[0].entry), item[0].entry.id, item[0].entry.version), reverse=True)
        self._page("feed.xml", "feed.xml", releases=releases[:_NEWS])

    def _facets(self, adapters: Sequence[Adapter]) -> None:
        members: dict[tuple[str, str], list[Adapter]] = defaultdict(list)
        for adapter in adapters:
            for folder, _, values in KINDS:
                for value in dict.fromkeys(values(adapter.entry)):
                    members[folder, value].append(adapter)
        for kind in self.site.kinds:
            addresses = paged(f"{kind.folder}/index.html", len(kind.facets), _LABELS)
            for number, address in enumerate(addresses):
                facets = kind.facets[number * _LABELS : (number + 1) * _LABELS]
                around = _around(addresses, number)
                self._page(address, "facets.html", kind=kind, facets=facets, around=around, current=kind.folder)
            for facet in kind.facets:
                self._facet(kind, facet, members[kind.folder, facet.label])

    def _facet(self, kind: Kind, facet: Facet, inside: Sequence[Adapter]) -> None:
        shown = boards(inside, most=6, dots=200) if kind.folder in ("tasks", "bases") else []
        addresses = facet.pages()
        for number, address in enumerate(addresses):
            part = inside[number * PER_PAGE : (number + 1) * PER_PAGE]
            self._page(
                address,
                "facet.html",
                kind=kind,
                facet=facet,
                adapters=part,
                boards=shown if number == 0 else [],
                around=_around(addresses, number),
                current=kind.folder,
            )

    def _adapters(
        self, every: Sequence[Adapter], adapters: Sequence[Adapter], pages: Mapping[str, Mapping[str, str]]
    ) -> None:
        by_id = {adapter.entry.id: adapter.page for adapter in every}
        rivals: dict[tuple[str, str], list[Adapter]] = defaultdict(list)
        for adapter in adapters:
            rivals[adapter.entry.task, adapter.entry.base_model].append(adapter)
        # Once for all adapters that are compared with one another, not once for each of them.
        compared = {key: boards(same, most=6, dots=60) for key, same in rivals.items() if len(same) > 1}
        drawn: dict[int, Markup] = {}
        for adapter in each(every, "pages", "adapters"):
            mine = compared.get((adapter.entry.task, adapter.entry.base_model), [])
            mine = [board for board in mine if adapter.page in board.places][:3]
            self._page(
                adapter.page,
                "adapter.html",
                a=adapter,
                facts=_facts(adapter, pages, by_id),
                releases=adapter.releases[:_VERSIONS],
                older=max(0, len(adapter.releases) - _VERSIONS),
                boards=[(board, self._drawn(board, drawn)) for board in mine],
                curve=_curve(adapter.entry.curve),
            )

    def _drawn(self, board: Board, drawn: dict[int, Markup]) -> Markup:
        """Draw what a plot shows whoever looks at it; the one adapter that a page is about is added there."""
        if board.plot is None:
            return Markup("")
        if id(board) not in drawn:
            module: Any = self.templates.get_template("macros.html").module
            drawn[id(board)] = Markup(module.drawing(board.plot))  # noqa: S704 - made by the template, which escapes
        return drawn[id(board)]

    def _page(self, path: str, template: str, **values: Any) -> None:
        root = "../" * path.count("/")
        values = {"current": "", **values}
        text = self.templates.get_template(template).render(site=self.site, root=root, **values)
        replace(self.target / path, text.encode())


def _curve(text: str) -> Markup:
    """Draw the training loss of an entry; nothing of a text that is none: an index may hold anything."""
    try:
        pairs = [tuple(float(part) for part in point.split(":")) for point in text.split()]
        points = tuple((step, loss) for step, loss in pairs if max(abs(step), abs(loss)) < FAR)
    except ValueError:
        return Markup("")
    # Made of numbers and of our own words.
    return Markup(picture([Series("training loss", "step", points)])) if len(points) > 1 else Markup("")  # noqa: S704


def _around(addresses: Sequence[str], number: int) -> list[tuple[str, str]]:
    """Return text and address of the pages to go to from one of several; without an address, the page itself."""
    if len(addresses) == 1:
        return []
    near = {0, len(addresses) - 1, *range(max(0, number - 2), min(len(addresses), number + 3))}
    found: list[tuple[str, str]] = []
    for n in sorted(near):
        if found and n - 1 not in near:
            found.append(("…", ""))
        found.append((str(n + 1), "" if n == number else addresses[n]))
    return found


def _facts(
    adapter: Adapter, pages: Mapping[str, Mapping[str, str]], by_id: Mapping[str, str]
) -> list[tuple[str, list[Link]]]:
    entry = adapter.entry

    def linked(folder: str, values: Iterable[str]) -> list[Link]:
        return [Link(value, pages[folder].get(value, "")) for value in values]

    rows = [
        ("Task", linked("tasks", (part for part in entry.task.split("/") if part))),
        ("Data", [Link(entry.dataset)] if entry.dataset else []),
        ("Languages", linked("languages", entry.languages)),
        ("Base model", linked("bases", [entry.base_model])),
        ("Method", linked("methods", [entry.method])),
        ("Head", [Link(entry.head)] if entry.head else []),
        ("Parameters", [Link(f"{entry.parameters:,}")] if entry.parameters else []),
        ("Size", [Link(adapter.size)]),
        ("Training", [Link(entry.training)] if entry.training else []),
        ("Licence", [Link(entry.license)]),
        ("Authors", [Link(name) for name in entry.authors]),
        ("Built on", [Link(ref, by_id.get(re.split(r"[=<>!~#]", ref)[0], "")) for ref in entry.dependencies]),
        ("Keywords", [Link(word) for word in entry.keywords]),
        ("Repository", [Link(entry.url)]),
        ("Legacy file", [Link(entry.legacy)] if entry.legacy else []),
    ]
    return [(title, links) for title, links in rows if links]
