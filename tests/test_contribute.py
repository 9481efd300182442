"""Contributing to an index: the rules, one by one; hostile pull requests; submitting through the forges' APIs."""

from __future__ import annotations

import json
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import Hub, git
from hypothesis import given
from hypothesis import strategies as st

from adaptergit.cli import main
from adaptergit.errors import ReleaseError, TransportError, UsageError
from adaptergit.index.changes import CHANGE_NAMESPACE, change_statement
from adaptergit.index.entry import Entry
from adaptergit.index.maintain import init_index, recover
from adaptergit.index.names import alike, distance
from adaptergit.index.propose import check_change
from adaptergit.index.release_rules import RELEASE_RULES, Release
from adaptergit.index.repository import IndexPolicy, IndexRepository
from adaptergit.index.repository import replace as write
from adaptergit.index.rules import broken_by, comment, documentation
from adaptergit.index.source_rules import SOURCE_RULES, Proposal
from adaptergit.index.sources import SourceFile, SourceKey
from adaptergit.publish import initialise
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


def test_every_rule_has_an_example_that_breaks_it() -> None:
    assert {rule for rule, _, _ in BREAKING} == {rule.id for rule in SOURCE_RULES}
    assert {rule for rule, _, _ in BREAKING_RELEASES} == {rule.id for rule in RELEASE_RULES}
    for rule in (*SOURCE_RULES, *RELEASE_RULES):
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


def test_a_key_that_was_replaced_or_revoked_signs_no_change(
    index: IndexRepository, announced: Hub, pair: SourceFile, other_key: SigningKey, keys: list[SigningKey]
) -> None:
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

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((self.command, self.path, body, dict(self.headers.items())))
        self.answer(
            {"html_url": "https://forge.example/pr/1", "web_url": "https://forge.example/mr/1", "message": "no"}
        )

    def do_GET(self) -> None:
        self.asked.append((self.command, self.path, {}, dict(self.headers.items())))
        self.answer({"id": 42}, 200)

    def answer(self, value: dict[str, Any], status: int | None = None) -> None:
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


def test_submitting_writes_checks_pushes_and_gives_the_page(pushed: str, announced: Hub) -> None:
    dry = submit(pushed, clone=announced.clone, dry_run=True)
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


def test_the_page_about_the_rules_is_what_the_rules_say() -> None:
    page = Path(__file__).parent.parent / "docs" / "rules.md"
    assert page.read_text("utf-8") == documentation().rstrip() + "\n", "adaptergit index check --rules > docs/rules.md"
