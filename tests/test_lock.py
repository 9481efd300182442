"""Lock files, frozen loads, and keeping the store."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import Hub, git, machine_of, snapshot
from hypothesis import given
from hypothesis import strategies as st

import adaptergit
from adaptergit.cli import main
from adaptergit.errors import AdaptergitError, AdaptergitWarning, NotFoundError, PackageError, TrustError, UsageError
from adaptergit.housekeeping import prune, stored, verify_store
from adaptergit.lock import check_lock, lock, not_compared, sync
from adaptergit.mirror import mirror
from adaptergit.publish import publish, publish_all, yank
from adaptergit.resolve import fetch
from adaptergit.settings import Settings, cache_dir
from adaptergit.store.lockfile import read_lock
from adaptergit.trust import generate_key

Source = Callable[..., Path]
PRINCIPAL = "127.0.0.1/acme/adapters"


def release(hub: Hub, folder: Path, **options: object) -> Any:
    hub.trust()
    return publish(folder, clone=hub.clone, key=hub.key.path, **options)  # type: ignore[arg-type]


def test_a_lock_file_says_exactly_what_is_used(hub: Hub, source: Source, tmp_path: Path) -> None:
    published = release(hub, source())
    file = tmp_path / "adaptergit.lock"
    (change,) = lock([f"{hub.url}@sst2>=1,<2"], path=file)
    assert (change.before, change.after) == (None, "1.0.0")
    (one,) = read_lock(file).values()
    assert (one.manifest_sha256, one.tree) == (published.digest, published.tree)
    assert one.signers == (hub.key.public.fingerprint,)
    assert one.reference == f"{hub.url}@sst2<2,>=1"
    assert {f.path for f in one.files} == {"README.md", "adapter.safetensors", "card.yaml"}
    first = file.read_bytes()
    release(hub, source(b"new"), version="1.1.0")
    assert lock(path=file)[0].after == "1.0.0"  # locked is locked
    assert file.read_bytes() == first
    assert fetch(f"{hub.url}@sst2", lock=file).version == "1.0.0"
    assert lock(path=file, upgrade=True)[0].after == "1.1.0"
    assert fetch(f"{hub.url}@sst2>=1", lock=file).version == "1.1.0"


def test_commands_use_what_is_locked(hub: Hub, source: Source, tmp_path: Path) -> None:
    release(hub, source())
    file, reference = tmp_path / "adaptergit.lock", f"{hub.url}@sst2"
    lock([reference], path=file)
    release(hub, source(b"new"), version="1.1.0")
    for command in ("load", "info"):
        done = CliRunner().invoke(main, [command, reference, "--lock", str(file), "--json"])
        assert json.loads(done.stdout)["card"]["version"] == "1.0.0"
    assert "sst2==1.0.0" in CliRunner().invoke(main, ["verify", reference, "--lock", str(file)]).output
    for command in (["predict", reference, "x"], ["eval", reference, "--data", str(file)]):
        done = CliRunner().invoke(main, [*command, "--lock", str(tmp_path / "no.lock")])
        assert "no.lock" in done.stderr
    for command in ("load", "verify", "info"):
        done = CliRunner().invoke(main, [command, str(tmp_path / "out"), "--lock", str(file)])
        assert "neither an index file nor a lock file names a folder" in done.stderr


def test_a_locked_release_is_fetched_by_its_tree_in_two_requests(hub: Hub, source: Source, tmp_path: Path) -> None:
    release(hub, source())
    lock([f"{hub.url}@sst2"], path=tmp_path / "l")
    shutil.rmtree(cache_dir())
    hub.server.traffic.requests.clear()
    assert not fetch(f"{hub.url}@sst2", lock=tmp_path / "l").from_store
    assert len(hub.server.traffic.requests) == 2
    shutil.rmtree(cache_dir())
    hub.server.traffic.requests.clear()
    (found,) = sync(path=tmp_path / "l")
    assert (found.version, found.from_store) == ("1.0.0", False)
    assert len(hub.server.traffic.requests) == 3  # sync also asks what was yanked, once for all
    assert sync(path=tmp_path / "l", offline=True)[0].from_store


def test_what_is_not_locked_or_does_not_fit_is_refused(hub: Hub, source: Source, tmp_path: Path) -> None:
    release(hub, source())
    file = tmp_path / "l"
    with pytest.raises(UsageError, match="nothing to lock"):
        lock(path=file)
    with pytest.raises(NotFoundError, match="no lock file"):
        fetch(f"{hub.url}@sst2", lock=file)
    lock([f"{hub.url}@sst2"], path=file)
    assert [one.version for one in check_lock(path=file)] == ["1.0.0"]
    for run in (lambda ref: fetch(ref, lock=file), lambda ref: check_lock([ref], path=file)):
        with pytest.raises(NotFoundError, match="is not locked"):
            run(f"{hub.url}@other")
        with pytest.raises(NotFoundError, match="does not fit"):
            run(f"{hub.url}@sst2>=2")
        with pytest.raises(NotFoundError, match="does not fit"):
            run(f"{hub.url}@sst2#sha256:{'0' * 64}")
    with pytest.raises(UsageError, match="twice"):
        lock([f"{hub.url}@sst2", f"{hub.url}@sst2>=1"], path=file)


def test_a_failed_lock_leaves_the_file_as_it_was(hub: Hub, source: Source, tmp_path: Path) -> None:
    release(hub, source())
    file = tmp_path / "l"
    lock([f"{hub.url}@sst2"], path=file)
    before = file.read_bytes()
    with pytest.raises(NotFoundError):
        lock([f"{hub.url}@sst2", f"{hub.url}@missing"], path=file)
    assert file.read_bytes() == before


@pytest.mark.slow
def test_three_at_once_lose_no_entry(hub: Hub, source: Source, tmp_path: Path) -> None:
    hub.trust()
    names = [f"a{number}" for number in range(3)]
    publish_all([source(folder=name, name=name) for name in names], clone=hub.clone, key=hub.key.path)
    file = tmp_path / "l"
    command = [sys.executable, "-m", "adaptergit", "lock", "--file", str(file)]
    running = [subprocess.Popen([*command, f"{hub.url}@{name}"], stderr=subprocess.DEVNULL) for name in names]
    assert [one.wait() for one in running] == [0, 0, 0]
    assert [one.reference for one in read_lock(file).values()] == [f"{hub.url}@{name}" for name in names]


def test_a_lock_file_weakens_no_policy(hub: Hub, source: Source, tmp_path: Path, home: Path) -> None:
    release(hub, source())
    file = tmp_path / "l"
    lock([f"{hub.url}@sst2"], path=file)
    shutil.rmtree(home / "config")  # somebody else's machine, who trusts nobody
    with pytest.raises(TrustError, match="nobody you know"):
        fetch(f"{hub.url}@sst2", lock=file)


def test_a_server_that_swaps_a_locked_release_is_refused(hub: Hub, source: Source, tmp_path: Path) -> None:
    release(hub, source())
    file = tmp_path / "l"
    lock([f"{hub.url}@sst2"], path=file)
    shutil.rmtree(cache_dir())
    shutil.rmtree(hub.bare)
    hub.server.create("acme/adapters")
    shutil.rmtree(hub.clone)
    git(tmp_path, "clone", "-q", hub.url, str(hub.clone))
    release(hub, source(b"swapped"))  # by the same publisher, signed and all
    with pytest.raises(TrustError, match="you pinned"):
        fetch(f"{hub.url}@sst2", lock=file)
    assert not stored()


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw.update(schema="adaptergit.lock/2"),
        lambda raw: raw.update(more=1),
        lambda raw: raw["adapters"].append(raw["adapters"][0]),
        lambda raw: raw["adapters"][0].pop("tree"),
        lambda raw: raw["adapters"][0].update(version="1.0.0.0-x"),
        lambda raw: raw["adapters"][0].update(manifest_sha256="0" * 63),
        lambda raw: raw["adapters"][0].update(tree="--upload-pack=x"),
        lambda raw: raw["adapters"][0].update(urls=[]),
        lambda raw: raw["adapters"][0].update(signers=["me"]),
        lambda raw: raw["adapters"][0]["files"].append({"path": "x", "size": -1, "sha256": "0" * 64}),
    ],
)
def test_a_damaged_lock_file_names_the_field(
    hub: Hub, source: Source, tmp_path: Path, damage: Callable[[dict[str, Any]], object]
) -> None:
    release(hub, source())
    file = tmp_path / "l"
    lock([f"{hub.url}@sst2"], path=file)
    raw = json.loads(file.read_text())
    damage(raw)
    file.write_text(json.dumps(raw))
    with pytest.raises(PackageError, match=str(file)):
        fetch(f"{hub.url}@sst2", lock=file)


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "the adapter is 'other'": lambda one: one.update(
        reference=one["reference"].replace("sst2", "other"), id=one["id"].replace("sst2", "other")
    ),
    "version is '1.1.0'": lambda one: one.update(version="1.1.0"),
    "the first of urls is": lambda one: one.update(urls=["https://evil.example/acme/adapters.git"]),
    "base_model.id is 'other'": lambda one: one["base_model"].update(id="other"),
    "base_model.fingerprint is ''": lambda one: one["base_model"].update(fingerprint=""),
    "files are not the release's: card.yaml": lambda one: next(
        file for file in one["files"] if file["path"] == "card.yaml"
    ).update(size=1),
    "files are not the release's: README.md": lambda one: one["files"].pop(0),
    f"signers are SHA256:{'A' * 43}": lambda one: one.update(signers=[f"SHA256:{'A' * 43}"]),
    "signers are nobody": lambda one: one.update(signers=[]),
    f"tree is {'0' * 40}": lambda one: one.update(tree="0" * 40),
}


@pytest.mark.parametrize("said", EDITS)
def test_checking_compares_whatever_is_recorded_with_the_release(
    said: str, hub: Hub, source: Source, tmp_path: Path
) -> None:
    release(hub, source())
    file = tmp_path / "l"
    lock([f"{hub.url}@sst2"], path=file)
    assert not_compared(check_lock(path=file)) == []
    before = file.read_bytes()
    raw = json.loads(before)
    EDITS[said](raw["adapters"][0])
    file.write_text(json.dumps(raw))
    with pytest.raises(PackageError, match=re.escape(said)) as caught:
        check_lock(path=file)
    assert caught.value.where == str(file)
    shutil.rmtree(cache_dir())
    assert len(not_compared(check_lock(path=file))) == 1  # it needs no network, so there is nothing to compare with


def test_a_tree_of_a_repository_with_other_object_names_is_the_same_release(
    hub: Hub, source: Source, tmp_path: Path
) -> None:
    release(hub, source())
    file = tmp_path / "l"
    lock([f"{hub.url}@sst2"], path=file)
    bare = tmp_path / "copy.git"
    git(tmp_path, "init", "-q", "--bare", "--object-format=sha256", str(bare))
    mirror([f"{hub.url}@sst2"], to=bare.as_uri())
    raw = json.loads(file.read_text())
    raw["adapters"][0]["tree"] = git(bare, "rev-parse", "adapters/sst2/1.0.0^{tree}")
    file.write_text(json.dumps(raw))
    assert len(check_lock(path=file)) == 1


@pytest.mark.parametrize("way", ["stored", "by its tree", "by its tag", "static mirror"])
@pytest.mark.parametrize("edit", ["version", "name"])
def test_a_lock_file_that_contradicts_itself_is_to_blame_and_not_who_serves(
    edit: str, way: str, hub: Hub, source: Source, tmp_path: Path
) -> None:
    release(hub, source())
    mirror([f"{hub.url}@sst2"], to=tmp_path / "mirror")
    file = tmp_path / "l"
    lock([f"{hub.url}@sst2"], path=file)
    raw = json.loads(file.read_text())
    EDITS["version is '1.1.0'" if edit == "version" else "the adapter is 'other'"](raw["adapters"][0])
    settings = Settings()
    if way != "stored":
        shutil.rmtree(cache_dir())
    if way in ("by its tag", "static mirror"):
        raw["adapters"][0]["tree"] = ""
    if way == "by its tag":
        tag = "adapters/sst2/1.1.0" if edit == "version" else "adapters/other/1.0.0"
        git(hub.bare, "tag", tag, "adapters/sst2/1.0.0")
    if way == "static mirror":
        shutil.rmtree(hub.bare)
        listing = next((tmp_path / "mirror").rglob("sst2.json"))
        shutil.copy(listing, listing.with_name("other.json"))
        settings = Settings(mirrors=(("*", (str(tmp_path / "mirror"),)),))
    file.write_text(json.dumps(raw))
    wanted = f"{hub.url}@{'sst2' if edit == 'version' else 'other'}"
    with pytest.raises(TrustError, match=r"the digest beside it is of sst2 1\.0\.0") as caught:
        fetch(wanted, lock=file, settings=settings)
    assert caught.value.where == str(file)
    rewritten = f"--upgrade '{hub.url}@sst2'" if edit == "version" else f"take that entry out, and lock what is meant: adaptergit lock '{hub.url}@sst2'"  # fmt: skip
    assert rewritten in str(caught.value.hint)
    assert len(stored()) == (way == "stored")


def test_syncing_asks_for_yanks_also_when_all_is_stored(hub: Hub, source: Source, tmp_path: Path) -> None:
    release(hub, source())
    file = tmp_path / "l"
    lock([f"{hub.url}@sst2"], path=file)
    yank("sst2", "1.0.0", reason="trained on the test set", clone=hub.clone)
    hub.server.traffic.requests.clear()
    assert sync(path=file, offline=True)[0].from_store
    assert hub.server.traffic.requests == []
    with pytest.warns(AdaptergitWarning, match="was yanked"):
        assert sync(path=file)[0].from_store
    shutil.move(hub.bare, hub.bare.with_name("gone.git"))
    with pytest.warns(AdaptergitWarning, match="was yanked"):  # it was heard of
        assert sync(path=file)[0].from_store


@given(data=st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_any_bytes_are_a_lock_file_or_a_clear_error(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("lock") / "l"
    file.write_bytes(data)
    with pytest.raises(AdaptergitError):
        read_lock(file)


FROZEN = """
import sys, subprocess, os
import adaptergit
def refuse(event, arguments):
    if event in ("socket.connect", "socket.bind", "subprocess.Popen", "os.exec", "os.fork", "os.posix_spawn", "os.system"):
        sys.stderr.write(f"did {event} {arguments}\\n"); os._exit(99)
sys.addaudithook(refuse)
found = adaptergit.fetch(sys.argv[1], lock=sys.argv[2], offline=True)
assert found.from_store
print(found.version)
"""


@pytest.mark.slow
def test_a_frozen_load_opens_no_socket_and_starts_no_process(hub: Hub, source: Source, tmp_path: Path) -> None:
    release(hub, source())
    lock([f"{hub.url}@sst2"], path=tmp_path / "l")
    command = [sys.executable, "-c", FROZEN, f"{hub.url}@sst2", str(tmp_path / "l")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "1.0.0"), done.stderr
    if shutil.which("unshare") and os.geteuid() == 0:  # a network namespace without even a loopback
        done = subprocess.run(["unshare", "--net", *command], capture_output=True, text=True, check=False)
        if "unshare failed" not in done.stderr and "Operation not permitted" not in done.stderr:
            assert (done.returncode, done.stdout.strip()) == (0, "1.0.0"), done.stderr
    shutil.rmtree(cache_dir())
    with pytest.raises(NotFoundError, match="not in the store"):
        fetch(f"{hub.url}@sst2", lock=tmp_path / "l", offline=True)


# --- the store --------------------------------------------------------------------------------------------------------


def test_the_store_is_listed_checked_and_pruned(hub: Hub, source: Source, tmp_path: Path) -> None:
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        release(hub, source(version.encode()), version=version)
        fetch(f"{hub.url}@sst2=={version}")
    lock([f"{hub.url}@sst2==1.0.0"], path=tmp_path / "l")
    assert sorted(one.manifest.version for one in stored() if one.manifest) == ["1.0.0", "1.1.0", "1.2.0"]
    heard: list[adaptergit.Progress] = []
    with adaptergit.watching(heard.append):
        assert verify_store() == {}
    assert heard[-1].done == heard[-1].total == sum(one.size for one in stored())
    before = snapshot(cache_dir())
    would = prune(keep=[tmp_path / "l"], dry_run=True)
    assert [one.manifest.version for one in would if one.manifest] == ["1.1.0"]
    assert snapshot(cache_dir()) == before
    assert prune(older_than=3600.0) == []
    prune(keep=[tmp_path / "l"])
    assert sorted(one.manifest.version for one in stored() if one.manifest) == ["1.0.0", "1.2.0"]
    newest = next(one for one in stored() if one.manifest and one.manifest.version == "1.2.0")
    weights = newest.path / "adapter.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(b"damaged")
    assert list(verify_store()) == [newest.digest]
    assert list(verify_store(remove=True)) == [newest.digest]
    assert verify_store() == {}
    assert fetch(f"{hub.url}@sst2==1.2.0").version == "1.2.0"
    with pytest.raises(NotFoundError):
        prune(keep=[tmp_path / "no such lock"])
    assert len(stored()) == 2
    prune(everything=True)
    assert stored() == []


@pytest.mark.slow
def test_what_a_plain_reference_means_is_not_pruned(hub: Hub, source: Source) -> None:
    for version in ("0.9.0", "1.0.0", "1.1.0", "2.0.0rc1", "2.0.0rc2"):
        release(hub, source(version.encode()), version=version)
        fetch(f"{hub.url}@sst2=={version}")
    yank("sst2", "1.1.0", reason="trained on the test set", clone=hub.clone)
    assert fetch(f"{hub.url}@sst2", refresh=True).version == "1.0.0"
    gone = [one.manifest.version for one in prune() if one.manifest]
    assert sorted(gone) == ["0.9.0", "1.1.0", "2.0.0rc1"]
    assert fetch(f"{hub.url}@sst2", offline=True).version == "1.0.0"
    assert fetch(f"{hub.url}@sst2>=2.0.0rc1", offline=True).version == "2.0.0rc2"


def test_who_publishes_or_yanks_is_given_what_is_there_now(hub: Hub, source: Source) -> None:
    hub.trust()
    reference = f"{hub.url}@sst2"
    publish(source(), clone=hub.clone, key=hub.key.path)
    assert fetch(reference).version == "1.0.0"
    publish(source(b"x" * 5000), version="1.1.0", clone=hub.clone, key=hub.key.path)
    assert fetch(reference).version == "1.1.0"
    yank("sst2", "1.1.0", reason="x", clone=hub.clone)
    assert fetch(reference).version == "1.0.0"
    yank("sst2", "1.1.0", reason="x", clone=hub.clone, undo=True)
    assert fetch(reference).version == "1.1.0"


def test_nothing_yanked_is_locked_anew(hub: Hub, source: Source, tmp_path: Path) -> None:
    hub.trust()
    reference = f"{hub.url}@sst2"
    for number in range(2):
        publish(source(b"x" * (5000 + number)), version=f"1.{number}.0", clone=hub.clone, key=hub.key.path)
    assert fetch(reference).version == "1.1.0"
    with machine_of("the publisher"):
        yank("sst2", "1.1.0", reason="x", clone=hub.clone)
    (change,) = lock([reference], path=tmp_path / "a.lock")
    assert change.after == "1.0.0"


def test_what_is_stored_and_not_given_is_named_offline(hub: Hub, source: Source) -> None:
    hub.trust()
    publish(source(), clone=hub.clone, key=hub.key.path)
    fetch(f"{hub.url}@sst2")
    yank("sst2", "1.0.0", reason="x", clone=hub.clone)
    with pytest.raises(NotFoundError):
        fetch(f"{hub.url}@sst2", refresh=True)
    with pytest.raises(NotFoundError) as refused:
        fetch(f"{hub.url}@sst2", offline=True)
    assert "stored is 1.0.0 (yanked): name a version to have it, sst2==…" in str(refused.value.hint)
    with pytest.warns(AdaptergitWarning, match="yanked"):
        assert fetch(f"{hub.url}@sst2==1.0.0", offline=True).from_store


@pytest.mark.slow
def test_releases_that_need_different_ones_of_a_third_are_not_locked_together(
    hub: Hub, source: Source, tmp_path: Path
) -> None:
    first = release(hub, source(name="a"))
    release(hub, source(b"2" * 3000, name="a", version="2.0.0"))
    for name, version in (("b", "1.0.0"), ("c", "2.0.0")):
        needs = [{"reference": f"{hub.url}@a=={version}"}]
        release(hub, source(name.encode() * 3000, name=name, dependencies=needs))
    one, two, third = (f"{hub.url}@{name}" for name in "abc")
    for wanted in ((one, two), (two, third), (third, two)):
        with pytest.raises(UsageError, match=r"was trained on .*@a==[12].0.0, and a [12].0.0 is to be locked"):
            lock(wanted, path=tmp_path / "l")
        assert not (tmp_path / "l").exists()
    lock([f"{one}==1.0.0", two], path=tmp_path / "l")
    assert read_lock(tmp_path / "l")[f"{PRINCIPAL}@a"].manifest_sha256 == first.digest
    assert len(check_lock(path=tmp_path / "l")) == 2
    other = tmp_path / "other"
    lock([one], path=other)
    text = json.loads((tmp_path / "l").read_text())
    text["adapters"] = [one for one in text["adapters"] if "@b" in one["id"]] + json.loads(other.read_text())[
        "adapters"
    ]
    (tmp_path / "l").write_text(json.dumps(text))
    with pytest.raises(PackageError, match=r"@b was trained on .*, which is locked to 2\.0\.0"):
        check_lock(path=tmp_path / "l")


@pytest.mark.slow
def test_more_on_top_of_each_other_than_is_loaded_is_not_locked(hub: Hub, source: Source, tmp_path: Path) -> None:
    below: list[dict[str, str]] = []
    for number in range(10):
        release(hub, source(bytes([number]) * 900, name=f"a{number}", dependencies=below))
        below = [{"reference": f"{hub.url}@a{number}"}]
    assert len(lock([f"{hub.url}@a7"], path=tmp_path / "l")) == 8
    with pytest.raises(PackageError, match="more than 8 adapters"):
        lock([f"{hub.url}@a9"], path=tmp_path / "m")


def test_what_was_only_looked_at_takes_nobody_s_place(hub: Hub, source: Source, tmp_path: Path) -> None:
    release(hub, source())
    fetch(f"{hub.url}@sst2")
    git(tmp_path, "clone", "-q", hub.url, "taken-over")
    stranger = generate_key(tmp_path / "stranger")
    with machine_of("somebody who has the server"):
        publish(source(b"e" * 3000, version="99.0.0"), clone=tmp_path / "taken-over", key=stranger.path)
    with pytest.raises(TrustError):
        fetch(f"{hub.url}@sst2", refresh=True)
    with pytest.warns(AdaptergitWarning, match="unsigned"):
        fetch(f"{hub.url}@sst2", refresh=True, policy="unsigned")
    assert [one.manifest.version for one in prune() if one.manifest] == ["99.0.0"]
    assert fetch(f"{hub.url}@sst2==1.0.0", offline=True).from_store
