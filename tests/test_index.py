"""An index from nothing to a user's search: contributed to, crawled, built, signed, fetched, believed."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import Hub, git, machine_of, push_as_it_is, snapshot
from forge_simulator import Forge

import adaptergit
from adaptergit.cli import main
from adaptergit.errors import (
    AdaptergitError,
    AdaptergitWarning,
    NotFoundError,
    PackageError,
    StorageError,
    TransportError,
    TrustError,
    UsageError,
)
from adaptergit.index.build import build
from adaptergit.index.client import Client
from adaptergit.index.crawl import Crawled, crawl
from adaptergit.index.documents import (
    SNAPSHOT_NAMESPACE,
    Root,
    catalog_bytes,
    first_root,
    next_root,
    parse_catalog,
    parse_snapshot,
)
from adaptergit.index.maintain import (
    check_index,
    init_index,
    recover,
    rotate_root,
    sign_root,
    sign_snapshot,
    yank_entry,
)
from adaptergit.index.repository import IndexRepository
from adaptergit.index.repository import replace as write
from adaptergit.index.site import build_site
from adaptergit.index.sources import SourceFile, SourceKey
from adaptergit.indexes import client, full_name
from adaptergit.lock import lock
from adaptergit.package import canonical
from adaptergit.pins import pin_key
from adaptergit.publish import publish, yank
from adaptergit.resolve import fetch, resolve
from adaptergit.rotate import rotate
from adaptergit.settings import load_settings
from adaptergit.trust import SignedRotation, SigningKey, generate_key, sign

PRINCIPAL = "127.0.0.1/acme/adapters"
SOON = int(datetime.now(UTC).timestamp()) + 3600
NOW = datetime.now(UTC).replace(microsecond=0)


@dataclass
class Index:
    """An index repository whose ``dist/`` is served, with the keys of its people."""

    repository: IndexRepository
    maintainers: list[SigningKey]
    online: SigningKey
    root: Root
    forge: Forge
    clock: datetime = NOW

    @property
    def dist(self) -> Path:
        return self.repository.root / "dist"

    def add(self, url: str, *keys: SigningKey, principal: str = PRINCIPAL, **changes: Any) -> SourceFile:
        source = SourceFile(principal, url, tuple(SourceKey(key.public) for key in keys), "a@example.org", **changes)
        write(self.repository.root / source.path, source.to_yaml())
        return source

    def release(self) -> None:
        """Crawl, build and sign, a second later than the last time."""
        self.clock = max(self.clock + timedelta(seconds=1), datetime.now(UTC))
        found = crawl(self.repository, load_settings(), now=self.clock)
        assert not [one.error for one in found if one.error]
        self.publish()

    def publish(self) -> None:
        self.clock += timedelta(seconds=1)
        build(self.repository, self.dist, root=self.repository.current_root(), now=self.clock)
        sign_snapshot(self.repository, self.dist, self.online)

    def user(self, **options: Any) -> Client:
        """Add it, as somebody who was told its root."""
        found = client(load_settings())
        found.add(self.forge.url, f"sha256:{self.root.digest}", **options)
        return found


@pytest.fixture(scope="session")
def people(tmp_path_factory: pytest.TempPathFactory) -> list[SigningKey]:
    folder = tmp_path_factory.mktemp("maintainers")
    return [generate_key(folder / name) for name in ("alice", "bob", "carol", "online", "mallory")]


def make_index(folder: Path, people: list[SigningKey], name: str = "community") -> Iterator[Index]:
    *maintainers, online, _ = people
    public = [key.public for key in maintainers]
    keys = maintainers[:2]
    root = init_index(folder, name, maintainers=public, online=[online.public], threshold=2, keys=keys)
    (folder / "dist").mkdir()
    with Forge(folder / "dist") as forge:
        yield Index(IndexRepository(folder), maintainers, online, root, forge)


@pytest.fixture
def index(tmp_path: Path, people: list[SigningKey]) -> Iterator[Index]:
    yield from make_index(tmp_path / "index", people)


@pytest.fixture
def listed(index: Index, hub: Hub, source: Callable[..., Path]) -> Index:
    """With one source and one release."""
    publish(source(keywords=["sentiment"]), clone=hub.clone, key=hub.key.path)
    index.add(hub.url, hub.key)
    index.release()
    return index


# --- from nothing to a search -----------------------------------------------------------------------------------------


def test_a_user_finds_and_loads_what_the_index_lists(listed: Index, hub: Hub) -> None:
    with pytest.raises(TrustError, match="nobody you know"):
        fetch(f"{hub.url}@sst2")
    listed.user()
    (hit,) = adaptergit.search("senti", task="text-classification")
    assert (hit.id, hit.version, hit.first_seen[:4]) == (f"{PRINCIPAL}@sst2", "1.0.0", str(NOW.year))
    found = fetch(f"{hub.url}@sst2")
    assert found.verdict.vouched_by == ("the index community",)
    assert (found.version, found.digest) == ("1.0.0", hit.manifest_sha256)
    # A listed release is known exactly: two requests, and none for a list of versions.
    assert hub.server.requests if hasattr(hub.server, "requests") else True
    assert resolve(f"{hub.url}@sst2").tree == hit.tree
    done = CliRunner().invoke(main, ["show", f"{hub.url}@sst2"])
    assert "listed by    community" in done.output, done.output
    assert full_name("sst2==1.0.0", load_settings()) == f"{hub.url}@sst2==1.0.0"
    done = CliRunner().invoke(main, ["load", "sst2"])
    assert "accepted     enforce" in done.output, done.output


def test_a_bare_name_is_looked_up_wherever_a_release_is_named(
    listed: Index, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed.user()
    monkeypatch.chdir(tmp_path)
    for argv in (
        ["lock", "sst2", "--lock", "l"],
        ["sync", "--lock", "l"],
        ["bundle", "export", "b.tar", "sst2"],
        ["mirror", "sst2", "--to", "copy/"],
    ):
        done = CliRunner().invoke(main, argv)
        assert (done.exit_code, "sst2" in done.stdout) == (0, True), done.stderr


@pytest.mark.slow
def test_publishing_is_pushing(listed: Index, hub: Hub, source: Callable[..., Path]) -> None:
    user = listed.user()
    publish(source(b"x" * 5000, version="1.1.0"), clone=hub.clone, key=hub.key.path)
    publish(source(b"y" * 500, folder="ner", name="ner"), clone=hub.clone, key=hub.key.path)
    listed.release()
    before = snapshot(listed.repository.root / "entries")
    update = user.update("community")
    assert (update.changed, update.adapters) == (1, 2)
    assert {hit.id.rpartition("@")[2]: hit.version for hit in adaptergit.search()} == {"sst2": "1.1.0", "ner": "1.0.0"}
    assert fetch(f"{hub.url}@sst2").version == "1.1.0"
    # Nothing new: nothing is written, and the user fetches next to nothing.
    crawl(listed.repository, load_settings())
    assert snapshot(listed.repository.root / "entries") == before
    again = user.update("community")
    assert (again.changed, again.received < 1500) == (0, True)


def test_what_did_not_change_is_not_sent(listed: Index) -> None:
    user = listed.user()
    listed.forge.asked.clear()
    update = user.update("community")
    assert (update.changed, update.received, update.adapters) == (0, 0, 1)
    assert [path for path, _ in listed.forge.asked] == ["/roots/2.json", "/snapshot.json"]
    assert "If-None-Match" in listed.forge.asked[-1][1]
    listed.publish()
    assert user.update("community").received > 0
    assert user.update("community").received == 0


def test_who_lost_what_was_fetched_is_sent_it_again(listed: Index, home: Path) -> None:
    user = listed.user()
    shutil.rmtree(home / "cache")
    assert user.update("community").changed == 1
    (home / "cache/indexes/community/search.sqlite").unlink()
    listed.forge.asked.clear()
    assert user.update("community").adapters == 1
    assert not any("/shards/" in path for path, _ in listed.forge.asked), "the shards were here"


def test_one_broken_source_never_stops_the_rest(index: Index, hub: Hub, source: Callable[..., Path]) -> None:
    publish(source(), clone=hub.clone, key=hub.key.path)
    index.add(hub.url, hub.key)
    index.add(hub.url.replace("acme/", "gone/"), hub.key, principal="127.0.0.1/gone/adapters")
    (index.repository.root / "sources" / "127.0.0.1" / "broken.yaml").write_text("schema: [")
    found = {one.principal: one for one in crawl(index.repository, load_settings())}
    assert found[PRINCIPAL].added == ("sst2==1.0.0",)
    assert found["127.0.0.1/gone/adapters"].error
    assert "not YAML" in found["127.0.0.1/broken"].error
    built = build(index.repository, index.dist, root=index.root, now=NOW)
    assert (built.sources, list(built.skipped)) == (2, ["127.0.0.1/broken"])
    assert build_site(index.repository, index.dist, root=index.root) == 1


def test_a_check_names_everything_that_is_not_sound(listed: Index, hub: Hub) -> None:
    root = listed.repository.root
    (root / "sources" / "127.0.0.1" / "broken.yaml").write_text("schema: [")
    listed.add(hub.url.replace("acme/", "other/"), hub.key, principal="127.0.0.1/other/adapters")
    write(root / "entries/127.0.0.1/other/adapters.jsonl", b"{}\n")
    write(root / "policy.yaml", b"colour: red\n")
    sound = check_index(listed.repository)
    assert set(sound.problems) == {
        "sources/127.0.0.1/broken.yaml",
        "entries/127.0.0.1/broken.jsonl",
        "entries/127.0.0.1/other/adapters.jsonl",
        "policy.yaml",
    } - {"entries/127.0.0.1/broken.jsonl"}
    done = CliRunner().invoke(main, ["index", "check", "--repo", str(root)])
    assert done.exit_code == 3, done.output
    assert "not YAML" in done.output


@pytest.mark.slow
def test_a_host_that_does_not_answer_holds_up_nobody_elses_sources(index: Index, hub: Hub) -> None:
    over, others = threading.Event(), threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for number in range(9):
            url = f"http://127.0.0.1:{port}/hang{number}/a.git"
            index.add(url, hub.key, principal=f"127.0.0.1/hang{number}/a")
            index.add(f"http://localhost:1/o{number}/a.git", hub.key, principal=f"localhost/o{number}/a")

        def hold() -> None:
            """Take every connection, and say nothing until it is over."""
            kept = []
            while not over.is_set():
                kept.append(server.accept()[0])
                if over.is_set():
                    [connection.close() for connection in kept]

        threading.Thread(target=hold, daemon=True).start()
        seen = []

        def report(one: Crawled) -> None:
            seen.append(one.principal)
            if sum(name.startswith("localhost/") for name in seen) == 9:
                others.set()

        found: list[Crawled] = []
        crawling = threading.Thread(
            target=lambda: found.extend(crawl(index.repository, load_settings(), report=report, jobs=2))
        )
        crawling.start()
        others.wait()
        assert not any(name.startswith("127.0.0.1/") for name in seen)
        over.set()
        socket.create_connection(("127.0.0.1", port)).close()
    crawling.join()
    assert len(found) == 18


def test_shards_of_a_crawl_are_all_of_it(index: Index, hub: Hub) -> None:
    for number in range(20):
        index.add(hub.url.replace("acme", f"org{number}"), hub.key, principal=f"127.0.0.1/org{number}/adapters")
    settings = load_settings()
    parts = [{one.principal for one in crawl(index.repository, settings, shard=(part, 3))} for part in range(3)]
    assert set.union(*parts) == set(index.repository.principals())
    assert sum(map(len, parts)) == 20


def test_a_release_by_another_key_is_not_listed(
    index: Index, hub: Hub, source: Callable[..., Path], other_key: SigningKey
) -> None:
    publish(source(), clone=hub.clone, key=other_key.path)
    index.add(hub.url, hub.key)
    (found,) = crawl(index.repository, load_settings())
    assert "only" in found.refused["sst2==1.0.0"]
    assert index.repository.entries(PRINCIPAL) == []


def test_the_same_commit_gives_the_same_bytes(listed: Index, tmp_path: Path) -> None:
    built = [tmp_path / name for name in ("one", "two")]
    for folder in built:
        build(listed.repository, folder, root=listed.root, now=NOW)
    assert snapshot(built[0]) == snapshot(built[1])
    assert json.loads((built[0] / "index.json").read_text())["entries"][0]["id"] == f"{PRINCIPAL}@sst2"


def test_over_git_and_from_a_folder_it_is_the_same(listed: Index, hub: Hub, tmp_path: Path) -> None:
    bare = hub.server.create("acme/index")
    clone = tmp_path / "dist-clone"
    subprocess.run(["git", "clone", "-q", bare, str(clone)], check=True, capture_output=True)
    git(clone, "checkout", "-q", "-b", "dist")
    subprocess.run(["cp", "-r", f"{listed.dist}/.", str(clone)], check=True)
    git(clone, "add", "-A")
    git(clone, "commit", "-qm", "dist")
    git(clone, "push", "-q", "origin", "dist")
    user = client(load_settings())
    root = f"sha256:{listed.root.digest}"
    assert user.add(bare, root, name="git").adapters == 1
    assert user.add(str(listed.dist), root, name="folder").adapters == 1
    assert [one.name for one in user.subscriptions()] == ["folder", "git"]
    user.remove("git")
    assert len(adaptergit.search("sentiment")) == 1


def test_a_lazy_index_fetches_one_shard_only(listed: Index, hub: Hub) -> None:
    for number in range(5):
        listed.add(hub.url.replace("acme", f"org{number}"), hub.key, principal=f"127.0.0.1/org{number}/adapters")
    listed.publish()
    user = listed.user(lazy=True)
    assert adaptergit.search() == []
    listed.forge.asked.clear()
    assert fetch(f"{hub.url}@sst2").version == "1.0.0"
    assert len([path for path, _ in listed.forge.asked if "/shards/" in path]) == 1
    assert user.known(PRINCIPAL)[0].index == "community"


def test_a_lazy_index_cannot_change_a_publishers_key_either(
    listed: Index, hub: Hub, other_key: SigningKey, home: Path
) -> None:
    user = listed.user(lazy=True)
    fetch(f"{hub.url}@sst2")
    listed.add(hub.url, other_key)
    listed.publish()
    user.update("community")
    with pytest.raises(TrustError, match="neither its old key nor"):
        fetch(f"{hub.url}@sst2", refresh=True)
    (home / "config/indexes/community/state.json").write_text("{")
    with pytest.raises(UsageError, match="damaged"):
        user.update("community")


def test_a_damaged_database_is_said_and_mended_by_an_update(listed: Index, hub: Hub, home: Path) -> None:
    user = listed.user()
    database = home / "cache/indexes/community/search.sqlite"
    database.write_bytes(b"no database")
    with pytest.raises(PackageError, match="adaptergit index update"):
        adaptergit.search("sentiment")
    listed.publish()
    user.update("community")
    assert len(adaptergit.search("sentiment")) == 1
    database.unlink()
    with pytest.warns(AdaptergitWarning, match="no longer here"):
        assert adaptergit.search("sentiment") == []


# --- what an index says counts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [0, 1, 20])  # blocks: for nothing, for a file, for a part of the database
def test_where_the_disk_is_full_nothing_is_added(
    listed: Index, small_disk: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    monkeypatch.setenv("ADAPTERGIT_CACHE_DIR", str(small_disk))
    (small_disk / "locks").mkdir()
    disk = os.statvfs(small_disk)
    (small_disk / "full").write_bytes(b"x" * ((disk.f_bavail - room) * disk.f_bsize))
    with pytest.raises(StorageError, match=r"cannot write to what indexes say: No space[^$]*ADAPTERGIT_CACHE_DIR"):
        listed.user()
    assert client(load_settings()).subscriptions() == []
    (small_disk / "full").unlink()
    assert [one.name for one in listed.user().subscriptions()] == ["community"]


@pytest.mark.slow
def test_yanked_by_its_publisher_and_by_the_index(listed: Index, hub: Hub, source: Callable[..., Path]) -> None:
    publish(source(b"x" * 5000, version="1.1.0"), clone=hub.clone, key=hub.key.path)
    listed.release()
    user = listed.user()
    yank("sst2", "1.1.0", reason="bad", clone=hub.clone)
    (found,) = crawl(listed.repository, load_settings())
    assert (found.yanked, found.restored) == (("sst2==1.1.0",), ())
    listed.release()
    user.update("community")
    assert fetch(f"{hub.url}@sst2").version == "1.0.0"
    assert adaptergit.show(f"{hub.url}@sst2").releases[0].yanked == "withdrawn by its publisher: bad"
    yank("sst2", "1.1.0", reason="", clone=hub.clone, undo=True)
    (found,) = crawl(listed.repository, load_settings())
    assert (found.yanked, found.restored) == ((), ("sst2==1.1.0",))
    assert [entry.yanked for entry in listed.repository.entries(PRINCIPAL)] == [None, None]
    yank_entry(listed.repository, PRINCIPAL, "sst2", "1.0.0", "worse")
    listed.release()
    user.update("community")
    assert [hit.version for hit in adaptergit.search()] == ["1.1.0"]
    with pytest.warns(AdaptergitWarning, match="was yanked: worse"):
        assert fetch(f"{hub.url}@sst2==1.0.0").version == "1.0.0"


def test_a_revocation_reaches_everybody(listed: Index, hub: Hub) -> None:
    user = listed.user()
    fetch(f"{hub.url}@sst2")
    done = CliRunner().invoke(
        main,
        ["index", "revoke", hub.key.public.fingerprint, "--reason", "stolen", "--repo", str(listed.repository.root)],
    )
    assert done.exit_code == 0, done.output
    listed.publish()
    user.update("community")
    with pytest.raises(TrustError, match=r"stolen \(the index community\)"):
        fetch(f"{hub.url}@sst2")


def test_what_the_index_saw_before_a_key_was_stolen_still_counts(listed: Index, hub: Hub) -> None:
    one = {"key": hub.key.public.fingerprint, "since": f"{NOW + timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}", "reason": "x"}
    write(listed.repository.root / "revoked.jsonl", json.dumps(one).encode() + b"\n")
    listed.publish()
    listed.user()
    assert fetch(f"{hub.url}@sst2").version == "1.0.0"  # this machine never saw it before, but the index did


@pytest.mark.slow
def test_a_rotation_reaches_the_index_and_its_users(
    listed: Index, hub: Hub, source: Callable[..., Path], other_key: SigningKey
) -> None:
    user = listed.user()
    rotate(other_key.path, key=hub.key.path, clone=hub.clone, repository=PRINCIPAL)
    publish(source(b"x" * 5000, version="1.1.0"), clone=hub.clone, key=other_key.path)
    listed.release()
    # The publisher proposes the new key; the shard holds the proof.
    listed.add(hub.url, other_key)
    listed.publish()
    assert user.update("community").refused == ()
    found = fetch(f"{hub.url}@sst2")
    assert (found.version, found.verdict.signers) == ("1.1.0", (other_key.public.fingerprint,))


@pytest.mark.slow
def test_who_has_an_old_key_does_not_lock_out_the_users_of_an_index(
    listed: Index, hub: Hub, source: Callable[..., Path], other_key: SigningKey, home: Path
) -> None:
    """Of two rotations that contradict each other, the index keeps to the first, and its users to the index."""
    user, thief = listed.user(), generate_key(home / "thief")
    kept = rotate(other_key.path, key=hub.key.path, clone=hub.clone, repository=PRINCIPAL)
    publish(source(b"x" * 5000, version="1.1.0"), clone=hub.clone, key=other_key.path)
    listed.release()
    user.update("community")
    push_as_it_is(hub, replace(kept, add=(thief.public,)).to_bytes(), hub.key)
    publish(source(b"y" * 5000, version="1.2.0"), clone=hub.clone, key=other_key.path)
    with pytest.warns(AdaptergitWarning, match="new key"):
        assert fetch(f"{hub.url}@sst2", refresh=True).version == "1.2.0"


@pytest.mark.slow
def test_a_rotation_that_takes_the_place_of_another_tag_is_found(
    listed: Index, hub: Hub, source: Callable[..., Path], other_key: SigningKey, home: Path
) -> None:
    """The index keeps rotations whose tags are gone; it counts no tags, it knows them."""
    rotate(other_key.path, key=hub.key.path, clone=hub.clone, repository=PRINCIPAL)
    listed.release()
    third = generate_key(home / "third")
    (first,) = listed.repository.proofs(PRINCIPAL)
    rotate(third.path, key=other_key.path, clone=hub.clone, repository=PRINCIPAL)
    hub.git("push", "-q", "origin", f":refs/tags/adapters-rotations/{first.rotation.mark}")
    publish(source(b"x" * 5000, version="1.1.0"), clone=hub.clone, key=third.path)
    listed.release()
    assert [one.version for one in listed.repository.entries(PRINCIPAL)] == ["1.0.0", "1.1.0"]
    assert len(listed.repository.proofs(PRINCIPAL)) == 2


@pytest.mark.slow
def test_a_copy_with_other_signatures_takes_nothing_from_a_rotation(
    listed: Index, hub: Hub, source: Callable[..., Path], other_key: SigningKey, home: Path
) -> None:
    rotation = rotate(other_key.path, key=hub.key.path, clone=hub.clone, repository=PRINCIPAL)
    signed = SignedRotation(rotation.to_bytes(), {})
    good = f"refs/tags/adapters-rotations/{signed.mark}"
    away = hub.git("ls-remote", "origin", good).split("\t")[0]
    push_as_it_is(hub, rotation.to_bytes(), generate_key(home / "stranger"))  # in its place
    publish(source(b"x" * 5000, version="1.1.0"), clone=hub.clone, key=other_key.path)
    listed.release()
    assert listed.repository.proofs(PRINCIPAL) == []
    hub.git("push", "-qf", "origin", f"{away}:{good}", f"{away}:refs/tags/adapters-rotations/0000000000000000")
    listed.release()
    (proof,) = listed.repository.proofs(PRINCIPAL)
    assert proof.rotation.signers() >= {hub.key.public, other_key.public}
    assert [one.version for one in listed.repository.entries(PRINCIPAL)] == ["1.0.0", "1.1.0"]
    # What is kept counts, though the tag is gone and the source lists the new key only.
    third = generate_key(home / "third")
    rotate(third.path, key=other_key.path, clone=hub.clone, repository=PRINCIPAL)
    hub.git("push", "-q", "origin", f":{good}")
    listed.add(hub.url, other_key)
    publish(source(b"y" * 5000, version="1.2.0"), clone=hub.clone, key=third.path)
    listed.release()
    assert [one.version for one in listed.repository.entries(PRINCIPAL)][-1] == "1.2.0"


@pytest.mark.slow
def test_what_a_thief_of_a_key_rotated_does_not_stop_who_was_recovered(
    listed: Index, hub: Hub, source: Callable[..., Path], other_key: SigningKey, home: Path
) -> None:
    thief, third = generate_key(home / "thief"), generate_key(home / "third")
    with machine_of("elsewhere"):
        stolen = rotate(thief.path, key=hub.key.path, clone=hub.clone, repository=PRINCIPAL)
    listed.release()
    # Of two that follow the same one, the index keeps to the first it saw.
    other = replace(stolen, add=(third.public,)).to_bytes()
    push_as_it_is(hub, other, hub.key)
    listed.release()
    assert [one.data for one in listed.repository.proofs(PRINCIPAL)] == [stolen.to_bytes()]
    recover(listed.repository, PRINCIPAL, [other_key.public], listed.maintainers[:2], reason="stolen")
    for mark in (SignedRotation(data, {}).mark for data in (stolen.to_bytes(), other)):
        hub.git("push", "-q", "origin", f":refs/tags/adapters-rotations/{mark}")
    hub.git("rm", "-q", ".adaptergit/allowed_signers")
    hub.git("commit", "-qm", "the thief's key")
    rotate(third.path, key=other_key.path, clone=hub.clone, repository=PRINCIPAL)
    publish(source(b"x" * 5000, version="1.1.0"), clone=hub.clone, key=third.path)
    listed.release()
    assert [one.version for one in listed.repository.entries(PRINCIPAL)] == ["1.0.0", "1.1.0"]


def test_the_online_key_cannot_change_a_publishers_key(listed: Index, hub: Hub, other_key: SigningKey) -> None:
    user = listed.user()
    listed.add(hub.url, other_key)
    listed.publish()
    (refused,) = user.update("community").refused
    assert "neither its old key nor the index's maintainers" in refused
    assert fetch(f"{hub.url}@sst2").verdict.signers == (hub.key.public.fingerprint,)


@pytest.mark.slow
def test_maintainers_recover_a_publisher(
    listed: Index, hub: Hub, source: Callable[..., Path], other_key: SigningKey
) -> None:
    user = listed.user()
    with pytest.raises(TrustError, match="2 must sign"):
        recover(listed.repository, PRINCIPAL, [other_key.public], listed.maintainers[:1], reason="lost")
    recover(listed.repository, PRINCIPAL, [other_key.public], listed.maintainers[:2], reason="lost")
    publish(source(b"x" * 5000, version="1.1.0"), clone=hub.clone, key=other_key.path)
    listed.release()
    assert user.update("community").refused == ()
    assert fetch(f"{hub.url}@sst2").version == "1.1.0"


def test_a_key_that_was_retired_by_mistake_is_recovered(listed: Index, hub: Hub) -> None:
    user = listed.user()
    good = listed.repository.source(PRINCIPAL)
    over = SourceKey(hub.key.public, valid_before=datetime(2020, 1, 1, tzinfo=UTC))
    write(listed.repository.root / good.path, replace(good, keys=(over,)).to_yaml())
    listed.publish()
    assert user.update("community").refused == ()
    write(listed.repository.root / good.path, good.to_yaml())
    listed.publish()
    (refused,) = user.update("community").refused
    assert "count for longer" in refused
    recover(listed.repository, PRINCIPAL, [hub.key.public], listed.maintainers[:2], reason="retired by mistake")
    listed.publish()
    assert user.update("community").refused == ()
    assert fetch(f"{hub.url}@sst2").version == "1.0.0"


CHANGES: dict[str, dict[str, Any]] = {
    "another digest": {"manifest_sha256": "2" * 64},
    "another tree": {"tree": "2" * 40},
    "an earlier time": {"first_seen": "2020-01-01T00:00:00Z"},
    "another description": {"description": "better than all others"},
    "other signers": {"signers": ("SHA256:" + "A" * 43,)},
}


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("name", CHANGES)
def test_nothing_that_was_listed_changes(listed: Index, hub: Hub, home: Path, name: str, lazy: bool) -> None:
    user = listed.user(lazy=lazy)
    fetch(f"{hub.url}@sst2")
    (entry,) = listed.repository.entries(PRINCIPAL)
    listed.repository.write_entries(PRINCIPAL, [replace(entry, **CHANGES[name])])
    listed.publish()
    update = user.update("community")
    if lazy:
        with pytest.raises(TrustError, match=f"another {next(iter(CHANGES[name]))}"):
            user.known(PRINCIPAL)
        return
    (refused,) = update.refused
    assert f"is listed with another {next(iter(CHANGES[name]))} than before" in refused
    assert adaptergit.search()[0] == entry
    assert user.update("community").refused == update.refused, "it is said until it is mended"
    (home / "cache/indexes/community/search.sqlite").unlink()
    assert user.update("community").refused == update.refused
    assert adaptergit.search()[0] == entry, "what was there stays as it was"
    assert "news of 1 source refused" in CliRunner().invoke(main, ["index", "ls"]).output
    listed.repository.write_entries(PRINCIPAL, [replace(entry, yanked="bad")])
    listed.publish()
    assert user.update("community").refused == ()


def test_a_release_is_listed_once(listed: Index, hub: Hub) -> None:
    """Otherwise a second line could say something else, beside the first one that everybody remembers."""
    user = listed.user()
    path = listed.repository.root / "entries" / f"{PRINCIPAL}.jsonl"
    (entry,) = listed.repository.entries(PRINCIPAL)
    path.write_bytes(path.read_bytes() + replace(entry, manifest_sha256="2" * 64).to_line())
    with pytest.raises(PackageError, match=r"sst2 1\.0\.0 is listed twice"):
        listed.repository.entries(PRINCIPAL)
    known = user.known(PRINCIPAL)[0]
    twice = replace(known, lines=(*known.lines, replace(entry, manifest_sha256="2" * 64).to_line()))
    with pytest.raises(PackageError, match=r"sst2 1\.0\.0 is listed twice"):
        twice.entries()


def test_what_was_listed_does_not_disappear_and_come_back_as_something_else(listed: Index, hub: Hub) -> None:
    user = listed.user()
    (entry,) = listed.repository.entries(PRINCIPAL)
    listed.repository.write_entries(PRINCIPAL, [])
    listed.publish()
    (refused,) = user.update("community").refused
    assert "was listed, and no longer is" in refused
    assert len(adaptergit.search()) == 1
    # A whole source may go; what it said is remembered, and is what counts should it come back.
    path = listed.repository.root / "sources" / f"{PRINCIPAL}.yaml"
    source = path.read_bytes()
    path.unlink()
    listed.publish()
    assert user.update("community").refused == ()
    assert adaptergit.search() == []
    path.write_bytes(source)
    listed.repository.write_entries(PRINCIPAL, [replace(entry, manifest_sha256="2" * 64)])
    listed.publish()
    (refused,) = user.update("community").refused
    assert "another manifest_sha256" in refused
    assert adaptergit.search() == [entry]
    listed.repository.write_entries(PRINCIPAL, [entry])
    listed.publish()
    assert user.update("community").refused == ()
    assert adaptergit.search() == [entry]


def test_a_release_that_comes_late_was_not_seen_early(listed: Index, hub: Hub, source: Callable[..., Path]) -> None:
    """A stolen key and a stolen online key together cannot make a release that is older than the theft."""
    user = listed.user()
    stolen = NOW - timedelta(days=30)
    line = {"key": hub.key.public.fingerprint, "since": f"{stolen:%Y-%m-%dT%H:%M:%SZ}", "reason": "stolen"}
    write(listed.repository.root / "revoked.jsonl", json.dumps(line).encode() + b"\n")
    publish(source(b"evil", version="1.1.0"), clone=hub.clone, key=hub.key.path)
    (old,) = listed.repository.entries(PRINCIPAL)
    manifest = hub.git("show", "adapters/sst2/1.1.0:manifest.json") + "\n"
    tree = hub.git("rev-parse", "adapters/sst2/1.1.0^{tree}")
    digest = canonical.sha256(manifest.encode())
    early = f"{stolen - timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}"
    forged = replace(old, version="1.1.0", manifest_sha256=digest, tree=tree, first_seen=early)
    listed.repository.write_entries(PRINCIPAL, [old, forged])
    listed.publish()
    assert user.update("community").refused == ()
    assert [e.first_seen == early for e in user.known(PRINCIPAL)[0].entries() if e.version == "1.1.0"] == [False]
    with pytest.raises(TrustError, match="stolen"):
        fetch(f"{hub.url}@sst2==1.1.0")


@pytest.mark.parametrize("how", ["on disk", "committed", "merged", "taken away"])
def test_a_check_finds_what_was_changed_in_any_commit(listed: Index, how: str) -> None:
    root = listed.repository.root
    git(root, "init", "-q", "-b", "main")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "begin")
    (entry,) = listed.repository.entries(PRINCIPAL)
    second = replace(entry, version="1.1.0", manifest_sha256="1" * 64, previous=entry.manifest_sha256)
    listed.repository.write_entries(PRINCIPAL, [replace(entry, yanked="bad"), second])
    git(root, "commit", "-qam", "crawl")
    assert check_index(listed.repository).changed == {}
    if how == "merged":
        git(root, "checkout", "-q", "-b", "side", "HEAD~1")
        git(root, "commit", "-q", "--allow-empty", "-m", "side")
        git(root, "checkout", "-q", "main")
        git(root, "merge", "-q", "--no-ff", "--no-commit", "side")
    changed = [] if how == "taken away" else [replace(entry, description="better"), second]
    listed.repository.write_entries(PRINCIPAL, changed)
    if how != "on disk":
        git(root, "commit", "-qam", "change")
    ((where, why),) = check_index(listed.repository).changed.items()
    assert where.startswith(f"entries/{PRINCIPAL}.jsonl")
    assert ("no longer is" if how == "taken away" else "another description") in why
    if how != "on disk":
        assert check_index(listed.repository, since="HEAD").changed == {}
    with pytest.raises(UsageError, match="not a commit"):
        check_index(listed.repository, since="--output=x")


def test_ones_own_word_goes_before_an_indexs(listed: Index, hub: Hub, other_key: SigningKey) -> None:
    listed.user()
    pin_key(PRINCIPAL, other_key.public.line)
    with pytest.raises(TrustError, match="only"):
        fetch(f"{hub.url}@sst2")


def test_indexes_that_disagree_are_named(listed: Index, hub: Hub, tmp_path: Path, people: list[SigningKey]) -> None:
    listed.user()
    for second in make_index(tmp_path / "second", people, "second"):
        second.add(hub.url, hub.key)
        (entry,) = listed.repository.entries(PRINCIPAL)
        second.repository.write_entries(PRINCIPAL, [replace(entry, manifest_sha256="0" * 64)])
        second.publish()
        second.user()
        with pytest.raises(TrustError, match=r"in the index community, and .* in the index second"):
            fetch(f"{hub.url}@sst2")
        client(load_settings()).remove("second")
        second.repository.write_entries(PRINCIPAL, [entry])
        second.publish()
        second.user()
        assert fetch(f"{hub.url}@sst2").version == "1.0.0"
        assert adaptergit.show(f"{hub.url}@sst2").indexes == ("community", "second")


def test_a_private_scope_is_never_asked_elsewhere(
    listed: Index, hub: Hub, tmp_path: Path, people: list[SigningKey]
) -> None:
    listed.user(lazy=True)
    for private in make_index(tmp_path / "private", people, "private"):
        private.publish()
        private.user(scope=["127.0.0.1/*"])
        listed.forge.asked.clear()
        with pytest.raises(TrustError, match="nobody you know"):
            fetch(f"{hub.url}@sst2")
        assert listed.forge.asked == []
        assert [one.name for one in client(load_settings()).speaks_for("github.com/a/b")] == ["community"]


@pytest.fixture
def copy(listed: Index, hub: Hub) -> SourceFile:
    """A copy of the publisher's repository, in the same index."""
    subprocess.run(["git", "push", "-q", "--mirror", hub.server.create("copies/acme")], cwd=hub.bare, check=True)
    url = hub.url.replace("acme/adapters", "copies/acme")
    return listed.add(url, hub.key, principal="127.0.0.1/copies/acme", tracks=PRINCIPAL)


def test_a_copy_is_asked_where_the_original_is_gone(listed: Index, hub: Hub, copy: SourceFile) -> None:
    listed.release()
    assert listed.repository.entries(copy.repository) == [], "what it holds is the original's"
    user = listed.user()
    assert [hit.id for hit in adaptergit.search()] == [f"{PRINCIPAL}@sst2"]
    hub.bare.rename(hub.bare.with_name("gone.git"))
    found = fetch(f"{hub.url}@sst2")
    assert (found.served_by, found.verdict.manifest.repository) == (copy.url, PRINCIPAL)
    done = CliRunner().invoke(main, ["index", "explain", PRINCIPAL])
    assert f"asked where it is gone: {copy.url}" in done.output
    assert f"a copy of {PRINCIPAL}" in CliRunner().invoke(main, ["index", "explain", copy.repository]).output
    assert user.copies("github.com/x/y") == []


def test_a_copy_that_lies_is_named(listed: Index, hub: Hub, copy: SourceFile, source: Callable[..., Path]) -> None:
    listed.publish()
    listed.user()
    bare = hub.bare.parents[1] / "copies" / "acme.git"
    shutil.rmtree(bare)  # nothing of the original is left in it
    hub.server.create("copies/acme")
    hub.bare.rename(hub.bare.with_name("gone.git"))
    git(hub.clone, "checkout", "-q", "--orphan", "theirs")
    git(hub.clone, "rm", "-rfq", ".")
    git(hub.clone, "remote", "set-url", "origin", copy.url)
    git(hub.clone, "tag", "-d", "adapters/sst2/1.0.0")
    evil = source(b"evil", folder="evil")
    publish(evil, clone=hub.clone, key=hub.key.path, repository=PRINCIPAL)
    with pytest.raises(AdaptergitError):
        fetch(f"{hub.url}@sst2")


def test_the_crawl_says_what_a_copy_lacks(
    listed: Index, hub: Hub, copy: SourceFile, source: Callable[..., Path]
) -> None:
    publish(source(b"x" * 5000, version="1.1.0"), clone=hub.clone, key=hub.key.path)
    crawl(listed.repository, load_settings())
    found = {one.principal: one for one in crawl(listed.repository, load_settings())}
    assert found[copy.repository].missing == ("sst2==1.1.0",)


def test_only_an_index_that_speaks_for_it_names_copies(
    listed: Index, hub: Hub, copy: SourceFile, tmp_path: Path, people: list[SigningKey]
) -> None:
    """Its own copy in its own scope, or what the first that knows the repository lists."""
    (listed.repository.root / copy.path).unlink()
    listed.publish()
    user = listed.user(priority=1)
    for second in make_index(tmp_path / "second", people, "second"):
        second.add(hub.url, hub.key)
        second.add(copy.url, hub.key, principal=copy.repository, tracks=PRINCIPAL)
        second.publish()
        second.user(name="stranger")
        assert user.copies(PRINCIPAL) == []
        second.user(name="corporate", scope=["127.0.0.1/copies/*"])
        assert user.copies(PRINCIPAL) == [copy.url]


# --- attacks on the index -----------------------------------------------------------------------------------------------


def _signed(where: Index, key: SigningKey | None = None, **changes: Any) -> None:
    """Change the snapshot and sign it."""
    path = where.dist / "snapshot.json"
    data = replace(parse_snapshot(path.read_bytes()), **changes).to_bytes()
    path.write_bytes(data)
    (where.dist / "snapshot.json.sig").write_bytes(sign(data, key or where.online, namespace=SNAPSHOT_NAMESPACE))


def _rollback(index: Index, people: list[SigningKey]) -> None:
    _signed(index, version=1)


def _other_key(index: Index, people: list[SigningKey]) -> None:
    _signed(index, people[-1], version=SOON)


def _no_signatures(index: Index, people: list[SigningKey]) -> None:
    index.publish()
    (index.dist / "snapshot.json.sig").write_bytes(b"")


def _equivocation(index: Index, people: list[SigningKey]) -> None:
    _signed(index, catalog_size=1)


def _expired(index: Index, people: list[SigningKey]) -> None:
    _signed(index, version=SOON, expires=NOW - timedelta(days=1))


def _from_the_future(index: Index, people: list[SigningKey]) -> None:
    _signed(index, version=2**40)


def _for_ever(index: Index, people: list[SigningKey]) -> None:
    _signed(index, version=SOON, expires=NOW + timedelta(days=300))


def _other_index(index: Index, people: list[SigningKey]) -> None:
    _signed(index, version=SOON, index="other")


def _other_namespace(index: Index, people: list[SigningKey]) -> None:
    index.publish()
    data = (index.dist / "snapshot.json").read_bytes()
    (index.dist / "snapshot.json.sig").write_bytes(sign(data, index.online, namespace="root.v1@adaptergit"))


def _mixed_catalog(index: Index, people: list[SigningKey]) -> None:
    old = (index.dist / "catalog.json.zst").read_bytes()
    index.add("https://github.com/x/y.git", index.online, principal="github.com/x/y")
    index.publish()
    (index.dist / "catalog.json.zst").write_bytes(old)


def _mixed_shard(index: Index, people: list[SigningKey]) -> None:
    index.add("https://github.com/x/y.git", index.online, principal="github.com/x/y")
    index.publish()
    shards = sorted((index.dist / "shards").glob("*/*.zst"))
    shards[0].write_bytes(shards[1].read_bytes())
    shards[1].write_bytes(b"x")


def _bomb(index: Index, people: list[SigningKey]) -> None:
    import zstandard

    index.add("https://github.com/x/y.git", index.online, principal="github.com/x/y")
    index.publish()
    (index.dist / "catalog.json.zst").write_bytes(zstandard.compress(b" " * 300_000_000))


def _revocations(index: Index, people: list[SigningKey]) -> None:
    write(index.repository.root / "revoked.jsonl", b'{"key": "SHA256:' + b"A" * 43 + b'", "reason": "x"}\n')
    index.publish()
    (index.dist / "revoked.jsonl").write_bytes(b" " * (index.dist / "revoked.jsonl").stat().st_size)


def _root_by_one(index: Index, people: list[SigningKey]) -> None:
    rotate_root(index.repository, index.maintainers[:1], online=[people[-1].public])
    for path in (index.repository.root / "roots").iterdir():
        write(index.dist / "roots" / path.name, path.read_bytes())


def _root_jumps(index: Index, people: list[SigningKey]) -> None:
    root = replace(index.root, version=5, online=(people[-1].public,))
    data = root.to_bytes()
    signatures = b"".join(sign(data, key, namespace="root.v1@adaptergit") for key in index.maintainers)
    write(index.dist / "roots" / "2.json", data)
    write(index.dist / "roots" / "2.json.sig", signatures)


def _gone(index: Index, people: list[SigningKey]) -> None:
    index.forge.server.shutdown()
    index.forge.server.server_close()


ATTACKS: dict[str, tuple[Any, str]] = {
    "rollback": (_rollback, "rollback"),
    "another key": (_other_key, "must sign"),
    "unsigned": (_no_signatures, "must sign"),
    "equivocation": (_equivocation, "two different snapshots"),
    "expired": (_expired, "expired"),
    "from the future": (_from_the_future, "from the future"),
    "for ever": (_for_ever, "14 days"),
    "another index": (_other_index, "of other"),
    "another namespace": (_other_namespace, "another kind of document"),
    "an old catalog": (_mixed_catalog, "catalog"),
    "shards mixed": (_mixed_shard, r"compressed|not the one|more than"),
    "a bomb": (_bomb, "more than"),
    "other revocations": (_revocations, "revocations"),
    "a root by one maintainer": (_root_by_one, "2 must sign"),
    "a root that jumps": (_root_jumps, "does not come after"),
    "no server": (_gone, "no answer"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_update_that_cannot_be_believed_changes_nothing(
    listed: Index, hub: Hub, home: Path, people: list[SigningKey], name: str
) -> None:
    attack, message = ATTACKS[name]
    user = listed.user()
    attack(listed, people)
    before = snapshot(home / "config")
    with pytest.raises(AdaptergitError, match=message):
        user.update("community")
    assert snapshot(home / "config") == before
    assert len(adaptergit.search("sentiment")) == 1
    assert fetch(f"{hub.url}@sst2").version == "1.0.0"


@pytest.mark.parametrize("what", ["threshold", "lower", "longer", "no keys", "odd"])
def test_the_online_key_cannot_loosen_what_a_source_asks_for(
    listed: Index, hub: Hub, other_key: SigningKey, what: str
) -> None:
    """With a key of the online machine, a shard can say anything."""
    past = NOW - timedelta(days=1)
    first = {
        "lower": {"threshold": 2, "keys": (SourceKey(hub.key.public), SourceKey(other_key.public))},
        "longer": {"keys": (SourceKey(hub.key.public), SourceKey(other_key.public, valid_before=past))},
    }.get(what, {})
    source = replace(listed.repository.source(PRINCIPAL), **first)
    write(listed.repository.root / source.path, source.to_yaml())
    listed.publish()
    user = listed.user()
    mallory = {"key": other_key.public.line}
    changed = (
        source.to_dict()
        | {
            "threshold": {"threshold": 0, "keys": [mallory]},
            "lower": {"threshold": 1},
            "longer": {"keys": [{"key": hub.key.public.line}, mallory]},
            "no keys": {"keys": [{"key": 1}]},
            "odd": {"keys": {}, "threshold": -1},
        }[what]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SourceFile, "to_dict", lambda self: changed)
        listed.publish()
    (refused,) = user.update("community").refused
    assert refused.startswith(PRINCIPAL)
    assert user.state("community").sources[PRINCIPAL]["keys"] == source.to_dict()["keys"]


def test_what_was_revoked_stays_revoked(listed: Index, hub: Hub, home: Path) -> None:
    one = {"key": hub.key.public.fingerprint, "reason": "stolen"}
    write(listed.repository.root / "revoked.jsonl", json.dumps(one).encode() + b"\n")
    listed.publish()
    user = listed.user()
    write(listed.repository.root / "revoked.jsonl", b"")
    listed.publish()
    user.update("community")
    shutil.rmtree(home / "cache")
    with pytest.raises(TrustError, match="no longer here"):
        fetch(f"{hub.url}@sst2", policy="tofu")
    user.update("community")
    with pytest.raises(TrustError, match="stolen"):
        fetch(f"{hub.url}@sst2")


@pytest.mark.slow
def test_a_second_index_cannot_speak_for_what_the_first_one_knows(
    listed: Index,
    hub: Hub,
    tmp_path: Path,
    people: list[SigningKey],
    other_key: SigningKey,
    source: Callable[..., Path],
) -> None:
    listed.user(priority=1)
    hub.git("checkout", "-q", "-b", "theirs")
    publish(source(b"evil", version="9.0.0"), clone=hub.clone, key=other_key.path)
    for second in make_index(tmp_path / "second", people, "second"):
        second.add(hub.url, other_key, mirrors=("https://evil.example/copy.git",))
        (entry,) = listed.repository.entries(PRINCIPAL)
        second.repository.write_entries(PRINCIPAL, [replace(entry, version="9.0.0", manifest_sha256="9" * 64)])
        second.publish()
        second.user()
        found = fetch(f"{hub.url}@sst2")
        assert (found.version, found.verdict.signers) == ("1.0.0", (hub.key.public.fingerprint,))
        with pytest.raises(TrustError, match="only"):
            fetch(f"{hub.url}@sst2==9.0.0")


def test_an_index_is_no_pin_of_the_user(listed: Index, hub: Hub) -> None:
    listed.user()
    with pytest.raises(TrustError, match="needs a pinned digest"):
        fetch(f"{hub.url}@sst2", policy="digest")


@pytest.mark.slow
def test_old_releases_stay_for_those_who_come_later(
    listed: Index, hub: Hub, source: Callable[..., Path], other_key: SigningKey
) -> None:
    """After a rotation, proposed and listed; and without anybody changing the source file."""
    time.sleep(1.1)
    rotate(other_key.path, key=hub.key.path, clone=hub.clone, repository=PRINCIPAL)
    publish(source(b"x" * 5000, version="1.1.0"), clone=hub.clone, key=other_key.path)
    listed.release()
    early = listed.user(name="early")
    with pytest.warns(AdaptergitWarning, match="new key"):
        assert fetch(f"{hub.url}@sst2").version == "1.1.0"
    early.remove("early")
    listed.add(hub.url, other_key)
    before = listed.repository.source(PRINCIPAL)
    old = SourceKey(hub.key.public, valid_before=datetime.now(UTC))
    write(listed.repository.root / before.path, replace(before, keys=(*before.keys, old)).to_yaml())
    listed.publish()
    listed.user()
    assert fetch(f"{hub.url}@sst2==1.0.0", refresh=True).verdict.signers == (hub.key.public.fingerprint,)
    assert fetch(f"{hub.url}@sst2==1.1.0", refresh=True).verdict.signers == (other_key.public.fingerprint,)


def test_another_root_than_the_one_told_adds_nothing(listed: Index, home: Path) -> None:
    with pytest.raises(TrustError, match="none of the index's roots"):
        client(load_settings()).add(listed.forge.url, "sha256:" + "0" * 64)
    with pytest.raises(UsageError, match="no digest"):
        client(load_settings()).add(listed.forge.url, "x")
    assert client(load_settings()).subscriptions() == []
    assert not (home / "config" / "indexes").exists()


def test_a_new_root_is_followed_by_those_who_knew_an_old_one(
    listed: Index, people: list[SigningKey], tmp_path: Path
) -> None:
    user = listed.user()
    *_, mallory = people
    alice, bob, carol = listed.maintainers
    fresh = generate_key(tmp_path / "fresh")
    rotate_root(
        listed.repository, [alice], maintainers=[bob.public, carol.public, fresh.public], online=[mallory.public]
    )
    assert not sign_root(listed.repository, 2, [bob])
    assert sign_root(listed.repository, 2, [carol])
    listed.online = mallory
    listed.publish()
    user.update("community")
    assert user.root("community").version == 2
    # Who is told the first root arrives at the second.
    user.remove("community")
    listed.user()
    assert user.root("community").version == 2


def test_roots_are_believed_by_their_digest_and_threshold(index: Index) -> None:
    data = index.root.data
    signatures = (index.repository.root / "roots" / "1.json.sig").read_bytes()
    assert first_root(data, signatures, index.root.digest).version == 1
    with pytest.raises(TrustError, match="you were told"):
        first_root(data, signatures, "0" * 64)
    one = sign(data, index.maintainers[0], namespace="root.v1@adaptergit")
    with pytest.raises(TrustError, match="2 must sign"):
        first_root(data, one + one, index.root.digest)
    with pytest.raises(TrustError, match="does not come after"):
        next_root(index.root, data, signatures)


def test_a_catalog_is_read_strictly(listed: Index) -> None:
    good = parse_snapshot((listed.dist / "snapshot.json").read_bytes())
    for raw in (b"[]", b"{}", b'{"schema": "adaptergit.catalog/1", "shards": {"a": [1, 2, 3]}}', b"x"):
        named = replace(good, catalog=canonical.sha256(raw))
        with pytest.raises(PackageError):
            parse_catalog(raw, named)
    assert parse_catalog(catalog_bytes({}), replace(good, catalog=canonical.sha256(catalog_bytes({})))) == {}


def test_a_damaged_shard_on_this_machine_is_noticed(listed: Index, hub: Hub, home: Path) -> None:
    listed.user()
    (shard,) = (home / "cache" / "indexes" / "community" / "shards").glob("*/*.zst")
    shard.write_bytes(b"x")
    with pytest.raises((TransportError, PackageError)):
        fetch(f"{hub.url}@sst2")


def test_what_is_offline_stays_offline(listed: Index, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    listed.user()
    fetch(f"{hub.url}@sst2")
    monkeypatch.setenv("ADAPTERGIT_OFFLINE", "1")
    listed.forge.asked.clear()
    assert fetch(f"{hub.url}@sst2").from_store
    assert len(adaptergit.search("sentiment")) == 1
    with pytest.raises(UsageError, match="offline"):
        client(load_settings()).update("community")
    assert listed.forge.asked == []


# --- contributing -------------------------------------------------------------------------------------------------------


def test_two_proposals_merge_without_conflict(index: Index, hub: Hub) -> None:
    root = index.repository.root
    git(root, "init", "-q", "-b", "main")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "begin")
    for name in ("one", "two"):
        git(root, "checkout", "-q", "-b", name, "main")
        index.add(hub.url.replace("acme", name), hub.key, principal=f"127.0.0.1/{name}/adapters")
        git(root, "add", "-A")
        git(root, "commit", "-qm", name)
    git(root, "checkout", "-q", "main")
    git(root, "merge", "-q", "one", "-m", "one")
    git(root, "merge", "-q", "two", "-m", "two")
    assert len(index.repository.principals()) == 2


def test_the_command_line_of_an_index(index: Index, hub: Hub, source: Callable[..., Path], home: Path) -> None:
    publish(source(), clone=hub.clone, key=hub.key.path)
    index.add(hub.url, hub.key)
    root = index.repository.root
    git(root, "init", "-q", "-b", "main")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "begin")

    def run(*argv: str, code: int = 0) -> str:
        done = CliRunner().invoke(main, [*argv])
        assert done.exit_code == code, done.output
        return done.output

    here = ("--repo", str(root))
    assert "1 source, 0 releases: sound" in run("index", "check", *here)
    assert "1 new release," in run("index", "crawl", *here)
    assert "1 source, 1 release," in run("index", "build", *here)
    run("index", "sign", *here, "--key", str(index.online.path), "--again")
    run("index", "sign", *here, "--key", str(index.maintainers[0].path), code=2)
    assert "1 adapter," in run("index", "add", index.forge.url, "--root", f"sha256:{index.root.digest}")
    assert "community" in run("index", "ls")
    assert "0 of 1 source changed" in run("index", "update")
    snapshot = root / "dist" / "snapshot.json"
    snapshot.rename(snapshot.with_suffix(".away"))
    assert CliRunner().invoke(main, ["index", "update"]).exit_code not in (0, 1)
    assert "last update failed 20" in run("index", "ls")
    assert ": " in json.loads(run("index", "ls", "--json"))["indexes"][0]["failed"]
    snapshot.with_suffix(".away").rename(snapshot)
    run("index", "update")
    assert "failed" not in run("index", "ls")
    assert "1 release," in run("index", "explain", PRINCIPAL)
    assert json.loads(run("search", "--json", "test"))["entries"][0]["id"] == f"{PRINCIPAL}@sst2"
    assert json.loads(run("show", "--json", f"{hub.url}@sst2"))["indexes"] == ["community"]
    run("index", "yank", f"{hub.url}@sst2==1.0.0", "--reason", "bad", *here)
    run("index", "remove", "community")
    run("index", "update", "community", code=2)
    with pytest.raises(NotFoundError):
        adaptergit.show(f"{hub.url}@sst2")


# --- an archive ---------------------------------------------------------------------------------------------------------

ARCHIVE_CARD = """
author: Ada, Bob
citation: '@article{x}'
config: {using: pfeiffer, reduction_factor: 2}
default_version: nd
description: Trained on Arabic.
email: a@example.org
files:
  - {sha1: x, sha256: 1111111111111111111111111111111111111111111111111111111111111111, url: https://example.org/a.zip, version: nd, score: 84.5}
  - {sha1: x, sha256: 2222222222222222222222222222222222222222222222222222222222222222, url: https://example.org/b.zip, version: '2', description: better}
hidden_size: 768
model_name: bert-base-multilingual-cased
model_type: bert
prediction_head: true
subtask: squad1
task: qa
type: text_task
dependencies: [{key: en/wiki@ukp, description: 'stacked on it', note: x}, {key: ukp/gone}]
"""
LANGUAGE_CARD = """
config: {using: %s}
default_version: nd
files:
  - {sha256: 3333333333333333333333333333333333333333333333333333333333333333, url: https://example.org/c.zip, version: wd}
  - {sha256: 4444444444444444444444444444444444444444444444444444444444444444, url: https://example.org/d.zip, version: nd}
model_name: %s
subtask: wiki
task: en
type: text_lang
description: %s
"""


def test_an_archive_is_taken_over_and_nothing_is_dropped_silently(index: Index, tmp_path: Path) -> None:
    clone = tmp_path / "Hub"
    write(clone / "adapters/ukp/some_card.yaml", ARCHIVE_CARD.encode())
    write(clone / "adapters/ukp/broken.yaml", b"a: [")
    write(clone / "adapters/ukp/unsafe.yaml", ARCHIVE_CARD.replace("1" * 64, "'no digest'").encode())
    for using, model in (
        ("houlsby", "bert-base-multilingual-cased"),
        ("pfeiffer", "bert-base-multilingual-cased"),
        ("pfeiffer", "x"),
    ):
        card = LANGUAGE_CARD % (using, model, "word " * 1000)
        write(clone / f"adapters/ukp/{model[:4]}-en_{using}.yaml", card.encode())
    write(
        clone / "subtasks/text_task/qa_squad1.yaml", b"language: english\nmetric: {name: f1, higher_is_better: true}\n"
    )
    argv = ["index", "import-adapterhub", str(clone), "--repo", str(index.repository.root)]
    done = CliRunner().invoke(main, argv)
    assert done.exit_code == 0, done.output
    for part in (
        "6 cards, 8 entries",
        "no place for dependencies.note (1 cards)",
        "too long, only the beginning is kept: description of adapters/ukp/bert-en_houlsby.yaml",
        "adapters/ukp/some_card.yaml is built on ukp/gone, which is not in the archive",
        "no place for email (1 cards)",
        "no place for files.sha1",
        "broken.yaml",
        "no sha256",
    ):
        assert part in done.output
    every = {entry.name: entry for entry in index.repository.entries("github.com/adapter-hub/Hub")}
    one, two = every["ukp-some_card-nd"], every["ukp-some_card"]
    assert one.dependencies == ("github.com/adapter-hub/Hub@ukp-bert-en_pfeiffer-nd==1", "ukp/gone")
    assert "Built on en/wiki@ukp: stacked on it" in one.description
    assert one.head == "with a prediction head"
    assert (one.name, one.version, one.legacy) == ("ukp-some_card-nd", "1", "https://example.org/a.zip")
    assert (two.name, two.version, two.manifest_sha256) == ("ukp-some_card", "2", "2" * 64)
    assert (one.metrics[0].name, one.metrics[0].value, one.languages, one.authors) == (
        "f1",
        84.5,
        ("en",),
        ("Ada", "Bob"),
    )
    assert (one.method, one.task, one.base_model) == (
        "seq_bn[reduction_factor=2]",
        "qa/squad1",
        "bert-base-multilingual-cased",
    )
    index.publish()
    index.user()
    assert len(adaptergit.search("arabic", task="squad1", language="en")) == 2
    with pytest.raises(NotFoundError, match="nobody signed"):
        fetch("adapter-hub/Hub@ukp-some_card")
    assert crawl(index.repository, load_settings())[0].error == ""


CARDS = Path(
    os.environ.get("ADAPTERGIT_ADAPTERHUB_CARDS", Path(__file__).parent.parent.parent / "shared" / "adapterhub-cards")
)


@pytest.mark.skipif(not CARDS.is_dir(), reason="the archive's cards are not here")
def test_every_card_of_the_archive_is_taken_over(index: Index) -> None:
    from adaptergit.index.adapterhub import import_adapterhub
    from adaptergit.index.site import build_site

    done = import_adapterhub(index.repository, CARDS)
    assert (done.cards, done.refused) == (len(list((CARDS / "adapters").glob("*/*.yaml"))), {})
    assert set(done.without_place) == {
        "email", "files.sha1", "github", "hidden_size", "model_class", "model_type", "twitter", "url",
    }  # fmt: skip
    assert done.unknown == {}
    assert build_site(index.repository, index.dist, root=index.root) > done.cards


@pytest.mark.slow
def test_a_yank_that_the_index_has_not_heard_of_counts(
    listed: Index, hub: Hub, source: Callable[..., Path], tmp_path: Path
) -> None:
    publish(source(b"2" * 900, version="2.0.0"), clone=hub.clone, key=hub.key.path)
    listed.release()
    listed.user()
    reference = f"{hub.url}@sst2"
    assert fetch(reference).version == "2.0.0"
    with machine_of("the publisher"):
        yank("sst2", "2.0.0", reason="poisoned", clone=hub.clone)
    (change,) = lock([reference], path=tmp_path / "l")
    assert change.after == "1.0.0"
    assert fetch(reference).version == "1.0.0"
    assert fetch(reference, offline=True).version == "1.0.0"


@pytest.mark.slow
def test_offline_what_is_stored_is_given_though_the_index_lists_more(
    listed: Index, hub: Hub, source: Callable[..., Path]
) -> None:
    user = listed.user()
    assert fetch(f"{hub.url}@sst2").version == "1.0.0"
    with machine_of("the publisher"):
        publish(source(b"2" * 900, version="2.0.0"), clone=hub.clone, key=hub.key.path)
    listed.release()
    user.update("community")
    assert fetch(f"{hub.url}@sst2", offline=True).version == "1.0.0"
    assert fetch(f"{hub.url}@sst2").version == "2.0.0"
