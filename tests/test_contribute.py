"""Contributing to an index: the rules, one by one; hostile pull requests; submitting through the forges' APIs."""

from __future__ import annotations

import collections
import json
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from click.testing import CliRunner
from conftest import Hub, git
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

import adaptergit
from adaptergit.cli import main
from adaptergit.errors import AdaptergitWarning, PackageError, ReleaseError, TransportError, TrustError, UsageError
from adaptergit.index.changes import CHANGE_NAMESPACE, change_statement
from adaptergit.index.entry import Entry
from adaptergit.index.entry_rules import ENTRY_RULES, Listing
from adaptergit.index.maintain import init_index, recover
from adaptergit.index.names import alike, distance
from adaptergit.index.propose import check_change
from adaptergit.index.release_rules import RELEASE_RULES, Release
from adaptergit.index.repository import IndexPolicy, IndexRepository
from adaptergit.index.repository import replace as write
from adaptergit.index.rules import broken_by, comment, documentation
from adaptergit.index.source_rules import SOURCE_RULES, Proposal
from adaptergit.index.sources import SourceFile, SourceKey
from adaptergit.indexes import client
from adaptergit.prepare import initialise
from adaptergit.publish import publish
from adaptergit.review import Review, review, settle
from adaptergit.rotate import rotate
from adaptergit.settings import load_settings
from adaptergit.submit import submit
from adaptergit.trust import Revocation, SigningKey, generate_key, sign

PRINCIPAL = "127.0.0.1/acme/adapters"
NOW = datetime(2026, 11, 24, tzinfo=UTC)
DAY = timedelta(days=1)


# --- every rule: one that keeps it, one that breaks it ---------------------------------------------------------------


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> list[SigningKey]:
    folder = tmp_path_factory.mktemp("publishers")
    return [generate_key(folder / name) for name in ("first", "second")]


@pytest.fixture(scope="module")
def good(keys: list[SigningKey]) -> Proposal:
    source = SourceFile(
        "github.com/acme/adapters", "https://github.com/acme/adapters.git", (SourceKey(keys[0].public),), "a@b.c"
    )
    return Proposal(
        path=source.path,
        data=source.to_yaml(),
        source=source,
        problem="",
        before=None,
        others=frozenset(
            {"github.com/other/things", "codeberg.org/swahili-nlp/lexicon", "github.com/ucl-nlp/adapters"}
        ),
        kin=frozenset(),
        policy=IndexPolicy(waiting_hours=72),
        announced=frozenset({keys[0].public}),
        proposed=NOW - timedelta(hours=73),
        now=NOW,
    )


def renamed(one: Proposal, principal: str) -> Proposal:
    assert one.source is not None
    source = replace(one.source, repository=principal, url=f"https://{principal}.git")
    return replace(one, source=source, path=source.path)


def until(key: SigningKey, when: datetime) -> SourceKey:
    return SourceKey(key.public, valid_before=when)


BREAKING: list[tuple[str, str, Callable[[Proposal, list[SigningKey]], Proposal]]] = [
    ("schema", "not YAML", lambda p, k: replace(p, problem="not YAML")),
    ("place", "belongs at", lambda p, k: replace(p, path="sources/github.com/acme/other.yaml")),
    ("removed", "not removed", lambda p, k: replace(p, data=b"", source=None, before=p.source)),
    ("host", "takes repositories on", lambda p, k: replace(p, policy=IndexPolicy(hosts=("*.example.org",)))),
    ("address", "own machine", lambda p, k: replace(p, source=replace(p.source, mirrors=("file:///home/me/x.git",)))),
    ("reachable", "no answer", lambda p, k: replace(p, unreachable="no answer")),
    ("proof", "does not announce", lambda p, k: replace(p, announced=frozenset())),
    ("proof", "does not announce", lambda p, k: replace(p, announced=frozenset({k[1].public}))),
    ("rekeyed", "a rotation", lambda p, k: replace(p, before=replace(p.source, keys=(SourceKey(k[1].public),)))),
    ("rekeyed", "may not go down", lambda p, k: replace(p, before=replace(p.source, threshold=2))),
    ("rekeyed", "count for longer", lambda p, k: replace(p, before=replace(p.source, keys=(until(k[0], NOW),)))),
    ("signed", "is signed by", lambda p, k: replace(p, before=replace(p.source, contact="b@b.c"))),
    ("signed", "this one by 1", lambda p, k: replace(p, source=replace(p.source, threshold=2), before=replace(p.source, threshold=2, contact="b"), signed=frozenset({k[0].public}))),
    ("signed", "only maintainers", lambda p, k: replace(p, before=replace(p.source, keys=(), legacy=True))),
    ("retired", "nobody could sign", lambda p, k: replace(p, source=replace(p.source, keys=(until(k[0], NOW),)))),
    ("retired", "1 of its keys", lambda p, k: replace(p, source=replace(p.source, threshold=2, keys=(SourceKey(k[0].public), until(k[1], NOW))))),
    ("retired", "is listed", lambda p, k: replace(p, source=replace(p.source, keys=(SourceKey(k[0].public), until(k[1], NOW - DAY))), listed={k[1].public.fingerprint: NOW})),
    ("retired", "keep it", lambda p, k: replace(p, before=replace(p.source, keys=(SourceKey(k[0].public), SourceKey(k[1].public))), listed={k[1].public.fingerprint: NOW - DAY})),
    ("tracks", "itself", lambda p, k: replace(p, source=replace(p.source, tracks=p.source.repository))),
    ("tracks", "name the original", lambda p, k: replace(p, source=replace(p.source, tracks="github.com/a/b"), original=replace(p.source, tracks="github.com/c/d"))),
    ("tracks", "of its own", lambda p, k: replace(p, source=replace(p.source, tracks="github.com/a/b"), listed={"x": NOW - DAY})),
    ("reserved", "reserved", lambda p, k: replace(p, policy=IndexPolicy(reserved=("github.com/acme/*",)))),
    ("alike", "looks? alike|look alike", lambda p, k: renamed(p, "github.com/0ther/things")),
    ("alike", "look alike", lambda p, k: renamed(p, "github.com/Other/Things")),
    ("alike", "look alike", lambda p, k: renamed(p, "github.com/other/th1ngs")),
    ("alike", "typing error", lambda p, k: renamed(p, "github.com/otherr/things")),
    ("alike", "typing error", lambda p, k: renamed(p, "codeberg.org/swahili-npl/lexicon")),
    ("alike", "typing error", lambda p, k: renamed(p, "github.com/ucl-npl/adapters")),
    ("alike", "same owner and name", lambda p, k: renamed(p, "gitlab.com/other/things")),
    ("alike", "same owner and name", lambda p, k: renamed(p, "gitlab.com/ucl-nlp/adapters")),
    ("peers", "with other keys", lambda p, k: replace(p, peers={"https://x/": frozenset({"SHA256:x"})})),
    ("waiting", "waits 72 hours", lambda p, k: replace(p, proposed=NOW - timedelta(hours=71))),
    ("waiting", "waits 72 hours", lambda p, k: replace(p, before=replace(p.source, contact="b"), proposed=NOW - timedelta(hours=71))),
]  # fmt: skip


def test_a_good_proposal_keeps_every_rule(good: Proposal) -> None:
    assert broken_by(good) == []
    assert "**can be merged**" in comment(good.path, good)
    assert good.source is not None
    signed = frozenset(key.public for key in good.source.keys)
    before = replace(good.source, contact="before@b.c")
    known = replace(good, before=before, signed=signed, policy=IndexPolicy(reserved=("*",)))
    assert broken_by(known) == []  # what is listed already may be named as it is


@pytest.mark.parametrize(("rule", "message", "change"), BREAKING)
def test_a_rule_that_is_broken_is_named(
    good: Proposal, keys: list[SigningKey], rule: str, message: str, change: Any
) -> None:
    found = {one.id: why for one, why in broken_by(change(good, keys))}
    assert rule in found
    assert pytest.importorskip("re").search(message, found[rule])
    assert f"❌ | `{rule}`" in comment(good.path, change(good, keys))


@pytest.mark.parametrize(
    "name",
    [
        "github.com/uva-nlp/adapters", "github.com/mit-nlp/adapters", "github.com/other/thing",
        "github.com/another/things", "codeberg.org/lexicon/swahili-nlp",
    ],
)  # fmt: skip
def test_a_name_that_nobody_takes_for_another_passes(good: Proposal, name: str) -> None:
    assert broken_by(renamed(good, name)) == []


def test_names_that_are_numbered_or_short_are_not_alike() -> None:
    for one, other in (("lab1", "lab2"), ("ukp", "uki"), ("eth", "epf"), ("team-10", "team-11")):
        assert alike(f"github.com/{one}/adapters", f"github.com/{other}/adapters") is None
    assert alike("github.com/roberta-sst-2/a", "github.com/roberta-sst2/a") is not None


def test_a_publishers_own_and_what_maintainers_looked_at_may_be_alike(good: Proposal) -> None:
    one = renamed(good, "gitlab.com/other/things")
    assert broken_by(replace(one, kin=frozenset({"github.com/other/things"}))) == []
    assert broken_by(replace(one, policy=IndexPolicy(distinct=("gitlab.com/other/*",)))) == []
    assert one.source is not None
    assert broken_by(replace(one, source=replace(one.source, tracks="github.com/other/things"))) == []


BREAKING_LISTINGS: list[tuple[str, str, Callable[[Listing], Listing]]] = [
    ("kept", "no longer is", lambda one: replace(one, now=one.now[1:])),
    ("unchanged", "another size", lambda one: replace(one, now=(replace(one.now[0], size=1), *one.now[1:]))),
    ("unchanged", "first_seen", lambda one: replace(one, now=(replace(one.now[0], first_seen="x"), *one.now[1:]))),
]


@pytest.mark.parametrize(("rule", "message", "change"), BREAKING_LISTINGS)
def test_a_listing_that_breaks_a_rule_is_named(release: Release, rule: str, message: str, change: Any) -> None:
    assert release.entry is not None
    before = (*release.past, replace(release.entry, yanked="bad"))
    listing = Listing(before, (replace(before[0], yanked="worse"), *before[1:], replace(before[1], version="2.0.0")))
    assert broken_by(listing) == []
    found = {one.id: why for one, why in broken_by(change(listing))}
    assert list(found) == [rule]
    assert message in found[rule]


def test_every_rule_has_an_example_that_breaks_it() -> None:
    assert {rule for rule, _, _ in BREAKING} == {rule.id for rule in SOURCE_RULES}
    assert {rule for rule, _, _ in BREAKING_RELEASES} == {rule.id for rule in RELEASE_RULES}
    assert {rule for rule, _, _ in BREAKING_LISTINGS} == {rule.id for rule in ENTRY_RULES}
    for rule in (*SOURCE_RULES, *RELEASE_RULES, *ENTRY_RULES):
        assert f"| `{rule.id}` | {rule.docs} |" in documentation()


def test_a_comment_holds_nothing_of_a_strangers_making(good: Proposal) -> None:
    text = comment("sources/a|b`<img>@everyone\n\n# x.yaml", replace(good, problem="<script> @all | `x`\n## y"))
    assert "<script>" not in text.replace("\\<", "")
    assert "\n# x" not in text
    assert "\n## y" not in text


@pytest.fixture
def release(tmp_path: Path) -> Release:
    header = json.dumps({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "adapter.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"1234")
    entry = Entry(
        "github.com/a/b@c", "https://github.com/a/b.git", "1.1.0", "1" * 64, "2" * 40, 100, "seq_bn", "nli", "m",
        "Apache-2.0", "d", previous="0" * 64,
    )  # fmt: skip
    past = replace(entry, version="1.0.0", manifest_sha256="0" * 64, previous=None)
    return Release(entry, tmp_path, "1.1.0", (past,), IndexPolicy(licenses=("Apache-2.0", "MIT")))


def rewritten(one: Release, data: bytes) -> Release:
    (one.folder / "adapter.safetensors").write_bytes(data)
    return one


def headed(header: Any, rest: bytes) -> bytes:
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(data)) + data + rest


BREAKING_RELEASES: list[tuple[str, str, Callable[[Release], Release]]] = [
    ("enrolled", "may sign", lambda r: replace(r, entry=None, refused=TrustError("signed by x, but only y may sign"))),
    ("verified", "another digest", lambda r: replace(r, entry=None, refused=PackageError("a.bin has another digest"))),
    ("name", "git tag", lambda r: replace(r, entry=replace(r.entry, id="github.com/a/b@x.lock"))),
    ("name", "Windows", lambda r: replace(r, entry=replace(r.entry, id="github.com/a/b@con"))),
    ("version", "the tag says", lambda r: replace(r, version="1.2.0")),
    ("version", "not newer", lambda r: replace(r, past=(replace(r.past[0], version="2.0.0"),))),
    ("chain", "before it", lambda r: replace(r, entry=replace(r.entry, previous=None))),
    ("chain", "before it", lambda r: replace(r, entry=replace(r.entry, previous="9" * 64))),
    ("size", "bytes", lambda r: replace(r, policy=replace(r.policy, max_release_bytes=99))),
    ("license", "GPL-3.0-only", lambda r: replace(r, entry=replace(r.entry, license="MIT OR GPL-3.0-only"))),
    ("weights", "header", lambda r: rewritten(r, b"short")),
    ("weights", "header", lambda r: rewritten(r, struct.pack("<Q", 2**60) + b"{}")),
    ("weights", "header", lambda r: rewritten(r, headed(b"[1, 2]", b""))),
    ("weights", "header", lambda r: rewritten(r, headed({"a": {}}, b""))),
    ("weights", "overlap", lambda r: rewritten(r, headed({n: {"data_offsets": [0, 4]} for n in "ab"}, b"1234"))),
    ("weights", "belong to no tensor", lambda r: rewritten(r, headed({"a": {"data_offsets": [0, 4]}}, b"12345"))),
]


@pytest.mark.parametrize(("rule", "message", "change"), BREAKING_RELEASES)
def test_a_release_that_breaks_a_rule_is_named(release: Release, rule: str, message: str, change: Any) -> None:
    assert broken_by(release) == []
    found = {one.id: why for one, why in broken_by(change(release))}
    assert rule in found
    assert message in found[rule]


@given(st.text("abc", max_size=7), st.text("abc", max_size=7))
def test_the_distance_of_names_is_one(a: str, b: str) -> None:
    found = distance(a, b, 9)
    assert found == distance(b, a, 9)
    assert (found == 0) == (a == b)
    assert abs(len(a) - len(b)) <= found <= max(len(a), len(b))


def test_a_swap_of_letters_is_one_error() -> None:
    assert [distance("acme", other) for other in ("acme", "amce", "acm", "acmee", "abme", "xyzw")] == [
        0,
        1,
        1,
        1,
        1,
        3,
    ]


# --- pull requests, read as data -------------------------------------------------------------------------------------


@pytest.fixture
def index(tmp_path: Path, keys: list[SigningKey]) -> IndexRepository:
    root = tmp_path / "index"
    public = [key.public for key in keys]
    init_index(root, "community", maintainers=public, online=public[:1], threshold=1, keys=keys[:1])
    (root / "policy.yaml").write_text("schema: adaptergit.policy/1\nlicenses: [Apache-2.0]\n")
    git(root, "init", "-q", "-b", "main")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "begin")
    return IndexRepository(root)


@pytest.fixture
def announced(hub: Hub) -> Hub:
    """A publisher who announces a key."""
    initialise(hub.clone, hub.key.path)
    hub.git("add", "-A")
    hub.git("commit", "-qm", "announce")
    hub.git("push", "-q", "origin", "HEAD")
    return hub


def proposal(index: IndexRepository, files: dict[str, bytes | None], name: str = "proposal") -> str:
    """Commit a change on a branch and go back."""
    git(index.root, "checkout", "-q", "-b", name, "main")
    for path, data in files.items():
        if data is None:
            (index.root / path).unlink()
        else:
            write(index.root / path, data)
    git(index.root, "add", "-A", "-f")
    git(index.root, "commit", "-qm", "change", "--allow-empty")
    git(index.root, "checkout", "-q", "main")
    return name


def source_of(hub: Hub, *keys: SigningKey, **changes: Any) -> SourceFile:
    chosen = keys or (hub.key,)
    return SourceFile(PRINCIPAL, hub.url, tuple(SourceKey(key.public) for key in chosen), "a@b.c", **changes)


def test_a_proposal_that_keeps_the_rules_passes(index: IndexRepository, announced: Hub) -> None:
    source = source_of(announced)
    head = proposal(index, {source.path: source.to_yaml()})
    checked = check_change(index, load_settings(), base="main", head=head)
    assert checked.passed, checked.problems
    assert not (index.root / source.path).exists(), "nothing was checked out"


HOSTILE: dict[str, tuple[str, Callable[[Hub, SigningKey], dict[str, bytes | None]]]] = {
    "changes CI": ("scope", lambda hub, k: {".github/workflows/check.yml": b"on: push"}),
    "changes the policy": ("scope", lambda hub, k: {"policy.yaml": b"schema: adaptergit.policy/1\n"}),
    "writes entries": ("scope", lambda hub, k: {f"entries/{PRINCIPAL}.jsonl": b"{}\n"}),
    "a root of its own": ("scope", lambda hub, k: {"roots/2.json": b"{}"}),
    "takes revocations away": ("scope", lambda hub, k: {"revoked.jsonl": b"\n"}),
    "a rotation by hand": ("scope", lambda hub, k: {f"rotations/{PRINCIPAL}.jsonl": b"{}\n"}),
    "something hidden": ("scope", lambda hub, k: {"sources/.gitattributes": b"* filter=x"}),
    "no YAML": ("schema", lambda hub, k: {f"sources/{PRINCIPAL}.yaml": b"a: [b"}),
    "an alias bomb": ("schema", lambda hub, k: {f"sources/{PRINCIPAL}.yaml": b"a: &a [x]\nb: [*a, *a]\n"}),
    "too large": ("schema", lambda hub, k: {f"sources/{PRINCIPAL}.yaml": b"#" * 100_000}),
    "an unknown field": ("schema", lambda hub, k: {f"sources/{PRINCIPAL}.yaml": source_of(hub).to_yaml() + b"x: 1\n"}),
    "an option as an address": (
        "schema",
        lambda hub, k: {f"sources/{PRINCIPAL}.yaml": source_of(hub).to_yaml().replace(hub.url.encode(), b"--upload-pack=x")},
    ),
    "a helper as an address": (
        "schema",
        lambda hub, k: {f"sources/{PRINCIPAL}.yaml": source_of(hub).to_yaml().replace(hub.url.encode(), b'"ext::sh -c x"')},
    ),
    "another's name": (
        "schema",
        lambda hub, k: {"sources/127.0.0.1/big/corp.yaml": replace(source_of(hub), repository="127.0.0.1/big/corp").to_yaml()},
    ),
    "a key nobody announced": ("proof", lambda hub, k: {f"sources/{PRINCIPAL}.yaml": source_of(hub, k).to_yaml()}),
    "two keys, one announced": ("proof", lambda hub, k: {f"sources/{PRINCIPAL}.yaml": source_of(hub, hub.key, k).to_yaml()}),
    "a repository that is not there": (
        "reachable",
        lambda hub, k: {
            "sources/127.0.0.1/no/where.yaml": replace(
                source_of(hub), repository="127.0.0.1/no/where", url=hub.url.replace("acme/adapters", "no/where")
            ).to_yaml()
        },
    ),
    "in the wrong place": ("place", lambda hub, k: {"sources/127.0.0.1/big/corp.yaml": source_of(hub).to_yaml()}),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pull_request_is_refused(
    index: IndexRepository, announced: Hub, other_key: SigningKey, name: str
) -> None:
    rule, files = HOSTILE[name]
    head = proposal(index, files(announced, other_key))
    checked = check_change(index, load_settings(), base="main", head=head)
    assert not checked.passed
    assert rule in {found for broken in checked.problems.values() for found, _ in broken}, checked.problems


def test_a_symbolic_link_is_no_source(index: IndexRepository, announced: Hub) -> None:
    git(index.root, "checkout", "-q", "-b", "link", "main")
    path = index.root / "sources" / f"{PRINCIPAL}.yaml"
    path.parent.mkdir(parents=True)
    path.symlink_to("/etc/passwd")
    git(index.root, "add", "-A")
    git(index.root, "commit", "-qm", "link")
    git(index.root, "checkout", "-q", "main")
    (broken,) = check_change(index, load_settings(), base="main", head="link").problems.values()
    assert "plain file" in dict(broken)["schema"]


def listed(index: IndexRepository, source: SourceFile) -> None:
    write(index.root / source.path, source.to_yaml())
    git(index.root, "add", "-A")
    git(index.root, "commit", "-qm", "list")


def test_a_publisher_may_be_on_two_hosts_and_nobody_else_may(
    index: IndexRepository, announced: Hub, other_key: SigningKey
) -> None:
    listed(index, source_of(announced))
    moved = replace(
        source_of(announced),
        repository="localhost/acme/adapters",
        url=announced.url.replace("127.0.0.1", "localhost"),
    )
    head = proposal(index, {moved.path: moved.to_yaml()}, "own")
    checked = check_change(index, load_settings(), base="main", head=head)
    assert checked.passed, checked.problems
    theirs = replace(moved, keys=(SourceKey(other_key.public),))
    head = proposal(index, {moved.path: theirs.to_yaml()}, "theirs")
    (broken,) = check_change(index, load_settings(), base="main", head=head).problems.values()
    assert "same owner and name on 127.0.0.1" in dict(broken)["alike"]


def test_taking_a_source_away_or_over_is_refused(index: IndexRepository, announced: Hub, other_key: SigningKey) -> None:
    source = source_of(announced)
    listed(index, source)
    head = proposal(index, {source.path: None}, "away")
    assert not check_change(index, load_settings(), base="main", head=head).passed
    initialise(announced.clone, other_key.path)  # who took the account over can announce a key
    announced.git("commit", "-qam", "mine")
    announced.git("push", "-q", "origin", "HEAD")
    head = proposal(index, {source.path: source_of(announced, other_key).to_yaml()}, "over")
    (broken,) = check_change(index, load_settings(), base="main", head=head).problems.values()
    assert [rule for rule, _ in broken] == ["rekeyed", "signed"]


@pytest.fixture
def pair(index: IndexRepository, announced: Hub, other_key: SigningKey) -> SourceFile:
    """A listed source of two announced keys, of which one signs."""
    initialise(announced.clone, other_key.path)
    announced.git("commit", "-qam", "a second key")
    announced.git("push", "-q", "origin", "HEAD")
    source = source_of(announced, announced.key, other_key, mirrors=("https://good.example/a.git",))
    listed(index, source)
    return source


PAST = datetime(2020, 1, 1, tzinfo=UTC)
HOSTILE_CHANGES: dict[str, Callable[[SourceFile], SourceFile]] = {
    "asks for more signatures": lambda s: replace(s, threshold=2),
    "drops a key": lambda s: replace(s, keys=s.keys[:1]),
    "retires a key": lambda s: replace(s, keys=(s.keys[0], replace(s.keys[1], valid_before=PAST))),
    "retires all keys": lambda s: replace(s, keys=tuple(replace(key, valid_before=PAST) for key in s.keys)),
    "lets keys count earlier": lambda s: replace(s, keys=tuple(replace(key, valid_after=PAST) for key in s.keys)),
    "a mirror of its own": lambda s: replace(s, mirrors=("https://evil.example/a.git",)),
    "takes mirrors away": lambda s: replace(s, mirrors=()),
    "says that it is a copy": lambda s: replace(s, tracks="github.com/evil/x"),
    "its own contact": lambda s: replace(s, contact="evil@example.org"),
    "a homepage": lambda s: replace(s, homepage="https://evil.example/"),
    "when it was accepted": lambda s: replace(s, since="2020-01-01T00:00:00Z"),
    "another port": lambda s: replace(s, url=f"http://127.0.0.1:1/{s.repository.partition('/')[2]}.git"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_CHANGES)
def test_a_strangers_change_of_a_listed_source_is_refused(
    index: IndexRepository, pair: SourceFile, keys: list[SigningKey], name: str
) -> None:
    changed = HOSTILE_CHANGES[name](pair)
    files: dict[str, bytes | None] = {pair.path: changed.to_yaml()}
    head = proposal(index, files, "unsigned")
    (broken,) = check_change(index, load_settings(), base="main", head=head).problems.values()
    assert "signed" in dict(broken)
    # A key of the stranger's own, the right bytes.
    statement = change_statement("community", pair.repository, pair.to_yaml(), changed.to_yaml())
    signature = sign(statement, keys[1], namespace=CHANGE_NAMESPACE)
    head = proposal(index, {**files, pair.signature_path: signature}, "strangers")
    (broken,) = check_change(index, load_settings(), base="main", head=head).problems.values()
    assert "signed" in dict(broken)


@pytest.mark.parametrize("what", ["another index", "another source before", "another source after", "as a release"])
def test_a_signature_is_good_for_one_change_of_one_index(
    index: IndexRepository, announced: Hub, pair: SourceFile, what: str
) -> None:
    changed = replace(pair, contact="new@example.org")
    statement = change_statement(
        "other" if what == "another index" else "community",
        pair.repository,
        b"" if what == "another source before" else pair.to_yaml(),
        b"" if what == "another source after" else changed.to_yaml(),
    )
    namespace = "manifest.v1@adaptergit" if what == "as a release" else CHANGE_NAMESPACE
    signature = sign(statement, announced.key, namespace=namespace)
    head = proposal(index, {pair.path: changed.to_yaml(), pair.signature_path: signature})
    (broken,) = check_change(index, load_settings(), base="main", head=head).problems.values()
    assert "signed" in dict(broken)


@pytest.mark.slow
def test_a_change_that_enrolled_keys_signed_is_taken(
    index: IndexRepository, announced: Hub, pair: SourceFile, other_key: SigningKey
) -> None:
    changed = replace(pair, threshold=2, mirrors=())
    statement = change_statement("community", pair.repository, pair.to_yaml(), changed.to_yaml())
    signature = sign(statement, announced.key, namespace=CHANGE_NAMESPACE)
    head = proposal(index, {pair.path: changed.to_yaml(), pair.signature_path: signature})
    checked = check_change(index, load_settings(), base="main", head=head)
    assert checked.passed, checked.problems
    # From now on two must sign, a change as a release.
    git(index.root, "merge", "-q", head)
    further = replace(changed, contact="new@example.org")
    statement = change_statement("community", pair.repository, changed.to_yaml(), further.to_yaml())
    both = [sign(statement, key, namespace=CHANGE_NAMESPACE) for key in (announced.key, other_key)]
    for number, data, good in ((1, both[0], False), (2, both[0] * 2, False), (3, b"".join(both), True)):
        head = proposal(index, {pair.path: further.to_yaml(), pair.signature_path: data}, f"further-{number}")
        assert check_change(index, load_settings(), base="main", head=head).passed is good


@pytest.mark.slow
def test_a_key_that_was_replaced_or_revoked_signs_no_change(
    index: IndexRepository, announced: Hub, pair: SourceFile, other_key: SigningKey, keys: list[SigningKey]
) -> None:
    with pytest.warns(AdaptergitWarning, match="will not accept"):  # the other key does not sign the rotation
        rotate(keys[1].path, key=announced.key.path, clone=announced.clone)
    changed = replace(pair, contact="thief@example.org")
    statement = change_statement("community", pair.repository, pair.to_yaml(), changed.to_yaml())
    for number, key in enumerate((announced.key, keys[1])):
        signature = sign(statement, key, namespace=CHANGE_NAMESPACE)
        head = proposal(index, {pair.path: changed.to_yaml(), pair.signature_path: signature}, f"by-{number}")
        broken = check_change(index, load_settings(), base="main", head=head).problems[pair.path]
        assert ("signed" in dict(broken)) is (key is announced.key)
    git(index.root, "checkout", "-q", "main")
    index.revoke(Revocation(other_key.public.fingerprint, None, None, "refuse", "stolen", "revoked.jsonl"))
    git(index.root, "commit", "-qam", "revoke")
    signature = sign(statement, other_key, namespace=CHANGE_NAMESPACE)
    head = proposal(index, {pair.path: changed.to_yaml(), pair.signature_path: signature}, "revoked")
    assert "signed" in dict(check_change(index, load_settings(), base="main", head=head).problems[pair.path])


def test_a_signature_comes_with_the_change_that_it_signs(index: IndexRepository, announced: Hub) -> None:
    source = source_of(announced)
    head = proposal(index, {source.path: source.to_yaml(), source.signature_path: b"x"}, "new")
    assert check_change(index, load_settings(), base="main", head=head).problems[source.signature_path][0][0] == "scope"
    listed(index, source)
    head = proposal(index, {source.signature_path: b"x"}, "alone")
    assert not check_change(index, load_settings(), base="main", head=head).passed


def test_a_rotated_or_recovered_key_is_taken(
    index: IndexRepository, announced: Hub, other_key: SigningKey, keys: list[SigningKey]
) -> None:
    source = source_of(announced)
    listed(index, source)
    rotate(other_key.path, key=announced.key.path, clone=announced.clone)
    changed = replace(source, keys=(SourceKey(other_key.public), until(announced.key, datetime.now(UTC))))
    statement = change_statement("community", source.repository, source.to_yaml(), changed.to_yaml())
    signature = sign(statement, other_key, namespace=CHANGE_NAMESPACE)
    head = proposal(index, {source.path: changed.to_yaml(), source.signature_path: signature})
    checked = check_change(index, load_settings(), base="main", head=head)
    assert checked.passed, checked.problems
    third = keys[1]
    recover(index, PRINCIPAL, [third.public], keys[:1], reason="lost")
    assert index.source(PRINCIPAL).keys[0].public == third.public


@pytest.mark.parametrize("new", [True, False])
def test_the_waiting_period_holds(index: IndexRepository, announced: Hub, new: bool) -> None:
    source = source_of(announced)
    files: dict[str, bytes | None] = {source.path: source.to_yaml()}
    if not new:
        listed(index, source)
        changed = replace(source, contact="new@example.org")
        statement = change_statement("community", source.repository, source.to_yaml(), changed.to_yaml())
        signature = sign(statement, announced.key, namespace=CHANGE_NAMESPACE)
        files = {source.path: changed.to_yaml(), source.signature_path: signature}
    head = proposal(index, files)
    options: dict[str, Any] = {"base": "main", "head": head, "proposed": NOW}
    assert not check_change(index, load_settings(), **options, now=NOW + timedelta(hours=1)).passed
    assert check_change(index, load_settings(), **options, now=NOW + timedelta(hours=73)).passed


def test_the_command_says_what_to_mend(index: IndexRepository, announced: Hub, tmp_path: Path) -> None:
    head = proposal(index, {"sources/x.yaml": b"a: 1\n"})
    argv = ["index", "check", "--repo", str(index.root), "--base", "main", "--head", head]
    done = CliRunner().invoke(main, [*argv, "--comment", str(tmp_path / "report.md")])
    assert done.exit_code == 9
    assert "schema:" in done.output
    assert "| ❌ | `schema` |" in (tmp_path / "report.md").read_text()
    assert CliRunner().invoke(main, [*argv[:-1], "--upload-pack=x"]).exit_code == 2
    assert "| `proof` |" in CliRunner().invoke(main, ["index", "check", "--rules"]).output


# --- submitting ------------------------------------------------------------------------------------------------------


class Api(BaseHTTPRequestHandler):
    """The calls a forge documents, and a place where git repositories would be."""

    asked: list[tuple[str, str, dict[str, Any], dict[str, str]]]
    status = 201
    git = ""
    """Where the git server is, to which everything but the API goes."""
    pulls: Any = None
    """Answers calls on pull requests that are open."""

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.git and "/api/" not in self.path:
            self.forward(data)
            return
        body = json.loads(data or b"{}")
        self.asked.append((self.command, self.path, body, dict(self.headers.items())))
        if type(self).pulls is not None:
            status, answer = type(self).pulls(self.command, self.path, body)
            self.answer(answer, status)
            return
        self.answer(
            {"html_url": "https://forge.example/pr/1", "web_url": "https://forge.example/mr/1", "message": "no"}
        )

    def do_PUT(self) -> None:
        self.do_POST()

    def do_GET(self) -> None:
        if self.git and "/api/" not in self.path:
            self.forward(None)
            return
        self.asked.append((self.command, self.path, {}, dict(self.headers.items())))
        if type(self).pulls is not None:
            status, answer = type(self).pulls(self.command, self.path, {})
            self.answer(answer, status)
            return
        self.answer({"id": 42}, 200)

    def forward(self, data: bytes | None) -> None:
        """Ask the git server."""
        kept = ("Content-Type", "Content-Encoding", "Accept", "Git-Protocol")
        headers = {name: self.headers[name] for name in kept if name in self.headers}
        found = requests.request(self.command, f"{self.git}{self.path}", data=data, headers=headers, timeout=60)
        self.send_response(found.status_code)
        self.send_header("Content-Type", found.headers.get("Content-Type", ""))
        self.send_header("Content-Length", str(len(found.content)))
        self.end_headers()
        self.wfile.write(found.content)

    def answer(self, value: Any, status: int | None = None) -> None:
        data = json.dumps(value).encode()
        self.send_response(status or self.status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def api() -> Iterator[tuple[str, type[Api]]]:
    handler = type("Handler", (Api,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", handler
    server.shutdown()


@pytest.fixture
def pushed(index: IndexRepository, announced: Hub) -> str:
    """The index on a git server."""
    url = announced.server.create("community/index")
    git(index.root, "push", "-q", url, "main")
    return url


@pytest.mark.slow
def test_submitting_writes_checks_pushes_and_gives_the_page(pushed: str, announced: Hub) -> None:
    told: list[str] = []
    dry = submit(pushed, clone=announced.clone, dry_run=True, report=told.append)
    assert told[0].startswith("would write ")
    assert (dry.source.repository, dry.source.url) == (PRINCIPAL, announced.url)
    done = submit(pushed, clone=announced.clone)
    assert not done.opened
    assert done.address.endswith("/community/index/compare/main...add-127-0-0-1-acme-adapters")
    listing = subprocess.run(
        ["git", "ls-remote", pushed, done.branch], capture_output=True, text=True, check=True
    ).stdout
    commit = listing.split()[0]
    bare = announced.bare.parents[1] / "community" / "index.git"
    assert git(bare, "show", f"{commit}:{done.source.path}").encode() + b"\n" == done.source.to_yaml()
    git(bare, "update-ref", "refs/heads/main", commit)
    with pytest.raises(ReleaseError, match="exactly so already"):
        submit(pushed, clone=announced.clone)


def test_submitting_what_the_index_would_refuse_pushes_nothing(
    pushed: str, announced: Hub, other_key: SigningKey
) -> None:
    with pytest.raises(ReleaseError, match="does not announce"):
        submit(pushed, clone=announced.clone, keys=[other_key.path])
    listing = subprocess.run(["git", "ls-remote", "--heads", pushed], capture_output=True, text=True, check=True).stdout
    assert listing.count("\n") == 1
    with pytest.raises(TransportError):
        submit(pushed.replace("community", "nobody"), clone=announced.clone)
    with pytest.raises(UsageError):
        submit("--upload-pack=x", clone=announced.clone)


@pytest.mark.slow
def test_submitting_again_keeps_what_is_not_said_and_signs_what_changes(
    pushed: str, index: IndexRepository, announced: Hub, other_key: SigningKey, home: Path
) -> None:
    bare = announced.bare.parents[1] / "community" / "index.git"
    listed(index, source_of(announced, mirrors=("https://good.example/a.git",)))
    git(index.root, "push", "-q", pushed, "main")
    rotate(other_key.path, key=announced.key.path, clone=announced.clone)
    with pytest.raises(ReleaseError, match="--sign-with"):
        submit(pushed, clone=announced.clone, sign_with=[announced.key.path])
    done = submit(pushed, clone=announced.clone, sign_with=[other_key.path])
    assert [key.public for key in done.source.keys] == [other_key.public, announced.key.public]
    assert (done.source.mirrors, done.source.contact) == (("https://good.example/a.git",), "a@b.c")
    assert git(bare, "show", f"{done.branch}:{done.source.signature_path}").startswith("-----BEGIN SSH SIGNATURE")
    with pytest.raises(UsageError, match="no signing key"):
        submit(pushed, clone=announced.clone, threshold=1)


@pytest.mark.parametrize(
    ("kind", "path", "header", "address"),
    [
        ("github", "/api/v3/repos/community/index/pulls", ("Authorization", "Bearer secret"), "https://forge.example/pr/1"),
        ("gitea", "/api/v1/repos/community/index/pulls", ("Authorization", "token secret"), "https://forge.example/pr/1"),
        ("gitlab", "/api/v4/projects/community%2Findex/merge_requests", ("PRIVATE-TOKEN", "secret"), "https://forge.example/mr/1"),
    ],
)  # fmt: skip
def test_a_forge_opens_the_pull_request(
    api: tuple[str, type[Api]], kind: str, path: str, header: tuple[str, str], address: str
) -> None:
    from adaptergit.web.download import Download
    from adaptergit.web.forges import PullRequest, open_pull_request, page_for

    url, handler = api
    one = PullRequest(f"{url}/community/index.git", "add-x", "main", "Add x", "body")
    assert open_pull_request(one, kind, "secret", Download()) == address
    ((method, asked, body, headers),) = handler.asked
    assert (method, asked, headers[header[0]]) == ("POST", path, header[1])
    assert {body.get("head", body.get("source_branch")), body.get("base", body.get("target_branch"))} == {
        "add-x",
        "main",
    }
    handler.asked.clear()
    forked = replace(one, fork=f"{url}/me/index.git")
    open_pull_request(forked, kind, "secret", Download())
    last = handler.asked[-1]
    if kind == "gitlab":
        assert (last[1], last[2]["target_project_id"]) == ("/api/v4/projects/me%2Findex/merge_requests", "42")
    else:
        assert last[2]["head"] == "me:add-x"
    handler.status = 422
    with pytest.raises(ReleaseError, match="422: no"):
        open_pull_request(one, kind, "secret", Download())
    assert "add-x" in page_for(forked, kind)
    with pytest.raises(UsageError, match="only https"):
        open_pull_request(replace(one, repository="http://forge.example/a/b.git"), kind, "secret", Download())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["github", "gitlab", "gitea"])
def test_submitting_opens_the_pull_request_through_the_forge(
    index: IndexRepository, announced: Hub, api: tuple[str, type[Api]], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """From the clone to the forge's answer, through one address as on a real forge: git and API on one host."""
    url, handler = api
    handler.git = announced.server.url
    announced.server.create("community/index")
    git(index.root, "push", "-q", f"{announced.server.url}/community/index.git", "main")
    monkeypatch.setenv("ADAPTERGIT_FORGE_TOKEN", "secret")
    argv = ["index", "submit", "--to", f"{url}/community/index.git", "--repo", str(announced.clone), "--forge", kind]
    done = CliRunner().invoke(main, [*argv, "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["opened"] is True
    assert told["address"] == f"https://forge.example/{'mr' if kind == 'gitlab' else 'pr'}/1"
    ((_, _, body, headers),) = [item for item in handler.asked if item[0] == "POST"]
    assert "secret" in " ".join(headers.values())
    assert PRINCIPAL in body["title"]
    bare = announced.bare.parents[1] / "community" / "index.git"
    branch = body.get("head", body.get("source_branch"))
    assert git(bare, "show", f"{branch}:{told['path']}").startswith("schema: adaptergit.source/1")
    handler.status = 403
    done = CliRunner().invoke(main, argv)
    assert done.exit_code == 9
    assert "check the token" in done.output


# --- what CI does ----------------------------------------------------------------------------------------------------


@dataclass
class Forge:
    """The documented calls on pull requests, and the git server beside them."""

    url: str
    kind: str
    open: dict[int, str] = field(default_factory=dict)
    comments: dict[int, list[dict[str, Any]]] = field(default_factory=lambda: collections.defaultdict(list))
    merged: list[tuple[int, str]] = field(default_factory=list)
    clock: datetime = NOW
    knows_me: bool = True

    def comment(self, number: int, author: str, body: str) -> None:
        who = {"author": {"username": author}} if self.kind == "gitlab" else {"user": {"login": author}}
        self.comments[number].append({"created_at": f"{self.clock:%Y-%m-%dT%H:%M:%SZ}", "body": body, **who})

    def answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        path, _, query = path.partition("?")
        prefix, pulls, issues = {
            "github": ("/api/v3", "/repos/community/index/pulls", "/repos/community/index/issues"),
            "gitea": ("/api/v1", "/repos/community/index/pulls", "/repos/community/index/issues"),
            "gitlab": (
                "/api/v4",
                "/projects/community%2Findex/merge_requests",
                "/projects/community%2Findex/merge_requests",
            ),
        }[self.kind]
        path = path.removeprefix(prefix)
        page = int(dict(part.split("=") for part in query.split("&") if part).get("page", 1))
        if path == "/user":
            return (200, {"login": "bot", "username": "bot"}) if self.knows_me else (403, {"message": "no"})
        if path == pulls:
            key, sha = ("iid", "sha") if self.kind == "gitlab" else ("number", "head")
            every = [{key: n, sha: h if self.kind == "gitlab" else {"sha": h}} for n, h in sorted(self.open.items())]
            return 200, every[(page - 1) * 50 : page * 50]
        number = int(path.removeprefix(issues).removeprefix(pulls).split("/")[1])
        if path.endswith(("/comments", "/notes")):
            if method == "POST":
                self.comment(number, "bot", body["body"])
                return 201, {}
            return 200, self.comments[number][(page - 1) * 50 : page * 50]
        assert path.endswith("/merge")
        assert method == ("POST" if self.kind == "gitea" else "PUT")
        head = body["head_commit_id" if self.kind == "gitea" else "sha"]
        if head != self.open[number]:
            return 409, {"message": "head was changed"}
        self.merged.append((number, head))
        return 200, {"merged": True}


@pytest.fixture(params=["github", "gitlab", "gitea"])
def forge(
    request: pytest.FixtureRequest, index: IndexRepository, announced: Hub, api: tuple[str, type[Api]], tmp_path: Path
) -> Forge:
    """A forge with the index, which is also the clone that CI works in."""
    url, handler = api
    handler.git = announced.server.url
    announced.server.create("community/index")
    found = Forge(f"{url}/community/index.git", request.param)
    handler.pulls = found.answer
    git(index.root, "remote", "add", "origin", found.url)
    git(index.root, "push", "-q", f"{announced.server.url}/community/index.git", "main")
    return found


def propose(forge: Forge, index: IndexRepository, hub: Hub, number: int, files: dict[str, bytes | None]) -> str:
    """Open a pull request."""
    name = proposal(index, files, f"proposal-{number}-{len(git(index.root, 'branch'))}")
    place = "merge-requests" if forge.kind == "gitlab" else "pull"
    git(index.root, "push", "-q", f"{hub.server.url}/community/index.git", f"+{name}:refs/{place}/{number}/head")
    head = git(index.root, "rev-parse", name)
    git(index.root, "branch", "-qD", name)
    forge.open[number] = head
    return head


def look(forge: Forge, index: IndexRepository, *numbers: int) -> list[Review]:
    return review(numbers, clone=index.root, forge=forge.kind)


def decide(forge: Forge, index: IndexRepository, reviews: list[Review], **options: Any) -> dict[int, str]:
    done = settle(reviews, clone=index.root, forge=forge.kind, token="secret", merge=True, now=forge.clock, **options)
    return {one.number: one.outcome for one in done}


@pytest.mark.slow
def test_what_keeps_the_rules_waits_and_is_merged(forge: Forge, index: IndexRepository, announced: Hub) -> None:
    source = source_of(announced)
    head = propose(forge, index, announced, 7, {source.path: source.to_yaml()})
    propose(forge, index, announced, 8, {"policy.yaml": b"schema: adaptergit.policy/1\n"})
    reviews = look(forge, index)
    assert [(one.number, one.passed) for one in reviews] == [(7, True), (8, False)]
    assert decide(forge, index, reviews) == {7: "waiting", 8: "refused"}
    assert "waits 72 hours" in forge.comments[7][0]["body"]
    assert "only files below" in forge.comments[8][0]["body"]
    forge.clock += timedelta(hours=71)
    forge.comment(7, "somebody", "nice!")
    assert decide(forge, index, look(forge, index)) == {7: "waiting", 8: "refused"}
    assert [len(found) for found in forge.comments.values()] == [2, 1], "said once"
    forge.clock += timedelta(hours=2)
    assert decide(forge, index, look(forge, index)) == {7: "merged", 8: "refused"}
    assert forge.merged == [(7, head)]
    assert not (index.root / source.path).exists(), "nothing was checked out"


@pytest.mark.slow
def test_a_push_begins_the_waiting_anew_and_a_strangers_comment_ends_nothing(
    forge: Forge, index: IndexRepository, announced: Hub
) -> None:
    source = source_of(announced)
    changed = replace(source, contact="other@example.org")
    first = propose(forge, index, announced, 7, {source.path: source.to_yaml()})
    decide(forge, index, look(forge, index))
    later = propose(forge, index, announced, 7, {source.path: changed.to_yaml()})
    assert first != later
    # Somebody who knew the commit beforehand claims that it was seen long ago.
    forge.comments[7].insert(0, {**forge.comments[7][0], "created_at": "2020-01-01T00:00:00Z"})
    for who in ("user", "author"):
        if who in forge.comments[7][0]:
            forge.comments[7][0][who] = {"login": "mallory", "username": "mallory"}
    forge.comments[7][0]["body"] = forge.comments[7][0]["body"].replace(first, later)
    forge.clock += timedelta(hours=73)
    assert decide(forge, index, look(forge, index)) == {7: "waiting"}
    forge.clock += timedelta(hours=73)
    reviews = look(forge, index)
    # Pushed to between the two steps: what was looked at is no longer what would be merged.
    forge.open[7] = first
    assert decide(forge, index, reviews) == {}
    forge.open[7] = later
    assert decide(forge, index, reviews) == {7: "merged"}
    assert forge.merged == [(7, later)]


def test_a_token_that_may_not_ask_who_it_is_is_the_forges_own_bot(
    forge: Forge, index: IndexRepository, announced: Hub
) -> None:
    source = source_of(announced)
    propose(forge, index, announced, 7, {source.path: source.to_yaml()})
    forge.knows_me = False
    if forge.kind == "gitlab":
        with pytest.raises(ReleaseError, match="403"):
            decide(forge, index, look(forge, index))
    else:
        assert decide(forge, index, look(forge, index)) == {7: "waiting"}


@pytest.mark.slow
def test_the_steps_of_ci_on_the_command_line(
    forge: Forge, index: IndexRepository, announced: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of(announced)
    (index.root / "policy.yaml").write_text("schema: adaptergit.policy/1\nwaiting_hours: 0\n")
    git(index.root, "commit", "-qam", "no waiting")
    git(index.root, "push", "-q", f"{announced.server.url}/community/index.git", "main")
    propose(forge, index, announced, 7, {source.path: source.to_yaml()})
    propose(forge, index, announced, 8, {source.path: b"a: 1\n"})
    git(index.root, "checkout", "-q", "--detach")  # as CI does
    where = ("--repo", str(index.root), "--forge", forge.kind)
    out, summary = tmp_path / "reviews.json", tmp_path / "summary.md"

    def run(*argv: str, code: int = 0) -> str:
        done = CliRunner().invoke(main, ["index", *argv])
        assert done.exit_code == code, done.output
        return done.output

    assert "keeps the rules" in run("review", "7", *where, "--comment", str(summary))
    assert "| ✅ | `schema` |" in summary.read_text()
    assert "breaks rules" in run("review", "8", *where, code=9)
    run("review", "99", *where, code=5)
    run("review", "--out", str(out), *where)
    run("settle", str(out), *where, code=2)
    monkeypatch.setenv("ADAPTERGIT_FORGE_TOKEN", "secret")
    said = run("settle", str(out), *where, "--merge")
    assert "#7 merged" in said
    assert "#8 refused" in said
    out.write_text("{}")
    run("settle", str(out), *where, code=3)
    # On a laptop, without a clone.
    assert "keeps the rules" in run("review", "7", "--of", forge.url, "--forge", forge.kind)


def test_ci_calls_commands_of_adaptergit_and_nothing_else() -> None:
    template = Path(__file__).parent.parent / "index_repo_template"
    files = [*template.glob(".*/workflows/*.yml"), template / ".gitlab-ci.yml"]
    assert len(files) == 7
    for file in files:
        text = file.read_text()
        raw = YAML(typ="safe").load(text)
        jobs = raw.get("jobs", {name: job for name, job in raw.items() if isinstance(job, dict) and "script" in job})
        lines = [step["run"] for job in jobs.values() for step in job.get("steps", ()) if "run" in step]
        lines += [line for job in jobs.values() for line in job.get("script", ())] + raw.get("before_script", [])
        assert lines
        for line in lines:
            assert line == "pip install adaptergit" or line.startswith("adaptergit index "), (file, line)
            assert CliRunner().invoke(main, [*line.split()[1:3], "--help"]).exit_code == 0 or line.startswith("pip")
        # What judges proposals has no secret; what has one does not look at them.
        for job in jobs.values():
            body = json.dumps(job)
            assert not ("adaptergit index review" in body and "secrets." in body), file
            assert not ("adaptergit index review" in body and "index settle" in body), file
        assert "pull_request_target" not in text


@pytest.mark.slow
def test_publishing_crawls_commits_builds_signs_and_pushes(
    index: IndexRepository,
    announced: Hub,
    source: Callable[..., Path],
    tmp_path: Path,
    keys: list[SigningKey],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = announced.server.create("community/index")
    git(index.root, "remote", "add", "origin", url)
    listed(index, source_of(announced))
    git(index.root, "push", "-q", "origin", "main")
    publish(source(), clone=announced.clone, key=announced.key.path)
    # Somebody merged a pull request meanwhile.
    other = tmp_path / "other"
    subprocess.run(["git", "clone", "-q", url, str(other)], check=True)
    (other / "policy.yaml").write_text("schema: adaptergit.policy/1\nlicenses: [Apache-2.0, MIT]\n")
    git(other, "commit", "-qam", "policy")
    git(other, "push", "-q", "origin", "main")
    monkeypatch.setenv("INDEX_KEY", keys[0].path.read_text())
    done = CliRunner().invoke(main, ["index", "publish", "--repo", str(index.root), "--key-env", "INDEX_KEY", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {
        "sources": 1, "releases": 1, "adapters": 1, "added": 1, "problems": {}, "pushed": True,
    }  # fmt: skip
    bare = announced.bare.parents[1] / "community" / "index.git"
    assert git(bare, "log", "--format=%s", "main").splitlines()[:2] == ["crawl", "policy"]
    assert git(bare, "rev-list", "--count", "dist") == "1"
    root = index.current_root()
    client(load_settings()).add(url, f"sha256:{root.digest}")
    assert [entry.name for entry in adaptergit.search()] == ["sst2"]
    assert git(bare, "show", "dist:index.html").startswith("<!doctype html>")
    # Nothing new: nothing is committed, and it is signed again. What was changed by hand stops it.
    before = git(bare, "rev-parse", "main")
    assert (
        CliRunner().invoke(main, ["index", "publish", "--repo", str(index.root), "--key", str(keys[0].path)]).exit_code
        == 0
    )
    assert git(bare, "rev-parse", "main") == before
    (entry,) = index.entries(PRINCIPAL)
    index.write_entries(PRINCIPAL, [replace(entry, description="better")])
    done = CliRunner().invoke(main, ["index", "publish", "--repo", str(index.root), "--key", str(keys[0].path)])
    assert done.exit_code == 9
    assert "another description" in done.output
    assert CliRunner().invoke(main, ["index", "publish", "--repo", str(index.root)]).exit_code == 2


def test_the_page_about_the_rules_is_what_the_rules_say() -> None:
    page = Path(__file__).parent.parent / "docs" / "rules.md"
    assert page.read_text("utf-8") == documentation().rstrip() + "\n", "adaptergit index check --rules > docs/rules.md"
    told = json.loads(CliRunner().invoke(main, ["index", "check", "--rules", "--json"]).stdout)
    known = {rule.id for rule in (*SOURCE_RULES, *RELEASE_RULES, *ENTRY_RULES)}
    assert {rule for table in told["tables"] for rule in table["rules"]} == known
