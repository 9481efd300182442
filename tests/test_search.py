"""Searching: the database against a plain reading of every entry, in one index and in several."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import GOLDEN, Hub, git, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

import adaptergit
from adaptergit.cli import main
from adaptergit.errors import AdaptergitWarning, NotFoundError, PackageError, ReleaseError, UsageError
from adaptergit.index.build import build
from adaptergit.index.database import Database, News
from adaptergit.index.entry import Entry, Metric
from adaptergit.index.maintain import init_index, sign_snapshot
from adaptergit.index.repository import IndexRepository
from adaptergit.index.repository import replace as write
from adaptergit.index.sources import SourceFile, SourceKey
from adaptergit.index.words import FILTERS, SORTS, Query, ordered, words_of
from adaptergit.indexes import client, full_name
from adaptergit.publish import publish
from adaptergit.settings import load_settings
from adaptergit.trust import Revocation, SigningKey, generate_key

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
PRINCIPAL, SECRET = "github.com/acme/adapters", "git.corp.example/ml/secret"


def release(principal: str, name: str, **changes: Any) -> Entry:
    made = entries(1, principal)[0]
    return replace(made, id=f"{principal}@{name}", **{"metrics": (), "signers": ("SHA256:" + "A" * 43,), **changes})


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return generate_key(tmp_path_factory.mktemp("keys") / "everybody")


@pytest.fixture
def make(tmp_path: Path, key: SigningKey) -> Callable[..., IndexRepository]:
    """Make an index of entries, and add it as a user."""

    def made(name: str, *entries: Entry, revoked: tuple[Revocation, ...] = (), **options: Any) -> IndexRepository:
        index = IndexRepository(tmp_path / name)
        public = [key.public]
        root = init_index(index.root, name, maintainers=public, online=public, threshold=1, keys=[key])
        for principal in {entry.principal for entry in entries}:
            source = SourceFile(principal, f"https://{principal}.git", (SourceKey(key.public),), "a@example.org")
            write(index.root / source.path, source.to_yaml())
            index.write_entries(principal, [entry for entry in entries if entry.principal == principal])
        for one in revoked:
            index.revoke(one)
        build(index, index.root / "dist", root=root, now=datetime.now(UTC))
        sign_snapshot(index, index.root / "dist", key)
        client(load_settings()).add(str(index.root / "dist"), f"sha256:{root.digest}", **options)
        return index

    return made


@pytest.fixture(scope="module")
def database() -> Database:
    found = Database()
    found.replace((), [News("github.com/acme/adapters", "1" * 64, EVERY)])
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


@pytest.mark.slow
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
        database.replace((), [News("github.com/a/a", "1" * 64, first), News("github.com/b/b", "2" * 64, second)])
    with Database.rewritten(path) as database:
        database.replace(["github.com/a/a"], [News("github.com/b/b", "3" * 64, second[:10])])
    found = Database.read(path)
    assert {e.id for e in found.search(Query("", limit=99))} == {e.id for e in second[:10]}
    for word in (*WORDS, "sentiment", "github"):
        assert {e.id for e in found.search(Query(word, limit=99))} <= {e.id for e in second[:10]}
    for name, values in (("task", TASKS), ("base_model", BASES), ("language", LANGUAGES)):
        for value in values:
            query = Query("", ((name, value),), limit=99)
            assert {e.id for e in found.search(query)} == {e.id for e in matching(query, second[:10])}


def test_an_update_is_found_as_if_all_were_taken_over_anew(tmp_path: Path) -> None:
    path = tmp_path / "search.sqlite"
    *before, brandnew = entries(61, "github.com/a/a")
    after = [*before[5:50], *(replace(one, description="quite other words") for one in before[50:]), brandnew]
    with Database.rewritten(path) as database:
        database.replace((), [News("github.com/a/a", "1" * 64, before)])
        kept = dict(database.connection.execute("SELECT name, place FROM adapter"))
    with Database.rewritten(path) as database:
        database.replace((), [News("github.com/a/a", "2" * 64, after)])
        written = database.connection.total_changes
    anew = Database()
    anew.replace((), [News("github.com/a/a", "2" * 64, after)])
    found = Database.read(path)
    assert found.shards() == anew.shards() == {"github.com/a/a": ("2" * 64, True)}
    for word in ("", *WORDS, "quite"):
        for sort in SORTS:
            query = Query(word, sort=sort, limit=99)
            assert [e.id for e in found.search(query)] == [e.id for e in anew.search(query)]
    places = dict(found.connection.execute("SELECT name, place FROM adapter"))
    assert {e.name: places[e.name] for e in before[5:50]} == {e.name: kept[e.name] for e in before[5:50]}
    assert written < anew.connection.total_changes / 2, "what stayed the same is not written again"


def test_a_database_of_another_version_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "search.sqlite"
    with Database.rewritten(path) as database:
        database.replace((), [News("github.com/a/a", "1" * 64, entries(5))])
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


# --- several indexes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sort", "wanted"),
    [("newest", ["b", "a", "c"]), ("smallest", ["c", "b", "a"]), ("name", ["a", "b", "c"]), ("best", ["c", "b", "a"])],
)
def test_an_order_holds_across_indexes(make: Callable[..., IndexRepository], sort: str, wanted: list[str]) -> None:
    measured = (Metric("d", "accuracy", 0.5),)
    make("first", release(PRINCIPAL, "a", published="2024-01-01T00:00:00Z", size=9))
    make(
        "second",
        release("github.com/other/x", "b", published="2026-01-01T00:00:00Z", size=5),
        release("github.com/other/x", "c", published="2020-01-01T00:00:00Z", size=1, metrics=measured),
    )
    assert [entry.name for entry in adaptergit.search(sort=sort)] == wanted
    assert [entry.name for entry in adaptergit.search(sort=sort, limit=1)] == wanted[:1]


def test_a_name_that_another_index_speaks_for_is_not_found_elsewhere(make: Callable[..., IndexRepository]) -> None:
    """Priority or not: what is private is answered by the index that it is private to."""
    flood = [release(PRINCIPAL, f"sst2-{n}") for n in range(5)]
    evil = [release(SECRET, f"sst2{tail}", description="evil") for tail in ("", *map(str, range(60)))]
    make("public", *flood, *evil, priority=1)
    assert {entry.description for entry in adaptergit.search("sst2", index="public")} >= {"evil"}
    make(
        "corp", release(SECRET, "sst2", description="good"), release(PRINCIPAL, "theirs"), scope=["git.corp.example/*"]
    )
    found = adaptergit.search("secret", limit=5)
    assert [(entry.id, entry.description) for entry in found] == [(f"{SECRET}@sst2", "good")]
    assert {entry.principal for entry in adaptergit.search(index="public", limit=99)} == {PRINCIPAL}
    assert [entry.name for entry in adaptergit.search("theirs")] == []
    assert full_name("sst2", load_settings()) == f"{SECRET}@sst2"
    with pytest.raises(NotFoundError):
        full_name("sst23", load_settings())


def test_a_misspelt_index_is_recognised_and_a_lost_one_is_said(
    make: Callable[..., IndexRepository], home: Path
) -> None:
    make("community", release(PRINCIPAL, "sst2"))
    with pytest.raises(NotFoundError, match="did you mean 'community'"):
        adaptergit.search(index="comunity")
    shutil.rmtree(home / "cache")
    with pytest.warns(AdaptergitWarning, match="no longer here: adaptergit index update community"):
        assert adaptergit.search("sst2") == []
    with pytest.raises(NotFoundError, match="adaptergit index update"):
        full_name("sst2", load_settings())


def test_two_digests_of_one_release_are_said(make: Callable[..., IndexRepository]) -> None:
    make("first", release(PRINCIPAL, "same", manifest_sha256="1" * 64), priority=1)
    make("second", release(PRINCIPAL, "same", manifest_sha256="2" * 64), priority=2)
    with pytest.warns(AdaptergitWarning, match=r"1111.* in the index first, and 2222.* in the index second"):
        (hit,) = adaptergit.search("same")
    assert hit.manifest_sha256 == "1" * 64


# --- what was revoked --------------------------------------------------------------------------------------------------

STOLEN, OTHER = "SHA256:" + "A" * 43, "SHA256:" + "B" * 43


def test_what_a_revoked_key_signed_is_not_found_and_shown_as_what_it_is(make: Callable[..., IndexRepository]) -> None:
    since = datetime(2026, 6, 1, tzinfo=UTC)
    make(
        "community",
        release(PRINCIPAL, "before", first_seen="2026-05-01T00:00:00Z"),
        release(PRINCIPAL, "after", first_seen="2026-07-01T00:00:00Z"),
        release(PRINCIPAL, "both", first_seen="2026-07-01T00:00:00Z", signers=(STOLEN, OTHER)),
        release(PRINCIPAL, "warned", signers=(OTHER,)),
        release(PRINCIPAL, "poisoned", signers=(OTHER,), manifest_sha256="9" * 64),
        revoked=(
            Revocation(STOLEN, None, since, "refuse", "stolen laptop", ""),
            Revocation(OTHER, None, None, "warn", "old", ""),
            Revocation(None, "9" * 64, None, "refuse", "bad data", ""),
        ),
    )
    assert sorted(entry.name for entry in adaptergit.search()) == ["before", "both", "warned"]
    shown = adaptergit.show("acme/adapters@after")
    assert shown.chosen is None
    assert "stolen laptop" in next(iter(shown.revoked.values()))
    done = CliRunner().invoke(main, ["show", "acme/adapters@after"])
    assert "stolen laptop" in done.output
    assert "adaptergit.load" not in done.output
    for name, said in (("before", ""), ("warned", "marked as revoked: old")):
        done = CliRunner().invoke(main, ["show", f"acme/adapters@{name}"])
        assert f'model = adaptergit.load("github.com/acme/adapters@{name}")' in done.output
        assert said in done.output


def test_a_release_that_too_few_keys_still_vouch_for_is_not_found(
    make: Callable[..., IndexRepository], key: SigningKey
) -> None:
    index = make("community", release(PRINCIPAL, "pair", signers=(STOLEN, OTHER)))
    assert [entry.name for entry in adaptergit.search()] == ["pair"]
    second = generate_key(index.root / "second")
    keys = (SourceKey(key.public), SourceKey(second.public))
    write(index.root / f"sources/{PRINCIPAL}.yaml", replace(index.source(PRINCIPAL), keys=keys, threshold=2).to_yaml())
    index.revoke(Revocation(STOLEN, None, None, "refuse", "stolen", ""))
    client(load_settings()).remove("community")
    build(index, index.root / "dist", root=index.current_root(), now=datetime.now(UTC))
    sign_snapshot(index, index.root / "dist", key)
    client(load_settings()).add(str(index.root / "dist"), f"sha256:{index.current_root().digest}")
    assert adaptergit.search() == []


def test_showing_says_all_there_is_to_say(make: Callable[..., IndexRepository]) -> None:
    make("community", release(PRINCIPAL, "a", citation="@article{x,\n  title={A}}\n", authors=("Ada",)))
    done = CliRunner().invoke(main, ["show", "acme/adapters@a"])
    for part in (
        "@article{x,\n  title={A}}",
        'import adaptergit\nmodel = adaptergit.load("github.com/acme/adapters@a")',
    ):
        assert part in done.output


def test_a_misspelt_name_is_recognised(make: Callable[..., IndexRepository], tmp_path: Path) -> None:
    make("community", release(PRINCIPAL, "sentiment"), release(PRINCIPAL, "ner"))
    for argv in (["search", "sentimnt"], ["show", f"{PRINCIPAL}@sentimnt"], ["load", "sentimnt"]):
        assert "did you mean 'sentiment'?" in CliRunner().invoke(main, argv).stderr
    for option, meant in (("--base", "roberta"), ("--base-model", "roberta"), ("--task", "classification")):
        asked = CliRunner().invoke(main, ["search", option, meant[:-3] + meant[-2:]])
        assert asked.stderr == f"nothing found: did you mean '{meant}'?\n"
    assert CliRunner().invoke(main, ["search", "xyzzy", "--base", "xyzzy"]).stderr == "nothing found\n"
    said = CliRunner().invoke(main, ["search", "sentiment", "--method", "seqbn"]).stderr
    assert said == "nothing found: without --method seqbn there is something\n"
    assert "adaptergit info" in CliRunner().invoke(main, ["show", f"{PRINCIPAL}@xyzzy"]).stderr


def test_a_key_that_an_index_revoked_signs_nothing_more(
    make: Callable[..., IndexRepository], hub: Hub, source: Callable[..., Path]
) -> None:
    stolen = Revocation(hub.key.public.fingerprint, None, None, "refuse", "stolen laptop", "")
    make("community", release(PRINCIPAL, "a"), revoked=(stolen,))
    before = git(hub.bare, "for-each-ref")
    with pytest.raises(ReleaseError, match="stolen laptop"):
        publish(source(), clone=hub.clone, key=hub.key.path)
    assert git(hub.bare, "for-each-ref") == before


# --- what fits a model -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_was_trained_in_a_model_is_found_by_its_fingerprint(make: Callable[..., IndexRepository]) -> None:
    from adaptergit.splice.fingerprint import fingerprint_of

    model = tiny_model("bert")
    mine = str(fingerprint_of(model))
    others = [
        release(PRINCIPAL, f"other-{n}", fingerprint=f"fp1:2x32:{n:032x}:", description="german") for n in range(99)
    ]
    make(
        "community",
        *others,
        release(PRINCIPAL, "fits", fingerprint=mine, description="german", published="2001-01-01T00:00:00Z"),
        release(PRINCIPAL, "fits-too", fingerprint=mine, description="english", published="2001-01-02T00:00:00Z"),
        release(PRINCIPAL, "unknown", fingerprint="nonsense"),
    )
    assert [e.name for e in adaptergit.search(base_of=model, sort="newest")] == ["fits-too", "fits"]
    assert [e.name for e in adaptergit.search("german", base_of=model, limit=1)] == ["fits"]
    assert adaptergit.search("french", base_of=model) == []
    folder = str(GOLDEN / "bases" / "bert")
    done = CliRunner().invoke(main, ["search", "--base-of", folder, "--sort", "name"])
    assert [line.split("==")[0] for line in done.stdout.splitlines() if "==" in line] == [
        f"{PRINCIPAL}@fits",
        f"{PRINCIPAL}@fits-too",
    ]
    argv = [sys.executable, "-m", "adaptergit", "search", "--base-of", folder]
    assert (
        subprocess.run(argv, capture_output=True, text=True, check=True).stderr == ""
    )  # no library's bars and reports
    assert adaptergit.search(base_of=tiny_model("roberta")) == []
    with pytest.raises(NotFoundError, match="no such model folder"):
        adaptergit.search(base_of="./nowhere")


def test_without_an_index_no_model_is_looked_at(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no index to search"):
        adaptergit.search(base_of=tmp_path)  # there is none in it
