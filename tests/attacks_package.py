"""Attacks inside a package: manifest, files, card, weights."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attacks_table import CHANGED, PARSERS, PICKLE, PRINCIPAL, TREE, Scene, Strike, attack, attacks

from adaptergit.errors import ModelError, NotFoundError, PackageError, UsageError
from adaptergit.package import canonical

# --- the manifest's bytes, signed by a key that is trusted ---------------------------------------------------------------

Text = Callable[[bytes], bytes]


@attacks(
    PARSERS,
    PackageError,
    {
        "manifest-with-duplicate-keys": (r"the key 'name' appears twice", lambda m: m.replace(b'"name":', b'"name":"x","name":')),
        "manifest-with-duplicate-nested-keys": (r"the key 'size' appears twice", lambda m: m.replace(b'"size":', b'"size":1,"size":', 1)),
        "manifest-with-nan": (r"the number NaN is not allowed", lambda m: m.replace(b'"previous":null', b'"previous":NaN')),
        "manifest-with-infinity": (r"the number -Infinity is not allowed", lambda m: m.replace(b'"previous":null', b'"previous":-Infinity')),
        "manifest-with-a-float": (r"the number 1\.0 is not allowed", lambda m: m.replace(b'"previous":null', b'"previous":1.0')),
        "manifest-with-an-exponent": (r"the number 1e400 is not allowed", lambda m: m.replace(b'"previous":null', b'"previous":1e400')),
        "manifest-with-a-number-of-ten-thousand-digits": (r"a number too long", lambda m: m.replace(b"null", b"9" * 10_000)),
        "manifest-with-a-byte-order-mark": (r"Unexpected UTF-8 BOM", lambda m: b"\xef\xbb\xbf" + m),
        "manifest-in-utf-16": (r"not UTF-8 at byte 0", lambda m: m.decode().encode("utf-16")),
        "manifest-with-invalid-utf-8": (r"not UTF-8 at byte", lambda m: m.replace(b"seq_bn", b"seq\xffbn")),
        "manifest-with-overlong-utf-8": (r"not UTF-8 at byte", lambda m: m.replace(b"seq_bn", b"seq\xc0\xafbn")),
        "manifest-nested-without-end": (r"nested too deeply", lambda m: b"[" * 60_000),
        "manifest-with-text-behind-it": (r"not JSON: Extra data", lambda m: m + b"{}"),
        "manifest-with-nul-behind-it": (r"not JSON: Extra data", lambda m: m + b"\0"),
        "manifest-with-a-comment": (r"not JSON", lambda m: b"// hello\n" + m),
        "manifest-with-a-trailing-comma": (r"not JSON", lambda m: m.replace(b"}]", b"},]")),
        "manifest-cut-in-the-middle": (r"not JSON", lambda m: m[: len(m) // 2]),
        "manifest-that-is-a-list": (r"document: .* is not of type 'object'", lambda m: b"[]"),
        "manifest-that-is-null": (r"document: None is not of type 'object'", lambda m: b"null"),
        "manifest-that-is-empty": (r"not JSON", lambda m: b""),
        "manifest-of-a-megabyte": (r"more than 65536 bytes", lambda m: m + b" " * (1 << 20)),
        "manifest-with-an-escaped-surrogate": (r"an escape of a UTF-16 surrogate", lambda m: m.replace(b"seq_bn", rb"\ud800")),
        "manifest-with-an-escaped-pair": (r"an escape of a UTF-16 surrogate", lambda m: m.replace(b"seq_bn", rb"\uD83D\uDE00")),
        "manifest-with-a-raw-control-character": (r"not JSON: Invalid control character", lambda m: m.replace(b"seq_bn", b"seq\nbn")),
    },
)  # fmt: skip
def manifest_bytes(scene: Scene, change: Text) -> Strike:
    folder = scene.package()
    scene.resign(folder, change((folder / "manifest.json").read_bytes()))
    return lambda: scene.check(folder)


def entry(path: str = "card.yaml", size: Any = 1, sha256: Any = "0" * 64) -> dict[str, Any]:
    return {"path": path, "size": size, "sha256": sha256}


@attacks(
    PARSERS,
    PackageError,
    {
        "manifest-of-another-schema": (r"schema: 'adaptergit\.manifest/1' was expected", {"schema": "adaptergit.manifest/2"}),
        "manifest-with-an-unknown-key": (r"'more' was unexpected", {"more": 1}),
        "manifest-without-a-field": (r"'previous' is a required property", {"previous": ...}),
        "manifest-with-a-parent-as-repository": (r"repository: ", {"repository": "host.example/../adapters"}),
        "manifest-with-a-repository-of-two-lines": (r"repository: ", {"repository": f"{PRINCIPAL}\n"}),
        "manifest-with-an-upper-case-host": (r"repository: ", {"repository": "Host.example/acme/adapters"}),
        "manifest-with-a-url-as-repository": (r"repository: ", {"repository": "https://host.example/acme/adapters"}),
        "manifest-with-a-path-as-name": (r"name: ", {"name": "../x"}),
        "manifest-with-a-version-in-another-form": (r"'1\.0\.0rc01' is not in normal form", {"version": "1.0.0rc01"}),
        "manifest-with-an-epoch": (r"version: ", {"version": "1!1.0"}),
        "manifest-with-a-time-that-is-none": (r"created: ", {"created": "now"}),
        "manifest-with-a-digest-in-other-case": (r"previous: ", {"previous": "A" * 64}),
        "files-none": (r"files: \[\] should be non-empty", {"files": []}),
        "files-twice": (r"files: two paths are equal when case is ignored", {"files": [entry("a"), entry("a")]}),
        "files-that-differ-in-case": (r"files: two paths are equal", {"files": [entry("A"), entry("a")]}),
        "files-unsorted": (r"files: not sorted by path", {"files": [entry("b"), entry("a")]}),
        "files-too-many": (r"files: .*is too long", {"files": [entry(f"f{n:03}") for n in range(65)]}),
        "file-with-an-absolute-path": (r"files\[0\]\.path", {"files": [entry("/etc/passwd")]}),
        "file-with-a-parent": (r"files\[0\]\.path", {"files": [entry("../x")]}),
        "file-in-a-folder": (r"files\[0\]\.path", {"files": [entry("sub/x")]}),
        "file-with-a-backslash": (r"files\[0\]\.path", {"files": [entry("..\\x")]}),
        "file-that-is-hidden": (r"files\[0\]\.path", {"files": [entry(".git")]}),
        "file-with-a-newline-behind-it": (r"files\[0\]\.path", {"files": [entry("card.yaml\n")]}),
        "file-with-letters-of-full-width": (r"files\[0\]\.path", {"files": [entry("\uff43ard.yaml")]}),
        "file-that-is-the-manifest": (r"'manifest\.json' may not be listed", {"files": [entry("manifest.json")]}),
        "file-that-is-a-signature": (r"'manifest\.json\.sig' may not be", {"files": [entry("manifest.json.sig")]}),
        "file-that-is-a-device": (r"'nul\.txt' may not be listed", {"files": [entry("nul.txt")]}),
        "file-with-a-negative-size": (r"files\[0\]\.size: -1 is less than", {"files": [entry(size=-1)]}),
        "file-with-a-huge-size": (r"files\[0\]\.size: .*is greater than", {"files": [entry(size=2**53 - 1)]}),
        "file-with-a-size-that-is-true": (r"files\[0\]\.size: True is not of type", {"files": [entry(size=True)]}),
        "file-with-a-size-in-quotes": (r"files\[0\]\.size: '1' is not of type", {"files": [entry(size="1")]}),
        "file-with-a-digest-in-upper-case": (r"files\[0\]\.sha256", {"files": [entry(sha256="A" * 64)]}),
        "file-with-a-short-digest": (r"files\[0\]\.sha256", {"files": [entry(sha256="0" * 63)]}),
        "file-with-a-digest-and-a-newline": (r"files\[0\]\.sha256", {"files": [entry(sha256="0" * 64 + "\n")]}),
        "file-with-an-unknown-key": (r"'mode' was unexpected", {"files": [entry() | {"mode": 755}]}),
        "file-list-without-a-card": (r"the manifest does not list this file|lists no card", {"files": [entry("x")]}),
    },
)  # fmt: skip
def manifest_field(scene: Scene, change: dict[str, Any]) -> Strike:
    folder = scene.package()
    raw = json.loads((folder / "manifest.json").read_bytes()) | change
    scene.resign(folder, canonical.dumps({key: value for key, value in raw.items() if value is not ...}))
    if change.get("files") == [entry("x")]:
        for name in ("card.yaml", "README.md", "adapter.safetensors"):
            (folder / name).unlink()
        (folder / "x").write_bytes(b"x")
        scene.relist(folder)
    return lambda: scene.check(folder)


# --- files -------------------------------------------------------------------------------------------------------------


def write(name: str, content: bytes | None = b"x", mode: int = 0o644) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / name
        if content is None:
            path.unlink()
            return
        path.write_bytes(content)
        path.chmod(mode)

    return change


def edit(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def linked(folder: Path) -> None:
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to("/etc/hostname")


@attacks(
    CHANGED,
    PackageError,
    {
        "unlisted-file": (r"extra\.txt: the manifest does not list this file", write("extra.txt")),
        "missing-file": (r"README\.md: the file is missing", write("README.md", None)),
        "truncated-file": (r"adapter\.safetensors: the file was changed: \d+ bytes", edit("adapter.safetensors", lambda b: b[:-1])),
        "extended-file": (r"adapter\.safetensors: the file was changed: \d+ bytes", edit("adapter.safetensors", lambda b: b + b"x")),
        "emptied-file": (r"adapter\.safetensors: the file was changed: 0 bytes", edit("adapter.safetensors", lambda b: b"")),
        "changed-byte-of-the-weights": (r"adapter\.safetensors: the file was changed: sha256", edit("adapter.safetensors", lambda b: b[:-1] + bytes([b[-1] ^ 1]))),
        "changed-byte-of-the-card": (r"card\.yaml: the file was changed: sha256", edit("card.yaml", lambda b: b.replace(b"A test.", b"A toast"))),
        "changed-line-ends": (r"card\.yaml: the file was changed", edit("card.yaml", lambda b: b.replace(b"\n", b"\r\n"))),
        "lfs-pointer-in-a-folder": (r"git-lfs pointer", write("adapter.safetensors", b"version https://git-lfs.github.com/spec/v1\n")),
    },
)  # fmt: skip
def changed_file(scene: Scene, change: Callable[[Path], object]) -> Strike:
    folder = scene.package()
    change(folder)
    return lambda: scene.check(folder)


@attacks(
    TREE,
    PackageError,
    {
        "link-in-a-folder": (r"regular files only", linked),
        "link-to-a-folder": (r"regular files only", lambda folder: (folder / "more").symlink_to("/etc")),
        "dangling-link": (r"regular files only", lambda folder: (folder / "more").symlink_to("/no/such/file")),
        "pipe-in-a-folder": (r"regular files only", lambda folder: os.mkfifo(folder / "pipe")),
        "folder-in-a-folder": (r"has no subfolders", lambda folder: (folder / "sub").mkdir()),
        "manifest-that-is-a-folder": (r"has no subfolders", lambda f: ((f / "manifest.json").unlink(), (f / "manifest.json").mkdir())),
        "executable-in-a-folder": (r"holds no executables", write("README.md", b"#!/bin/sh", 0o755)),
        "hidden-file": (r"'\.hidden' is not a file name", write(".hidden")),
        "python-module-with-a-space": (r"'a b\.py' is not a file name", write("a b.py")),
        "device-name": (r"'aux\.txt' is not a file name", write("aux.txt")),
        "name-that-is-no-utf-8": (r"is not a file name", lambda f: Path(os.fsdecode(os.fsencode(f) + b"/caf\xe9")).touch()),
        "names-that-differ-in-case": (r"differ only in case", write("readme.MD")),
    },
)  # fmt: skip
def odd_folder(scene: Scene, change: Callable[[Path], object]) -> Strike:
    folder = scene.package()
    change(folder)
    return lambda: scene.check(folder)


@attacks(
    PICKLE,
    PackageError,
    {
        "pickle-beside-the-weights": (r"holds no pickle", "pytorch_model.bin"),
        "pickle-in-upper-case": (r"holds no pickle", "WEIGHTS.PKL"),
        "pickle-that-is-signed": (r"holds no pickle", "weights.pt"),
    },
)
def pickle_file(scene: Scene, name: str) -> Strike:
    folder = scene.package()
    (folder / name).write_bytes(b"\x80\x04cposix\nsystem\n(S'touch owned'\ntR.")
    if "pt" in name:
        scene.relist(folder)
    return lambda: scene.check(folder)


# --- the card, signed --------------------------------------------------------------------------------------------------

BOMB = b"a: &a [x]\n" + b"".join(b"b%d: &b%d [*a, *a]\n" % (i, i) for i in range(40))


@attacks(
    PARSERS,
    PackageError,
    {
        "card-with-a-billion-laughs": (r"anchors and aliases are not allowed", lambda c: BOMB + c),
        "card-with-an-anchor": (r"card\.yaml:\d+: anchors and aliases", lambda c: c + b"keywords: &a [x]\n"),
        "card-with-an-undefined-alias": (r"anchors and aliases", lambda c: c + b"keywords: *a\n"),
        "card-with-a-merge-key": (r"anchors and aliases|a key must be text|not YAML", lambda c: c + b"<<: {x-a: 1}\n"),
        "card-with-a-python-object": (r"tags \('!…'\) are not allowed", lambda c: c + b"x-a: !!python/object/apply:os.system [id]\n"),
        "card-with-a-tag-of-its-own": (r"tags \('!…'\) are not allowed", lambda c: b"%TAG ! tag:evil,2020:\n---\n" + c + b"x-a: !x y\n"),
        "card-with-binary": (r"tags \('!…'\) are not allowed", lambda c: c + b"x-a: !!binary aGk=\n"),
        "card-with-a-key-twice": (r"twice|duplicate key", lambda c: c + b"name: other\n"),
        "card-with-a-nested-key-twice": (r"twice|duplicate key", lambda c: c + b"x-a: {b: 1, b: 2}\n"),
        "card-nested-without-end": (r"nested more than 20 deep", lambda c: c + b"x-a: " + b"[" * 3000 + b"]" * 3000),
        "card-nested-by-dashes": (r"nested more than 20 deep|not YAML", lambda c: c + b"x-a:\n  " + b"- " * 3000 + b"x\n"),
        "card-of-two-documents": (r"not YAML: .*another document", lambda c: c + b"---\nname: other\n"),
        "card-with-a-list-as-key": (r"a key must be text", lambda c: c + b"? [a, b]\n: c\n"),
        "card-with-a-number-as-key": (r"a key must be text", lambda c: c + b"1: 2\n"),
        "card-with-nan": (r"not a value that JSON has", lambda c: c + b"x-a: .nan\n"),
        "card-with-infinity": (r"not a value that JSON has", lambda c: c + b"x-a: -.inf\n"),
        "card-with-a-number-of-ten-thousand-digits": (r"not a value that JSON has", lambda c: c + b"x-a: " + b"9" * 10_000 + b"\n"),
        "card-with-half-a-surrogate": (r"surrogate|not YAML", lambda c: c + b'x-a: "\\ud800"\n'),
        "card-that-is-no-utf-8": (r"not UTF-8 at byte", lambda c: c + b"x-a: \xff\n"),
        "card-in-utf-16": (r"not UTF-8 at byte 0", lambda c: c.decode().encode("utf-16")),
        "card-with-a-nul": (r"not YAML", lambda c: c + b"x-a: \0\n"),
        "card-of-a-hundred-kilobytes": (r"card\.yaml: more than 65536 bytes", lambda c: c + b"#" * 100_000),
        "card-that-is-empty": (r"the file is empty", lambda c: b""),
        "card-that-is-a-list": ("card: it has no fields", lambda c: b"- name\n"),
        "card-with-an-unknown-key": (r"colour: 'colour' was unexpected", lambda c: c + b"colour: red\n"),
        "card-without-a-base-model": (r"'base_model' is a required property", lambda c: c.replace(b"base_model:", b"x-base:")),
        "card-with-a-licence-that-is-code": (r"license: ", lambda c: c.replace(b"Apache-2.0", b"__import__('os')")),
        "card-with-a-licence-of-brackets": (r"license: .*is not an SPDX expression", lambda c: c.replace(b"Apache-2.0", b"(" * 190)),
        "card-of-another-name": (r"name: the card says 'other', the manifest 'sst2'", lambda c: c.replace(b"name: sst2", b"name: other")),
        "card-of-another-version": (r"version: the card says '9\.0', the manifest '1\.0\.0'", lambda c: c.replace(b"version: 1.0.0", b"version: '9.0'")),
        "card-of-another-licence": (r"license: the card says 'MIT', the manifest 'Apache-2\.0'", lambda c: c.replace(b"Apache-2.0", b"MIT")),
        "card-of-another-method": (r"method: the card says 'lora', the manifest 'seq_bn'", lambda c: c.replace(b"seq_bn", b"lora")),
        "card-of-another-base-model": (r"base_model: the card says", lambda c: c.replace(b"acme/tiny", b"acme/huge")),
    },
)  # fmt: skip
def card_text(scene: Scene, change: Text) -> Strike:
    folder = scene.package()
    path = folder / "card.yaml"
    path.write_bytes(change(path.read_bytes()))
    scene.relist(folder)
    return lambda: scene.check(folder)


@attack("card-that-is-a-pipe", TREE, NotFoundError, r"there is no card")
def card_is_a_pipe(scene: Scene) -> Strike:
    """A folder without a manifest: reading its card must not wait for ever for somebody to write into it."""
    import threading

    from adaptergit.package.local import local_card

    folder = scene.weights()
    (folder / "card.yaml").unlink()
    os.mkfifo(folder / "card.yaml")

    def run() -> object:
        caught: list[Exception] = []

        def read() -> None:
            try:
                local_card(folder)
            except Exception as error:  # noqa: BLE001 - handed to the test
                caught.append(error)

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        thread.join(1.0)
        hanging = thread.is_alive()
        if hanging:
            os.close(os.open(folder / "card.yaml", os.O_WRONLY | os.O_NONBLOCK))
            thread.join(5.0)
            raise AssertionError("the pipe was waited for")
        raise caught[0]

    return run


# --- the weights, signed -----------------------------------------------------------------------------------------------


def parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def join(header: dict[str, Any] | bytes, content: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content


def header(change: Callable[[dict[str, Any], list[str]], object]) -> Text:
    """Change the header; the second argument holds the tensors' names in the order of their bytes."""

    def apply(data: bytes) -> bytes:
        found, content = parts(data)
        names = sorted((n for n in found if n != "__metadata__"), key=lambda n: found[n]["data_offsets"])
        change(found, names)
        return join(found, content)

    return apply


def shifted(found: dict[str, Any], names: list[str]) -> None:
    found[names[-1]]["data_offsets"] = [n + 4 for n in found[names[-1]]["data_offsets"]]


def overlapping(found: dict[str, Any], names: list[str]) -> None:
    first = next(
        n for n in names if [1] and found[n] and sum(found[m]["shape"] == found[n]["shape"] for m in names) > 1
    )
    twin = next(m for m in names if m != first and found[m]["shape"] == found[first]["shape"])
    found[twin]["data_offsets"] = found[first]["data_offsets"]


def twice(same: bool) -> Text:
    def apply(data: bytes) -> bytes:
        found, content = parts(data)
        name = next(n for n in found if n != "__metadata__")
        other = dict(found[name])
        if not same:
            other["dtype"] = "I32"
        text = json.dumps(found)
        return join(f"{{{json.dumps(name)}: {json.dumps(other)}, {text[1:]}".encode(), content)

    return apply


def poisoned(bits: bytes) -> Text:
    return lambda data: data[:-4] + bits


def cast(dtype: str) -> Text:
    """The last tensor in another dtype, its bytes cut to fit."""

    def change(data: bytes) -> bytes:
        found, content = parts(data)
        name = max((n for n in found if n != "__metadata__"), key=lambda n: found[n]["data_offsets"])
        start, _ = found[name]["data_offsets"]
        count = 1
        for size in found[name]["shape"]:
            count *= size
        width = {"I8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I32": 4, "I64": 8, "C64": 8, "U16": 2}
        bits = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}.get(dtype, 8 * width.get(dtype, 4))
        size = count * bits // 8
        found[name] |= {"dtype": dtype, "data_offsets": [start, start + size]}
        return join(found, content[:start] + b"\0" * size)

    return change


@attacks(
    PARSERS,
    PackageError,
    {
        "weights-that-are-empty": (r"not a valid safetensors file: .*[Hh]eader", lambda d: b""),
        "weights-of-seven-bytes": (r"not a valid safetensors file: .*[Hh]eader", lambda d: d[:7]),
        "header-of-exabytes": (r"not a valid safetensors file: .*[Hh]eader", lambda d: b"\xff" * 8 + d[8:]),
        "header-longer-than-the-file": (r"not a valid safetensors file: .*[Hh]eader", lambda d: struct.pack("<Q", len(d)) + d[8:]),
        "header-of-length-zero": (r"not a valid safetensors file", lambda d: b"\0" * 8 + d[8:]),
        "header-that-is-no-json": (r"not a valid safetensors file: .*[Hh]eader", lambda d: join(b"hello, world", b"")),
        "header-that-is-no-utf-8": (r"not a valid safetensors file: .*[Uu][Tt][Ff]", lambda d: join(b'{"\xff": 1}', b"")),
        "header-that-is-a-list": (r"not a valid safetensors file: .*[Hh]eader", lambda d: join(b"[]", b"")),
        "header-nested-without-end": (r"not a valid safetensors file: .*[Hh]eader", lambda d: join(b'{"a":' * 10_000, b"")),
        "tensor-name-twice-with-other-content": (r"not a valid safetensors file|twice", twice(same=False)),
        "tensor-name-twice": (r"not a valid safetensors file|twice", twice(same=True)),
        "overlapping-tensors": (r"not a valid safetensors file: .*[Oo]ffset", header(overlapping)),
        "hole-between-tensors": (r"not a valid safetensors file: .*[Oo]ffset", header(shifted)),
        "offsets-beyond-the-file": (r"not a valid safetensors file: .*(Metadata|[Ii]ncomplete|[Oo]ffset)", lambda d: d[:-4]),
        "bytes-behind-the-last-tensor": (r"not a valid safetensors file: .*(Metadata|[Ii]ncomplete|[Oo]ffset)", lambda d: d + b"\0\0\0\0"),
        "negative-offsets": (r"not a valid safetensors file: .*[Hh]eader", header(lambda h, n: h[n[0]].update(data_offsets=[-4, 0]))),
        "offsets-backwards": (r"not a valid safetensors file", header(lambda h, n: h[n[0]].update(data_offsets=h[n[0]]["data_offsets"][::-1]))),
        "offsets-of-2-to-the-64": (r"not a valid safetensors file: .*[Hh]eader", header(lambda h, n: h[n[0]].update(data_offsets=[0, 2**64]))),
        "offsets-that-wrap-around": (r"not a valid safetensors file", header(lambda h, n: h[n[0]].update(shape=[2**62, 8]))),
        "shape-of-a-million-numbers": (r"not a valid safetensors file: .*shape", header(lambda h, n: h[n[0]].update(shape=[2**31] * 1_000_000))),
        "negative-shape": (r"not a valid safetensors file: .*[Hh]eader", header(lambda h, n: h[n[0]].update(shape=[-1]))),
        "unknown-dtype": (r"has dtype PICKLE, expected one of", header(lambda h, n: h[n[0]].update(dtype="PICKLE"))),
        "integer-weights": (r"has dtype I32, expected one of", cast("I32")),
        "boolean-weights": (r"has dtype BOOL, expected one of", cast("BOOL")),
        "complex-weights": (r"has dtype C64, expected one of", cast("C64")),
        "eight-bit-float-weights": (r"has dtype F8_E4M3, expected one of", cast("F8_E4M3")),
        "scale-only-weights": (r"dtype|not a valid safetensors file", cast("F8_E8M0")),
        "four-bit-float-weights": (r"dtype|not a valid safetensors file", cast("F4")),
        "six-bit-float-weights": (r"dtype|not a valid safetensors file", cast("F6_E2M3")),
        "empty-tensor-of-a-vast-shape": (
            r"dtype|shape|not a valid safetensors file",
            header(lambda h, n: h.update(extra={"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]})),
        ),
        "metadata-that-is-a-list": (r"not a valid safetensors file: .*[Hh]eader", header(lambda h, n: h.update(__metadata__=[]))),
        "metadata-with-numbers": (r"not a valid safetensors file: .*[Hh]eader", header(lambda h, n: h.update(__metadata__={"a": 1}))),
        "nan-in-the-weights": (r"holds values that are not finite", poisoned(b"\x00\x00\xc0\x7f")),
        "infinity-in-the-weights": (r"holds values that are not finite", poisoned(b"\x00\x00\x80\xff")),
    },
)  # fmt: skip
def weights(scene: Scene, change: Text) -> Strike:
    import adaptergit

    source = scene.weights()
    path = source / "adapter.safetensors"
    path.write_bytes(change(path.read_bytes()))
    folder = scene.packed(source, scene.tmp / "signed")
    scene.trust()
    model = scene.model()
    return lambda: adaptergit.load(folder, model, policy="enforce")


def drop(data: bytes) -> bytes:
    """Without the last tensor, and well-formed."""
    found, content = parts(data)
    name = max((n for n in found if n != "__metadata__"), key=lambda n: found[n]["data_offsets"])
    start, _ = found.pop(name)["data_offsets"]
    return join(found, content[:start])


def more(name: str) -> Text:
    def apply(data: bytes) -> bytes:
        found, content = parts(data)
        found[name] = {"dtype": "F32", "shape": [1], "data_offsets": [len(content), len(content) + 4]}
        return join(found, content + b"\0" * 4)

    return apply


def reshaped(found: dict[str, Any], names: list[str]) -> None:
    name = next(n for n in names if len(found[n]["shape"]) == 2)
    found[name]["shape"] = found[name]["shape"][::-1]


@attacks(
    PARSERS,
    ModelError,
    {
        "missing-tensor": (r"do not fit the model and the card: 1 missing", drop),
        "extra-tensor": (r"do not fit the model and the card: 1 unexpected \(evil", more("evil")),
        "tensor-of-the-base-model": (r"1 unexpected \(encoder\.layer\.0", more("encoder.layer.0.output.dense.weight")),
        "tensor-with-a-path-in-its-name": (r"1 unexpected \(\.\./\.\./etc", more("../../etc/passwd")),
        "tensor-of-a-dunder-name": (r"1 unexpected \(blocks\.0\.ffn\.__class__", more("blocks.0.ffn.__class__")),
        "tensor-of-another-shape": (r"has shape \(.*\), the model needs", header(reshaped)),
    },
)  # fmt: skip
def unfitting_weights(scene: Scene, change: Text) -> Strike:
    return weights(scene, change)


def zipped(data: bytes) -> bytes:
    """A file that torch.load would unpickle, with the safetensors file inside it."""
    import io
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02cposix\nsystem\nX\x05\x00\x00\x00owned\x85R.")
        archive.writestr("archive/adapter.safetensors", data)
    return buffer.getvalue()


@attacks(
    PICKLE,
    PackageError,
    {
        "zip-called-safetensors": (r"not a valid safetensors file", zipped),
        "pickle-called-safetensors": (r"not a valid safetensors file", lambda d: b"\x80\x04cposix\nsystem\n."),
        "zip-behind-the-weights": (r"not a valid safetensors file: .*(Metadata|[Ii]ncomplete|[Oo]ffset)", lambda d: d + zipped(d)),
    },
)  # fmt: skip
def polyglot(scene: Scene, change: Text) -> Strike:
    return weights(scene, change)


# --- what the card says of the weights, signed -------------------------------------------------------------------------


def deep(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        *above, last = path.split(".")
        for name in above:
            data = data[name]
        data[last] = value

    return change


def card_for(scene: Scene, change: Callable[[dict[str, Any]], None]) -> tuple[Path, Any]:
    import copy

    from ruamel.yaml import YAML

    from adaptergit.package import Card

    source = scene.weights()
    data = copy.deepcopy(YAML(typ="safe").load((source / "card.yaml").read_text()))
    change(data)
    (source / "card.yaml").write_bytes(Card(data).to_yaml())
    scene.trust()
    return scene.packed(source, scene.tmp / "signed"), scene.model()


HUGE = 10**15


def of_method(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], None]:
    """The configuration of another method, with something wrong in it."""

    def apply(data: dict[str, Any]) -> None:
        from adaptergit.splice.config import describe, presets

        config = json.loads(json.dumps(describe(presets()[name])))
        change(config)
        data["adapter"] |= {"method": name, "config": config}

    return apply


@attacks(
    PARSERS,
    PackageError,
    {
        "config-of-an-unknown-family": (r"adapter\.config or head: .*'no-such'", deep("adapter.config.family", "no-such")),
        "config-with-an-unknown-field": (r"adapter\.config or head: .*hook", deep("adapter.config.hook", "os.system")),
        "config-with-text-for-a-number": (r"adapter\.config or head: .*reduction_factor", deep("adapter.config.reduction_factor", "x")),
        "config-with-code-for-an-activation": (r"non_linearity|__import__", deep("adapter.config.non_linearity", "__import__('os')")),
        "config-that-is-empty": (r"adapter\.config or head: ", deep("adapter.config", {})),
        "head-of-an-unknown-type": (r"adapter\.config or head: .*unknown head type", deep("head", {"type": "exec", "config": {}})),
        "head-of-a-billion-layers": (r"adapter\.config or head: .*layers", deep("head", {"type": "classification", "config": {"layers": 10**9}})),
        "head-of-a-quadrillion-labels": (r"adapter\.config or head: .*num_labels", deep("head", {"type": "classification", "config": {"num_labels": HUGE}})),
        "head-of-minus-one-labels": (r"adapter\.config or head: .*num_labels", deep("head", {"type": "classification", "config": {"num_labels": -1}})),
        "language-model-head-of-thousands-of-layers": (r"adapter\.config or head: .*layers", deep("head", {"type": "masked_lm", "config": {"layers": 3000}})),
        "config-with-an-impossible-dropout": (r"dropout", of_method("vera", lambda c: c.update(dropout=5))),
        "config-with-a-number-for-a-pattern": (r"adapter\.config or head", of_method("unipelt", lambda c: c["configs"][2].update(rank_pattern=5))),
        "config-with-a-number-for-modules": (r"adapter\.config or head", of_method("unipelt", lambda c: c["configs"][2].update(target_modules=5))),
        "format-of-others": (r"not one adapter in the format 'peft'", deep("adapter.format", "peft")),
    },
)  # fmt: skip
def config_bomb(scene: Scene, change: Callable[[dict[str, Any]], None]) -> Strike:
    import adaptergit

    folder, model = card_for(scene, change)
    return lambda: adaptergit.load(folder, model, policy="enforce")


@attacks(
    PARSERS,
    ModelError,
    {
        "fingerprint-of-another-model": (r"base model|weights|trained", "fp1:2x32:" + "0" * 32 + ":"),
        "fingerprint-of-a-vast-model": (r"base model|weights|trained|blocks", f"fp1:{'9' * 200}x32:{'0' * 32}:"),
    },
)
def misleading_fingerprint(scene: Scene, fingerprint: str) -> Strike:
    import adaptergit

    folder, model = card_for(scene, deep("base_model.fingerprint", fingerprint))
    return lambda: adaptergit.load(folder, model, policy="enforce")


@attacks(
    PARSERS,
    NotFoundError,
    {
        "card-that-chooses-a-folder-as-base-model": (r"is not mapped to a folder", "/etc"),
        "card-that-chooses-a-parent-folder": (r"is not mapped to a folder", "../models/bert"),
        "card-that-chooses-a-url": (r"is not mapped to a folder", "https://evil.example/model"),
        "card-that-chooses-an-option": (r"is not mapped to a folder", "--model"),
    },
)
def base_model(scene: Scene, model_id: str) -> Strike:
    import adaptergit

    folder, _ = card_for(scene, deep("base_model.id", model_id))
    return lambda: adaptergit.load(folder, policy="enforce")


@attack("name-that-is-taken", PARSERS, UsageError, r"the model has 'sst2' among its adapters already")
def name_taken(scene: Scene) -> Strike:
    """A package must not replace an adapter that is there."""
    import adaptergit
    from adaptergit.splice import adapters

    folder, _ = card_for(scene, lambda data: None)
    scene.host_model = None
    from conftest import tiny_model

    model = tiny_model("bert")
    adapters(model).add("sst2", "lora")
    before = adapters(model).module("sst2")

    def run() -> object:
        try:
            return adaptergit.load(folder, model, policy="enforce")
        finally:
            assert adapters(model).module("sst2") is before

    return run
