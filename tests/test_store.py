"""The store: complete or absent, whoever writes, whatever happens in between."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from conftest import Hub, git

from adaptergit.errors import AdaptergitWarning, NotFoundError, PackageError, StorageError, TransportError, TrustError
from adaptergit.housekeeping import stored
from adaptergit.package import Card, pack
from adaptergit.publish import publish
from adaptergit.resolve import fetch, verify
from adaptergit.settings import Limits
from adaptergit.store import Known, Seen, Store

Source = Callable[..., Path]


def add(store: Store, folder: Path) -> str:
    card = Card.from_yaml((folder / "card.yaml").read_bytes())
    with store.workspace() as work:
        inner = work / "package"
        inner.mkdir()
        pack(folder, inner, card, repository="h.example/a/b", previous=None, created=datetime(2026, 1, 1, tzinfo=UTC))
        return store.add(inner, Limits()).digest


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_what_is_added_is_found_under_its_digest(store: Store, source: Source) -> None:
    digest = add(store, source())
    assert store.open(digest).digest == digest
    assert store.find("0" * 64) is None
    with pytest.raises(NotFoundError):
        store.open("0" * 64)
    with pytest.raises(PackageError):
        store.find("../../etc")


def test_adding_twice_is_adding_once(store: Store, source: Source) -> None:
    assert add(store, source()) == add(store, source())
    assert list((store.root / "tmp").iterdir()) == []


def test_what_does_not_match_its_manifest_is_not_stored(store: Store, source: Source) -> None:
    card = Card.from_yaml((source() / "card.yaml").read_bytes())
    with store.workspace() as work:
        inner = work / "package"
        inner.mkdir()
        pack(source(), inner, card, repository="h.example/a/b", previous=None, created=datetime.now(UTC))
        (inner / "adapter.safetensors").write_bytes(b"W" * 5000)
        with pytest.raises(PackageError, match="changed"):
            store.add(inner, Limits())
    assert not (store.root / "packages").exists()
    assert list((store.root / "tmp").iterdir()) == []


@pytest.mark.parametrize("damage", ["weights", "missing", "manifest", "extra"])
def test_a_damaged_entry_is_refused_and_healed_by_fetching_again(hub: Hub, source: Source, damage: str) -> None:
    publish(source(), clone=hub.clone, key=hub.key.path)
    hub.trust()
    path = fetch(f"{hub.url}@sst2").path
    if damage == "weights":
        (path / "adapter.safetensors").chmod(0o644)
        (path / "adapter.safetensors").write_bytes(b"W" * 5000)
    elif damage == "missing":
        (path / "README.md").unlink()
    elif damage == "manifest":
        (path / "manifest.json").chmod(0o644)
        (path / "manifest.json").write_bytes(b"{}")
    else:
        (path / "extra").write_bytes(b"")
    with pytest.raises((PackageError, NotFoundError, TrustError)):
        fetch(f"{hub.url}@sst2", offline=True)
    assert not fetch(f"{hub.url}@sst2").from_store
    assert fetch(f"{hub.url}@sst2", offline=True).from_store


@pytest.mark.parametrize("what", ["record", "record folder", "resolved", "packages", "shelf", "entry", "huge number"])
def test_nothing_in_the_store_stands_between_a_user_and_an_honest_server(
    hub: Hub, source: Source, home: Path, what: str
) -> None:
    publish(source(), clone=hub.clone, key=hub.key.path)
    hub.trust()
    path = fetch(f"{hub.url}@sst2").path
    cache = home / "cache"
    (record,) = (cache / "resolved").iterdir()
    if what == "record":
        record.write_text('{"fetched": {"9.0": ["' + "0" * 64 + '", "x"]}, "released": ["9.0"], "asked": 99999999999}')
    elif what == "huge number":
        record.write_text('{"fetched": {}, "released": [], "asked": ' + "9" * 400 + "}")
    else:
        target = {
            "record folder": record,
            "resolved": cache / "resolved",
            "packages": cache / "packages",
            "shelf": path.parent,
            "entry": path,
        }[what]
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        target.mkdir() if what == "record folder" else target.write_text("in the way")
    assert fetch(f"{hub.url}@sst2").version == "1.0.0"


def test_offline_takes_the_newest_that_is_sound(hub: Hub, source: Source) -> None:
    publish(source(), clone=hub.clone, key=hub.key.path)
    publish(source(b"new"), clone=hub.clone, key=hub.key.path, version="1.1.0")
    hub.trust()
    fetch(f"{hub.url}@sst2==1.0.0")
    path = fetch(f"{hub.url}@sst2").path
    (path / "README.md").unlink()
    assert fetch(f"{hub.url}@sst2", offline=True).version == "1.0.0"
    with pytest.raises(PackageError, match="missing"):
        fetch(f"{hub.url}@sst2==1.1.0", offline=True)


@pytest.mark.slow
def test_many_processes_fetch_once(hub: Hub, source: Source) -> None:
    publish(source(os.urandom(500_000)), clone=hub.clone, key=hub.key.path)
    hub.trust()
    hub.server.reset()
    script = (
        "import sys; from adaptergit.resolve import fetch, verify\n"
        "r = fetch(sys.argv[1]); print(r.digest, len((r.path / 'adapter.safetensors').read_bytes()), r.verdict.level)"
    )
    argv = [sys.executable, "-c", script, f"{hub.url}@sst2"]
    running = [subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(6)]
    outputs = {process.communicate()[0] for process in running}
    assert all(process.returncode == 0 for process in running)
    assert len(outputs) == 1
    assert len(outputs.pop().split()) == 3
    fetches = [r for r in hub.server.traffic.requests if r.startswith("POST")]
    assert len(fetches) <= 3, "one listing, one fetch"


@pytest.mark.slow
def test_a_killed_load_leaves_no_half_package(hub: Hub, source: Source, home: Path) -> None:
    publish(source(os.urandom(2_000_000)), clone=hub.clone, key=hub.key.path)
    hub.trust()
    argv = [sys.executable, "-c", f"from adaptergit.resolve import fetch; fetch('{hub.url}@sst2', refresh=True)"]
    for delay in (0.05, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5):
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for path in (home / "cache" / "packages").glob("*/*"):
            verify(path)
    assert fetch(f"{hub.url}@sst2").verdict.signers


def test_a_package_can_be_removed(store: Store, source: Source) -> None:
    digest = add(store, source())
    store.remove(digest)
    assert store.find(digest) is None
    store.remove(digest)


def test_what_was_seen_is_remembered_and_damage_is_nothing_seen(store: Store) -> None:
    known = Known({"1.0": Seen("a" * 64, "b" * 40)}, ("1.0", "1.1"), 5.0)
    assert store.remember("https://h/a", "x", lambda _: known) == known
    assert store.known("https://h/a", "x") == known
    assert store.known("https://h/a", "y") == Known({}, (), 0.0)
    (record,) = (store.root / "resolved").iterdir()
    never = [b'{"fetched": {}, "asked": %s}' % moment for moment in (b"1e300", b"NaN", b"-1", b"1e12")]
    for content in (b"", b"[]", b'{"fetched": 1}', b"\xff", *never):
        record.write_bytes(content)
        assert store.known("https://h/a", "x") == Known({}, (), 0.0)


@pytest.mark.skipif(os.name != "posix" or os.getuid() == 0, reason="root may write anywhere")
def test_a_read_only_store_says_so(store: Store, source: Source) -> None:
    store.root.mkdir()
    store.root.chmod(0o555)
    with pytest.raises(TransportError, match="store"):
        add(store, source())


def test_a_full_disk_is_a_clear_error(
    hub: Hub, source: Source, monkeypatch: pytest.MonkeyPatch, small_disk: Path
) -> None:
    publish(source(os.urandom(2_000_000)), clone=hub.clone, key=hub.key.path)
    monkeypatch.setenv("ADAPTERGIT_CACHE_DIR", str(small_disk / "cache"))
    with pytest.raises(StorageError, match="No space") as caught:
        fetch(f"{hub.url}@sst2")
    assert "ADAPTERGIT_CACHE_DIR" in str(caught.value.hint)
    assert list((small_disk / "cache").glob("packages/*/*")) == []
    assert shutil.disk_usage(small_disk).free > 200_000
    assert not [request for request in hub.server.traffic.requests if "/archive/" in request]  # nobody else can help


def test_a_full_disk_for_temporary_files_is_a_clear_error(
    hub: Hub, source: Source, monkeypatch: pytest.MonkeyPatch, small_disk: Path
) -> None:
    publish(source(), clone=hub.clone, key=hub.key.path)
    (small_disk / "full").write_bytes(b"x" * shutil.disk_usage(small_disk).free)
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    for run in (
        lambda: fetch(f"{hub.bare.as_uri()}@sst2"),  # lists with git, which needs a folder
        lambda: publish(source(b"x"), clone=hub.clone, key=hub.key.path, version="1.1.0"),
    ):
        with pytest.raises(StorageError, match="No space") as caught:
            run()
        assert "TMPDIR" in str(caught.value.hint)
    assert git(hub.bare, "tag") == "adapters/sst2/1.0.0"


def test_a_key_that_cannot_be_pinned_is_not_said_to_be(hub: Hub, source: Source, home: Path) -> None:
    publish(source(), clone=hub.clone, key=hub.key.path)
    config = home / "config"
    config.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "none", str(config)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a file system here")
    try:
        with pytest.raises(StorageError, match="cannot write to your settings") as caught:
            fetch(f"{hub.url}@sst2", policy="tofu")  # a warning would be an error here
        assert "ADAPTERGIT_CONFIG_DIR" in str(caught.value.hint)
    finally:
        subprocess.run(["umount", str(config)], check=True)
    assert stored() == []
    with pytest.warns(AdaptergitWarning, match="pinned the key"):
        fetch(f"{hub.url}@sst2", policy="tofu")


def test_what_two_see_at_once_of_an_adapter_is_remembered_both(store: Store) -> None:
    def see(number: int) -> None:
        store.remember("https://h/a", "x", lambda known: known.seeing(f"1.{number}", "a" * 64, "", vouched=True))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(see, range(40)))
    assert len(store.known("https://h/a", "x").fetched) == 40


def test_a_file_system_that_can_make_only_files_durable_is_good_enough(
    hub: Hub, source: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders of some network file systems refuse, and Windows whatever cannot be written to."""
    publish(source(), clone=hub.clone, key=hub.key.path)
    hub.trust()
    real = os.fsync

    def refusing(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(handle)

    monkeypatch.setattr(os, "fsync", refusing)
    assert fetch(f"{hub.url}@sst2").version == "1.0.0"


def test_windows_makes_durable_only_what_could_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    from adaptergit import durable

    def as_there(handle: int) -> None:
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")

    (tmp_path / "x").write_bytes(b"x")
    monkeypatch.setattr(os, "fsync", as_there)
    with pytest.raises(OSError, match="Bad file"):
        durable.sync(tmp_path / "x")
    monkeypatch.setattr(durable, "WRITABLE_TO_SYNC", True)
    durable.sync(tmp_path / "x")
