"""Mirrors in a folder: interrupted, damaged, full, and read by others."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Hub, git, machine_of, snapshot
from test_ladder import forget, release

from adaptergit.bundle import export_bundle, import_bundle
from adaptergit.errors import AdaptergitWarning, PackageError, ReleaseError, StorageError, TrustError, UsageError
from adaptergit.lock import lock, sync
from adaptergit.mirror import mirror
from adaptergit.pins import known_signers, pin_key
from adaptergit.publish import publish, yank
from adaptergit.resolve import fetch
from adaptergit.settings import Settings, load_settings
from adaptergit.trust import SigningKey, sign

Source = Callable[..., Path]

KILLED_AT_THE_FIRST_COPY = """
import os, signal, sys
from adaptergit.cli import main
sys.addaudithook(lambda event, _: os.kill(os.getpid(), signal.SIGKILL) if event == "shutil.copyfile" else None)
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_mirror_whose_making_was_killed_is_gone_on_with(hub: Hub, source: Source, tmp_path: Path) -> None:
    release(hub, source())
    root = tmp_path / "mirror"
    command = [sys.executable, "-c", KILLED_AT_THE_FIRST_COPY, "mirror", f"{hub.url}@sst2", "--to", str(root)]
    assert subprocess.run(command, check=False, capture_output=True).returncode == -signal.SIGKILL
    (left,) = (root / "packages").iterdir()
    assert [one.new for one in mirror([f"{hub.url}@sst2"], to=root)] == [True]
    assert left.is_dir()  # perhaps another process is about to fill it
    os.utime(left, (0, time.time() - 100_000))
    assert [one.new for one in mirror([f"{hub.url}@sst2"], to=root)] == [False]
    assert not left.exists()


def test_a_folder_with_the_beginning_of_a_mark_is_no_other_thing(hub: Hub, source: Source, tmp_path: Path) -> None:
    release(hub, source())
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / ".mirror.json.0123abcd").write_text("{")
    assert [one.new for one in mirror([f"{hub.url}@sst2"], to=tmp_path / "mirror")] == [True]


@pytest.mark.parametrize("name", ["adapter.safetensors", "card.yaml", "manifest.json", "manifest.json.sig"])
@pytest.mark.parametrize("damage", ["cut", "gone", "other"])
def test_a_damaged_file_of_a_mirror_is_mended(name: str, damage: str, hub: Hub, source: Source, tmp_path: Path) -> None:
    release(hub, source())
    root = tmp_path / "mirror"
    mirror([f"{hub.url}@sst2"], to=root)
    before = snapshot(root)
    (path,) = root.glob(f"packages/*/{name}")
    content = path.read_bytes()
    damaged = {"cut": content[:-1], "other": content[:-1] + b"X"}.get(damage)
    path.unlink() if damaged is None else path.write_bytes(damaged)
    assert [(one.new, one.mended) for one in mirror([f"{hub.url}@sst2"], to=root)] == [(False, True)]
    assert snapshot(root) == before
    assert [(one.new, one.mended) for one in mirror([f"{hub.url}@sst2"], to=root)] == [(False, False)]


def test_a_listing_that_names_too_little_is_mended_and_a_damaged_one_is_named(
    hub: Hub, source: Source, tmp_path: Path
) -> None:
    release(hub, source())
    root = tmp_path / "mirror"
    mirror([f"{hub.url}@sst2"], to=root)
    before = snapshot(root)
    (listing,) = root.rglob("sst2.json")
    raw = json.loads(listing.read_text())
    raw["releases"][0]["files"].remove("adapter.safetensors")
    listing.write_text(json.dumps(raw))
    assert [one.mended for one in mirror([f"{hub.url}@sst2"], to=root)] == [True]
    assert snapshot(root) == before
    listing.write_bytes(listing.read_bytes()[:100])
    with pytest.raises(PackageError, match=r"sst2\.json") as caught:
        mirror([f"{hub.url}@sst2"], to=root)
    assert "remove it" in str(caught.value.hint)


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
@pytest.mark.parametrize(
    ("umask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700), (0o027, 0o640, 0o750)]
)
def test_whoever_may_read_one_file_of_a_mirror_may_read_all(
    umask: int, file: int, folder: int, hub: Hub, source: Source, tmp_path: Path
) -> None:
    release(hub, source())
    before = os.umask(umask)
    try:
        mirror([f"{hub.url}@sst2"], to=tmp_path / "mirror")
        export_bundle(tmp_path / "a.tar", [f"{hub.url}@sst2"])
    finally:
        os.umask(before)
    paths = [*(tmp_path / "mirror").rglob("*"), tmp_path / "mirror", tmp_path / "a.tar"]
    assert {path.stat().st_mode & 0o777 for path in paths if path.is_file()} == {file}
    assert {path.stat().st_mode & 0o777 for path in paths if path.is_dir()} == {folder}


@pytest.mark.slow
def test_a_full_disk_is_said_to_be_that_of_what_is_written(hub: Hub, source: Source, small_disk: Path) -> None:
    release(hub, source(os.urandom(2_000_000)))
    release(hub, source(b"small"), version="1.1.0")
    root, bundle, locked = small_disk / "mirror", small_disk / "a.tar", small_disk / "adaptergit.lock"
    lock([f"{hub.url}@sst2"], path=locked)
    before = locked.read_bytes()
    for run, where in (
        (lambda: mirror([f"{hub.url}@sst2==1.0.0"], to=root), root),
        (lambda: export_bundle(bundle, [f"{hub.url}@sst2==1.0.0"]), bundle),
    ):
        with pytest.raises(StorageError, match="No space") as caught:
            run()
        assert (caught.value.where, bool(caught.value.hint)) == (str(where), True)
    assert not bundle.exists()
    assert list(snapshot(root)) == ["mirror.json"]
    assert [one.new for one in mirror([f"{hub.url}@sst2==1.1.0"], to=root)] == [True]
    (small_disk / "full").write_bytes(b"x" * shutil.disk_usage(small_disk).free)
    with pytest.raises(StorageError, match="No space") as caught:
        lock([f"{hub.url}@sst2==1.0.0"], path=locked)
    assert caught.value.where == str(locked)
    assert locked.read_bytes() == before


def test_a_place_for_a_bundle_that_is_none(hub: Hub, source: Source, tmp_path: Path) -> None:
    release(hub, source())
    with pytest.raises(UsageError, match="no such folder"):
        export_bundle(tmp_path / "missing" / "a.tar", [f"{hub.url}@sst2"])
    with pytest.raises(UsageError, match="is a folder"):
        export_bundle(tmp_path, [f"{hub.url}@sst2"])


def test_a_file_where_a_folder_must_be_is_said_to_be_in_the_way(hub: Hub, source: Source, tmp_path: Path) -> None:
    release(hub, source())
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match="Not a directory"):
        mirror([f"{hub.url}@sst2"], to=tmp_path / "file" / "mirror")
    with pytest.raises(UsageError, match="not a folder"):
        mirror([f"{hub.url}@sst2"], to=tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_signature_that_was_added_later_is_in_mirrors_and_bundles(
    hub: Hub, source: Source, tmp_path: Path, other_key: SigningKey
) -> None:
    release(hub, source())
    reference = f"{hub.url}@sst2==1.0.0"
    fetch(reference)
    mirror([reference], to=tmp_path / "m")
    tag, name = "refs/tags/adapters/sst2/1.0.0", "manifest.json.12345678.sig"
    signature = tmp_path / "signature"
    signature.write_bytes(sign((hub.clone / "adapters/sst2/manifest.json").read_bytes(), other_key))
    blob = git(hub.bare, "hash-object", "-w", str(signature))
    listing = f"{git(hub.bare, 'ls-tree', tag)}\n100644 blob {blob}\t{name}\n"
    made = ["git", "-C", str(hub.bare), "mktree"]
    tree = subprocess.run(made, input=listing, text=True, capture_output=True, check=True).stdout.strip()
    who = ("-c", "user.name=a", "-c", "user.email=a@b.example")
    git(hub.bare, "update-ref", tag, git(hub.bare, *who, "commit-tree", "-m", "x", tree))
    fetch(reference, refresh=True)
    mirror([reference], to=tmp_path / "m")
    export_bundle(tmp_path / "a.tar", [reference])
    hub.bare.rename(hub.bare.with_name("away.git"))
    forget()
    settings = Settings(mirrors=(("127.0.0.1/acme/adapters", ((tmp_path / "m").as_uri() + "/",)),))
    found = fetch(reference, settings=settings)
    assert (found.path / name).is_file()
    forget()
    import_bundle(tmp_path / "a.tar")
    assert fetch(reference, offline=True).from_store


def _by_a_thief(hub: Hub, source: Source, tmp_path: Path, thief: SigningKey) -> str:
    """Return another repository, whose releases say that they are the hub's."""
    evil, clone = hub.server.create("evil/adapters"), tmp_path / "evil"
    git(tmp_path, "clone", "-q", evil, str(clone))
    publish(source(b"evil" * 2000), clone=clone, key=thief.path, repository="127.0.0.1/acme/adapters")
    return evil


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["git", "static", "bundle"])
def test_on_first_use_only_the_repository_itself_says_whose_it_is(
    hub: Hub, source: Source, tmp_path: Path, other_key: SigningKey, kind: str
) -> None:
    """Who keeps a mirror, or makes a bundle, could pin a key of their own."""
    publish(source(), clone=hub.clone, key=hub.key.path)
    evil, away = _by_a_thief(hub, source, tmp_path, other_key), hub.bare.with_name("gone.git")
    hub.bare.rename(away)
    principal, settings = "127.0.0.1/acme/adapters", load_settings()
    with machine_of("thief"):
        pin_key(principal, other_key.public.line)
        believing = replace(load_settings(), mirrors=((principal, (evil,)),))
        mirror([f"{hub.url}@sst2"], to=tmp_path / "mirror", settings=believing)
        export_bundle(tmp_path / "all.tar", [f"{hub.url}@sst2"], settings=believing)
    wanted = replace(settings, policy=(("*", "tofu", 1),))
    url = evil if kind == "git" else f"{tmp_path / 'mirror'}/"
    mirrored = replace(wanted, mirrors=((principal, (url,)),))
    with pytest.raises(TrustError, match="nobody you know"):
        import_bundle(tmp_path / "all.tar", settings=wanted) if kind == "bundle" else fetch(
            f"{hub.url}@sst2", settings=mirrored
        )
    assert known_signers(settings) == []
    away.rename(hub.bare)
    with pytest.warns(AdaptergitWarning, match="first use"):
        fetch(f"{hub.url}@sst2", settings=wanted)
    assert [one.key for one in known_signers(settings)] == [hub.key.public]


@pytest.mark.parametrize("way", ["again", "trust", "bundle"])
@pytest.mark.parametrize("how", ["lock", "digest"])
def test_under_tofu_a_mirror_alone_is_no_first_use_and_the_error_says_what_to_do(
    hub: Hub, source: Source, tmp_path: Path, how: str, way: str
) -> None:
    principal, locked, away = "127.0.0.1/acme/adapters", tmp_path / "adaptergit.lock", hub.bare.with_name("gone.git")
    publish(source(), clone=hub.clone, key=hub.key.path)
    with machine_of("keeper"):
        pin_key(principal, hub.key.public.line)
        digest = mirror([f"{hub.url}@sst2"], to=tmp_path / "mirror")[0].digest
        lock([f"{hub.url}@sst2"], path=locked)
        export_bundle(tmp_path / "all.tar", [f"{hub.url}@sst2"])
    settings = replace(
        load_settings(), policy=(("*", "tofu", 1),), mirrors=((principal, (f"{tmp_path / 'mirror'}/",)),)
    )

    def get() -> str:
        if how == "lock":
            return sync(path=locked, settings=settings)[0].version
        return fetch(f"{hub.url}@sst2#sha256:{digest}", settings=settings).version

    hub.bare.rename(away)
    with pytest.raises(TrustError, match="nobody you know") as refused:
        get()
    hint = str(refused.value.hint)
    assert "only what the repository itself sends" in hint
    assert f"adaptergit trust add {principal} '{hub.key.public.line}'" in hint
    if way == "again":
        away.rename(hub.bare)
        with pytest.warns(AdaptergitWarning, match="first use"):
            assert get() == "1.0.0"
        return
    if way == "trust":
        pin_key(principal, hub.key.public.line)
    else:
        with pytest.raises(TrustError, match="--trust-keys"):
            import_bundle(tmp_path / "all.tar", settings=settings)
        import_bundle(tmp_path / "all.tar", settings=settings, trust_keys=True)
    assert get() == "1.0.0"


def test_under_tofu_the_weights_of_a_mirror_are_not_even_asked_for(hub: Hub, source: Source, tmp_path: Path) -> None:
    principal = "127.0.0.1/acme/adapters"
    publish(source(), clone=hub.clone, key=hub.key.path)
    with machine_of("keeper"):
        pin_key(principal, hub.key.public.line)
        mirror([f"{hub.url}@sst2"], to=tmp_path / "mirror")
    (weights,) = tmp_path.glob("mirror/packages/*/*.safetensors")
    weights.unlink()  # whoever asks for them is told so
    hub.bare.rename(hub.bare.with_name("gone.git"))
    mirrors = ((principal, (f"{tmp_path / 'mirror'}/",)),)
    with pytest.raises(TrustError, match="nobody you know"):
        fetch(f"{hub.url}@sst2", settings=replace(load_settings(), policy=(("*", "tofu", 1),), mirrors=mirrors))


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["unsigned", "digest"])
def test_what_was_looked_at_before_is_no_first_use(
    hub: Hub, source: Source, tmp_path: Path, other_key: SigningKey, policy: str
) -> None:
    """What is in the store came from anybody."""
    publish(source(), clone=hub.clone, key=hub.key.path)
    evil, away = _by_a_thief(hub, source, tmp_path, other_key), hub.bare.with_name("gone.git")
    hub.bare.rename(away)
    principal = "127.0.0.1/acme/adapters"
    mirrored = replace(load_settings(), mirrors=((principal, (evil,)),))
    with warnings.catch_warnings(action="ignore"):
        digest = fetch(f"{hub.url}@sst2==1.0.0", policy="unsigned", settings=mirrored).digest
        if policy == "digest":
            fetch(f"{hub.url}@sst2==1.0.0#sha256:{digest}", policy="digest", settings=mirrored)
    wanted = replace(mirrored, policy=(("*", "tofu", 1),))
    for reference in (f"{hub.url}@sst2==1.0.0", f"{hub.url}@sst2==1.0.0#sha256:{digest}"):
        with pytest.raises(TrustError, match="nobody you know"):
            fetch(reference, settings=wanted)
        with pytest.raises(TrustError, match="nobody you know"):
            fetch(reference, settings=wanted, offline=True)
    assert known_signers(wanted) == []


@pytest.mark.slow
@pytest.mark.parametrize("how", ["lock", "digest"])
def test_a_pinned_release_that_the_repository_lost_is_fetched_from_a_mirror(
    hub: Hub, source: Source, tmp_path: Path, how: str
) -> None:
    """Its branch holds a newer one, which says nothing against it."""
    found = release(hub, source())
    locked = tmp_path / "adaptergit.lock"
    lock([f"{hub.url}@sst2"], path=locked)
    mirror([f"{hub.url}@sst2"], to=tmp_path / "mirror")
    release(hub, source(b"x" * 5000), version="1.1.0")
    git(hub.bare, "update-ref", "-d", "refs/tags/adapters/sst2/1.0.0")
    tree = git(hub.bare, "rev-parse", "main^{tree}")
    alone = git(hub.bare, "-c", "user.name=x", "-c", "user.email=x@y", "commit-tree", tree, "-m", "begun anew")
    git(hub.bare, "update-ref", "refs/heads/main", alone)
    git(hub.bare, "reflog", "expire", "--expire=now", "--all")
    git(hub.bare, "gc", "-q", "--prune=now")
    with machine_of("other"):
        pin_key("127.0.0.1/acme/adapters", hub.key.public.line)
        settings = replace(load_settings(), mirrors=(("127.0.0.1/acme/adapters", (f"{tmp_path / 'mirror'}/",)),))
        if how == "lock":
            (got,) = sync(path=locked, settings=settings)
        else:
            got = fetch(f"{hub.url}@sst2==1.0.0#sha256:{found.digest}", settings=settings)
        assert (got.version, got.digest) == ("1.0.0", found.digest)


@pytest.mark.parametrize(("here", "there"), [("sha1", "sha256"), ("sha256", "sha1")])
def test_a_locked_release_is_found_in_a_mirror_with_other_object_ids(
    hub: Hub, source: Source, tmp_path: Path, here: str, there: str
) -> None:
    copies = {}
    for kind in (here, there):
        git(tmp_path, "init", "-q", "--bare", f"--object-format={kind}", f"{kind}.git")
        copies[kind] = f"file://{tmp_path}/{kind}.git"
    release(hub, source())
    for url in copies.values():
        mirror([f"{hub.url}@sst2"], to=url)
    away = hub.bare.with_name("gone.git")
    hub.bare.rename(away)
    principal, locked = "127.0.0.1/acme/adapters", tmp_path / "adaptergit.lock"
    with machine_of("one"):
        pin_key(principal, hub.key.public.line)
        lock(
            [f"{hub.url}@sst2"], path=locked, settings=replace(load_settings(), mirrors=((principal, (copies[here],)),))
        )
    with machine_of("two"):
        pin_key(principal, hub.key.public.line)
        (got,) = sync(path=locked, settings=replace(load_settings(), mirrors=((principal, (copies[there],)),)))
        assert got.version == "1.0.0"


@pytest.mark.slow
def test_a_git_mirror_has_one_repository_s_adapter_of_a_name(hub: Hub, source: Source) -> None:
    """Tags and marks have the adapter's name only: two repositories' would be mixed."""
    release(hub, source())
    release(hub, source(b"y" * 900), version="1.5.0")
    yank("sst2", "1.5.0", reason="x", clone=hub.clone)
    copies = hub.server.create("mirror/all")
    with pytest.warns(AdaptergitWarning, match="yanked"):
        mirror([f"{hub.url}@sst2", f"{hub.url}@sst2==1.5.0"], to=copies)
    other, clone = hub.server.create("zeta/adapters"), hub.clone.with_name("zeta")
    git(hub.clone.parent, "clone", "-q", other, str(clone))
    publish(source(b"z" * 900, version="3.0.0"), clone=clone, key=hub.key.path)
    pin_key("127.0.0.1/zeta/adapters", hub.key.public.line)
    before = git(hub.clone, "ls-remote", copies)
    with pytest.raises(ReleaseError, match=r"has sst2 of 127.0.0.1/acme/adapters, and cannot have that of .*zeta"):
        mirror([f"{other}@sst2"], to=copies)
    assert git(hub.clone, "ls-remote", copies) == before
    empty = hub.server.create("mirror/empty")
    with pytest.raises(ReleaseError, match="cannot have"):
        mirror([f"{hub.url}@sst2", f"{other}@sst2"], to=empty)
