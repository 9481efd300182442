"""The local database of one index: SQLite with full-text search, rows in the order of their static rank.

The rank of an adapter is its row number, best first, so that the best hits of a query are found first and ``LIMIT``
ends it early: sorting by relevance would look at every hit. Facets are words of their own (``t_sentiment``,
``l_de``), so that a filter is one more word of the query. The database is only a cache of the shards and can be built
again at any time.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from adaptergit.errors import PackageError, UsageError
from adaptergit.index.entry import Entry, newest

FILTERS = ("task", "base_model", "method", "language", "license")
_LETTERS = {"task": "t", "base_model": "b", "method": "m", "language": "l", "license": "c"}
SORTS = ("best", "newest", "smallest", "name")
_MAX_CANDIDATES = 2000
_SCHEMA = """
CREATE TABLE IF NOT EXISTS source(principal TEXT PRIMARY KEY, shard TEXT NOT NULL, loaded INTEGER NOT NULL)
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS adapter(place INTEGER PRIMARY KEY, principal TEXT NOT NULL, name TEXT NOT NULL,
    fingerprint TEXT NOT NULL, published TEXT NOT NULL, size INTEGER NOT NULL, line BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS adapter_name ON adapter(name);
CREATE INDEX IF NOT EXISTS adapter_principal ON adapter(principal);
CREATE INDEX IF NOT EXISTS adapter_fingerprint ON adapter(fingerprint);
CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5(text, content='',
    detail=none, prefix='2 3 4 5', tokenize="unicode61 tokenchars '_'");
INSERT INTO words(words, rank) VALUES('hashsize', 67108864);
"""
_STAGE = (
    "CREATE TABLE stage.gone(principal TEXT PRIMARY KEY) WITHOUT ROWID",
    "CREATE TABLE stage.new_source AS SELECT * FROM source LIMIT 0",
    "CREATE TABLE stage.new(rank INTEGER, principal, name, fingerprint, published, size, line, words)",
)


@dataclass(frozen=True)
class Query:
    """What is looked for."""

    text: str = ""
    """Words; each must occur. Where no entry has them all, the last one may be the beginning of a word."""
    filters: tuple[tuple[str, str], ...] = ()
    """Pairs of a name in :data:`FILTERS` and what it must be: every word of it, compared without case."""
    sort: str = "best"
    limit: int = 50


class Database:
    """Search over the newest releases of an index.

    A file is never changed in place: it is opened to be read (also on a medium that cannot be written), or made anew
    from a copy and renamed, so that a reader sees all of an update or nothing.
    """

    def __init__(self, path: Path | None = None, *, writable: bool = False) -> None:
        self.path = path
        if path is None or writable:
            self.connection = sqlite3.connect(":memory:" if path is None else path, isolation_level=None)
            self.connection.execute("PRAGMA journal_mode=MEMORY")
            self.connection.execute("PRAGMA synchronous=OFF")
            self.connection.execute("PRAGMA cache_size=-131072")
            self.connection.executescript(_SCHEMA)
            self.connection.execute("ATTACH ? AS stage", (":memory:" if path is None else f"{path}.stage",))
            self.connection.execute("PRAGMA stage.journal_mode=MEMORY")
            self.connection.execute("PRAGMA stage.synchronous=OFF")
        else:
            self.connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)

    @classmethod
    def read(cls, path: Path) -> Database:
        """Open a database; where there is none, an empty one.

        Raises:
            PackageError: The file is no such database.
        """
        if not path.is_file():
            return cls()
        try:
            found = cls(path)
            found.connection.execute("SELECT 1 FROM source, adapter LIMIT 1")
        except sqlite3.DatabaseError as error:
            raise PackageError(
                f"not a search database: {error}", where=str(path), hint="remove it, then: adaptergit index update"
            ) from error
        return found

    @classmethod
    @contextmanager
    def rewritten(cls, path: Path) -> Iterator[Database]:
        """Change a copy of a database; it takes the place of the old one at the end, or never."""
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        try:
            if path.is_file():
                shutil.copyfile(path, temporary)
            try:
                database = cls(temporary, writable=True)
            except sqlite3.DatabaseError:
                temporary.write_bytes(b"")  # damaged: everything is fetched again
                database = cls(temporary, writable=True)
            try:
                with database._changing():
                    yield database
            finally:
                database.close()
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
            Path(f"{temporary}.stage").unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the file."""
        self.connection.close()

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """All changes inside, or none."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")

    def shards(self) -> dict[str, tuple[str, bool]]:
        """Return the digest of every source's shard, and whether its releases are in the database."""
        rows = self.connection.execute("SELECT principal, shard, loaded FROM source")
        return {principal: (shard, bool(loaded)) for principal, shard, loaded in rows}

    def shard(self, principal: str) -> str | None:
        """Return the digest of one source's shard."""
        row = self.connection.execute("SELECT shard FROM source WHERE principal = ?", (principal,)).fetchone()
        return None if row is None else str(row[0])

    def replace(self, gone: Iterable[str], new: Iterable[tuple[str, str, Iterable[Entry] | None]]) -> None:
        """Forget sources, and take over others.

        Args:
            gone: Principals.
            new: Principal, digest of its shard, and its entries; without entries, only where the shard is.
        """
        # Everything in the order of ranks: the full-text index writes a segment whenever a number is not larger than
        # the last, and rows far from each other in the table are pages far from each other.
        for statement in _STAGE:
            self.connection.execute(statement)
        for principal in gone:
            self.connection.execute("INSERT OR IGNORE INTO stage.gone VALUES(?)", (principal,))
        for principal, shard, entries in new:
            self.connection.execute("INSERT OR IGNORE INTO stage.gone VALUES(?)", (principal,))
            self.connection.execute(
                "INSERT INTO stage.new_source VALUES(?, ?, ?)", (principal, shard, entries is not None)
            )
            self.connection.executemany(
                "INSERT INTO stage.new VALUES(?,?,?,?,?,?,?,?)",
                [
                    (
                        _rank(entry),
                        principal,
                        entry.name,
                        entry.fingerprint,
                        entry.published,
                        entry.size,
                        entry.to_line(),
                        _words(entry),
                    )
                    for entry in newest(entries or ()).values()
                ],
            )
        sql = "SELECT place, line FROM adapter WHERE principal IN (SELECT principal FROM stage.gone) ORDER BY place"
        for place, line in self.connection.execute(sql):
            # The index keeps no text of its own: it is told again what it was told.
            told = _words(Entry.from_line(line, where=str(self.path)))
            self.connection.execute("INSERT INTO words(words, rowid, text) VALUES('delete', ?, ?)", (place, told))
        for table in ("adapter", "source"):
            sql = f"DELETE FROM {table} WHERE principal IN (SELECT principal FROM stage.gone)"  # noqa: S608 - from a tuple
            self.connection.execute(sql)
        self.connection.execute("INSERT INTO source SELECT * FROM stage.new_source")
        last = -1
        for rank, *row, words in self.connection.execute("SELECT * FROM stage.new ORDER BY rank, principal, name"):
            last = max(rank, last + 1)
            while True:
                try:
                    self.connection.execute("INSERT INTO adapter VALUES(?,?,?,?,?,?,?)", (last, *row))
                    break
                except sqlite3.IntegrityError:
                    last += 1
            self.connection.execute("INSERT INTO words(rowid, text) VALUES(?, ?)", (last, words))
        for table in ("gone", "new_source", "new"):
            self.connection.execute(f"DROP TABLE stage.{table}")

    def mark(self, version: int) -> None:
        """Remember which snapshot this is."""
        self.connection.execute(f"PRAGMA user_version = {version % 2**31}")

    def marked(self) -> int:
        """Return which snapshot this is."""
        return int(self.connection.execute("PRAGMA user_version").fetchone()[0])

    def count(self) -> int:
        """Return how many adapters there are."""
        return int(self.connection.execute("SELECT count(*) FROM adapter").fetchone()[0])

    def search(self, query: Query) -> list[Entry]:
        """Return the newest release of every adapter that matches.

        Raises:
            UsageError: An unknown filter or order.
        """
        if query.sort not in SORTS:
            raise UsageError(f"unknown order {query.sort!r}", hint=f"one of {', '.join(SORTS)}")
        words = re.findall(r"\w+", query.text.casefold().replace("_", " "))
        found = self._search(query, words, _match(words, query.filters))
        # Whole words first: every word with a common beginning would have to be looked at before the first hit.
        return found or (self._search(query, words, _match(words, query.filters, beginning=True)) if words else [])

    def _search(self, query: Query, words: list[str], match: str | None) -> list[Entry]:
        order = {"best": "place", "newest": "published DESC, place", "smallest": "size, place", "name": "name, place"}
        if match is None:
            sql = f"SELECT line FROM adapter ORDER BY {order[query.sort]} LIMIT ?"  # noqa: S608 - from a table
            return self._entries(sql, (query.limit,))
        if query.sort == "best":
            sql = "SELECT line FROM adapter JOIN (SELECT rowid AS r FROM words WHERE words MATCH ? ORDER BY rowid LIMIT ?) ON place = r ORDER BY place"  # noqa: E501 - one statement
            found = self._entries(sql, (match, 2 * query.limit))
            return _named_first(self._named(words, match), found, words)[: query.limit]
        sql = f"SELECT line FROM adapter JOIN (SELECT rowid AS r FROM words WHERE words MATCH ? ORDER BY rowid LIMIT ?) ON place = r ORDER BY {order[query.sort]} LIMIT ?"  # noqa: S608, E501
        return self._entries(sql, (match, _MAX_CANDIDATES, query.limit))

    def named(self, name: str) -> list[Entry]:
        """Return the adapters with exactly this name."""
        return self._entries("SELECT line FROM adapter WHERE name = ? ORDER BY place LIMIT 100", (name,))

    def get(self, principal: str, name: str) -> Entry | None:
        """Return the newest release of one adapter."""
        sql = "SELECT line FROM adapter WHERE principal = ? AND name = ?"
        return next(iter(self._entries(sql, (principal, name))), None)

    def fingerprints(self) -> list[str]:
        """Return every base model's fingerprint that an adapter was trained in."""
        rows = self.connection.execute("SELECT DISTINCT fingerprint FROM adapter WHERE fingerprint != ''")
        return [row[0] for row in rows]

    def of_fingerprints(self, fingerprints: Iterable[str], limit: int) -> list[Entry]:
        """Return the adapters of base models."""
        wanted = list(fingerprints)[:500]
        marks = ",".join("?" * len(wanted))
        sql = f"SELECT line FROM adapter WHERE fingerprint IN ({marks}) ORDER BY place LIMIT ?"  # noqa: S608 - marks
        return self._entries(sql, (*wanted, limit))

    def _named(self, words: list[str], match: str) -> list[Entry]:
        """What is called exactly as the query may be far down in the order of ranks."""
        if not 1 <= len(words) <= 4:
            return []
        names = {separator.join(words) for separator in "-_."}
        marks = ",".join("?" * len(names))
        sql = f"SELECT line FROM adapter JOIN words ON words.rowid = place WHERE name IN ({marks}) AND words MATCH ? ORDER BY place LIMIT 20"  # noqa: S608, E501
        return self._entries(sql, (*sorted(names), match)) if self._has_name(names) else []

    def _has_name(self, names: Iterable[str]) -> bool:
        found = (
            self.connection.execute("SELECT 1 FROM adapter WHERE name = ? LIMIT 1", (n,)).fetchone() for n in names
        )
        return any(found)

    def _entries(self, sql: str, values: tuple[object, ...]) -> list[Entry]:
        return [Entry.from_line(row[0], where=str(self.path)) for row in self.connection.execute(sql, values)]


def _match(words: list[str], filters: Iterable[tuple[str, str]], *, beginning: bool = False) -> str | None:
    parts = [f'"{word}"' for word in words]
    if beginning and words and len(words[-1]) > 1:
        parts[-1] += "*"
    for name, value in filters:
        if name not in _LETTERS:
            raise UsageError(f"unknown filter {name!r}", hint=f"one of {', '.join(FILTERS)}")
        found = re.findall(r"\w+", value.casefold().replace("_", " "))
        parts += [f'"{_LETTERS[name]}_{word}"' for word in found]
    return " AND ".join(parts) or None


def _facets(entry: Entry) -> str:
    values: Mapping[str, Iterable[str]] = {
        "task": (entry.task, entry.dataset),
        "base_model": (entry.base_model,),
        "method": (entry.method,),
        "language": entry.languages,
        "license": (entry.license,),
    }
    found = {
        f"{_LETTERS[name]}_{word}"
        for name, texts in values.items()
        for text in texts
        for word in re.findall(r"\w+", text.casefold().replace("_", " "))
    }
    return " ".join(sorted(found))


def _words(entry: Entry) -> str:
    """All that is looked up: facets with their letter, and words, in which there is no underscore."""
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
    return f"{_facets(entry)} {' '.join(parts).casefold().replace('_', ' ')}"


def _rank(entry: Entry) -> int:
    """Measured before unmeasured, new before old; then anyhow, but always the same."""
    stated = re.match(r"(\d{4})-(\d{2})", entry.published)
    year, month = (int(stated[1]), int(stated[2])) if stated else (2000, 1)
    quality = min(max((year - 2000) * 12 + month, 0), 4095) + (4096 if entry.metrics else 0)
    # Small numbers near each other: the lists of the full-text index hold differences.
    tie = int.from_bytes(hashlib.sha256(entry.id.encode()).digest()[:4], "big") >> 12
    return (8191 - quality) << 20 | tie


def _named_first(named: list[Entry], found: list[Entry], words: list[str]) -> list[Entry]:
    """What is called so, then where the words are in its name, task or keywords; else the order of ranks."""

    def hits(entry: Entry) -> int:
        head = " ".join((entry.name, entry.task, entry.dataset, *entry.keywords)).casefold()
        return -sum(word in head for word in words)

    known = {entry.id for entry in named}
    return [*named, *sorted((entry for entry in found if entry.id not in known), key=hits)]
