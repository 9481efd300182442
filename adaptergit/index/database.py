"""The local database of one index: SQLite with full-text search, rows in the order of their static rank.

The rank of an adapter is its row number, best first, so that the best hits of a query are found first and ``LIMIT``
ends it early: sorting by relevance would look at every hit. Another order is walked along its own index where there are
many hits. The database is only a cache of the shards and can be built again at any time.
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from adaptergit.errors import PackageError, UsageError
from adaptergit.index.entry import Entry, newest
from adaptergit.index.words import (
    SORTS,
    Query,
    base_of,
    begins_with,
    has,
    may_have,
    names_of,
    ordered,
    pair_of,
    rank,
    text_of,
    words_with,
)

_FORMAT = 2
"""Of the file; one of another format is made anew."""
_FEW = 2000
"""Hits that are sorted; more of them are met in the order that is asked for, which is an index."""
_SOME = 200
"""Hits that are looked at for a longer beginning of a word than the index knows."""
_PREFIX = 5
"""Letters of the longest beginning of words that is indexed."""
_PAIRS = 64
"""Numbers of task and base model that stand for a filter; where more would, their words do."""
_ORDER = {
    "best": ("", "place"),
    "newest": ("INDEXED BY adapter_published", "published DESC, place"),
    "smallest": ("INDEXED BY adapter_size", "size, place"),
    "name": ("INDEXED BY adapter_name", "name, place"),
}
_MATCHING = "SELECT rowid AS r FROM words WHERE words MATCH ? ORDER BY rowid LIMIT ?"
_TOKENS = """tokenize="unicode61 tokenchars '_'" """
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS source(principal TEXT PRIMARY KEY, shard TEXT NOT NULL, loaded INTEGER NOT NULL,
    tracks TEXT NOT NULL, url TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS source_tracks ON source(tracks) WHERE tracks != '';
CREATE TABLE IF NOT EXISTS adapter(place INTEGER PRIMARY KEY, principal TEXT NOT NULL, name TEXT NOT NULL,
    fingerprint TEXT NOT NULL, published TEXT NOT NULL, size INTEGER NOT NULL, line BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS adapter_name ON adapter(name);
CREATE INDEX IF NOT EXISTS adapter_principal ON adapter(principal);
CREATE INDEX IF NOT EXISTS adapter_fingerprint ON adapter(fingerprint);
CREATE INDEX IF NOT EXISTS adapter_published ON adapter(published DESC);
CREATE INDEX IF NOT EXISTS adapter_size ON adapter(size);
CREATE TABLE IF NOT EXISTS pair(number INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE);
CREATE VIRTUAL TABLE IF NOT EXISTS pairs USING fts5(text, content='', detail=none, {_TOKENS});
CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5(text, content='', detail=none, prefix='2 3 4 5', {_TOKENS});
INSERT INTO words(words, rank) VALUES('hashsize', 67108864);
PRAGMA application_id = {_FORMAT};
"""
_STAGE = (
    "CREATE TABLE stage.gone(place INTEGER PRIMARY KEY)",
    "CREATE TABLE stage.new(rank INTEGER, principal, name, fingerprint, published, size, line, words)",
)
_OF_THE_DISK = {sqlite3.SQLITE_FULL: errno.ENOSPC, sqlite3.SQLITE_IOERR: errno.EIO}


@dataclass(frozen=True)
class News:
    """What is new of a source."""

    principal: str
    shard: str
    """Digest."""
    entries: Sequence[Entry] | None
    """None: only where the shard is."""
    tracks: str = ""
    """The principal whose copy it is."""
    url: str = ""


class Database:
    """Search over the newest releases of an index.

    A file is never changed in place: it is opened to be read (also on a medium that cannot be written), or made anew
    from a copy and renamed, so that a reader sees all of an update or nothing.
    """

    def __init__(self, path: Path | None = None, *, writable: bool = False) -> None:
        self.path = path
        self._pairs: dict[str, int] = {}
        """Numbers that were looked up."""
        if path is None or writable:
            self.connection = sqlite3.connect(":memory:" if path is None else path, isolation_level=None)
            try:
                self._make(":memory:" if path is None else f"{path}.stage")
            except sqlite3.OperationalError:
                self.connection.close()
                raise
        else:
            self.connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)

    def _make(self, stage: str) -> None:
        self.connection.execute("PRAGMA journal_mode=MEMORY")
        self.connection.execute("PRAGMA synchronous=OFF")
        self.connection.execute("PRAGMA cache_size=-131072")
        self.connection.executescript(_SCHEMA)
        self.connection.execute("ATTACH ? AS stage", (stage,))
        self.connection.execute("PRAGMA stage.journal_mode=MEMORY")
        self.connection.execute("PRAGMA stage.synchronous=OFF")

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
            format = found._number("PRAGMA application_id")
        except sqlite3.DatabaseError as error:
            raise PackageError(
                f"not a search database: {error}", where=str(path), hint="remove it, then: adaptergit index update"
            ) from error
        if format != _FORMAT:
            found.close()
            raise PackageError("of another version of adaptergit", where=str(path), hint="adaptergit index update")
        return found

    @classmethod
    @contextmanager
    def rewritten(cls, path: Path) -> Iterator[Database]:
        """Change a copy of a database; it takes the place of the old one at the end, or never.

        Raises:
            OSError: The disk is full, say.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        try:
            try:
                cls.read(path).close()
            except PackageError:
                pass  # everything is taken over again
            else:
                if path.is_file():
                    shutil.copyfile(path, temporary)
            database = cls(temporary, writable=True)
            try:
                with database._changing():
                    yield database
            finally:
                database.close()
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        except sqlite3.OperationalError as error:
            if (number := _OF_THE_DISK.get(error.sqlite_errorcode & 0xFF)) is None:
                raise
            raise OSError(number, os.strerror(number), str(path)) from error
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
            if self.connection.in_transaction:  # a full disk has ended it already
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

    def copies(self, principal: str) -> list[tuple[str, str]]:
        """Return the sources that are copies of one, each with its address."""
        sql = "SELECT principal, url FROM source WHERE tracks = ? AND tracks != '' ORDER BY principal"
        return [(str(copy), str(url)) for copy, url in self.connection.execute(sql, (principal,))]

    def replace(self, gone: Iterable[str], new: Iterable[News]) -> None:
        """Forget sources, by their principals, and take over others."""
        # Everything in the order of ranks: the full-text index writes a segment whenever a number is not larger than
        # the last, and rows far from each other in the table are pages far from each other.
        for statement in _STAGE:
            self.connection.execute(statement)
        dropped = set(gone)
        for principal in dropped:
            self.connection.execute(
                "INSERT INTO stage.gone SELECT place FROM adapter WHERE principal = ?", (principal,)
            )
            self.connection.execute("DELETE FROM source WHERE principal = ?", (principal,))
        for one in new:
            row = (one.principal, one.shard, one.entries is not None, one.tracks, one.url)
            self.connection.execute("INSERT OR REPLACE INTO source VALUES(?, ?, ?, ?, ?)", row)
            lines = {entry.to_line(): entry for entry in newest(one.entries or ()).values()}
            if one.principal not in dropped:
                self._keep(one.principal, lines)
            self.connection.executemany(
                "INSERT INTO stage.new VALUES(?,?,?,?,?,?,?,?)",
                [
                    (
                        rank(entry),
                        one.principal,
                        entry.name,
                        entry.fingerprint,
                        entry.published,
                        entry.size,
                        line,
                        self._text(entry),
                    )
                    for line, entry in lines.items()
                ],
            )
        sql = "SELECT place, line FROM adapter WHERE place IN (SELECT place FROM stage.gone) ORDER BY place"
        for place, line in self.connection.execute(sql):
            # The index keeps no text of its own: it is told again what it was told.
            told = self._text(Entry.from_line(line, where=str(self.path)))
            self.connection.execute("INSERT INTO words(words, rowid, text) VALUES('delete', ?, ?)", (place, told))
        self.connection.execute("DELETE FROM adapter WHERE place IN (SELECT place FROM stage.gone)")
        last = -1
        for place, *row, words in self.connection.execute("SELECT * FROM stage.new ORDER BY rank, principal, name"):
            last = max(place, last + 1)
            while True:
                try:
                    self.connection.execute("INSERT INTO adapter VALUES(?,?,?,?,?,?,?)", (last, *row))
                    break
                except sqlite3.IntegrityError:
                    last += 1
            self.connection.execute("INSERT INTO words(rowid, text) VALUES(?, ?)", (last, words))
        for table in ("gone", "new"):
            self.connection.execute(f"DROP TABLE stage.{table}")

    def _keep(self, principal: str, lines: dict[bytes, Entry]) -> None:
        """Leave alone what a source says as before, which is most of it: take it out of ``lines``, forget the rest."""
        sql = "SELECT place, line FROM adapter WHERE principal = ?"
        gone = [(place,) for place, line in self.connection.execute(sql, (principal,)) if not lines.pop(line, None)]
        self.connection.executemany("INSERT INTO stage.gone VALUES(?)", gone)

    def mark(self, version: int) -> None:
        """Remember which snapshot this is."""
        self.connection.execute(f"PRAGMA user_version = {version % 2**31}")

    def marked(self) -> int:
        """Return which snapshot this is."""
        return self._number("PRAGMA user_version")

    def count(self) -> int:
        """Return how many adapters there are."""
        return self._number("SELECT count(*) FROM adapter")

    def search(self, query: Query) -> list[Entry]:
        """Return the newest release of every adapter that matches.

        Raises:
            UsageError: An unknown filter or order.
        """
        if query.sort not in SORTS:
            raise UsageError(f"unknown order {query.sort!r}", hint=f"one of {', '.join(SORTS)}")
        pair, facets = query.facets()
        rare = self._rare(query, pair)
        words = query.words
        if rare is None or (query.text.strip() and not words):  # of signs alone nothing is found, and not everything
            return []
        if len(rare) + len(facets) + bool(words) > 2 and self._occur(words):
            # Lists of what is common are long; few that have all the rest are looked at themselves.
            few = self._few(rare, facets)
            if few is not None:
                asked = [*(facet.partition("_")[2] for facet in facets), *words]
                lines = (line for line in few if may_have(line.decode(), asked))
                return _among(list(self._read(lines)), query, facets)
        parts = [*rare, *map(_quoted, facets)]
        found = self._search(query, [*map(_quoted, words), *parts])
        if found or not words or len(words[-1]) < 2:
            return found
        # Whole words first: every word with a common beginning would have to be looked at before the first hit.
        *before, last = words
        rest = [*map(_quoted, before), *parts]
        if len(last) > _PREFIX and query.sort == "best":
            # The index knows beginnings of a few letters; of a longer one, it would read all lists of its words.
            most = max(2 * query.limit, _SOME)
            near = self._lines(" AND ".join([f"{_quoted(last[:_PREFIX])}*", *rest]), most)
            lines = (line for line in near if may_have(line.decode(), [last]))
            first = islice((entry for entry in self._read(lines) if begins_with(entry, last)), 2 * query.limit)
            found = ordered(first, query)[: query.limit]
            if len(found) == query.limit or len(near) < most:
                return found
        return self._search(query, [f"{_quoted(last)}*", *rest])

    def named(self, name: str) -> list[Entry]:
        """Return the adapters with exactly this name."""
        return self._entries("SELECT line FROM adapter WHERE name = ? ORDER BY place LIMIT 100", (name,))

    def alike(self, name: str) -> list[str]:
        """Return names of adapters that are about as long as this one: what it may have been meant to be."""
        sql = "SELECT DISTINCT name FROM adapter WHERE length(name) BETWEEN ? AND ? LIMIT 20000"
        return [row[0] for row in self.connection.execute(sql, (len(name) - 3, len(name) + 3))]

    def facets(self, name: str) -> set[str]:
        """Return the words of all tasks (``task``), or of all base models (``base_model``), or of some thousand."""
        rows = self.connection.execute("SELECT text FROM pair LIMIT 20000")
        return {word for row in rows for word in words_with(name, row[0])}

    def get(self, principal: str, name: str) -> Entry | None:
        """Return the newest release of one adapter."""
        sql = "SELECT line FROM adapter WHERE principal = ? AND name = ?"
        return next(iter(self._entries(sql, (principal, name))), None)

    def fingerprints(self) -> list[str]:
        """Return every base model's fingerprint that an adapter was trained in."""
        rows = self.connection.execute("SELECT DISTINCT fingerprint FROM adapter WHERE fingerprint != ''")
        return [row[0] for row in rows]

    def _rare(self, query: Query, pair: list[str]) -> list[str] | None:
        """Return what the filters that few adapters pass mean as parts of a match, or None where nothing can match."""
        parts = []
        if query.fingerprints is not None:
            if not query.fingerprints:
                return None
            parts.append(f"({' OR '.join(map(base_of, query.fingerprints))})")
        if pair:
            words = " AND ".join(map(_quoted, pair))
            sql = "SELECT rowid FROM pairs WHERE pairs MATCH ? LIMIT ?"
            numbers = [row[0] for row in self.connection.execute(sql, (words, _PAIRS + 1))]
            if not numbers:
                return None
            known = len(numbers) <= _PAIRS
            parts.insert(0, f"({' OR '.join(f'x_{number}' for number in numbers)})" if known else f"({words})")
        return parts

    def _occur(self, words: Sequence[str]) -> bool:
        """Tell whether every word is one of some adapter, the last one or its beginning."""
        missing = [word for word in words if not self._any(_quoted(word))]
        # The list of all words with a beginning is made before its first line is read.
        return not missing or (missing == words[-1:] and self._any(f"{_quoted(missing[0])}*"))

    def _any(self, match: str) -> bool:
        sql = "SELECT 1 FROM words WHERE words MATCH ? LIMIT 1"
        return self.connection.execute(sql, (match,)).fetchone() is not None

    def _few(self, rare: list[str], facets: list[str]) -> list[bytes] | None:
        """Return the lines of all with the rare parts and as many facets as make them few; None: they never are."""
        sql = "SELECT rowid FROM words WHERE words MATCH ? LIMIT ?"
        for count in range(len(facets) + 1):
            parts = [*rare, *map(_quoted, facets[:count])]
            if not parts:
                continue
            places = [row[0] for row in self.connection.execute(sql, (" AND ".join(parts), _SOME + 1))]
            if len(places) <= _SOME:
                marks = ",".join("?" * len(places))
                rows = self.connection.execute(f"SELECT line FROM adapter WHERE place IN ({marks})", places)  # noqa: S608 - marks only
                return [row[0] for row in rows]
        return None

    def _search(self, query: Query, parts: list[str]) -> list[Entry]:
        index, order = _ORDER[query.sort]
        if not parts:
            return self._entries(f"SELECT line FROM adapter {index} ORDER BY {order} LIMIT ?", (query.limit,))  # noqa: S608 - from a table
        match = " AND ".join(parts)
        if query.sort == "best":
            found = [*self._named(query.words, match), *self._read(self._lines(match, 2 * query.limit))]
            return ordered({entry.id: entry for entry in found}.values(), query)[: query.limit]
        if self._number(f"SELECT count(*) FROM ({_MATCHING})", (match, _FEW + 1)) <= _FEW:  # noqa: S608 - from above
            # Lines are long: only those that are wanted are read.
            first = f"SELECT place FROM adapter JOIN ({_MATCHING}) ON place = r ORDER BY {order} LIMIT ?"  # noqa: S608 - from above
            sql = f"SELECT line FROM adapter WHERE place IN ({first}) ORDER BY {order}"  # noqa: S608 - from above
            return self._entries(sql, (match, _FEW, query.limit))
        every = "SELECT rowid FROM words WHERE words MATCH ?"
        sql = f"SELECT line FROM adapter {index} WHERE +place IN ({every}) ORDER BY {order} LIMIT ?"  # noqa: S608 - from above
        return self._entries(sql, (match, query.limit))

    def _lines(self, match: str, limit: int) -> list[bytes]:
        """Return the lines of the first by rank that match."""
        sql = f"SELECT line FROM adapter JOIN ({_MATCHING}) ON place = r ORDER BY place"  # noqa: S608 - from above
        return [row[0] for row in self.connection.execute(sql, (match, limit))]

    def _named(self, words: list[str], match: str) -> list[Entry]:
        """What is called exactly as the query may be far down in the order of ranks."""
        names = names_of(words)
        if not any(
            self.connection.execute("SELECT 1 FROM adapter WHERE name = ? LIMIT 1", (n,)).fetchone() for n in names
        ):
            return []
        marks = ",".join("?" * len(names))
        sql = f"SELECT line FROM adapter JOIN words ON words.rowid = place WHERE name IN ({marks}) AND words MATCH ? ORDER BY place LIMIT 20"  # noqa: S608, E501
        return self._entries(sql, (*names, match))

    def _text(self, entry: Entry) -> str:
        """Return what the full-text index is told of an entry: the same when it is to forget it."""
        text = pair_of(entry)
        number = self._pairs.get(text)
        if number is None:
            number = self._pairs[text] = self._pair(text)
        return text_of(entry, number)

    def _pair(self, text: str) -> int:
        """Return the number of a task and a base model, known or new."""
        row = self.connection.execute("SELECT number FROM pair WHERE text = ?", (text,)).fetchone()
        if row is not None:
            return int(row[0])
        number = self.connection.execute("INSERT INTO pair(text) VALUES(?)", (text,)).lastrowid
        self.connection.execute("INSERT INTO pairs(rowid, text) VALUES(?, ?)", (number, text))
        return int(number or 0)

    def _number(self, sql: str, values: tuple[object, ...] = ()) -> int:
        return int(self.connection.execute(sql, values).fetchone()[0])

    def _entries(self, sql: str, values: tuple[object, ...]) -> list[Entry]:
        return list(self._read(row[0] for row in self.connection.execute(sql, values)))

    def _read(self, lines: Iterable[bytes]) -> Iterator[Entry]:
        return (Entry.from_line(line, where=str(self.path)) for line in lines)


def _quoted(word: str) -> str:
    return f'"{word}"'


def _among(few: Sequence[Entry], query: Query, facets: Sequence[str]) -> list[Entry]:
    """Search a few entries as :meth:`Database.search` searches all."""
    words = query.words
    found = [entry for entry in few if has(entry, facets, words)]
    if not found and words and len(words[-1]) >= 2:
        *before, last = words
        found = [entry for entry in few if has(entry, facets, before) and begins_with(entry, last)]
    return ordered(found, query)[: query.limit]
