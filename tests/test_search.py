"""Searching: the database against a plain reading of every entry, in one index and in several."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptergit.errors import PackageError, UsageError
from adaptergit.index.database import Database
from adaptergit.index.entry import Entry, Metric
from adaptergit.index.words import FILTERS, SORTS, Query, ordered, words_of

WORDS = ["german", "reviews", "sentiment", "legal", "medical", "transfer", "transformer", "translation", "très", "x"]
TASKS = ["text-classification/sentiment", "text-classification/nli", "token-classification/ner"]
BASES = ["org/mini", "FacebookAI/roberta-base", "FacebookAI/roberta-large"]
METHODS, LANGUAGES, LICENSES = ["lora", "seq_bn"], ["de", "en", "sw"], ["MIT", "Apache-2.0"]


def entries(count: int, principal: str = "github.com/acme/adapters") -> list[Entry]:
    rng = random.Random(principal)
    return [
        Entry(
            f"{principal}@{rng.choice(['sentiment', 'legal-ner', 'a'])}-{number}",
            f"https://{principal}.git", "1.0.0", f"{number:064x}", "2" * 40, rng.randint(1, 10**6),
            rng.choice(METHODS), rng.choice(TASKS), rng.choice(BASES), rng.choice(LICENSES),
            " ".join(rng.choices(WORDS, k=4)), languages=(rng.choice(LANGUAGES),), dataset=rng.choice(["imdb", "sst2"]),
            published=f"20{rng.randint(20, 26)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}T00:00:00Z",
            metrics=(Metric("d", "accuracy", 0.5),) * rng.randint(0, 1),
        )
        for number in range(count)
    ]  # fmt: skip


EVERY = entries(3000)


@pytest.fixture(scope="module")
def database() -> Database:
    found = Database()
    found.replace((), [("github.com/acme/adapters", "1" * 64, EVERY)])
    return found


def matching(query: Query, among: list[Entry]) -> list[Entry]:
    """Read every entry."""

    def texts(entry: Entry) -> list[str]:
        parts = (entry.id, entry.task, entry.dataset, entry.base_model, entry.method, entry.description)
        return [word for part in (*parts, *entry.languages) for word in words_of(part.replace("è", "e"))]

    def facets(entry: Entry, name: str) -> list[str]:
        values = {
            "task": [entry.task, entry.dataset], "base_model": [entry.base_model], "method": [entry.method],
            "language": entry.languages, "license": [entry.license],
        }  # fmt: skip
        return [word for value in values[name] for word in words_of(value)]

    fits = [
        e for e in among if all(word in facets(e, name) for name, value in query.filters for word in words_of(value))
    ]
    *rest, last = words_of(query.text.replace("è", "e")) or [""]
    fits = [e for e in fits if all(word in texts(e) for word in rest)]
    whole = [e for e in fits if not last or last in texts(e)]
    return whole or [e for e in fits if len(last) > 1 and any(word.startswith(last) for word in texts(e))]


QUERIES = st.builds(
    Query,
    st.lists(
        st.sampled_from([*WORDS, "nothing", "tran", "transfo", "transl", "senti", "acme", "tres"]), max_size=3
    ).map(" ".join),
    st.lists(
        st.one_of(
            st.tuples(st.just("task"), st.sampled_from(["sentiment", "ner", "text-classification", "imdb", "none"])),
            st.tuples(st.just("base_model"), st.sampled_from(["roberta", "roberta-base", "org/mini", "mini", "none"])),
            st.tuples(st.just("method"), st.sampled_from(METHODS)),
            st.tuples(st.just("language"), st.sampled_from(LANGUAGES)),
            st.tuples(st.just("license"), st.sampled_from(LICENSES)),
        ),
        max_size=5,
        unique_by=lambda pair: pair[0],
    ).map(tuple),
    st.sampled_from(SORTS),
    st.sampled_from([1, 7, 5000]),
)


@given(QUERIES)
@settings(max_examples=150, deadline=None)
def test_the_database_finds_what_reading_every_entry_finds(database: Database, query: Query) -> None:
    found, wanted = database.search(query), matching(query, EVERY)
    assert len(found) == min(len(wanted), query.limit)
    assert {entry.id for entry in found} <= {entry.id for entry in wanted}
    if query.sort != "best" or query.limit == 5000:
        assert [entry.id for entry in found] == [entry.id for entry in ordered(wanted, query)][: query.limit]


@pytest.mark.parametrize(("sort", "key"), [("smallest", "size"), ("newest", "published"), ("name", "name")])
def test_an_order_holds_beyond_the_first_thousands_of_hits(database: Database, sort: str, key: str) -> None:
    found = database.search(Query("acme", sort=sort, limit=3))
    wanted = sorted(EVERY, key=lambda entry: getattr(entry, key), reverse=sort == "newest")[:3]
    assert [getattr(entry, key) for entry in found] == [getattr(entry, key) for entry in wanted]


def test_what_is_forgotten_is_found_no_more(tmp_path: Path) -> None:
    path = tmp_path / "search.sqlite"
    first, second = entries(50, "github.com/a/a"), entries(50, "github.com/b/b")
    with Database.rewritten(path) as database:
        database.replace((), [("github.com/a/a", "1" * 64, first), ("github.com/b/b", "2" * 64, second)])
    with Database.rewritten(path) as database:
        database.replace(["github.com/a/a"], [("github.com/b/b", "3" * 64, second[:10])])
    found = Database.read(path)
    assert {e.id for e in found.search(Query("", limit=99))} == {e.id for e in second[:10]}
    for word in (*WORDS, "sentiment", "github"):
        assert {e.id for e in found.search(Query(word, limit=99))} <= {e.id for e in second[:10]}
    for name, values in (("task", TASKS), ("base_model", BASES), ("language", LANGUAGES)):
        for value in values:
            query = Query("", ((name, value),), limit=99)
            assert {e.id for e in found.search(query)} == {e.id for e in matching(query, second[:10])}


def test_a_database_of_another_version_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "search.sqlite"
    with Database.rewritten(path) as database:
        database.replace((), [("github.com/a/a", "1" * 64, entries(5))])
        database.connection.execute("PRAGMA application_id = 1")
    with pytest.raises(PackageError, match="adaptergit index update"):
        Database.read(path)
    with Database.rewritten(path) as database:
        assert database.shards() == {}


def test_an_unknown_filter_or_order_is_named(database: Database) -> None:
    with pytest.raises(UsageError, match="colour"):
        database.search(Query("", (("colour", "red"),)))
    with pytest.raises(UsageError, match="beauty"):
        database.search(Query(sort="beauty"))
    assert set(FILTERS) == {"task", "base_model", "method", "language", "license"}
