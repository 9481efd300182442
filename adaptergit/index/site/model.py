"""What the pages show: adapters, the facets that they are found by, and the addresses of their pages."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from adaptergit.index.entry import Entry
from adaptergit.index.site.markdown import plain

KINDS: tuple[tuple[str, str, Callable[[Entry], list[str]]], ...] = (
    ("tasks", "Tasks", lambda e: [part for part in e.task.split("/") if part]),
    ("languages", "Languages", lambda e: list(e.languages)),
    ("bases", "Base models", lambda e: [e.base_model]),
    ("methods", "Methods", lambda e: [e.method]),
)
"""Folder, title, and the values of an entry."""
PER_PAGE = 48
"""Adapters on one page of a facet."""
_MAX_PART = 100


@dataclass(frozen=True)
class Link:
    """Text, and the page it leads to, if there is one."""

    label: str
    page: str = ""


@dataclass(frozen=True)
class Release:
    """One release as a page shows it."""

    entry: Entry
    refused: str = ""
    """Why it was revoked."""
    warned: str = ""

    @property
    def state(self) -> str:
        """For the table of versions."""
        if self.refused:
            return self.refused
        if self.entry.yanked is not None:
            return f"yanked: {self.entry.yanked}"
        return self.warned or "listed"

    @property
    def size(self) -> str:
        """For people."""
        return size_text(self.entry.size)


@dataclass(frozen=True)
class Adapter:
    """One adapter with its page."""

    shown: Release
    releases: tuple[Release, ...]
    """Newest first."""
    page: str
    links: tuple[Link, ...]

    @property
    def entry(self) -> Entry:
        """Of the release that the page is about."""
        return self.shown.entry

    @property
    def usable(self) -> bool:
        """Tell whether the release that the page is about is to be used."""
        return not self.shown.refused and self.entry.yanked is None

    @cached_property
    def summary(self) -> str:
        """The first sentence or so of its description."""
        text = " ".join(plain(self.entry.description).split())
        return text if len(text) <= 180 else text[:177].rsplit(" ", 1)[0] + " …"

    @property
    def size(self) -> str:
        """For people."""
        return size_text(self.entry.size)

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

    def pages(self) -> list[str]:
        """Return the addresses of all its pages."""
        return paged(self.page, self.count, PER_PAGE)


@dataclass(frozen=True)
class Kind:
    """All facets of one kind, the most used first."""

    folder: str
    title: str
    facets: tuple[Facet, ...]

    @property
    def top(self) -> tuple[Facet, ...]:
        """For the first page."""
        return self.facets[:24]


def kind_of(folder: str, title: str, pages: Mapping[str, str], counts: Counter[str]) -> Kind:
    """Put facets into the order in which they are shown."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return Kind(folder, title, tuple(Facet(label, pages[label], count) for label, count in ordered))


def paged(page: str, count: int, most: int) -> list[str]:
    """Return the addresses of the pages that a list of things takes: ``a/b.html``, ``a/b/2.html`` …"""
    number = max(1, -(-count // most))
    return [page, *(f"{page.removesuffix('.html')}/{n}.html" for n in range(2, number + 1))]


def page_of(id: str) -> str:
    """Return the page of an adapter: no two share one, and none is hidden by a server."""
    return f"adapters/{'/'.join(map(_part, id.split('/')))}.html"


def facet_pages(folder: str, labels: Iterable[str]) -> dict[str, str]:
    """Give every label a page of its own, also where two look the same in an address."""
    found: dict[str, str] = {}
    taken: set[str] = {"index"}
    for label in sorted(labels):
        plain_name = re.sub(r"[^a-z0-9._-]+", "-", label.lower()).strip("-.")[:_MAX_PART] or "x"
        name, number = plain_name, 1
        while name in taken:
            number += 1
            name = f"{plain_name}-{number}"
        taken.add(name)
        found[label] = f"{folder}/{name}.html"
    return found


def size_text(size: int) -> str:
    """Say a size for people."""
    if not size:
        return "size unknown"
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= step:
            return f"{size / step:.3g} {unit}"
    return f"{size} B"


def _part(text: str) -> str:
    """One part of an address; what is odd, and a dot in front, as ``~`` and two hexadecimal digits."""
    plain_part = re.sub(r"[^A-Za-z0-9._@-]|^\.", lambda m: "".join(f"~{b:02X}" for b in m[0].encode()), text)
    if len(plain_part) <= _MAX_PART:
        return plain_part
    return f"{plain_part[: _MAX_PART - 20]}~{hashlib.sha256(text.encode()).hexdigest()[:16]}"
