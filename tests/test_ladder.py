"""Every way to a release: phases, retries, the branch, archives, mirrors, bundles."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import socket
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Hub, git, snapshot
from forge_simulator import Answer, Forge, Request, body, cut_after, endless, slowly, status

from adaptergit.errors import (
    AdaptergitError,
    AdaptergitWarning,
    NotFoundError,
    PackageError,
    ReleaseError,
    TransportError,
    TrustError,
    UsageError,
)
from adaptergit.git import GitServer, listing, runner
from adaptergit.mirror import mirror
from adaptergit.publish import publish, yank
from adaptergit.resolve import fetch
from adaptergit.settings import Limits, Settings, cache_dir, load_settings
from adaptergit.web.download import Download

Source = Callable[..., Path]
BIG = b"w" * 400_000
PRINCIPAL = "127.0.0.1/acme/adapters"


def release(hub: Hub, folder: Path, **options: object) -> object:
    hub.trust()
    return publish(folder, clone=hub.clone, key=hub.key.path, **options)  # type: ignore[arg-type]


def forget() -> None:
    shutil.rmtree(cache_dir(), ignore_errors=True)


@pytest.fixture
def forge(tmp_path: Path) -> Iterator[Forge]:
    root = tmp_path / "www"
    root.mkdir()
    with Forge(root, tmp_path / "server") as forge:
        yield forge


def elsewhere(hub: Hub, forge: Forge) -> str:
    """The same publisher's repository at a server that speaks no git."""
    return f"{forge.url}/acme/adapters.git"


# --- two phases -------------------------------------------------------------------------------------------------------


def test_policy_decides_before_the_weights_move(hub: Hub, source: Source) -> None:
    git(hub.bare, "config", "uploadpack.allowFilter", "true")
    publish(source(BIG), clone=hub.clone, key=hub.key.path)  # nobody trusts the key
    hub.server.traffic.sent = 0
    with pytest.raises(TrustError, match="nobody you know"):
        fetch(f"{hub.url}@sst2==1.0.0")
    assert hub.server.traffic.sent < 20_000
    hub.trust()
    hub.server.traffic.requests.clear()
    found = fetch(f"{hub.url}@sst2==1.0.0")
    assert len(hub.server.traffic.requests) == 5  # three for the tag without weights, two for the weights
    assert (found.path / "adapter.safetensors").read_bytes().endswith(BIG)


def test_a_server_that_cannot_filter_sends_all_at_once(hub: Hub, source: Source) -> None:
    release(hub, source(BIG))
    hub.server.traffic.requests.clear()
    fetch(f"{hub.url}@sst2==1.0.0")
    assert len(hub.server.traffic.requests) == 3


def test_small_adapters_need_one_phase(hub: Hub, source: Source) -> None:
    git(hub.bare, "config", "uploadpack.allowFilter", "true")
    release(hub, source())
    hub.server.traffic.requests.clear()
    fetch(f"{hub.url}@sst2==1.0.0")
    assert len(hub.server.traffic.requests) == 3


def test_what_the_manifest_does_not_say_is_not_fetched(hub: Hub, source: Source) -> None:
    """A large file beside the manifest's: known before its bytes move."""
    git(hub.bare, "config", "uploadpack.allowFilter", "true")
    release(hub, source(BIG))
    tag = "refs/tags/adapters/sst2/1.0.0"
    (hub.bare / "big").write_bytes(b"z" * 600_000)
    blob = git(hub.bare, "hash-object", "-w", str(hub.bare / "big"))
    listing = git(hub.bare, "ls-tree", tag) + f"\n100644 blob {blob}\tstowaway.txt"
    tree = git(hub.bare, "mktree", stdin=listing + "\n")
    commit = git(hub.bare, "-c", "user.name=x", "-c", "user.email=x@x", "commit-tree", tree, "-m", "x")
    git(hub.bare, "update-ref", tag, commit)
    hub.server.traffic.sent = 0
    with pytest.raises(PackageError, match=r"not listed in the manifest: stowaway\.txt"):
        fetch(f"{hub.url}@sst2==1.0.0")
    assert hub.server.traffic.sent < 20_000


# --- the branch -------------------------------------------------------------------------------------------------------


def test_a_repository_that_lost_its_tags_is_read_from_the_branch(hub: Hub, source: Source) -> None:
    git(hub.bare, "config", "uploadpack.allowFilter", "true")
    release(hub, source(BIG))
    git(hub.bare, "tag", "-d", "adapters/sst2/1.0.0")
    found = fetch(f"{hub.url}@sst2")
    assert (found.version, found.from_store) == ("1.0.0", False)
    assert fetch(f"{hub.url}@sst2==1.0.0").from_store
    with pytest.raises(NotFoundError, match="no adapter 'other'"):
        fetch(f"{hub.url}@other")
    forget()
    for wanted in (">=2", "==2.0.0"):
        with pytest.raises(NotFoundError, match=f"the branch has no sst2{wanted}"):
            fetch(f"{hub.url}@sst2{wanted}")


# --- archives ---------------------------------------------------------------------------------------------------------


def test_a_forges_archive_serves_when_git_does_not(hub: Hub, source: Source, forge: Forge) -> None:
    published = release(hub, source(BIG))
    found = fetch(f"{elsewhere(hub, forge)}@sst2==1.0.0")
    assert found.digest == published.digest  # type: ignore[attr-defined]
    assert any("/archive/adapters/sst2/1.0.0.tar.gz" in path for path, _ in forge.asked)
    assert fetch(f"{elsewhere(hub, forge)}@sst2==1.0.0").from_store


def test_an_archive_needs_no_git(hub: Hub, source: Source, forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    release(hub, source())
    from adaptergit.git import runner

    runner._git_class.cache_clear()
    monkeypatch.setattr(runner.shutil, "which", lambda _: None)
    assert fetch(f"{elsewhere(hub, forge)}@sst2==1.0.0").version == "1.0.0"
    runner._git_class.cache_clear()


def packed(*members: tuple[str, bytes, dict[str, object]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content, fields in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in fields.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return buffer.getvalue()


HOSTILE_ARCHIVES = {
    "parent path": packed(("../card.yaml", b"x", {})),
    "absolute path": packed(("/card.yaml", b"x", {})),
    "deep path": packed(("a/b/card.yaml", b"x", {})),
    "symbolic link": packed(("a/card.yaml", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"})),
    "hard link": packed(("a/card.yaml", b"", {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"})),
    "device": packed(("a/card.yaml", b"", {"type": tarfile.CHRTYPE})),
    "fifo": packed(("a/card.yaml", b"", {"type": tarfile.FIFOTYPE})),
    "executable": packed(("a/card.yaml", b"x", {"mode": 0o755})),
    "pickle": packed(("a/weights.bin", b"x", {})),
    "hidden file": packed(("a/.gitattributes", b"x", {})),
    "twice": packed(("a/card.yaml", b"x", {}), ("a/card.yaml", b"y", {})),
    "differs in case": packed(("a/card.yaml", b"x", {}), ("a/CARD.yaml", b"y", {})),
    "too many": packed(*((f"a/f{i}.txt", b"x", {}) for i in range(70))),
    "bomb": packed(("a/adapter.safetensors", b"\0" * (9 << 20), {})),
}


@pytest.mark.parametrize("name", HOSTILE_ARCHIVES)
def test_a_hostile_archive_is_refused(
    name: str, hub: Hub, source: Source, forge: Forge, home: Path, tmp_path: Path
) -> None:
    release(hub, source())
    forge.faults["/archive/"] = [body(HOSTILE_ARCHIVES[name])] * 3
    settings = Settings(limits=Limits(file_bytes=8 << 20, package_bytes=8 << 20))
    before = snapshot(tmp_path / "server")
    with pytest.raises(PackageError, match=r"/archive/"):
        fetch(f"{elsewhere(hub, forge)}@sst2==1.0.0", settings=settings)
    assert not list((cache_dir() / "packages").glob("*/*"))
    assert snapshot(tmp_path / "server") == before
    assert not list((cache_dir() / "tmp").iterdir())


@pytest.mark.parametrize(
    "answer", [b"<html>log in</html>", packed(("a/card.yaml", b"x" * 9000, {}))[:60]], ids=["a page to log in", "cut"]
)
def test_what_is_no_archive_or_no_listing_is_no_lie(
    answer: bytes, hub: Hub, source: Source, forge: Forge, tmp_path: Path
) -> None:
    """Some servers answer whatever is asked with a page to log in: the next mirror is asked."""
    release(hub, source())
    mirror([f"{hub.url}@sst2"], to=tmp_path / "mirror")
    forget()
    forge.faults["/archive/"] = [body(answer)] * 3
    forge.faults["/wall/"] = [body(b"<html>log in</html>")] * 9
    mirrors = (f"{forge.url}/wall/", f"{(tmp_path / 'mirror').as_uri()}/")
    found = fetch(f"{elsewhere(hub, forge)}@sst2==1.0.0", settings=Settings(mirrors=(("127.0.0.1/*", mirrors),)))
    assert (found.version, found.served_by) == ("1.0.0", mirrors[1])


@pytest.mark.slow
def test_the_time_there_is_is_for_all_ways_together(hub: Hub, source: Source, forge: Forge) -> None:
    """A server that sends a byte now and then has used it up: nobody else is asked."""
    release(hub, source())
    forge.faults["/info/refs"] = [slowly] * 20
    settings = Settings(limits=Limits(fetch_seconds=2), mirrors=((PRINCIPAL, (f"{forge.url}/mirror/",)),))
    with pytest.raises(TransportError, match="no end within 2 s"):
        fetch(f"{elsewhere(hub, forge)}@sst2==1.0.0", settings=settings)
    assert {path.partition("?")[0] for path, _ in forge.asked} == {"/acme/adapters.git/info/refs"}


# --- downloads --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_download_goes_on_where_it_was_cut(forge: Forge, tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (forge.root / "file").write_bytes(content)
    forge.faults["/file"] = [cut_after(700_000), status(503)]
    Download().save(f"{forge.url}/file", tmp_path / "got", 2_000_000)
    assert (tmp_path / "got").read_bytes() == content
    first, second, third = [headers.get("Range", "") for _, headers in forge.asked]
    assert first == ""
    assert second == third  # the answer between them was an error
    assert 0 < int(second.removeprefix("bytes=").removesuffix("-")) <= 700_000
    assert all(headers["If-Range"].startswith('"') for _, headers in forge.asked[1:])
    forge.ranges = False  # it sends all of it again
    forge.faults["/file"] = [cut_after(700_000)]
    Download().save(f"{forge.url}/file", tmp_path / "again", 2_000_000)
    assert (tmp_path / "again").read_bytes() == content


def test_two_halves_of_different_documents_are_not_joined(forge: Forge, tmp_path: Path) -> None:
    """A forge may make its archive anew between the two."""
    (forge.root / "file").write_bytes(b"b" * 900_000)
    forge.faults["/file"] = [cut_after(700_000, b"a" * 900_000)]
    Download().save(f"{forge.url}/file", tmp_path / "got", 2_000_000)
    assert (tmp_path / "got").read_bytes() == b"b" * 900_000


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (endless, TransportError),
        (slowly, TransportError),
        (status(404), NotFoundError),
        (status(410), NotFoundError),
        (status(403), TransportError),
        (status(302, Location="http://192.0.2.1/x"), TransportError),
        (status(302, Location="file:///etc/passwd"), TransportError),
        (status(302, Location="/file"), TransportError),
        (status(206, Content_Range="bytes 5-9/10"), TransportError),
    ],
)
def test_a_download_that_cannot_be_is_given_up(forge: Forge, fault: Answer, error: type[AdaptergitError]) -> None:
    (forge.root / "file").write_bytes(b"x")
    forge.faults["/file"] = [fault] * 8
    with pytest.raises(error):
        Download(seconds=2.0).read(f"{forge.url}/file", 100_000)


@pytest.mark.parametrize(
    "url", ["http://example.org/x", "ftp://example.org/x", "file:///etc/passwd", "https://user:secret@example.org/x"]
)
def test_only_https_is_asked_and_no_credentials_in_addresses(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        Download().read(url, 10)
    assert "secret" not in str(caught.value)


def test_credentials_of_netrc_stay_with_their_host(forge: Forge, home: Path, tmp_path: Path) -> None:
    (home / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
    (home / ".netrc").chmod(0o600)
    (forge.root / "file").write_bytes(b"x")
    port = forge.server.server_address[1]
    forge.faults["/away"] = [status(302, Location=f"http://localhost:{port}/file")]
    assert Download().read(f"{forge.url}/away", 10) == b"x"
    (_, first), (_, second) = forge.asked
    assert first["Authorization"].startswith("Basic ")
    assert "Authorization" not in second


@pytest.mark.slow
@pytest.mark.parametrize("specifier", ["==1.0.0", ""])
def test_mirrors_have_their_turn_when_a_repository_keeps_silent(
    hub: Hub, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, specifier: str
) -> None:
    publish(source(), clone=hub.clone, key=hub.key.path)
    hub.trust()
    mirror([f"{hub.url}@sst2"], to=tmp_path / "mirror")
    monkeypatch.setattr(runner, "_CONFIG", tuple(one.replace("Time=60", "Time=1") for one in runner._CONFIG))
    monkeypatch.setattr(listing, "_PATIENCE", 1.0)
    monkeypatch.setenv("ADAPTERGIT_CACHE_DIR", str(tmp_path / "another-store"))
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/acme/adapters.git"
        settings = Settings(mirrors=((PRINCIPAL, (f"{(tmp_path / 'mirror').as_uri()}/",)),))
        found = fetch(f"{url}@sst2{specifier}", settings=settings)
        assert (found.version, found.served_by) == ("1.0.0", f"{(tmp_path / 'mirror').as_uri()}/")
        silent.settimeout(0.2)
        asked = 0
        with contextlib.suppress(TimeoutError):
            while True:
                silent.accept()[0].close()
                asked += 1
        assert asked <= (2 if specifier else 4), "nobody is asked again and again"


# --- mirrors ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_static_mirror_serves_when_the_repository_is_gone(hub: Hub, source: Source, forge: Forge) -> None:
    published = release(hub, source(BIG))
    release(hub, source(b"v" * 10), version="1.1.0")
    copied = mirror([f"{hub.url}@sst2==1.0.0", f"{hub.url}@sst2==1.1.0"], to=forge.root / "mirror")
    assert [one.new for one in copied] == [True, True]
    before = snapshot(forge.root)
    assert [one.new for one in mirror([f"{hub.url}@sst2==1.0.0"], to=forge.root / "mirror")] == [False]
    assert snapshot(forge.root) == before
    forget()
    git(hub.bare, "symbolic-ref", "HEAD", "refs/heads/main")
    shutil.move(hub.bare, hub.bare.with_name("gone.git"))
    settings = Settings(mirrors=(("127.0.0.1/*", (f"{forge.url}/mirror/",)),))
    found = fetch(f"{hub.url}@sst2==1.0.0", settings=settings)
    assert found.digest == published.digest  # type: ignore[attr-defined]
    assert fetch(f"{hub.url}@sst2", settings=settings).version == "1.1.0"
    forget()
    for written in ((forge.root / "mirror").as_uri() + "/", str(forge.root / "mirror")):
        forget()
        local = Settings(mirrors=((PRINCIPAL, (written,)),))
        found = fetch(f"{hub.url}@sst2", settings=local)
        assert (found.version, found.served_by) == ("1.1.0", (forge.root / "mirror").as_uri() + "/")


@pytest.mark.parametrize(
    "url",
    [
        *("http://127.0.0.1:8000", "ext::sh -c x", "", "-u x", "acme/adapters/", "ssh://git@example.org/x/"),
        *(
            "https://me:secret@example.org/x/",
            "https://me@example.org/",
            "https:///",
            "http://example.org:x/",
            "https://[/",
        ),
        *("https://example.org/?x=/", "https://example.org/#/", "https://example.org/a b/", "file://example.org/x/"),
    ],
)
def test_a_mirror_that_is_no_address_is_refused_in_the_settings(home: Path, url: str) -> None:
    (home / "config").mkdir(exist_ok=True)
    (home / "config" / "config.toml").write_text(f'[mirrors]\n"*" = ["{url}"]\n')
    with pytest.raises(UsageError, match=r"mirrors\.\*") as caught:
        load_settings()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        *(
            "http://127.0.0.1:18450/",
            "https://example.org/",
            "https://example.org/a/",
            "https://example.org/{repository}/",
        ),
        *("/a b/", "/a b", "~/mirror", "/", "file:///a%20b/", "file:///", "https://example.org/acme/adapters.git"),
    ],
)
def test_a_mirror_is_any_folder_here_or_of_a_web_server(home: Path, url: str) -> None:
    (home / "config").mkdir(exist_ok=True)
    (home / "config" / "config.toml").write_text(f'[mirrors]\n"*" = ["{url}"]\n')
    assert load_settings().mirrors == (("*", (url,)),)


def test_a_mirror_at_the_root_of_a_server_and_in_a_folder_with_a_blank(
    hub: Hub, source: Source, tmp_path: Path, home: Path
) -> None:
    release(hub, source())
    mirror([f"{hub.url}@sst2"], to=tmp_path / "a b")
    shutil.move(hub.bare, hub.bare.with_name("gone.git"))
    with Forge(tmp_path / "a b", tmp_path / "server") as root:
        for url in (f"{root.url}/", f"{tmp_path}/a b/"):
            forget()
            (home / "config" / "config.toml").write_text(f'[mirrors]\n"*" = ["{url}"]\n')
            assert fetch(f"{hub.url}@sst2").version == "1.0.0"


def test_another_repository_as_a_mirror(hub: Hub, source: Source, tmp_path: Path) -> None:
    published = release(hub, source(BIG))
    with GitServer(tmp_path / "server") as second:
        url = second.create("mirrors/acme")
        assert [one.new for one in mirror([f"{hub.url}@sst2"], to=url)] == [True]
        assert [one.new for one in mirror([f"{hub.url}@sst2"], to=url)] == [False]
        forget()
        shutil.move(hub.bare, hub.bare.with_name("gone.git"))
        settings = Settings(mirrors=(("*", (url,)),))
        found = fetch(f"{hub.url}@sst2", settings=settings)
        assert (found.digest, found.tree) == (published.digest, published.tree)  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["git", "static"])
def test_a_mirror_says_what_was_yanked(hub: Hub, source: Source, tmp_path: Path, kind: str) -> None:
    release(hub, source())
    release(hub, source(b"v"), version="1.1.0")
    references = [f"{hub.url}@sst2=={version}" for version in ("1.0.0", "1.1.0")]
    bare = tmp_path / "copy.git"
    git(tmp_path, "init", "-q", "--bare", str(bare))
    to = bare.as_uri() if kind == "git" else str(tmp_path / "mirror")
    settings = Settings(mirrors=((PRINCIPAL, (to,)),))
    mirror(references, to=to)
    yank("sst2", "1.1.0", reason="trained on the test set", clone=hub.clone)
    with pytest.warns(AdaptergitWarning, match="yanked"):
        mirror(references, to=to, settings=Settings(resolution_max_age=0))
    gone = hub.bare.with_name("gone.git")
    hub.bare.rename(gone)
    forget()
    assert fetch(f"{hub.url}@sst2", settings=settings).version == "1.0.0"
    gone.rename(hub.bare)
    yank("sst2", "1.1.0", reason="", clone=hub.clone, undo=True)
    forget()
    mirror(references, to=to)
    hub.bare.rename(gone)
    forget()
    assert fetch(f"{hub.url}@sst2", settings=settings).version == "1.1.0"


def test_a_yank_that_was_seen_is_not_forgotten_for_a_mirror_that_did_not_see_it(
    hub: Hub, source: Source, tmp_path: Path
) -> None:
    release(hub, source())
    release(hub, source(b"v"), version="1.1.0")
    mirror([f"{hub.url}@sst2=={version}" for version in ("1.0.0", "1.1.0")], to=tmp_path / "mirror")
    yank("sst2", "1.1.0", reason="trained on the test set", clone=hub.clone)
    assert fetch(f"{hub.url}@sst2", refresh=True).version == "1.0.0"
    shutil.rmtree(hub.bare)
    settings = Settings(mirrors=((PRINCIPAL, (str(tmp_path / "mirror"),)),))
    assert fetch(f"{hub.url}@sst2", refresh=True, settings=settings).version == "1.0.0"


def test_what_a_mirror_lists_is_not_taken_for_the_repositorys_answer(hub: Hub, source: Source, tmp_path: Path) -> None:
    release(hub, source())
    mirror([f"{hub.url}@sst2"], to=tmp_path / "mirror")
    settings = Settings(mirrors=((PRINCIPAL, (str(tmp_path / "mirror"),)),))
    release(hub, source(b"v"), version="2.4.0")
    gone = hub.bare.with_name("gone.git")
    hub.bare.rename(gone)
    forget()
    assert fetch(f"{hub.url}@sst2", settings=settings).version == "1.0.0"
    gone.rename(hub.bare)
    found = fetch(f"{hub.url}@sst2", settings=settings)
    assert (found.version, found.from_store) == ("2.4.0", False)
    assert fetch(f"{hub.url}@sst2", settings=settings).from_store  # that was its own answer
    hub.bare.rename(gone)
    with pytest.raises(
        TrustError, match=r"1\.0\.0 is the newest sst2 that file:.*/mirror/ lists.*had 2\.4\.0"
    ) as caught:
        fetch(f"{hub.url}@sst2", refresh=True, settings=settings)
    assert "--offline" in str(caught.value.hint)


@pytest.mark.parametrize("wanted", ["sst2", "sst2>=2", "other"])
def test_who_said_what_is_told_where_nobody_has_it(
    wanted: str, hub: Hub, source: Source, tmp_path: Path, forge: Forge
) -> None:
    release(hub, source())
    mirror([f"{hub.url}@sst2"], to=forge.root / "some")
    bare = tmp_path / "copy.git"
    git(tmp_path, "init", "-q", "--bare", str(bare))
    some = () if wanted == "sst2" else (f"{forge.url}/some/",)
    settings = Settings(mirrors=(("*", (f"{forge.url}/none/", bare.as_uri(), *some)),))
    forget()
    shutil.move(hub.bare, hub.bare.with_name("gone.git"))
    with pytest.raises(AdaptergitError) as caught:
        fetch(f"{hub.url}@{wanted}", settings=settings)
    assert hub.url in str(caught.value)
    none, copy, *last = caught.value.__notes__
    assert f"{forge.url}/none/" in none
    assert "404" in none
    assert f"{bare.as_uri()}: the mirror has no" in copy
    assert len(last) == len(some)
    if wanted == "sst2>=2":
        assert f"no version of 'sst2' in {forge.url}/some/ satisfies >=2" in last[0]
        assert "released: 1.0.0" in last[0]
    if wanted == "other":
        assert f"{forge.url}/some/" in last[0]


def test_a_mirror_that_lies_is_named_and_nobody_else_is_asked(hub: Hub, source: Source, forge: Forge) -> None:
    release(hub, source(BIG))
    mirror([f"{hub.url}@sst2"], to=forge.root / "bad")
    shutil.copytree(forge.root / "bad", forge.root / "good")
    weights = next((forge.root / "bad" / "packages").glob("*/adapter.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"X")
    forget()
    shutil.move(hub.bare, hub.bare.with_name("gone.git"))
    settings = Settings(mirrors=(("*", (f"{forge.url}/bad/", f"{forge.url}/good/")),))
    with pytest.raises(PackageError, match=r"/bad/"):
        fetch(f"{hub.url}@sst2", settings=settings)
    assert not any("/good/packages" in path for path, _ in forge.asked)
    shutil.rmtree(forge.root / "bad")  # gone is not lying: the next one is asked
    assert fetch(f"{hub.url}@sst2", settings=settings).version == "1.0.0"


@pytest.mark.slow
def test_a_mirror_never_changes_a_release(hub: Hub, source: Source, tmp_path: Path) -> None:
    release(hub, source())
    mirror([f"{hub.url}@sst2"], to=tmp_path / "mirror")
    with GitServer(tmp_path / "server") as second:
        url = second.create("mirrors/acme")
        mirror([f"{hub.url}@sst2"], to=url)
        # Another release of that version, by the same publisher: an equivocation.
        other = tmp_path / "server" / "acme" / "adapters.git"
        shutil.rmtree(other)
        hub.server.create("acme/adapters")
        shutil.rmtree(hub.clone)
        git(tmp_path, "clone", "-q", hub.url, str(hub.clone))
        release(hub, source(b"other"))
        forget()
        with pytest.raises(PackageError, match="another sst2"):
            mirror([f"{hub.url}@sst2"], to=tmp_path / "mirror")
        with pytest.raises(ReleaseError, match="another sst2"):
            mirror([f"{hub.url}@sst2"], to=url)
    with pytest.raises(UsageError, match="nothing to copy"):
        mirror([], to=tmp_path / "mirror")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="something else"):
        mirror([f"{hub.url}@sst2"], to=tmp_path / "full")


@pytest.mark.parametrize("what", ["pipe", "device", "endless listing"])
def test_what_is_no_plain_file_of_a_local_mirror_is_not_read(
    hub: Hub, source: Source, tmp_path: Path, what: str
) -> None:
    release(hub, source())
    mirror([f"{hub.url}@sst2"], to=tmp_path / "m")
    (path,) = (tmp_path / "m").rglob("sst2.json" if what == "endless listing" else "adapter.safetensors")
    path.unlink()
    os.mkfifo(path) if what == "pipe" else path.symlink_to("/dev/zero")
    forget()
    hub.bare.rename(hub.bare.with_name("gone.git"))
    settings = Settings(mirrors=((PRINCIPAL, (f"{tmp_path / 'm'}/",)),))
    with pytest.raises(PackageError, match="no plain file"):
        fetch(f"{hub.url}@sst2==1.0.0", settings=settings)
    assert not list((cache_dir() / "packages").rglob("*"))


@pytest.mark.slow
def test_the_time_there_is_is_for_all_files_of_a_mirror_together(hub: Hub, source: Source, forge: Forge) -> None:
    release(hub, source())
    mirror([f"{hub.url}@sst2"], to=forge.root / "mirror")
    (listing,) = forge.root.rglob("sst2.json")
    listed = json.loads(listing.read_text())
    folder = forge.root / "mirror" / "packages" / listed["releases"][0]["manifest_sha256"]
    more = [f"manifest.json.{number:08x}.sig" for number in range(12)]
    for name in more:
        shutil.copyfile(folder / "manifest.json.sig", folder / name)
    listed["releases"][0] |= {"files": listed["releases"][0]["files"] + more, "tree": ""}
    listing.write_text(json.dumps(listed))
    forget()
    hub.bare.rename(hub.bare.with_name("gone.git"))

    def late(request: Request) -> None:
        time.sleep(0.6)
        request.answer(200, (folder / request.path.rpartition("/")[2]).read_bytes())

    forge.faults[".sig"] = [late] * len(more)
    settings = Settings(mirrors=((PRINCIPAL, (f"{forge.url}/mirror/",)),), limits=Limits(fetch_seconds=2))
    with pytest.raises(TransportError, match="no end within"):
        fetch(f"{hub.url}@sst2==1.0.0", settings=settings)
    assert len(forge.faults[".sig"]) > 6


def test_a_mirror_that_sends_elsewhere_is_passed_over(hub: Hub, source: Source, forge: Forge, tmp_path: Path) -> None:
    release(hub, source())
    mirror([f"{hub.url}@sst2"], to=tmp_path / "second")
    forget()
    hub.bare.rename(hub.bare.with_name("gone.git"))
    forge.faults["/first/"] = [status(302, Location="http://portal.lan/login")] * 8
    urls = (f"{forge.url}/first/", f"{tmp_path / 'second'}/")
    found = fetch(f"{hub.url}@sst2==1.0.0", settings=Settings(mirrors=((PRINCIPAL, urls),)))
    assert found.served_by == (tmp_path / "second").as_uri() + "/"


def test_a_server_that_says_that_a_disk_is_full_does_not_mean_ours(
    hub: Hub, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release(hub, source())
    mirror([f"{hub.url}@sst2"], to=tmp_path / "m")
    forget()
    ssh = tmp_path / "ssh"  # over ssh, nobody can tell who says what
    ssh.write_text("#!/bin/sh\necho 'fatal: write error: No space left on device' >&2\nexit 128\n")
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    settings = Settings(mirrors=((PRINCIPAL, (f"{tmp_path / 'm'}/",)),))
    found = fetch("git@127.0.0.1:acme/adapters@sst2==1.0.0", settings=settings)
    assert found.served_by == (tmp_path / "m").as_uri() + "/"
