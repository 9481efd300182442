"""What the database looks up: words of an entry, its facets as words of their own, and the order of what is found.

A facet is a word with a letter, ``t_sentiment`` or ``l_de``, so that a filter is one more word of the query. Task and
base model together also make one word, ``x_`` and a number: few adapters are for one task in one model, where many may
be for either.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from adaptergit.errors import UsageError
from adaptergit.index.entry import Entry

FILTERS = ("task", "base_model", "method", "language", "license")
SORTS = ("best", "newest", "smallest", "name")
_LETTERS = {"task": "t", "base_model": "b", "method": "m", "language": "l", "license": "c"}
_MONTH = re.compile(r"(\d{4})-(\d{2})")
_PAIR = ("task", "base_model")


@dataclass(frozen=True)
class Query:
    """What is looked for."""

    text: str = ""
    """Words; each must occur. Where no entry has them all, the last one may be the beginning of a word."""
    filters: tuple[tuple[str, str], ...] = ()
    """Pairs of a name in :data:`FILTERS` and what it must be: every word of it, compared without case."""
    sort: str = "best"
    limit: int = 50
    fingerprints: tuple[str, ...] | None = None
    """Of base models: only what was trained in one of them."""

    @property
    def words(self) -> list[str]:
        """Of the text."""
        return words_of(self.text)

    def facets(self) -> tuple[list[str], list[str]]:
        """Return the facets that task and base model ask for, if both do, and all others.

        Raises:
            UsageError: An unknown filter.
        """
        asked: dict[str, list[str]] = {}
        for name, value in self.filters:
            if name not in _LETTERS:
                raise UsageError(f"unknown filter {name!r}", hint=f"one of {', '.join(FILTERS)}")
            asked.setdefault(name, []).extend(f"{_LETTERS[name]}_{word}" for word in words_of(value))
        both = all(asked.get(name) for name in _PAIR)
        pair = [word for name in _PAIR for word in asked[name]] if both else []
        return pair, [word for name, words in asked.items() if not both or name not in _PAIR for word in words]


def words_of(text: str) -> list[str]:
    """Cut a text into words, in which there is no underscore."""
    return re.findall(r"\w+", text.casefold().replace("_", " "))


def begins_with(entry: Entry, beginning: str) -> bool:
    """Tell whether a word of an entry begins so, as the index compares: without accents."""
    return re.search(rf"\b{re.escape(_plain(beginning))}", _plain(_said_of(entry))) is not None


def has(entry: Entry, facets: Iterable[str], words: Iterable[str]) -> bool:
    """Tell whether an entry has all of these facets and words, as the index compares."""
    return set(facets_of(entry).split()).issuperset(facets) and _plain_words(entry).issuperset(map(_plain, words))


def may_have(line: str, words: Iterable[str]) -> bool:
    """Tell whether an entry may have all of these words, or beginnings of words, by its line alone: much sooner."""
    text = _plain(line.casefold())
    return all(_plain(word) in text for word in words)


def facets_of(entry: Entry, names: Iterable[str] = FILTERS) -> str:
    """Return the facets of an entry, as words with their letters."""
    values: Mapping[str, tuple[str, ...]] = {
        "task": (entry.task, entry.dataset),
        "base_model": (entry.base_model,),
        "method": (entry.method,),
        "language": entry.languages,
        "license": (entry.license,),
    }
    return " ".join(sorted({word for name in names for text in values[name] for word in _facets(name, text)}))


@lru_cache(2048)
def _facets(name: str, text: str) -> tuple[str, ...]:
    """Return the facets of one value: of a million releases, few hundred are different."""
    return tuple(f"{_LETTERS[name]}_{word}" for word in words_of(text))


def base_of(fingerprint: str) -> str:
    """Return the word that stands for a base model's fingerprint."""
    return f"f_{hashlib.sha256(fingerprint.encode()).hexdigest()[:12]}"


def pair_of(entry: Entry) -> str:
    """Return the facets of task and base model."""
    return facets_of(entry, _PAIR)


def words_with(name: str, facets: str) -> list[str]:
    """Return the words of one filter among facets."""
    letter = f"{_LETTERS[name]}_"
    return [facet.removeprefix(letter) for facet in facets.split() if facet.startswith(letter)]


def text_of(entry: Entry, pair: int) -> str:
    """Return all that is looked up of an entry, whose task and base model have a number."""
    base = f"{base_of(entry.fingerprint)} " if entry.fingerprint else ""
    return f"x_{pair} {base}{facets_of(entry)} {_said_of(entry)}"


def _said_of(entry: Entry) -> str:
    parts = (
        entry.name,
        entry.principal,
        entry.task,
        entry.dataset,
        entry.base_model,
        entry.method,
        *entry.keywords,
        *entry.languages,
        *entry.authors,
        entry.description,
    )
    return " ".join(parts).casefold().replace("_", " ")


def rank(entry: Entry) -> int:
    """Return a number that is small for what is to be found first.

    Measured before unmeasured, new before old; then anyhow, but always the same.
    """
    stated = _MONTH.match(entry.published)
    year, month = (int(stated[1]), int(stated[2])) if stated else (2000, 1)
    quality = min(max((year - 2000) * 12 + month, 0), 4095) + (4096 if entry.metrics else 0)
    # Small numbers near each other: the lists of the full-text index hold differences.
    tie = int.from_bytes(hashlib.sha256(entry.id.encode()).digest()[:4], "big") >> 12
    return (8191 - quality) << 20 | tie


def _plain_words(entry: Entry) -> set[str]:
    return {_plain(word) for word in words_of(_said_of(entry))}


def _plain(word: str) -> str:
    if word.isascii():
        return word
    return "".join(char for char in unicodedata.normalize("NFD", word) if not unicodedata.combining(char))


def names_of(words: Sequence[str]) -> list[str]:
    """Return what an adapter may be called that is called exactly as the query."""
    return sorted({separator.join(words) for separator in "-_."}) if 1 <= len(words) <= 4 else []


def ordered(entries: Iterable[Entry], query: Query) -> list[Entry]:
    """Put what was found, in one index or in several, into the order that a query asks for.

    ``best``: what is called so, then where most of the words are in name, task or keywords, then by rank.
    """
    words = query.words
    names = set(names_of(words))

    def hits(entry: Entry) -> int:
        head = " ".join((entry.name, entry.task, entry.dataset, *entry.keywords)).casefold()
        return sum(word in head for word in words)

    found = sorted(entries, key=lambda entry: (rank(entry), entry.id))
    if query.sort == "newest":
        found.sort(key=lambda entry: entry.published, reverse=True)
    elif query.sort == "smallest":
        found.sort(key=lambda entry: entry.size)
    elif query.sort == "name":
        found.sort(key=lambda entry: entry.name)
    else:
        found.sort(key=lambda entry: (entry.name not in names, -hits(entry)))
    return found
