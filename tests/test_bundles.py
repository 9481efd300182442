"""Bundles: releases, and what is said of them, on their way to a machine without network."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import Hub, snapshot
from test_index import Index, index, listed, people  # noqa: F401 - fixtures
from test_ladder import BIG, forget, release

from adaptergit.bundle import export_bundle, import_bundle
from adaptergit.cli import main
from adaptergit.errors import AdaptergitError, AdaptergitWarning, NotFoundError, PackageError, TrustError, UsageError
from adaptergit.housekeeping import stored
from adaptergit.index.repository import replace as write
from adaptergit.indexes import client
from adaptergit.pins import add_pin, all_remembered, known_revocations, known_signers, revoke
from adaptergit.publish import publish, publish_all, yank
from adaptergit.resolve import fetch
from adaptergit.settings import Settings, cache_dir, config_dir, load_settings
from adaptergit.store import Store
from adaptergit.trust import AllowedSigner, SigningKey, generate_key

Source = Callable[..., Path]
Machine = Callable[[str], None]


@pytest.fixture
def machine(home: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Go to another machine, with settings and a store of its own."""

    def go(name: str) -> None:
        monkeypatch.setenv("ADAPTERGIT_CONFIG_DIR", str(home / name / "config"))
        monkeypatch.setenv("ADAPTERGIT_CACHE_DIR", str(home / name / "cache"))

    return go


def test_a_bundle_carries_releases_and_keys(hub: Hub, source: Source, tmp_path: Path, home: Path) -> None:
    published = release(hub, source(BIG))
    export_bundle(tmp_path / "a.tar", [f"{hub.url}@sst2"])
    export_bundle(tmp_path / "b.tar", [f"{hub.url}@sst2"])
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    forget()
    shutil.rmtree(home / "config")  # another machine
    with pytest.raises(TrustError, match="nobody you know"):
        import_bundle(tmp_path / "a.tar")
    copied = import_bundle(tmp_path / "a.tar", trust_keys=True)
    assert [(one.version, one.new) for one in copied] == [("1.0.0", True)]
    found = fetch(f"{hub.url}@sst2", offline=True)
    assert found.digest == published.digest  # type: ignore[attr-defined]
    assert [one.new for one in import_bundle(tmp_path / "a.tar")] == [False]


def unpacked(file: Path, folder: Path) -> Path:
    with tarfile.open(file) as archive:
        archive.extractall(folder, filter="data")
    return folder


def repacked(folder: Path, file: Path) -> Path:
    """Pack a folder as bundles were before they had contents: who means harm would write those anew."""
    (folder / "bundle.json").unlink()
    with tarfile.open(file, "w") as archive:
        for path in sorted(p for p in folder.rglob("*") if p.is_file() or p.is_symlink()):
            archive.add(path, path.relative_to(folder).as_posix(), recursive=False)
    return file


BUNDLE_DAMAGE: dict[str, Callable[[Path], object]] = {
    "a byte of the weights": lambda root: next(root.rglob("adapter.safetensors")).write_bytes(b"other"),
    "a missing file": lambda root: next(root.rglob("adapter.safetensors")).unlink(),
    "an unlisted file": lambda root: (next(root.rglob("card.yaml")).parent / "more.txt").write_text("x"),
    "no mark": lambda root: (root / "mirror.json").unlink(),
    "a file elsewhere": lambda root: (root / "evil.sh").write_text("x"),
    "a link": lambda root: (root / "packages" / "link").symlink_to("/etc/passwd"),
    "a listing that is no JSON": lambda root: next(root.rglob("sst2.json")).write_text("{"),
    "a listing of another version": lambda root: _edit(root, '"1.0.0"', '"9.0.0"'),
    "a listing of another tree": lambda root: next(root.rglob("sst2.json")).write_text(
        re.sub('"tree": "[0-9a-f]{2}', '"tree": "00', next(root.rglob("sst2.json")).read_text())
    ),
    "a listing of another digest": lambda root: _edit(root, '"manifest_sha256": "', '"manifest_sha256": "0'),
    "a key for everybody": lambda root: (root / "allowed_signers").write_text(
        "* " + (root / "allowed_signers").read_text().partition(" ")[2]
    ),
    "a key for somebody else": lambda root: (root / "allowed_signers").write_text(
        "github.com/bank/adapters " + (root / "allowed_signers").read_text().partition(" ")[2]
    ),
}


def _edit(root: Path, old: str, new: str) -> None:
    path = next(root.rglob("sst2.json"))
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize("name", BUNDLE_DAMAGE)
def test_a_damaged_bundle_is_refused(name: str, hub: Hub, source: Source, tmp_path: Path, home: Path) -> None:
    release(hub, source())
    export_bundle(tmp_path / "a.tar", [f"{hub.url}@sst2"])
    forget()
    shutil.rmtree(home / "config")
    root = unpacked(tmp_path / "a.tar", tmp_path / "inside")
    BUNDLE_DAMAGE[name](root)
    with pytest.raises((PackageError, TrustError)):
        import_bundle(repacked(root, tmp_path / "bad.tar"), trust_keys=True)
    assert not list((cache_dir() / "packages").glob("*/*"))
    if "key" in name:
        assert not known_signers(Settings())


def test_a_bundle_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        import_bundle(tmp_path / "none.tar")
    (tmp_path / "text.tar").write_text("no")
    with pytest.raises(PackageError, match="not a bundle"):
        import_bundle(tmp_path / "text.tar")
    with tarfile.open(tmp_path / "up.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("packages/../../up"))
    with pytest.raises(PackageError, match="plain files"):
        import_bundle(tmp_path / "up.tar")
    assert not (tmp_path / "up").exists()


def cut(file: Path, target: Path, *, before: Callable[[str], bool]) -> Path:
    """Cut a bundle off before the first file whose name is meant."""
    with tarfile.open(file) as archive:
        offset = next(member.offset for member in archive if before(member.name))
    target.write_bytes(file.read_bytes()[:offset])
    return target


@pytest.mark.slow
@pytest.mark.parametrize("contents", [True, False])
@pytest.mark.parametrize("part", ["mirror.json", "packages", "releases", "last release"])
def test_a_bundle_that_was_cut_off_is_refused(
    part: str, contents: bool, hub: Hub, source: Source, tmp_path: Path, machine: Machine
) -> None:
    release(hub, source())
    release(hub, source(b"new"), version="1.1.0")
    publish(source(b"x", folder="other", name="other"), clone=hub.clone, key=hub.key.path)
    export_bundle(
        tmp_path / "a.tar", [f"{hub.url}@sst2=={version}" for version in ("1.0.0", "1.1.0")] + [f"{hub.url}@other"]
    )
    whole = tmp_path / "a.tar"
    if not contents:
        whole = repacked(unpacked(whole, tmp_path / "inside"), tmp_path / "old.tar")
    with tarfile.open(whole) as archive:
        last = archive.getnames()[-1]
    bad = cut(
        whole, tmp_path / "cut.tar", before=lambda name: name.startswith(last if part == "last release" else part)
    )
    machine("far away")
    with pytest.raises(PackageError, match="cut off") as caught:
        import_bundle(bad, trust_keys=True)
    assert "once more" in str(caught.value.hint)
    assert stored() == []
    assert known_signers(Settings()) == []
    assert len(import_bundle(whole, trust_keys=True)) == 3


def test_a_bundle_holds_what_its_contents_say_and_releases(hub: Hub, source: Source, tmp_path: Path) -> None:
    release(hub, source())
    export_bundle(tmp_path / "a.tar", [f"{hub.url}@sst2"])
    data = (tmp_path / "a.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as archive:
        assert archive.getnames()[0] == "bundle.json"
        weights = next(member for member in archive if member.name.endswith("adapter.safetensors"))
    flipped = bytearray(data)
    flipped[weights.offset_data + 1000] ^= 1
    bad = tmp_path / "bad.tar"
    bad.write_bytes(flipped)
    with pytest.raises(PackageError, match=r"adapter\.safetensors' is not what the bundle was made with"):
        import_bundle(bad)
    bad.write_bytes(data[: weights.offset_data + 1000])
    with pytest.raises(PackageError, match="not all of one"):
        import_bundle(bad)
    bad.write_bytes(data.replace(b"adaptergit.bundle/1", b"adaptergit.bundle/2"))
    with pytest.raises(PackageError, match="bundle/2"):
        import_bundle(bad)
    root = unpacked(tmp_path / "a.tar", tmp_path / "inside")
    shutil.rmtree(root / "releases")
    with pytest.raises(PackageError, match="no releases"):
        import_bundle(repacked(root, bad))


@pytest.mark.parametrize("place", ["a.json/b.json", "b.json", "a/b/c/No.json", "a/-b/c/d.json", "a b/c/d.json"])
def test_a_listing_in_a_place_of_no_adapter_is_refused(place: str, hub: Hub, source: Source, tmp_path: Path) -> None:
    release(hub, source())
    export_bundle(tmp_path / "a.tar", [f"{hub.url}@sst2"])
    root = unpacked(tmp_path / "a.tar", tmp_path / "inside")
    target = root / "releases" / place
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(next(root.rglob("sst2.json")), target)
    with pytest.raises(PackageError, match="the place of no adapter"):
        import_bundle(repacked(root, tmp_path / "bad.tar"))


def test_all_of_a_bundle_or_nothing(hub: Hub, source: Source, tmp_path: Path, machine: Machine) -> None:
    hub.trust()
    folders = [source(name.encode(), folder=name, name=name) for name in ("first", "second")]
    publish_all(folders, clone=hub.clone, key=hub.key.path)
    export_bundle(tmp_path / "a.tar", [f"{hub.url}@first", f"{hub.url}@second"])
    root = unpacked(tmp_path / "a.tar", tmp_path / "inside")
    listing = next(root.rglob("second.json"))
    damaged = root / "packages" / json.loads(listing.read_text())["releases"][0]["manifest_sha256"]
    (damaged / "adapter.safetensors").write_bytes(b"other")
    machine("far away")
    with pytest.raises(PackageError, match="changed"):
        import_bundle(repacked(root, tmp_path / "bad.tar"), trust_keys=True)
    assert stored() == []
    with pytest.raises(NotFoundError, match="not in the store"):
        fetch(f"{hub.url}@first", offline=True)
    assert known_signers(Settings()) == []
    assert [one.name for one in import_bundle(tmp_path / "a.tar", trust_keys=True)] == ["first", "second"]


def test_a_bundle_with_a_huge_header_is_refused_before_it_is_read(tmp_path: Path) -> None:
    header = tarfile.TarInfo("./PaxHeaders/x")
    header.type, header.size = tarfile.XHDTYPE, 2**30
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(header.tobuf())
        file.truncate(2**30 + 4096)  # holds nothing on the disk
    tracemalloc.start()
    with pytest.raises(PackageError, match="an extended header of 1073741824 bytes"):
        import_bundle(tmp_path / "a.tar")
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()


def test_a_reason_from_elsewhere_forges_no_lines(hub: Hub, source: Source, tmp_path: Path, machine: Machine) -> None:
    release(hub, source())
    forged = "x\u202eevil\ngithub.com/bank/x\tall is well"
    revoke(hub.key.public.fingerprint, severity="warn", reason=forged)
    with pytest.warns(AdaptergitWarning):
        export_bundle(tmp_path / "a.tar", [f"{hub.url}@sst2"])
    machine("far away")
    import_bundle(tmp_path / "a.tar", trust_keys=True)
    for command in (["trust", "ls"], ["trust", "explain", "127.0.0.1/acme/adapters"]):
        said = CliRunner().invoke(main, command).output
        assert "evil" in said
        assert not any(line.startswith("github.com/bank") for line in said.splitlines())
        assert "\u202e" not in said


def test_yanks_and_revoked_keys_come_along(hub: Hub, source: Source, tmp_path: Path, machine: Machine) -> None:
    release(hub, source())
    release(hub, source(b"bad"), version="1.1.0")
    references = [f"{hub.url}@sst2=={version}" for version in ("1.0.0", "1.1.0")]
    for reference in references:
        fetch(reference)
    revoke(hub.key.public.fingerprint, severity="warn", reason="soon to be replaced")
    yank("sst2", "1.1.0", reason="trained on the test set", clone=hub.clone)
    with pytest.warns(AdaptergitWarning):
        export_bundle(tmp_path / "a.tar", references)
    machine("far away")
    import_bundle(tmp_path / "a.tar", trust_keys=True)
    with pytest.warns(AdaptergitWarning, match="soon to be replaced"):
        assert fetch(f"{hub.url}@sst2", offline=True).version == "1.0.0"
    assert [one.key for one in known_revocations(load_settings())] == [hub.key.public.fingerprint]
    with pytest.warns(AdaptergitWarning) as told:
        fetch(references[1], offline=True)
    assert any("was yanked" in str(one.message) for one in told)


def test_a_bundle_takes_no_key_away_from_other_repositories(
    hub: Hub, source: Source, other_key: SigningKey, tmp_path: Path, machine: Machine
) -> None:
    """A stranger's key listed as one of its own, and revoked there."""
    release(hub, source())
    fetch(f"{hub.url}@sst2")
    export_bundle(tmp_path / "a.tar", [f"{hub.url}@sst2"])
    root = unpacked(tmp_path / "a.tar", tmp_path / "root")
    with (root / "allowed_signers").open("a") as signers:
        signers.write(f"127.0.0.1/acme/adapters {other_key.public.line}\n")
    (root / "revoked.jsonl").write_text(json.dumps({"key": other_key.public.fingerprint}) + "\n")
    machine("far away")
    import_bundle(repacked(root, tmp_path / "b.tar"), trust_keys=True)
    (one,) = known_revocations(load_settings())
    assert one.covers(other_key.public.fingerprint, "127.0.0.1/acme/adapters", None)
    assert not one.covers(other_key.public.fingerprint, "127.0.0.1/honest/adapters", None)


def test_a_bundle_that_cannot_be_taken_in_pins_nothing(
    hub: Hub, source: Source, tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    release(hub, source())
    fetch(f"{hub.url}@sst2")
    revoke(hub.key.public.fingerprint, severity="warn", reason="soon to be replaced")
    with pytest.warns(AdaptergitWarning):
        export_bundle(tmp_path / "a.tar", [f"{hub.url}@sst2"])
    machine("far away")
    settings = load_settings()
    settings.revocations_path.mkdir(parents=True)  # where nothing can be written
    with pytest.raises((AdaptergitError, OSError)):
        import_bundle(tmp_path / "a.tar", trust_keys=True)
    settings.revocations_path.rmdir()
    assert known_signers(load_settings()) == []
    assert list(Store(cache_dir()).contents()) == []


@pytest.mark.slow
def test_what_is_taken_back_takes_nobody_elses_pin_along(home: Path) -> None:
    mine, others = generate_key(home / "mine"), generate_key(home / "others")
    settings, before = load_settings(), [sys.executable, "-m", "adaptergit", "trust", "add"]
    with pytest.raises(KeyboardInterrupt), all_remembered(settings):  # noqa: PT012 - what stops it comes last
        add_pin(settings, AllowedSigner(("127.0.0.1/acme/adapters",), mine.public))
        other = subprocess.Popen([*before, "127.0.0.1/acme/other", others.public.line])
        with pytest.raises(subprocess.TimeoutExpired):  # it waits for what is going on here
            other.wait(3)
        raise KeyboardInterrupt
    assert other.wait(60) == 0
    assert [one.key for one in known_signers(settings)] == [others.public]


def test_an_index_vouches_for_what_a_bundle_brings(
    listed: Index,  # noqa: F811
    hub: Hub,
    source: Source,
    tmp_path: Path,
    machine: Machine,
) -> None:
    machine("far away")
    listed.user()
    old = fetch(f"{hub.url}@sst2")
    machine("here")
    new = publish(source(b"new"), clone=hub.clone, key=hub.key.path, version="1.1.0")
    write(
        listed.repository.root / "revoked.jsonl",
        json.dumps({"manifest_sha256": old.digest, "reason": "poisoned"}).encode() + b"\n",
    )
    listed.release()
    listed.user()
    export_bundle(tmp_path / "a.tar", [f"{hub.url}@sst2==1.1.0"])
    shutil.rmtree(hub.bare)
    shutil.rmtree(listed.dist)
    machine("far away")
    assert [one.digest for one in import_bundle(tmp_path / "a.tar")] == [new.digest]
    found = fetch(f"{hub.url}@sst2", offline=True)
    assert (found.version, found.verdict.vouched_by) == ("1.1.0", ("the index community",))
    with pytest.raises(TrustError, match="poisoned"):
        fetch(f"{hub.url}@sst2==1.0.0", offline=True)


def test_an_index_can_be_added_from_a_bundle_by_its_root(
    listed: Index,  # noqa: F811
    hub: Hub,
    tmp_path: Path,
    machine: Machine,
) -> None:
    machine("here")
    listed.user()
    export_bundle(tmp_path / "a.tar", [f"{hub.url}@sst2"])
    shutil.rmtree(listed.dist)
    machine("far away")
    with pytest.raises(TrustError, match="nobody you know"):
        import_bundle(tmp_path / "a.tar")
    machine("elsewhere")  # whose word for the key is the bundle's, which has it of the index
    import_bundle(tmp_path / "a.tar", trust_keys=True)
    assert fetch(f"{hub.url}@sst2", offline=True).version == "1.0.0"
    machine("far away")
    with pytest.raises(NotFoundError, match="no index with the root"):
        import_bundle(tmp_path / "a.tar", index_root=f"sha256:{'0' * 64}")
    with pytest.raises(UsageError, match=r"'sha256:12' is no digest[^$]*64 hex digits"):
        import_bundle(tmp_path / "a.tar", index_root="sha256:12")
    assert client(load_settings()).subscriptions() == []
    import_bundle(tmp_path / "a.tar", index_root=f"sha256:{listed.root.digest}")
    assert fetch(f"{hub.url}@sst2", offline=True).verdict.vouched_by == ("the index community",)
    (one,) = client(load_settings()).subscriptions()
    assert (one.name, one.url, one.lazy) == ("community", listed.forge.url, True)


@pytest.mark.parametrize("name", ["snapshot.json.sig", "catalog.json.zst", "shards"])
def test_news_of_an_index_that_cannot_be_believed_are_not_taken_over(
    listed: Index,  # noqa: F811
    hub: Hub,
    source: Source,
    tmp_path: Path,
    machine: Machine,
    name: str,
) -> None:
    machine("far away")
    hub.trust()
    listed.user()
    machine("here")
    release(hub, source(b"new"), version="1.1.0")
    listed.release()
    listed.user()
    export_bundle(tmp_path / "a.tar", [f"{hub.url}@sst2==1.1.0"])
    root = unpacked(tmp_path / "a.tar", tmp_path / "inside")
    path = root / "indexes" / "community" / name
    shutil.rmtree(path) if path.is_dir() else path.write_bytes(b"x")
    machine("far away")
    before = snapshot(config_dir())
    with pytest.warns(AdaptergitWarning, match="index community is not taken over"):
        import_bundle(repacked(root, tmp_path / "bad.tar"))  # the publisher's key is known here in any case
    assert snapshot(config_dir()) == before
    assert fetch(f"{hub.url}@sst2==1.1.0", offline=True).version == "1.1.0"


def test_whatever_a_publisher_writes_comes_along(hub: Hub, source: Source, tmp_path: Path, machine: Machine) -> None:
    release(hub, source())
    fetch(f"{hub.url}@sst2")
    yank("sst2", "1.0.0", reason="⚠️ 😀 D:\\udacity", clone=hub.clone)
    with pytest.warns(AdaptergitWarning, match="yanked"):
        export_bundle(tmp_path / "a.tar", [f"{hub.url}@sst2==1.0.0"])
    machine("far away")
    import_bundle(tmp_path / "a.tar", trust_keys=True)
    with pytest.warns(AdaptergitWarning, match="yanked"):
        fetch(f"{hub.url}@sst2==1.0.0", offline=True)


def test_what_was_only_looked_at_is_history_once_a_bundle_brings_it(
    hub: Hub, source: Source, tmp_path: Path, machine: Machine
) -> None:
    release(hub, source())
    fetch(f"{hub.url}@sst2")
    export_bundle(tmp_path / "a.tar", [f"{hub.url}@sst2"])
    machine("far away")
    with pytest.warns(AdaptergitWarning, match="unsigned"):
        fetch(f"{hub.url}@sst2", policy="unsigned")
    who = "127.0.0.1/acme/adapters"
    assert [seen.vouched for seen in Store(cache_dir()).known(who, "sst2").fetched.values()] == [False]
    import_bundle(tmp_path / "a.tar", trust_keys=True)
    assert [seen.vouched for seen in Store(cache_dir()).known(who, "sst2").fetched.values()] == [True]
