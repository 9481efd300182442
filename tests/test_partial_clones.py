"""Publishing from clones that lack objects or files: how one clones a repository of ten thousand releases."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Hub, git

from adaptergit.errors import ReleaseError, TransportError
from adaptergit.publish import publish, publish_all, yank
from adaptergit.resolve import fetch
from adaptergit.trust import SigningKey

Source = Callable[..., Path]
WAYS = (
    "--filter=blob:none --sparse",
    "--filter=blob:none --no-checkout",
    "--filter=tree:0",
    "--filter=tree:0 --no-checkout",
    "--filter=blob:none --depth=1 --sparse",
    "--no-checkout",
    "--sparse",
)


@pytest.fixture
def releases(hub: Hub, source: Source) -> list[str]:
    """Three adapters, one of them released twice; the digests of the newest ones."""
    git(hub.bare, "config", "uploadpack.allowFilter", "true")
    hub.trust()
    (hub.clone / "LICENSE").write_text("something to keep\n")
    hub.git("add", "LICENSE")
    hub.git("commit", "-q", "-m", "a licence")
    folders = [source(os.urandom(50_000), folder=name, name=name) for name in ("a", "b", "c")]
    first = publish_all(folders, clone=hub.clone, key=hub.key.path)
    second = publish(folders[0], version="1.2.0", clone=hub.clone, key=hub.key.path)
    return [second.digest, first[1].digest, first[2].digest]


def cloned(hub: Hub, tmp_path: Path, options: str) -> Path:
    target = tmp_path / "partial"
    git(tmp_path, "clone", "-q", *options.split(), hub.url, str(target))
    return target


@pytest.mark.slow
@pytest.mark.parametrize("options", WAYS)
def test_the_next_release_is_published_from_a_clone_that_lacks_most(
    hub: Hub, source: Source, tmp_path: Path, releases: list[str], options: str
) -> None:
    partial = cloned(hub, tmp_path, options)
    status = git(partial, "status", "--porcelain") if "--no-checkout" not in options else None
    folders = [source(b"new", folder=name, name=name) for name in ("a", "b")]
    made = publish_all(folders, version="1.3.0", clone=partial, key=hub.key.path)
    assert [one.previous for one in made] == releases[:2]
    assert fetch(f"{hub.url}@a", refresh=True).version == "1.3.0"
    assert sorted(git(hub.bare, "ls-tree", "--name-only", "-r", "main").split())[0] == "LICENSE"
    assert git(hub.bare, "rev-parse", "main:adapters/c") == git(hub.bare, "rev-parse", "adapters/c/1.0.0^{tree}")
    again = publish(source(b"newer", folder="a", name="a"), version="1.4.0", clone=partial, key=hub.key.path)
    assert again.previous == made[0].digest
    if status is not None:
        assert git(partial, "status", "--porcelain") == status
    git(partial, "pull", "-q")
    git(hub.bare, "fsck", "--strict")


@pytest.mark.slow
def test_what_is_missing_is_fetched_once_and_without_weights(
    hub: Hub, source: Source, tmp_path: Path, releases: list[str]
) -> None:
    partial = cloned(hub, tmp_path, WAYS[0])
    hub.server.reset()
    folders = [source(b"new", folder=name, name=name) for name in ("a", "b", "c")]
    publish_all(folders, version="1.3.0", clone=partial, key=hub.key.path)
    asked = [one for one in hub.server.traffic.requests if one.startswith("GET") and "upload-pack" in one]
    assert len(asked) == 1  # all manifests in one fetch; the listing takes none
    assert hub.server.traffic.sent < 20_000
    settings = git(partial, "config", "--list", "--local")
    assert "127.0.0.1" in settings
    assert settings.count("promisor") == 1


@pytest.mark.slow
def test_the_announced_keys_of_a_sparse_clone_count(
    hub: Hub, source: Source, tmp_path: Path, releases: list[str], other_key: SigningKey
) -> None:
    announced = hub.clone / ".adaptergit" / "allowed_signers"
    announced.parent.mkdir()
    announced.write_text(f"* {hub.key.public.line}\n")
    hub.git("add", "-A")
    hub.git("commit", "-q", "-m", "announce")
    hub.git("push", "-q")
    partial = cloned(hub, tmp_path, WAYS[0])
    with pytest.raises(ReleaseError, match="not among those the repository announces"):
        publish(source(name="a"), version="1.3.0", clone=partial, key=other_key.path)
    assert publish(source(name="a"), version="1.3.0", clone=partial, key=hub.key.path).previous == releases[0]


def test_a_server_that_cannot_be_reached_is_no_reason_to_remove_a_tag(
    hub: Hub, source: Source, tmp_path: Path, releases: list[str]
) -> None:
    partial = cloned(hub, tmp_path, WAYS[0])
    shutil.move(hub.bare, tmp_path / "away.git")
    with pytest.raises(TransportError) as caught:
        publish(source(name="a"), version="1.3.0", clone=partial, key=hub.key.path)
    assert "removed" not in str(caught.value)
    with pytest.raises(TransportError, match="partial") as caught:
        publish(
            source(name="a"),
            version="1.3.0",
            clone=partial,
            key=hub.key.path,
            remote=None,
            repository="127.0.0.1/acme/adapters",
        )
    assert "git fetch --refetch --no-filter" in str(caught.value)


def test_a_release_is_yanked_from_a_partial_clone(hub: Hub, tmp_path: Path, releases: list[str]) -> None:
    yank("a", "1.2.0", reason="no good", clone=cloned(hub, tmp_path, WAYS[3]))
    assert fetch(f"{hub.url}@a", refresh=True).version == "1.0.0"
