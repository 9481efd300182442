"""A publish that ends after the push: whatever is left, nothing takes the release back, and the next one goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Hub, git

from adaptergit.errors import AdaptergitWarning, ReleaseError, TransportError
from adaptergit.git import Clone, plan_release, publish_releases
from adaptergit.publish import publish
from adaptergit.resolve import fetch

Source = Callable[..., Path]
KILL = "kill -9 $PPID; sleep 5"
FULL = "echo 'fatal: unable to write: No space left on device' >&2; exit 128"


@pytest.fixture
def wrapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Put a git first in the PATH that does something else at one command."""
    real = subprocess.run(["sh", "-c", "command -v git"], capture_output=True, text=True, check=True).stdout.strip()

    def wrap(command: str, instead: str) -> None:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        (folder / "git").write_text(f'#!/bin/sh\ncase " $* " in *" {command} "*) {instead};; esac\nexec {real} "$@"\n')
        (folder / "git").chmod(0o755)
        if str(folder) not in os.environ["PATH"]:
            monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    return wrap


def release(hub: Hub, folder: Path, version: str, **options: str | None) -> None:
    hub.trust()
    publish(folder, version=version, clone=hub.clone, key=hub.key.path, **options)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("command", ["update-index -z --index-info", "update-ref --stdin"])
def test_a_kill_after_the_push_stages_nothing_that_takes_the_release_back(
    hub: Hub, source: Source, wrapped: Callable[[str, str], None], command: str, first: bool
) -> None:
    hub.trust()
    (hub.clone / "LICENSE").write_text("x\n")
    hub.git("add", "-A")
    hub.git("commit", "-q", "-m", "licence")
    hub.git("push", "-q", "-u", "origin", "main")
    if not first:
        release(hub, source(b"old"), "1.0.0")
    wrapped(command, KILL)
    argv = [sys.executable, "-m", "adaptergit", "publish", str(source(b"new")), "--version", "1.1.0"]
    done = subprocess.run(
        [*argv, "--repo", str(hub.clone), "--key", str(hub.key.path)], capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL
    wrapped("nothing", "true")
    (hub.clone / ".git" / "index.lock").unlink(missing_ok=True)
    assert fetch(f"{hub.url}@sst2", refresh=True).version == "1.1.0"
    hub.git("pull", "-q", "--ff-only")
    assert hub.git("diff", "--cached", "--name-only") == ""
    release(hub, source(b"newer"), "1.2.0")
    assert hub.git("status", "--porcelain") == ""
    assert fetch(f"{hub.url}@sst2", refresh=True).version == "1.2.0"


@pytest.mark.slow
def test_a_commit_after_a_kill_keeps_the_release(hub: Hub, source: Source, wrapped: Callable[[str, str], None]) -> None:
    release(hub, source(b"old"), "1.0.0")
    wrapped("update-ref --stdin", KILL)
    argv = [sys.executable, "-m", "adaptergit", "publish", str(source(b"new")), "--version", "1.1.0"]
    subprocess.run([*argv, "--repo", str(hub.clone), "--key", str(hub.key.path)], capture_output=True, check=False)
    wrapped("nothing", "true")
    hub.git("commit", "-q", "-m", "whatever is staged")
    hub.git("pull", "-q", "--no-rebase", "--no-edit")
    assert hub.git("rev-parse", "HEAD:adapters/sst2") == git(hub.bare, "rev-parse", "adapters/sst2/1.1.0^{tree}")


@pytest.mark.parametrize("command", ["update-index -z --index-info", "update-ref --stdin"])
def test_a_full_disk_after_the_push_is_mended_by_the_command_that_is_named(
    hub: Hub, source: Source, wrapped: Callable[[str, str], None], command: str
) -> None:
    release(hub, source(b"old"), "1.0.0")
    wrapped(command, FULL)
    with pytest.warns(AdaptergitWarning, match="(?s)could not follow.*git pull brings it up to date"):
        release(hub, source(b"new"), "1.1.0")
    wrapped("nothing", "true")
    assert hub.git("status", "--porcelain") == ""
    hub.git("pull", "-q", "--ff-only")
    assert hub.git("status", "--porcelain") == ""
    assert hub.git("rev-parse", "HEAD") == git(hub.bare, "rev-parse", "main")


@pytest.mark.slow
def test_files_that_could_not_be_written_are_restored_by_hand_or_by_the_next_release(
    hub: Hub, source: Source, tmp_path: Path
) -> None:
    release(hub, source(b"old"), "1.0.0")
    hindrance = hub.clone / "adapters" / "sst2" / ".manifest.json.new"
    hindrance.mkdir()
    with pytest.warns(AdaptergitWarning, match="(?s)could not follow.*git restore adapters/sst2 brings its files"):
        release(hub, source(b"new"), "1.1.0")
    hindrance.rmdir()
    assert hub.git("diff", "--cached", "--name-only") == ""
    copy = tmp_path / "copy"
    git(tmp_path, "clone", "-q", "--no-hardlinks", str(hub.clone), str(copy))
    before = hub.git("status", "--porcelain")
    assert before
    publish(source(b"newer"), version="1.2.0", clone=hub.clone, key=hub.key.path, dry_run=True)
    assert hub.git("status", "--porcelain") == before
    (hub.clone / "adapters" / "sst2" / ".manifest.json.new").write_text("half")
    release(hub, source(b"newer"), "1.2.0")
    assert hub.git("status", "--porcelain") == ""
    hindrance.mkdir()
    with pytest.warns(AdaptergitWarning, match="git restore adapters/sst2"):
        release(hub, source(b"newest"), "1.3.0")
    hindrance.rmdir()
    hub.git("restore", "adapters/sst2")
    assert hub.git("status", "--porcelain") == ""


def test_a_persons_own_changes_are_still_refused(hub: Hub, source: Source) -> None:
    release(hub, source(b"old"), "1.0.0")
    release(hub, source(b"new"), "1.1.0")
    folder = hub.clone / "adapters" / "sst2"
    (folder / "README.md").write_text("my own words\n")
    with pytest.raises(ReleaseError, match="uncommitted changes"):
        release(hub, source(b"newer"), "1.2.0")
    hub.git("restore", ".")
    (folder / "README.md").unlink()
    with pytest.raises(ReleaseError, match="uncommitted changes"):
        release(hub, source(b"newer"), "1.2.0")
    hub.git("restore", ".")
    (folder / ".other.new").write_text("mine\n")
    with pytest.raises(ReleaseError, match="uncommitted changes"):
        release(hub, source(b"newer"), "1.2.0")


def test_what_is_not_pushed_and_cannot_be_tagged_is_not_released(
    hub: Hub, source: Source, wrapped: Callable[[str, str], None]
) -> None:
    release(hub, source(b"old"), "1.0.0")
    wrapped("update-ref --stdin", FULL)
    with pytest.raises(TransportError, match="No space left"):
        release(hub, source(b"new"), "1.1.0", remote=None, repository="127.0.0.1/acme/adapters")
    assert hub.git("status", "--porcelain") == ""
    assert hub.git("tag") == "adapters/sst2/1.0.0"


def test_the_same_release_twice_at_once_leaves_the_clone_as_after_one(hub: Hub, source: Source) -> None:
    """Two processes that started in one second make the same objects, and the server takes both pushes."""
    release(hub, source(b"old"), "1.0.0")
    plan = plan_release(Clone.at(hub.clone), source(b"new", folder="new"), "sst2", "1.1.0")
    publish_releases([plan], "origin")
    publish_releases([plan], "origin")
    assert hub.git("status", "--porcelain") == ""
    assert hub.git("rev-parse", "HEAD:adapters/sst2").strip() == plan.tree


def test_what_a_half_done_publish_staged_is_mended_by_the_command_that_is_named(hub: Hub, source: Source) -> None:
    release(hub, source(b"old"), "1.0.0")
    release(hub, source(b"new"), "1.1.0")
    hub.git("restore", "--staged", "--source", "HEAD^", "--", "adapters/sst2")
    with pytest.raises(ReleaseError, match="uncommitted changes") as refused:
        release(hub, source(b"newer"), "1.2.0")
    subprocess.run(refused.value.hint.rpartition(", then ")[2].split(), cwd=hub.clone, check=True)
    release(hub, source(b"newer"), "1.2.0")
    assert hub.git("status", "--porcelain") == ""


def test_a_supervisor_who_ends_a_publish_leaves_nothing_behind(
    hub: Hub, source: Source, wrapped: Callable[[str, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    started, ended = tmp_path / "started", tmp_path / "ended"
    wrapped("push", f"touch {started}; sleep 60; touch {ended}")
    argv = [sys.executable, "-m", "adaptergit", "publish", str(source()), "--repo", str(hub.clone)]
    with subprocess.Popen([*argv, "--key", str(hub.key.path)], stderr=subprocess.PIPE, text=True) as running:
        while not started.exists() and running.poll() is None:
            time.sleep(0.02)
        assert list(temporary.iterdir())
        running.terminate()
        assert running.stderr is not None
        assert "interrupted; the server may have taken it all the same" in running.stderr.read()
    assert running.returncode == 128 + signal.SIGTERM
    assert list(temporary.iterdir()) == []
    assert not ended.exists()
    assert hub.git("status", "--porcelain") == ""


def test_a_server_with_another_key_than_before_is_no_server_to_accept(
    hub: Hub, source: Source, wrapped: Callable[[str, str], None]
) -> None:
    release(hub, source(), "1.0.0")
    local = f"{hub.bare.as_uri()}@sst2"
    fetch(local)
    said = "Host key for [127.0.0.1]:22022 has changed and you have requested strict checking.\\nHost key verification failed."  # fmt: skip
    wrapped("ls-remote", f"printf '{said}\\n' >&2; exit 128")
    with pytest.raises(TransportError) as refused:
        fetch(local, refresh=True)
    assert "as an attacker would: ask its owner" in refused.value.hint
    assert "ssh-keygen -R HOST" in refused.value.hint
    assert "can be loaded with --offline" in refused.value.hint
