"""``doctor``: what is wrong on a machine is found, and what is told mends it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import GOLDEN, Hub, snapshot
from test_index import Index, make_index

import adaptergit
from adaptergit.cli import main
from adaptergit.doctor import NOTE, OK, PROBLEM, Finding
from adaptergit.errors import AdaptergitError
from adaptergit.indexes import client
from adaptergit.pins import pin_key, revoke
from adaptergit.prepare import initialise, usable_keys
from adaptergit.publish import publish
from adaptergit.resolve import fetch
from adaptergit.settings import load_settings
from adaptergit.trust import generate_key

Source = Callable[..., Path]


@pytest.fixture
def config(home: Path) -> Path:
    folder = home / "config"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH, but for a shell."""
    folder = tmp_path / "tools"
    folder.mkdir()
    (folder / "sh").symlink_to("/bin/sh")
    monkeypatch.setenv("PATH", str(folder))
    return folder


def tool(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def about(topic: str) -> list[Finding]:
    return [one for one in adaptergit.doctor() if one.topic == topic]


def only(topic: str, level: str) -> Finding:
    (found,) = [one for one in about(topic) if one.level == level]
    return found


def test_an_empty_home_is_healthy_and_stays_empty(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/bin/bash")
    before = snapshot(home)
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == 0, done.output
    assert snapshot(home) == before
    found = json.loads(CliRunner().invoke(main, ["doctor", "--json"]).stdout)
    assert found["healthy"] is True
    topics = {one["topic"] for one in found["findings"]}
    assert topics >= {"adaptergit", "settings", "git", "ssh-keygen", "key", "trust", "indexes", "store", "libraries", "devices", "completion"}  # fmt: skip
    assert all(one["hint"] for one in found["findings"] if one["level"] != OK)


def test_a_problem_is_an_exit_code(config: Path) -> None:
    (config / "config.toml").write_text("default_hots = 1\n")
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == 1
    assert "did you mean 'default_host'" in done.stdout
    assert json.loads(CliRunner().invoke(main, ["doctor", "--json"]).stdout)["healthy"] is False


@pytest.mark.parametrize(
    ("script", "why"),
    [("echo git version 2.17.1", "2.17.1 is too old"), ("exit 1", "git version"), (None, "not installed")],
)
def test_git_that_is_old_broken_or_missing(tools: Path, script: str | None, why: str) -> None:
    if script is not None:
        tool(tools, "git", script)
    if script is None:  # GitPython asks once a process where git is
        code = "import adaptergit; print([one for one in adaptergit.doctor() if one.topic == 'git'])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert "not installed" in done.stdout
        return
    found = only("git", PROBLEM)
    assert why in found.text


def test_an_identity_is_needed_to_publish(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert [one.level for one in about("git")] == [OK]
    (home / ".gitconfig").unlink()
    monkeypatch.chdir(tmp_path)
    assert (
        only("git", NOTE).hint
        == 'git config --global user.name "Your Name" && git config --global user.email you@example.org'
    )


@pytest.mark.parametrize(("version", "level"), [("OpenSSH_7.9p1", PROBLEM), ("OpenSSH_9.6p1", OK), ("no version", OK)])
def test_an_old_ssh_cannot_sign(tools: Path, version: str, level: str) -> None:
    tool(tools, "ssh", f"echo {version} >&2")
    tool(tools, "ssh-keygen", "exit 0")
    assert [one.level for one in about("ssh-keygen")] == [level]
    (tools / "ssh-keygen").unlink()
    assert "not installed" in only("ssh-keygen", PROBLEM).text


def test_the_key_and_all_that_may_be_wrong_with_it(config: Path, tmp_path: Path) -> None:
    assert only("key", NOTE).hint is not None
    key = generate_key(config / "signing_key")
    assert key.public.fingerprint in only("key", OK).text
    other = generate_key(tmp_path / "other")
    (config / "signing_key.pub").write_text(other.public.line)
    hint = only("key", PROBLEM).hint
    assert hint is not None
    subprocess.run(hint, shell=True, check=True)  # what is told mends it
    assert only("key", OK)
    key.path.chmod(0o644)
    hint = only("key", PROBLEM).hint
    assert hint is not None
    subprocess.run(hint, shell=True, check=True)
    assert only("key", OK)
    revoke(key.public.fingerprint, reason="stolen")
    assert "stolen" in only("key", PROBLEM).text


def test_after_a_rotation_the_new_key_is_named_and_the_settings_choose_it(
    config: Path, hub: Hub, source: Source
) -> None:
    old, new = generate_key(config / "signing_key"), generate_key(config / "signing_key-2")
    publish(source(), clone=hub.clone)
    pin_key("127.0.0.1/acme/adapters", old.public.line)
    said = CliRunner().invoke(main, ["rotate", str(new.path), "--repo", str(hub.clone)]).stdout
    setting = f'signing_key = "{new.path}"'
    assert f"or always: {setting} in {config / 'config.toml'}" in said
    assert setting in str(only("key", NOTE).hint)
    assert [one.path for one in usable_keys(principal="127.0.0.1/acme/adapters")] == [new.path]
    assert [one.path for one in usable_keys(principal="127.0.0.1/acme/others")] == [old.path, new.path]
    (config / "config.toml").write_text('signing_key = "signing_key-2"\n')
    assert new.public.fingerprint in only("key", OK).text
    assert publish(source(), clone=hub.clone, version="1.1.0").signer == new.public.fingerprint
    (config / "config.toml").write_text('signing_key = "nowhere"\n')
    assert "no such key file" in only("key", PROBLEM).text


def test_a_key_with_a_passphrase_is_told_apart_from_a_damaged_one(config: Path) -> None:
    key = generate_key(config / "signing_key")
    subprocess.run(["ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-f", str(key.path)], check=True)
    assert only("key", OK)
    assert "ssh-add" in str(only("key", NOTE).hint)
    key.path.write_text("no key\n")
    assert only("key", PROBLEM)


def test_the_clone_it_runs_in_is_looked_at(hub: Hub, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(hub.clone)
    assert not about("clone")  # nothing is published from it
    generate_key(config / "signing_key")
    initialise(clone=hub.clone)
    assert [one.level for one in about("clone")] == ["ok"]
    (hub.clone / ".adaptergit" / "allowed_signers").write_text(f"* {hub.key.public.line}\n")
    hub.git("remote", "remove", "origin")
    remote, key = about("clone")
    assert (remote.level, remote.hint) == ("note", "git remote add origin URL")
    assert (key.level, "--keep" in str(key.hint)) == ("note", True)


def test_revocations_that_cannot_be_read_are_a_problem(config: Path) -> None:
    (config / "revoked.jsonl").write_text('{"key": nothing}\n')
    assert "would count again" in str(next(one for one in adaptergit.doctor() if one.level == PROBLEM).hint)


def test_pins_that_cannot_be_read_are_a_problem(config: Path) -> None:
    (config / "allowed_signers").write_text("nonsense\n")
    assert "allowed_signers:1" in only("trust", PROBLEM).text


def test_a_policy_that_asks_for_nothing_is_noted(config: Path) -> None:
    (config / "config.toml").write_text('policy = "unsigned"\n')
    assert "unsigned" in only("settings", NOTE).text


def test_a_damaged_package_of_the_store_is_found_and_mended(hub: Hub, source: Source) -> None:
    publish(source(), clone=hub.clone, key=hub.key.path)
    hub.trust()
    found = fetch(f"{hub.url}@sst2")
    assert "1 package," in only("store", OK).text
    weights = found.path / "adapter.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert found.digest[:16] in only("store", PROBLEM).text
    CliRunner().invoke(main, ["store", "verify", "--remove"])
    assert [one.level for one in about("store")] == [OK]


def test_a_store_that_cannot_be_written(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "file").write_text("x")
    monkeypatch.setenv("ADAPTERGIT_CACHE_DIR", str(home / "file" / "cache"))
    assert "ADAPTERGIT_CACHE_DIR" in str(only("store", PROBLEM).hint)
    if os.geteuid() != 0:
        (home / "locked").mkdir(mode=0o500)
        monkeypatch.setenv("ADAPTERGIT_CACHE_DIR", str(home / "locked"))
        assert only("store", PROBLEM)


def test_base_models_that_are_not_where_the_settings_say(config: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (config / "config.toml").write_text(
        f'[base_models]\na = "{GOLDEN / "bases" / "bert"}"\nb = "{tmp_path / "nowhere"}"\nc = "{tmp_path / "empty"}"\n'
    )
    assert [one.level for one in about("base models")] == [OK, PROBLEM, PROBLEM]


def test_a_mirror_in_a_folder_that_is_not_there_is_noted(config: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    places = f'["{tmp_path / "there"}/", "{tmp_path / "nope"}/{{repository}}/", "https://mirror.example/"]'
    (config / "config.toml").write_text(f'[mirrors]\n"github.com/acme/*" = {places}\n')
    assert only("settings", NOTE).text == f"there is no folder {tmp_path / 'nope'}, which is a mirror"


def test_what_keeps_things_offline_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert about("environment") == []
    for name in ("ADAPTERGIT_OFFLINE", "HF_HUB_OFFLINE", "ADAPTERGIT_OFLINE"):
        monkeypatch.setenv(name, "1")
    texts = [one.text for one in about("environment")]
    assert len(texts) == 3
    assert any(text.startswith("ADAPTERGIT_OFLINE means nothing") for text in texts)


def test_completion_is_offered_until_it_is_there(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/usr/bin/zsh")
    hint = only("completion", NOTE).hint
    assert hint is not None
    subprocess.run(hint, shell=True, check=True)
    assert [one.level for one in about("completion")] == [OK]
    monkeypatch.setenv("SHELL", "/bin/csh")
    assert about("completion") == []


@pytest.fixture
def community(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    """An index that was added."""
    people = [generate_key(tmp_path_factory.mktemp("people") / name) for name in ("alice", "bob", "online", "mallory")]
    for index in make_index(tmp_path / "index", people):
        index.publish()
        index.user()
        yield index


def test_an_index_grows_old(community: Index, config: Path) -> None:
    now = datetime.now(UTC)
    levels = {}
    for days in (0, 20, 500):
        levels[days] = [one for one in adaptergit.doctor(now=now + timedelta(days=days)) if one.topic == "indexes"]
    assert [one.level for one in levels[0]] == [OK]
    assert levels[20][0].level in (NOTE, PROBLEM)
    assert levels[500][0].level == PROBLEM
    assert levels[500][0].hint == "adaptergit index update community"
    root = next(config.rglob("root.json"))
    good = root.read_bytes()
    root.write_text("{")
    assert "adaptergit index remove community" in str(only("indexes", PROBLEM).hint)
    with pytest.raises(AdaptergitError, match=r"root\.json"):
        client(load_settings()).update("community")
    root.write_bytes(good)
    state = next(config.rglob("state.json"))
    state.write_text("{")
    assert only("indexes", PROBLEM)
    (config / "indexes.json").write_text("{")
    assert only("indexes", PROBLEM)


def test_without_an_index_there_is_nothing_to_search() -> None:
    assert "index add" in str(only("indexes", NOTE).hint)
