"""Attacks through archives, mirrors, bundles, indexes and web servers."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tarfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attacks_table import (
    ARCHIVE,
    BUNDLE,
    CHANGED,
    ON_HUB,
    PARSERS,
    PICKLE,
    REPLAY,
    SIGNATURE,
    SILENT,
    SWAPPED,
    WEB,
    Scene,
    Strike,
    attack,
    attacks,
    content_of,
)
from conftest import Hub, git
from forge_simulator import Answer, Forge, Request, body, endless, slowly, status

from adaptergit.bundle import export_bundle, import_bundle
from adaptergit.errors import NotFoundError, PackageError, TransportError, TrustError
from adaptergit.mirror import mirror
from adaptergit.resolve import fetch
from adaptergit.search import search
from adaptergit.settings import Limits, Settings, cache_dir
from adaptergit.trust import sign
from adaptergit.web.download import Download

# --- archives ----------------------------------------------------------------------------------------------------------

Member = tuple[str, bytes, dict[str, Any]]


def packed(*members: Member) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", format=tarfile.GNU_FORMAT) as archive:
        for name, content, fields in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in fields.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return buffer.getvalue()


def from_archive(scene: Scene, data: bytes, limits: Limits | None = None) -> Strike:
    hub, forge = scene.hub(), scene.forge()
    forge.faults["/archive/"] = [body(data)] * 3
    url = f"{forge.url}/acme/adapters.git@sst2==1.0.0"
    assert hub.bare.is_dir()
    return lambda: fetch(url, settings=Settings(limits=limits or Limits()))


def link(kind: bytes, target: str) -> dict[str, Any]:
    return {"type": kind, "linkname": target}


ONE_FOLDER = r"/archive/.*plain files in one folder only"


@attacks(
    ARCHIVE,
    PackageError,
    {
        "archive-of-nothing": (r"/archive/.*(not a readable archive|there is no manifest)", packed()),
        "archive-with-a-parent": (ONE_FOLDER, packed(("../card.yaml", b"x", {}))),
        "archive-with-a-parent-inside": (ONE_FOLDER, packed(("a/../../card.yaml", b"x", {}))),
        "archive-with-an-absolute-name": (ONE_FOLDER, packed(("/card.yaml", b"x", {}))),
        "archive-with-a-file-outside-its-folder": (ONE_FOLDER, packed(("card.yaml", b"x", {}))),
        "archive-with-a-deep-path": (ONE_FOLDER, packed(("a/b/card.yaml", b"x", {}))),
        "archive-with-a-symbolic-link": (ONE_FOLDER, packed(("a/card.yaml", b"", link(tarfile.SYMTYPE, "/etc/passwd")))),
        "archive-with-a-link-to-the-folder-above": (ONE_FOLDER, packed(("a", b"", link(tarfile.SYMTYPE, "..")), ("a/card.yaml", b"x", {}))),
        "archive-with-a-hard-link": (ONE_FOLDER, packed(("a/card.yaml", b"", link(tarfile.LNKTYPE, "/etc/passwd")))),
        "archive-with-a-character-device": (ONE_FOLDER, packed(("a/card.yaml", b"", {"type": tarfile.CHRTYPE}))),
        "archive-with-a-block-device": (ONE_FOLDER, packed(("a/card.yaml", b"", {"type": tarfile.BLKTYPE}))),
        "archive-with-a-pipe": (ONE_FOLDER, packed(("a/card.yaml", b"", {"type": tarfile.FIFOTYPE}))),
        "archive-with-an-executable": (r"/archive/.*holds no executables", packed(("a/card.yaml", b"x", {"mode": 0o755}))),
        "archive-with-a-file-twice": (r"/archive/.*holds this file twice", packed(("a/card.yaml", b"x", {}), ("b/card.yaml", b"y", {}))),
        "archive-with-names-that-differ-in-case": (r"/archive/.*differ only in case", packed(("a/card.yaml", b"x", {}), ("a/CARD.yaml", b"y", {}))),
        "archive-with-too-many-files": (r"/archive/.*65 files, the limit is 64", packed(*((f"a/f{i}.txt", b"x", {}) for i in range(70)))),
        "archive-with-a-hidden-file": (r"/archive/.*'\.gitattributes' is not", packed(("a/.gitattributes", b"x", {}))),
        "archive-with-a-windows-device": (r"/archive/.*'con\.txt' is not", packed(("a/con.txt", b"x", {}))),
        "archive-with-a-backslash": (r"/archive/.*is not a file name", packed(("a/..\\x", b"x", {}))),
    },
)  # fmt: skip
def archive(scene: Scene, data: bytes) -> Strike:
    return from_archive(scene, data)


NOT_FOUND = r"git: .*not found|git ls-remote.*not found"


@attacks(
    ARCHIVE,
    TransportError,  # nobody says that this is the release: the others are asked, and nobody has it
    {
        "archive-that-is-a-web-page": (NOT_FOUND, b"<html>rate limited</html>"),
        "archive-that-is-empty": (NOT_FOUND, b""),
        "archive-cut-short": (NOT_FOUND, packed(("a/card.yaml", b"x" * 9000, {}))[:60]),
        "archive-with-a-wrong-checksum": (NOT_FOUND, gzip.compress(gzip.decompress(packed(("a/card.yaml", b"x", {}))).replace(b"card", b"cord", 1))),
        "archive-that-says-more-than-it-holds": (NOT_FOUND, packed(("a/card.yaml", b"x", {}))[:0] + gzip.compress(tarfile.TarInfo("a/f.txt").tobuf()[:124] + b"00000100000\0" + tarfile.TarInfo("a/f.txt").tobuf()[136:])),
    },
)  # fmt: skip
def no_archive(scene: Scene, data: bytes) -> Strike:
    return from_archive(scene, data)


@attack("archive-with-a-pickle", PICKLE, PackageError, r"/archive/.*holds no pickle")
def archive_with_a_pickle(scene: Scene) -> Strike:
    return from_archive(scene, packed(("a/weights.bin", b"\x80\x04.", {})))


@attack(
    "archive-that-unpacks-to-a-thousandfold", ARCHIVE, PackageError, r"/archive/.*the limit for one file is 1048576"
)
def gzip_bomb(scene: Scene) -> Strike:
    return from_archive(scene, packed(("a/adapter.safetensors", b"\0" * (32 << 20), {})), Limits(file_bytes=1 << 20))


@attack("archive-larger-than-the-limit", ARCHIVE, TransportError, r"more than the limit of \d+ bytes")
def large_archive(scene: Scene) -> Strike:
    return from_archive(scene, b"\0" * (3 << 20), Limits(package_bytes=1 << 20))


def extended_header(size: int, kind: bytes) -> bytes:
    """A member that only names the next one, and whose name is a bomb."""
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, size
    return gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + b"\0" * size, 1)


@attacks(
    ARCHIVE,
    PackageError,
    {
        "archive-with-a-bomb-in-an-extended-header": (r"/archive/", tarfile.XHDTYPE),
        "archive-with-a-bomb-in-a-long-name": (r"/archive/", tarfile.GNUTYPE_LONGNAME),
    },
)
def header_bomb(scene: Scene, kind: bytes) -> Strike:
    """300 KB that a careless reader holds as 64 MB in memory; with 200 MB it would be 50 GB."""
    strike = from_archive(scene, extended_header(64 << 20, kind))

    def run() -> object:
        tracemalloc.start()
        try:
            return strike()
        finally:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert peak < 32 << 20, f"{peak >> 20} MiB were held"

    return run


@attack("archive-of-endless-folders", ARCHIVE, PackageError, r"/archive/.*(limit|many|folder)")
def endless_folders(scene: Scene) -> Strike:
    """An honest release behind any number of folders, which compress to nothing and are counted nowhere."""
    hub = scene.hub()
    names = ("card.yaml", "README.md", "adapter.safetensors", "manifest.json", "manifest.json.sig")
    folders = [("a", b"", {"type": tarfile.DIRTYPE})] * 5000
    return from_archive(scene, packed(*folders, *((f"a/{n}", content_of(hub.bare, n), {}) for n in names)))


@attack("archive-with-a-changed-byte", CHANGED, PackageError, r"/archive/.*README\.md\): the file was changed")
def changed_in_an_archive(scene: Scene) -> Strike:
    hub = scene.hub()
    names = ("card.yaml", "adapter.safetensors", "manifest.json", "manifest.json.sig")
    members = [(f"a/{name}", content_of(hub.bare, name), {}) for name in names]
    return from_archive(scene, packed(*members, ("a/README.md", b"changed", {})))


@attack("archive-of-another-version", REPLAY, TrustError, r"/archive/.*asked for version ==1\.0\.0")
def other_version_in_an_archive(scene: Scene) -> Strike:
    hub = scene.hub()
    names = ("card.yaml", "README.md", "adapter.safetensors", "manifest.json", "manifest.json.sig")
    return from_archive(scene, packed(*((f"a/{n}", content_of(hub.bare, n, "1.1.0"), {}) for n in names)))


@attack("archive-signed-by-another-key", SIGNATURE, TrustError, r"/archive/.*only SHA256:.* may sign")
def other_key_in_an_archive(scene: Scene) -> Strike:
    hub = scene.hub()
    names = ("card.yaml", "README.md", "adapter.safetensors", "manifest.json")
    members = [(f"a/{n}", content_of(hub.bare, n), {}) for n in names]
    forged = sign(content_of(hub.bare, "manifest.json"), scene.other)
    return from_archive(scene, packed(*members, ("a/manifest.json.sig", forged, {})))


# --- mirrors -----------------------------------------------------------------------------------------------------------


def mirrored(scene: Scene) -> tuple[Hub, Forge, Path]:
    """A static mirror of a repository that is gone since."""
    hub, forge = scene.hub(), scene.forge()
    if not (scene.attic / "mirror").exists():
        mirror([f"{hub.url}@sst2==1.0.0", f"{hub.url}@sst2==1.1.0"], to=scene.attic / "mirror")
        shutil.rmtree(cache_dir())
    shutil.copytree(scene.attic / "mirror", forge.root / "mirror")
    shutil.move(hub.bare, hub.bare.with_name("gone.git"))
    return hub, forge, forge.root / "mirror"


def listing(root: Path) -> Path:
    return next(root.rglob("sst2.json"))


def relisted(root: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    raw = json.loads(listing(root).read_text())
    change(raw["releases"])
    listing(root).write_text(json.dumps(raw))


def package_of(root: Path, version: str = "1.0.0") -> Path:
    found = next(one for one in json.loads(listing(root).read_text())["releases"] if one["version"] == version)
    return root / "packages" / str(found["manifest_sha256"])


def swap(field: str) -> Callable[[Path], object]:
    def change(releases: list[dict[str, Any]]) -> None:
        releases[0][field], releases[1][field] = releases[1][field], releases[0][field]

    return lambda root: relisted(root, change)


def put(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    def apply(root: Path) -> None:
        path = package_of(root) / name
        path.write_bytes(change(path.read_bytes() if path.exists() else b""))

    return apply


def list_more(name: str) -> Callable[[Path], object]:
    def apply(root: Path) -> None:
        (package_of(root) / Path(name).name).write_bytes(b"x")
        relisted(root, lambda releases: releases[0]["files"].append(name))

    return apply


def from_mirror(scene: Scene, change: Callable[[Path], object]) -> Strike:
    hub, forge, root = mirrored(scene)
    shutil.copytree(root, forge.root / "honest")
    change(root)
    settings = Settings(mirrors=((ON_HUB, (f"{forge.url}/mirror/", f"{forge.url}/honest/")),))

    def run() -> object:
        try:
            return fetch(f"{hub.url}@sst2==1.0.0", settings=settings)
        finally:
            assert not any("/honest/packages" in path for path, _ in forge.asked), "somebody else was asked silently"

    return run


@attacks(
    CHANGED,
    PackageError,
    {
        "mirror-with-a-changed-byte": (r"/mirror/.*adapter\.safetensors\): the file was changed", put("adapter.safetensors", lambda b: b[:-1] + b"X")),
        "mirror-with-a-changed-card": (r"/mirror/.*card\.yaml\): the file was changed", put("card.yaml", lambda b: b.replace(b"test", b"tost"))),
        "mirror-with-a-shorter-file": (r"/mirror/.*the file was changed: \d+ bytes", put("adapter.safetensors", lambda b: b[:-1])),
        "mirror-with-a-longer-file": (r"/mirror/", put("adapter.safetensors", lambda b: b + b"x")),
        "mirror-with-a-file-more": (r"not listed in the manifest: more\.txt", list_more("more.txt")),
        "mirror-that-leaves-a-file-out": (r"/mirror/.*the file is missing", lambda root: relisted(root, lambda r: r[0]["files"].remove("README.md"))),
        "mirror-that-leaves-the-manifest-out": (r"/mirror/.*there is no manifest\.json", lambda root: relisted(root, lambda r: r[0]["files"].remove("manifest.json"))),
    },
)  # fmt: skip
def lying_mirror(scene: Scene, change: Callable[[Path], object]) -> Strike:
    return from_mirror(scene, change)


@attacks(
    REPLAY,
    TrustError,
    {
        "mirror-with-the-digests-swapped": (r"/mirror/.*asked for version ==1\.0\.0", swap("manifest_sha256")),
        "mirror-with-the-versions-swapped": (r"/mirror/.*asked for version ==1\.0\.0", swap("version")),
    },
)
def swapping_mirror(scene: Scene, change: Callable[[Path], object]) -> Strike:
    return from_mirror(scene, change)


@attack("mirror-with-the-trees-swapped", REPLAY, PackageError, r"/mirror/.*the files of this release make another")
def mirror_with_other_trees(scene: Scene) -> Strike:
    return from_mirror(scene, swap("tree"))


@attack("mirror-that-removes-the-signature", SIGNATURE, TrustError, r"/mirror/.*is not signed")
def mirror_without_signature(scene: Scene) -> Strike:
    return from_mirror(scene, lambda root: relisted(root, lambda r: r[0]["files"].remove("manifest.json.sig")))


@attack("mirror-with-a-key-of-its-own", SIGNATURE, TrustError, r"/mirror/.*only SHA256:.* may sign")
def mirror_with_own_key(scene: Scene) -> Strike:
    def change(root: Path) -> None:
        folder = package_of(root)
        (folder / "manifest.json.sig").write_bytes(sign((folder / "manifest.json").read_bytes(), scene.other))
        (root / "allowed_signers").write_text(f"* {scene.other.public.line}\n")

    return from_mirror(scene, change)


@attacks(
    PARSERS,
    PackageError,
    {
        "mirror-s-listing-that-is-no-json": (r"/mirror/.*: not JSON", lambda text: "{"),
        "mirror-s-listing-of-another-kind": (r"/mirror/.*: not a listing of", lambda text: text.replace("mirror/1", "mirror/2")),
        "mirror-s-listing-with-a-key-twice": (r"the key 'schema' appears twice", lambda text: text.replace("{", '{"schema": 1, ', 1)),
        "mirror-s-listing-with-a-path": (r"/mirror/.*: files: names of a package's files", lambda text: text.replace("README.md", "../../README.md")),
        "mirror-s-listing-with-an-odd-digest": (r"/mirror/.*: version or manifest_sha256 is malformed", lambda text: text.replace('"manifest_sha256": "', '"manifest_sha256": "../', 1)),
        "mirror-s-listing-with-an-option-as-a-tree": (r"/mirror/.*: tree is no object id", lambda text: text.replace('"tree": "', '"tree": "--x', 1)),
        "mirror-s-listing-with-an-odd-version": (r"/mirror/.*: version or manifest_sha256", lambda text: text.replace('"1.0.0"', '"1.0.0/../x"')),
        "mirror-s-listing-without-files": (r"/mirror/.*: files: names of a package's files", lambda text: text.replace('"files"', '"file"')),
        "mirror-s-listing-with-a-file-twice": (r"or one twice", lambda text: text.replace('"README.md",', '"README.md", "README.md",')),
        "mirror-s-listing-with-a-hundred-files": (r"more than 64 files", lambda text: text.replace('"README.md",', "".join(f'"f{i}",' for i in range(100)))),
    },
)  # fmt: skip
def odd_listing(scene: Scene, change: Callable[[str], str]) -> Strike:
    def apply(root: Path) -> None:
        listing(root).write_text(change(listing(root).read_text()))

    return from_mirror(scene, apply)


@attack("mirror-of-another-publisher", REPLAY, TrustError, r"asked for 127\.0\.0\.1/evil/adapters, but")
def mirror_of_another(scene: Scene) -> Strike:
    from adaptergit.pins import pin_key

    hub, forge, root = mirrored(scene)
    pin_key("127.0.0.1/*", scene.key.public.line)
    shutil.copytree(listing(root).parent, listing(root).parents[2] / "evil" / "adapters")
    settings = Settings(mirrors=(("*", (f"{forge.url}/mirror/",)),))
    return lambda: fetch(f"{hub.server.url}/evil/adapters.git@sst2==1.0.0", settings=settings)


# --- bundles -----------------------------------------------------------------------------------------------------------


def bundled(scene: Scene, change: Callable[[Path], object]) -> Path:
    """A bundle somebody unpacked, changed and packed again, without contents; on a machine that knows nobody."""
    if not (scene.attic / "honest.tar").exists():
        export_bundle(scene.attic / "honest.tar", [f"{scene.hub().url}@sst2==1.0.0"])
        shutil.rmtree(cache_dir())
        shutil.rmtree(scene.home / "config")
    root = scene.tmp / "inside"
    with tarfile.open(scene.attic / "honest.tar") as found:
        found.extractall(root, filter="data")
    (root / "bundle.json").unlink()
    change(root)
    with tarfile.open(scene.tmp / "bad.tar", "w") as made:
        for path in sorted(p for p in root.rglob("*") if p.is_file() or p.is_symlink()):
            made.add(path, path.relative_to(root).as_posix(), recursive=False)
    return scene.tmp / "bad.tar"


def rewrite_keys(line: Callable[[str], str]) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        path = root / "allowed_signers"
        path.write_text(line(path.read_text().partition(" ")[2].strip()) + "\n")

    return change


@attacks(
    BUNDLE,
    PackageError,
    {
        "bundle-with-a-key-for-everybody": (r"wants a key to sign for \*", rewrite_keys(lambda k: f"* {k}")),
        "bundle-with-a-key-for-somebody-else": (r"wants a key to sign for github\.com/bank", rewrite_keys(lambda k: f"github.com/bank/adapters {k}")),
        "bundle-with-a-key-for-two": (r"of whom it holds nothing", rewrite_keys(lambda k: f"{ON_HUB},github.com/bank/adapters {k}")),
        "bundle-with-a-pattern": (r"of whom it holds nothing", rewrite_keys(lambda k: f"{ON_HUB}* {k}")),
        "bundle-with-keys-that-are-no-text": (r"not a file of keys", lambda root: (root / "allowed_signers").write_bytes(b"\xff\xfe")),
    },
)  # fmt: skip
def keys_in_a_bundle(scene: Scene, change: Callable[[Path], object]) -> Strike:
    file = bundled(scene, change)
    return lambda: import_bundle(file, trust_keys=True)


@attack("bundle-with-a-certificate-authority", BUNDLE, TrustError, r"certificate authorities are not supported")
def authority_in_a_bundle(scene: Scene) -> Strike:
    return keys_in_a_bundle(scene, rewrite_keys(lambda k: f"{ON_HUB} cert-authority {k}"))


@attack("bundle-whose-keys-nobody-asked-for", BUNDLE, TrustError, r"nobody you know vouches for")
def keys_not_asked_for(scene: Scene) -> Strike:
    file = bundled(scene, lambda root: None)
    return lambda: import_bundle(file)


@attack("bundle-with-a-key-that-did-not-sign", BUNDLE, TrustError, r"but only SHA256:.* may sign")
def other_key_in_a_bundle(scene: Scene) -> Strike:
    file = bundled(scene, rewrite_keys(lambda _: f"{ON_HUB} {scene.other.public.line}"))
    return lambda: import_bundle(file, trust_keys=True)


def damaged(root: Path) -> None:
    path = next(root.rglob("adapter.safetensors"))
    path.write_bytes(path.read_bytes()[:-1] + b"X")


@attack("bundle-that-is-damaged-and-brings-keys", BUNDLE, PackageError, r"the file was changed")
def damaged_bundle_with_keys(scene: Scene) -> Strike:
    """What is refused leaves no key behind."""
    file = bundled(scene, damaged)
    return lambda: import_bundle(file, trust_keys=True)


def trusted_again(scene: Scene, change: Callable[[Path], object]) -> Strike:
    from adaptergit.pins import pin_key

    file = bundled(scene, change)
    pin_key(ON_HUB, scene.key.public.line)
    return lambda: import_bundle(file)


PLACES = r"plain files below releases, packages, rotations, indexes"


@attacks(
    ARCHIVE,
    PackageError,
    {
        "bundle-with-a-changed-byte": (r"the file was changed", damaged),
        "bundle-with-a-missing-file": (r"the file is missing", lambda root: next(root.rglob("README.md")).unlink()),
        "bundle-with-an-unlisted-file": (r"does not list this file", lambda root: (next(root.rglob("card.yaml")).parent / "more.txt").write_text("x")),
        "bundle-with-a-file-elsewhere": (PLACES, lambda root: (root / "evil.sh").write_text("x")),
        "bundle-with-a-link": (PLACES, lambda root: (root / "packages" / "link").symlink_to("/etc/passwd")),
        "bundle-without-its-mark": (r"it holds no mirror\.json", lambda root: (root / "mirror.json").unlink()),
        "bundle-without-a-listed-package": (r"the package [0-9a-f]{64} is missing", lambda root: shutil.rmtree(root / "packages")),
        "bundle-with-a-listing-that-is-no-json": (r"not JSON", lambda root: listing(root).write_text("{")),
        "bundle-with-a-pickle": (r"holds no pickle", lambda root: (next(root.rglob("card.yaml")).parent / "weights.bin").write_text("x")),
    },
)  # fmt: skip
def odd_bundle(scene: Scene, change: Callable[[Path], object]) -> Strike:
    return trusted_again(scene, change)


@attack("bundle-with-a-listing-of-another-version", REPLAY, TrustError, r"asked for version ==9\.0\.0")
def bundle_of_another_version(scene: Scene) -> Strike:
    return trusted_again(scene, lambda root: relisted(root, lambda r: r[0].update(version="9.0.0")))


def in_tar(*members: Member) -> bytes:
    return gzip.decompress(packed(*members))


MARKED: Member = ("mirror.json", b"{}", {})


@attacks(
    ARCHIVE,
    PackageError,
    {
        "bundle-that-is-text": (r"not a bundle", b"no"),
        "bundle-that-is-compressed": (r"not a bundle", packed(MARKED)),
        "bundle-with-a-parent": (PLACES, in_tar(MARKED, ("packages/../../up", b"x", {}))),
        "bundle-with-an-absolute-name": (PLACES, in_tar(MARKED, ("/packages/x", b"x", {}))),
        "bundle-with-a-backslash": (PLACES, in_tar(MARKED, ("packages/..\\..\\up", b"x", {}))),
        "bundle-with-a-hard-link": (PLACES, in_tar(MARKED, ("packages/x", b"", link(tarfile.LNKTYPE, "mirror.json")))),
        "bundle-with-a-device": (PLACES, in_tar(MARKED, ("packages/x", b"", {"type": tarfile.CHRTYPE}))),
        "bundle-with-a-file-twice": (r"holds this file twice", in_tar(MARKED, MARKED)),
        "bundle-with-an-overlong-name": (r"bundle|name|plain files", in_tar(MARKED, (f"packages/{'a' * 300}/x", b"x", {}))),
        "bundle-with-a-file-where-a-folder-must-be": (r"bundle|twice|plain files", in_tar(MARKED, ("packages/a", b"x", {}), ("packages/a/b", b"x", {}))),
        "bundle-with-a-publisher-that-is-an-option": (r"the place of no adapter", in_tar(MARKED, ("releases/-x/y/z/sst2.json", b"[]", {}))),
    },
)  # fmt: skip
def odd_tar(scene: Scene, data: bytes) -> Strike:
    (scene.tmp / "bad.tar").write_bytes(data)
    return lambda: import_bundle(scene.tmp / "bad.tar")


# --- indexes -----------------------------------------------------------------------------------------------------------


def index_entry(**changes: Any) -> dict[str, Any]:
    return {
        "id": f"{ON_HUB}@sst2",
        "url": "https://host.example/x",
        "version": "1.0.0",
        "manifest_sha256": "0" * 64,
        "tree": "0" * 40,
        "size": 1,
        "method": "lora",
        "task": "x",
        "base_model": "x",
        "license": "MIT",
        "description": "x",
    } | changes


def index_text(*entries: dict[str, Any], **more: Any) -> str:
    return json.dumps({"schema": "adaptergit.index/1", "entries": list(entries)} | more)


@attacks(
    PARSERS,
    PackageError,
    {
        "index-that-is-no-json": (r"index\.json: not JSON", b"{"),
        "index-of-another-schema": (r"schema: 'adaptergit\.index/1' was expected", index_text(schema="x").encode()),
        "index-nested-without-end": (r"index\.json: not JSON", b"[" * 100_000),
        "index-with-a-key-twice": (r"twice", index_text(index_entry()).replace('"tree":', '"tree": "x", "tree":').encode()),
        "index-with-a-release-twice": (r"twice|another digest", index_text(index_entry(), index_entry(manifest_sha256="1" * 64)).encode()),
        "index-with-nan": (r"NaN|size", index_text(index_entry()).replace('"size": 1', '"size": NaN').encode()),
        "index-with-an-escaped-surrogate": (r"an escape of a UTF-16 surrogate", index_text(index_entry()).replace("MIT", r"\ud800").encode()),
        "index-in-utf-16-with-a-surrogate": (r"surrogate|UTF-8", index_text(index_entry()).replace("MIT", r"\ud800").encode("utf-16")),
        "index-with-an-option-as-a-tree": (r"entries\[0\]\.tree", index_text(index_entry(tree="--upload-pack=x")).encode()),
        "index-with-a-path-as-an-id": (r"entries\[0\]\.id", index_text(index_entry(id="../../x@sst2")).encode()),
        "index-with-an-odd-version": (r"'1\.0\.00' is not in normal form", index_text(index_entry(version="1.0.00")).encode()),
        "index-with-a-negative-size": (r"entries\[0\]\.size", index_text(index_entry(size=-1)).encode()),
        "index-with-an-unknown-key": (r"'trust' was unexpected", index_text(index_entry(trust="me")).encode()),
        "index-with-a-digest-in-upper-case": (r"entries\[0\]\.manifest_sha256", index_text(index_entry(manifest_sha256="A" * 64)).encode()),
    },
)  # fmt: skip
def odd_index(scene: Scene, data: bytes) -> Strike:
    (scene.tmp / "index.json").write_bytes(data)
    return lambda: search(index=scene.tmp / "index.json")


@attack("index-with-the-digest-of-another", SWAPPED, TrustError, r"you pinned 0{64}")
def index_with_another_digest(scene: Scene) -> Strike:
    hub = scene.hub()
    tree = git(hub.bare, "rev-parse", "refs/tags/adapters/sst2/1.0.0^{tree}")
    (scene.tmp / "index.json").write_text(index_text(index_entry(tree=tree)))
    return lambda: fetch(f"{hub.url}@sst2", index=scene.tmp / "index.json")


@attack("index-that-says-all-is-yanked", SWAPPED, NotFoundError, r"the index lists no release that fits")
def index_all_yanked(scene: Scene) -> Strike:
    (scene.tmp / "index.json").write_text(index_text(index_entry(yanked="so they say")))
    return lambda: fetch("https://127.0.0.1:1/acme/adapters.git@sst2", index=scene.tmp / "index.json")


# --- web servers -------------------------------------------------------------------------------------------------------


def with_headers(*headers: tuple[str, str], code: int = 200, content: bytes = b"x") -> Answer:
    def answer(request: Request) -> None:
        request.send_response(code)
        for name, value in headers:
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(content)
        request.close_connection = True

    return answer


def raw_answer(data: bytes) -> Answer:
    def answer(request: Request) -> None:
        request.wfile.write(data)
        request.close_connection = True

    return answer


@attacks(
    WEB,
    TransportError,
    {
        "endless-download": (r"more than the limit of 100000 bytes", endless),
        "circle-of-redirects": (r"more than 5 redirects", status(302, Location="/file")),
        "redirect-to-nowhere": (r"redirect|no answer|cannot be asked|not an address|cannot be understood", with_headers(("Location", "http://["), code=302)),
        "redirect-to-a-port-that-is-none": (r"redirect|no answer|cannot be asked|not an address|cannot be understood", with_headers(("Location", "http://127.0.0.1:99999999/"), code=302)),
        "range-nobody-asked-for": (r"answered another range", status(206, Content_Range="bytes 5-9/10")),
        "forbidden": (r"the server answered 403", status(403)),
        "teapot": (r"the server answered 418", status(418)),
        "length-that-is-no-number": (r"length|no answer|cannot be asked", with_headers(("Content-Length", "many"))),
        "length-of-five-thousand-digits": (r"length", with_headers(("Content-Length", "9" * 5000))),
        "two-lengths": (r"length|no answer|cannot be asked|arrived", with_headers(("Content-Length", "1"), ("Content-Length", "2"))),
        "retry-after-an-odd-digit": (r"the server answered 503", with_headers(("Retry-After", "\u00b2"), ("Content-Length", "0"), code=503, content=b"")),
        "retry-after-a-year": (r"the server answered 503", with_headers(("Retry-After", "31536000"), ("Content-Length", "0"), code=503, content=b"")),
        "ten-thousand-headers": (r"no answer|no end", with_headers(*((f"X-{i}", "x") for i in range(10_000)))),
        "header-of-a-megabyte": (r"no answer", with_headers(("X", "x" * (1 << 20)))),
        "answer-that-is-no-http": (r"no answer|no end", raw_answer(b"\0\1\2\3 hello\r\n\r\n")),
        "chunks-of-negative-length": (r"no answer|arrived", with_headers(("Transfer-Encoding", "chunked"), content=b"-5\r\nx\r\n0\r\n\r\n")),
    },
)  # fmt: skip
def download(scene: Scene, fault: Answer) -> Strike:
    forge = scene.forge()
    (forge.root / "file").write_bytes(b"x")
    forge.faults["/"] = [fault] * 8
    return lambda: Download(seconds=1.0).read(f"{forge.url}/file", 100_000)


@attack("download-of-a-byte-now-and-then", SILENT, TransportError, r"no end within 1 s")
def slow_download(scene: Scene) -> Strike:
    return download(scene, slowly)


@attacks(
    WEB,
    TransportError,
    {
        "redirect-to-plain-http-elsewhere": (r"only https is allowed", "http://192.0.2.1/x"),
        "redirect-to-a-file": (r"only https is allowed", "file:///etc/passwd"),
        "redirect-to-data": (r"only https is allowed", "data:text/plain,x"),
        "redirect-with-a-password": (r"never holds credentials", "http://me:s3cret@127.0.0.1:1/x"),
        "redirect-to-all-interfaces": (r"only https is allowed", "http://0.0.0.0:1/x"),
        "redirect-to-a-metadata-service": (r"only https is allowed", "http://169.254.169.254/latest/meta-data"),
    },
)
def redirected_download(scene: Scene, location: str) -> Strike:
    return download(scene, status(302, Location=location))


def drip(request: Request) -> None:
    """Headers without an end, one now and then: each is in time, all of them are not."""
    request.send_response(200)
    request.flush_headers()
    try:
        for number in range(20):
            request.wfile.write(f"X-{number}: x\r\n".encode())
            time.sleep(0.1)
    except OSError:
        pass
    request.close_connection = True


def hush(request: Request) -> None:
    """Nothing, and then the end."""
    time.sleep(2)
    request.close_connection = True


@attacks(
    SILENT,
    TransportError,
    {
        "download-that-is-never-answered": (r"no end within 1 s|no answer", hush),
        "download-of-headers-now-and-then": (r"no end within 1 s|no answer", drip),
    },
)
def beyond_the_deadline(scene: Scene, fault: Answer) -> Strike:
    strike = download(scene, fault)

    def run() -> object:
        started = time.monotonic()
        try:
            return strike()
        finally:
            assert time.monotonic() - started < 1.7, "the deadline of one second was outlived"

    return run
