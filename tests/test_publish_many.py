"""Several releases in one push, and releases that are withdrawn."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import Hub, card_data, git, machine_of, snapshot
from test_hub import state

from adaptergit.cli import main
from adaptergit.errors import AdaptergitWarning, NotFoundError, ReleaseError, UsageError
from adaptergit.lock import lock, sync
from adaptergit.mirror import mirror
from adaptergit.package import Manifest
from adaptergit.publish import publish, publish_all, yank
from adaptergit.resolve import fetch
from adaptergit.rotate import rotate
from adaptergit.settings import cache_dir
from adaptergit.trust import SigningKey

Source = Callable[..., Path]


def release(hub: Hub, folder: Path, **options: object) -> Any:
    hub.trust()
    return publish(folder, clone=hub.clone, key=hub.key.path, **options)  # type: ignore[arg-type]


@pytest.mark.slow
def test_many_adapters_are_published_in_one_push(hub: Hub, source: Source) -> None:
    hub.trust()
    folders = [source(f"{i}".encode(), folder=f"out{i}", name=f"a{i}") for i in range(5)]
    pushes = hub.bare / "pushes"
    (hub.bare / "hooks").mkdir(exist_ok=True)
    hook = hub.bare / "hooks" / "post-receive"
    hook.write_text(f"#!/bin/sh\ncat > /dev/null; echo push >> {pushes}\n")
    hook.chmod(0o755)
    releases = publish_all(folders, clone=hub.clone, key=hub.key.path)
    assert pushes.read_text().count("push") == 1
    assert [one.name for one in releases] == [f"a{i}" for i in range(5)]
    for one in releases:
        assert fetch(f"{hub.url}@{one.name}").digest == one.digest
        assert git(hub.bare, "rev-parse", f"main:adapters/{one.name}") == one.tree
    assert hub.git("status", "--porcelain") == ""
    assert hub.git("rev-parse", "HEAD") == git(hub.bare, "rev-parse", "main")
    assert {p.name for p in (hub.clone / "adapters").iterdir()} == {f"a{i}" for i in range(5)}
    again = publish_all(folders, clone=hub.clone, key=hub.key.path, version="1.1.0")
    assert [one.previous for one in again] == [one.digest for one in releases]


@pytest.mark.slow
@pytest.mark.parametrize("filters", ["true", "false"])
def test_a_clone_that_is_behind_does_not_fork_the_history(
    hub: Hub, source: Source, tmp_path: Path, filters: str
) -> None:
    """Tags of releases are no part of the branch: ``git pull`` does not bring them."""
    git(hub.bare, "config", "uploadpack.allowFilter", filters)
    release(hub, source())
    behind = tmp_path / "behind"
    git(tmp_path, "clone", "-q", hub.url, str(behind))
    second = release(hub, source(os.urandom(400_000)), version="1.1.0", pull_request=True)
    assert fetch(f"{hub.url}@sst2").version == "1.1.0"  # somebody has it
    for version in ("1.0.5", "1.1.0"):
        with pytest.raises(ReleaseError, match=r"not newer than 1\.1\.0|released already"):
            publish(source(b"x"), clone=behind, key=hub.key.path, version=version, pull_request=True)
    third = publish(source(b"x"), clone=behind, key=hub.key.path, version="1.2.0", pull_request=True)
    assert third.previous == second.digest
    assert fetch(f"{hub.url}@sst2", refresh=True).version == "1.2.0"


def test_a_tag_that_is_no_release_is_not_followed(hub: Hub, source: Source, tmp_path: Path) -> None:
    release(hub, source())
    git(hub.bare, "update-ref", "refs/tags/adapters/sst2/2.0.0", "refs/tags/adapters/sst2/1.0.0")
    before = state(hub)
    with pytest.raises(ReleaseError, match=r"the tag holds sst2 1\.0\.0"):
        release(hub, source(), version="3.0.0")
    git(hub.bare, "update-ref", "refs/tags/adapters/sst2/2.0.0", "main")
    with pytest.raises(ReleaseError, match="the tag is not a release"):
        release(hub, source(), version="3.0.0")
    assert state(hub) == before


@pytest.mark.slow
def test_the_server_is_asked_once_for_all_adapters(hub: Hub, source: Source) -> None:
    hub.trust()
    folders = [source(folder=f"out{i}", name=f"a{i}") for i in range(6)]
    publish_all(folders, clone=hub.clone, key=hub.key.path)
    hub.server.reset()
    publish_all(folders, clone=hub.clone, key=hub.key.path, version="1.1.0")
    asked = [request for request in hub.server.traffic.requests if "git-upload-pack" in request]
    assert len(asked) == 1


def test_all_of_them_or_none(hub: Hub, source: Source) -> None:
    hub.trust()
    good, bad = source(folder="good", name="good"), source(folder="bad", name="bad")
    (bad / "adapter.safetensors").write_bytes(b"no")
    before, remote = state(hub), git(hub.bare, "for-each-ref")
    with pytest.raises(Exception, match="safetensors"):
        publish_all([good, bad], clone=hub.clone, key=hub.key.path)
    assert (state(hub), git(hub.bare, "for-each-ref")) == (before, remote)
    with pytest.raises(UsageError, match="two folders are named 'good'"):
        publish_all([good, good], clone=hub.clone, key=hub.key.path)
    with pytest.raises(UsageError, match="one name for several"):
        publish_all([good, bad], name="x", clone=hub.clone, key=hub.key.path)
    with pytest.raises(UsageError, match="nothing to publish"):
        publish_all([], clone=hub.clone, key=hub.key.path)
    assert (state(hub), git(hub.bare, "for-each-ref")) == (before, remote)


def test_a_dry_run_of_many_changes_nothing(hub: Hub, source: Source, tmp_path: Path) -> None:
    folders = [source(folder=f"out{i}", name=f"a{i}") for i in range(2)]
    before = state(hub), snapshot(hub.bare)
    releases = publish_all(folders, clone=hub.clone, key=hub.key.path, dry_run=True)
    assert [one.tree for one in releases] == [None, None]
    assert (state(hub), snapshot(hub.bare)) == before


def test_a_dry_run_refuses_a_clone_in_which_nothing_can_be_committed(hub: Hub, source: Source, home: Path) -> None:
    (home / ".gitconfig").write_text("[user]\nuseConfigOnly = true\n")
    for dry_run in (True, False):
        with pytest.raises(UsageError, match="git does not know who you are"):
            publish(source(), clone=hub.clone, key=hub.key.path, dry_run=dry_run)


def test_a_base_model_without_organisation_is_noted_with_what_changes_it(hub: Hub, source: Source) -> None:
    told: list[str] = []
    folder = source(base_model={**card_data()["base_model"], "id": "model"})
    publish(folder, clone=hub.clone, key=hub.key.path, dry_run=True, report=told.append)
    assert any(f"adaptergit card edit {folder} base_model.id=organisation/name" in line for line in told)


@pytest.mark.slow
def test_a_yanked_release_is_given_to_those_who_name_it(hub: Hub, source: Source, tmp_path: Path) -> None:
    release(hub, source())
    release(hub, source(b"bad"), version="1.1.0")
    lock([f"{hub.url}@sst2"], path=tmp_path / "l")
    yank("sst2", "1.1.0", reason="trained on the test set", clone=hub.clone)
    assert fetch(f"{hub.url}@sst2", refresh=True).version == "1.0.0"
    assert fetch(f"{hub.url}@sst2").version == "1.0.0"
    assert fetch(f"{hub.url}@sst2", offline=True).version == "1.0.0"
    for options in ({}, {"lock": tmp_path / "l"}):
        with pytest.warns(AdaptergitWarning, match="was yanked by its publisher"):
            assert fetch(f"{hub.url}@sst2==1.1.0", **options).version == "1.1.0"
    with pytest.raises(NotFoundError, match="satisfies >1") as caught:
        fetch(f"{hub.url}@sst2>1", refresh=True)
    assert "1.1.0 (yanked)" in str(caught.value)
    said = git(hub.bare, "log", "--format=%B", "-1", "refs/tags/adapters-yanked/sst2/1.1.0")
    assert "trained on the test set" in said
    with pytest.raises(ReleaseError, match="yanked already"):
        yank("sst2", "1.1.0", reason="again", clone=hub.clone)
    yank("sst2", "1.1.0", reason="", clone=hub.clone, undo=True)
    assert fetch(f"{hub.url}@sst2", refresh=True).version == "1.1.0"
    with pytest.raises(ReleaseError, match="not yanked"):
        yank("sst2", "1.1.0", reason="", clone=hub.clone, undo=True)
    with pytest.raises(ReleaseError, match="never released"):
        yank("sst2", "9.0.0", reason="x", clone=hub.clone)


@pytest.mark.parametrize("what", ["yank", "publish", "rotate"])
def test_a_token_in_the_remotes_address_is_refused_and_not_shown(
    hub: Hub, source: Source, other_key: SigningKey, what: str
) -> None:
    release(hub, source())
    hub.git("remote", "set-url", "origin", hub.url.replace("http://", "http://me:s3cr3t@"))
    run = {
        "yank": lambda: yank("sst2", "9.9.9", reason="x", clone=hub.clone),
        "publish": lambda: release(hub, source(), version="1.1.0"),
        "rotate": lambda: rotate(other_key.path, key=hub.key.path, clone=hub.clone),
    }[what]
    with pytest.raises(UsageError, match="never holds credentials") as caught:
        run()
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize("rule", ["ext::sh -c 'touch% {mark}'% #", "git://127.0.0.1:1/", "fd::7 ", "EXT::sh "])
def test_a_rewritten_address_runs_nothing(hub: Hub, source: Source, tmp_path: Path, rule: str) -> None:
    release(hub, source())
    mark = tmp_path / "ran"
    hub.git("config", f"url.{rule.format(mark=mark)}.insteadOf", hub.url)
    with pytest.raises(UsageError, match="no way to push"):
        release(hub, source(b"x"), version="1.1.0")
    assert not mark.exists()


@pytest.mark.slow
def test_a_release_that_is_fetched_for_the_first_time_says_that_it_was_yanked(
    hub: Hub, source: Source, tmp_path: Path
) -> None:
    release(hub, source())
    release(hub, source(b"x"), version="1.0.0.post1")  # begins with the name of the other
    lock([f"{hub.url}@sst2==1.0.0"], path=tmp_path / "l")
    yank("sst2", "1.0.0", reason="trained on the test set", clone=hub.clone)
    warned = AdaptergitWarning, "1.0.0 was yanked"

    def forget() -> None:
        shutil.rmtree(cache_dir())

    forget()
    hub.server.reset()
    with pytest.warns(warned[0], match=warned[1]):
        assert fetch(f"{hub.url}@sst2==1.0.0").version == "1.0.0"
    assert len(hub.server.traffic.requests) == 3  # the mark comes with the tag
    with pytest.warns(warned[0], match=warned[1]):
        assert fetch(f"{hub.url}@sst2==1.0.0").from_store
    forget()
    with pytest.warns(warned[0], match=warned[1]):
        sync(path=tmp_path / "l")
    with pytest.warns(warned[0], match=warned[1]):
        lock(path=tmp_path / "l")
    forget()
    assert fetch(f"{hub.url}@sst2==1.0.0.post1").version == "1.0.0.post1"  # a warning would be an error
    yank("sst2", "1.0.0", reason="", clone=hub.clone, undo=True)
    lock(path=tmp_path / "l")
    forget()
    assert fetch(f"{hub.url}@sst2==1.0.0").version == "1.0.0"


def test_yanking_everything_leaves_nothing_to_choose(hub: Hub, source: Source) -> None:
    release(hub, source())
    yank("sst2", "1.0.0", reason="x", clone=hub.clone)
    with pytest.raises(NotFoundError, match=r"final release") as caught:
        fetch(f"{hub.url}@sst2")
    assert "1.0.0 (yanked)" in str(caught.value)
    with pytest.warns(AdaptergitWarning, match="yanked"):
        assert fetch(f"{hub.url}@sst2==1.0").version == "1.0.0"


def test_a_branch_that_may_not_be_pushed_refuses_all(hub: Hub, source: Source) -> None:
    """A protected branch: the push is atomic, so the tag does not arrive alone."""
    release(hub, source())
    hook = hub.bare / "hooks" / "update"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text('#!/bin/sh\ncase "$1" in refs/heads/main) echo protected >&2; exit 1;; esac\n')
    hook.chmod(0o755)
    before = state(hub)
    with pytest.raises(ReleaseError, match="refused"):
        release(hub, source(b"x"), version="1.1.0")
    assert state(hub) == before
    assert "1.1.0" not in git(hub.bare, "tag")
    # A branch of one's own, for a pull request: the tag alone is a valid release already.
    hub.git("switch", "-q", "-c", "release-1.1.0")
    release(hub, source(b"x"), version="1.1.0")
    assert fetch(f"{hub.url}@sst2", refresh=True).version == "1.1.0"


def test_a_copy_on_another_server_is_the_same_release(hub: Hub, source: Source, tmp_path: Path) -> None:
    release(hub, source())
    bare = tmp_path / "copy.git"
    subprocess.run(["git", "init", "-q", "--bare", str(bare)], check=True)
    mirror([f"{hub.url}@sst2"], to=bare.as_uri())
    assert git(bare, "rev-parse", "adapters/sst2/1.0.0^{tree}") == git(
        hub.bare, "rev-parse", "adapters/sst2/1.0.0^{tree}"
    )
    assert git(bare, "fsck", "--strict") == ""


def test_an_empty_repository_of_the_other_object_format_becomes_a_mirror(
    hub: Hub, source: Source, tmp_path: Path
) -> None:
    release(hub, source())
    bare = tmp_path / "copy.git"
    subprocess.run(["git", "init", "-q", "--bare", "--object-format=sha256", str(bare)], check=True)
    assert [one.new for one in mirror([f"{hub.url}@sst2"], to=bare.as_uri())] == [True]
    assert [one.new for one in mirror([f"{hub.url}@sst2"], to=bare.as_uri())] == [False]
    assert len(git(bare, "rev-parse", "adapters/sst2/1.0.0")) == 64
    assert git(bare, "fsck", "--strict") == ""


def test_a_file_beside_the_folders_is_left_out(hub: Hub, source: Source, tmp_path: Path) -> None:
    folders = [source(folder=f"out/{name}", name=name) for name in ("a", "b")]
    (tmp_path / "out" / "notes.txt").write_text("mine")
    said: list[str] = []
    found = publish_all(
        [*folders, tmp_path / "out" / "notes.txt"], clone=hub.clone, key=hub.key.path, report=said.append
    )
    assert [one.name for one in found] == ["a", "b"]
    assert any("notes.txt is a file" in line for line in said)
    (tmp_path / "out" / "empty").mkdir()
    with pytest.raises(NotFoundError, match=r"no card\.yaml"):
        publish_all([*folders, tmp_path / "out" / "empty"], clone=hub.clone, key=hub.key.path)


# --- servers of all kinds ---------------------------------------------------------------------------------------------


def hook(hub: Hub, name: str, text: str) -> None:
    path = hub.bare / "hooks" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_a_server_that_takes_no_push_as_a_whole_is_given_the_tags_first(hub: Hub, source: Source) -> None:
    git(hub.bare, "config", "receive.advertiseAtomic", "false")
    hub.trust()
    publish(source(), clone=hub.clone, key=hub.key.path)
    assert fetch(f"{hub.url}@sst2").version == "1.0.0"
    assert hub.git("rev-parse", "HEAD") == git(hub.bare, "rev-parse", "main")
    assert hub.git("status", "--porcelain") == ""
    hook(hub, "update", '[ "$1" != refs/heads/main ]')
    with pytest.warns(AdaptergitWarning, match=r"sst2 1\.1\.0: released, but the server did not take the branch"):
        publish(source(version="1.1.0"), clone=hub.clone, key=hub.key.path)
    assert fetch(f"{hub.url}@sst2", refresh=True).version == "1.1.0"
    assert hub.git("rev-parse", "HEAD") == git(hub.bare, "rev-parse", "main")


def test_what_such_a_server_took_before_it_refused_is_said(hub: Hub, source: Source) -> None:
    git(hub.bare, "config", "receive.advertiseAtomic", "false")
    hook(hub, "update", '[ "$1" != refs/tags/adapters/b/1.0.0 ]')
    folders = [source(folder=name, name=name) for name in ("a", "b", "c")]
    before = hub.git("rev-parse", "--verify", "-q", "HEAD") if hub.git("branch") else ""
    with pytest.raises(ReleaseError, match=r"refused b 1\.0\.0") as caught:
        publish_all(folders, clone=hub.clone, key=hub.key.path)
    assert "has a 1.0.0" in str(caught.value.hint)
    assert git(hub.bare, "tag") == hub.git("tag") == "adapters/a/1.0.0"
    assert (hub.git("rev-parse", "--verify", "-q", "HEAD") if hub.git("branch") else "") == before
    (hub.bare / "hooks" / "update").unlink()
    publish_all(folders[1:], clone=hub.clone, key=hub.key.path)


def test_a_key_is_rotated_at_such_a_server_too(hub: Hub, source: Source, other_key: SigningKey) -> None:
    git(hub.bare, "config", "receive.advertiseAtomic", "false")
    hub.trust()
    publish(source(), clone=hub.clone, key=hub.key.path)
    with machine_of("publisher"):
        rotate(other_key.path, key=hub.key.path, clone=hub.clone)
    publish(source(version="1.1.0"), clone=hub.clone, key=other_key.path)
    with pytest.warns(AdaptergitWarning, match="has a new key"):
        assert fetch(f"{hub.url}@sst2", refresh=True).version == "1.1.0"


def test_a_forge_says_where_the_pull_request_is_opened(hub: Hub, source: Source) -> None:
    """On whatever host and port it is, and whatever it is."""
    page = f"{hub.url.removesuffix('.git')}/-/merge_requests/new?merge_request%5Bsource_branch%5D=publish%2Fsst2-1.0.0"
    hook(
        hub,
        "post-receive",
        f"echo; echo 'To create a merge request, visit:'; echo '  {page}' ; echo https://evil.example/x",
    )
    assert publish(source(), clone=hub.clone, key=hub.key.path, pull_request=True).pull_request == page


def test_how_a_pull_request_is_opened_is_a_result(hub: Hub, source: Source) -> None:
    """On stdout, also with ``--quiet``, and in the JSON; by the remote's own name."""
    hub.git("remote", "rename", "origin", "up")
    options = ["--repo", str(hub.clone), "--key", str(hub.key.path), "--remote", "up", "--pull-request"]
    by_hand = "git fetch up and git merge up/publish/sst2-"
    told = CliRunner().invoke(main, ["--quiet", "publish", str(source()), *options])
    assert f"propose publish/sst2-1.0.0: {by_hand}1.0.0" in told.stdout
    told = CliRunner().invoke(main, ["publish", str(source()), *options, "--version", "1.1.0", "--json"])
    assert json.loads(told.stdout)["pull_request"].startswith(f"{by_hand}1.1.0")
    told = CliRunner().invoke(main, ["publish", str(source()), *options, "--version", "1.2.0", "--json", "--dry-run"])
    assert json.loads(told.stdout)["pull_request"] is None


def test_a_server_that_is_no_forge_gets_no_link(hub: Hub, source: Source) -> None:
    hook(hub, "post-receive", "echo see https://evil.example/x")
    made = publish(source(), clone=hub.clone, key=hub.key.path, pull_request=True)
    assert str(made.pull_request).startswith("git fetch origin and git merge origin/publish/sst2-1.0.0")


def test_two_proposals_at_once_are_a_fork_and_said_to_be(
    hub: Hub, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adaptergit import git as ours

    publish(source(), clone=hub.clone, key=hub.key.path)
    second = tmp_path / "second"
    git(tmp_path, "clone", "-q", hub.url, str(second))
    push = ours.publish_releases

    def meanwhile(*plans: Any, **options: Any) -> Any:
        monkeypatch.setattr(ours, "publish_releases", push)
        publish(source(b"b" * 900, version="2.0.0"), clone=second, key=hub.key.path, pull_request=True)
        return push(*plans, **options)

    monkeypatch.setattr(ours, "publish_releases", meanwhile)
    with pytest.raises(ReleaseError, match=r"2\.0\.0 was released meanwhile") as caught:
        publish(source(b"c" * 900, version="3.0.0"), clone=hub.clone, key=hub.key.path, pull_request=True)
    assert caught.value.hint is not None
    subprocess.run(caught.value.hint.partition("anew: ")[2].split(), cwd=hub.clone, check=True)
    hub.trust()
    assert fetch(f"{hub.url}@sst2").version == "2.0.0"


@pytest.mark.slow
def test_a_new_adapter_beside_very_many_looks_at_few(hub: Hub, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(40):
        publish(
            source(bytes([number]), name=f"a{number}"),
            clone=hub.clone,
            key=hub.key.path,
            remote=None,
            repository="a/b/c",
        )
    read = Manifest.from_bytes
    asked: list[bytes] = []

    def counted(data: bytes, **where: str) -> Manifest:
        asked.append(data)
        return read(data, **where)

    monkeypatch.setattr(Manifest, "from_bytes", staticmethod(counted))
    publish(source(name="new"), clone=hub.clone, key=hub.key.path)
    assert len(asked) <= 30
