"""Package folders: every way in which one can be wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import card_data, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptergit.errors import AdaptergitError, NotFoundError, PackageError
from adaptergit.package import Card, Manifest, canonical, check_files, pack, read_package
from adaptergit.settings import Limits

NOW = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)


@pytest.fixture
def package(tmp_path: Path, source: Callable[..., Path]) -> Path:
    return packed(source(), tmp_path / "package")


def packed(source: Path, target: Path, **changes: Any) -> Path:
    target.mkdir()
    card = Card.from_yaml((source / "card.yaml").read_bytes())
    pack(source, target, card, repository="github.com/acme/adapters", previous=None, created=NOW)
    return target


def check(folder: Path, limits: Limits | None = None) -> None:
    package = read_package(folder, limits or Limits())
    check_files(package, Manifest.from_bytes(package.manifest_bytes), limits or Limits())


def test_a_packed_folder_is_accepted(package: Path) -> None:
    check(package)
    assert {p.name for p in package.iterdir()} == {"card.yaml", "README.md", "adapter.safetensors", "manifest.json"}


def test_packing_leaves_the_source_alone(tmp_path: Path, source: Callable[..., Path]) -> None:
    folder = source()
    before = snapshot(folder)
    packed(folder, tmp_path / "package")
    assert snapshot(folder) == before


def test_packing_is_deterministic(tmp_path: Path, source: Callable[..., Path]) -> None:
    assert snapshot(packed(source(), tmp_path / "a")) == snapshot(packed(source(), tmp_path / "b"))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_changed_byte_of_any_file_is_detected(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    source = tmp_path_factory.mktemp("source")
    (source / "card.yaml").write_bytes(Card(card_data()).to_yaml())
    (source / "adapter.safetensors").write_bytes(bytes(range(256)) * 4)
    folder = packed(source, source.parent / f"{source.name}-package")
    good = read_package(folder)
    name = data.draw(st.sampled_from(sorted(p.name for p in folder.iterdir())))
    content = bytearray((folder / name).read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    (folder / name).write_bytes(content)
    if name == "manifest.json":  # the identity itself, which is pinned or signed
        assert read_package(folder).digest != good.digest
    else:
        with pytest.raises(PackageError, match="changed"):
            check(folder)


def test_a_file_of_another_length_is_detected(package: Path) -> None:
    with (package / "adapter.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(PackageError, match="bytes, the manifest says"):
        check(package)


def test_a_git_lfs_pointer_is_named_as_such(package: Path) -> None:
    (package / "adapter.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(PackageError, match="git-lfs"):
        check(package)


def unlisted(folder: Path) -> None:
    (folder / "extra.txt").write_text("x")


def missing(folder: Path) -> None:
    (folder / "README.md").unlink()


def linked(folder: Path) -> None:
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to("/etc/hostname")


def linked_folder(folder: Path) -> None:
    (folder / "more").symlink_to("/etc")


def nested(folder: Path) -> None:
    (folder / "sub").mkdir()


def executable(folder: Path) -> None:
    (folder / "README.md").chmod(0o755)


def pickle(folder: Path) -> None:
    (folder / "pytorch_adapter.bin").write_bytes(b"\x80\x04.")


def hidden(folder: Path) -> None:
    (folder / ".hidden").write_text("x")


def device(folder: Path) -> None:
    (folder / "aux.txt").write_text("x")


def odd_name(folder: Path) -> None:
    (folder / "a b").write_text("x")


def case_colliding(folder: Path) -> None:
    (folder / "readme.MD").write_text("x")


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe")


def hidden_signature(folder: Path) -> None:
    (folder / "manifest.json.SIG").write_text("x")


@pytest.mark.parametrize(
    "attack",
    [
        unlisted, missing, linked, linked_folder, nested, executable, pickle, hidden, device, odd_name, case_colliding, pipe,
        hidden_signature,
    ],
)  # fmt: skip
def test_a_folder_with_something_else_in_it_is_refused(package: Path, attack: Callable[[Path], None]) -> None:
    attack(package)
    with pytest.raises(PackageError) as caught:
        check(package)
    assert caught.value.where is not None


@pytest.mark.parametrize("limits", [Limits(file_bytes=4999), Limits(package_bytes=5000), Limits(files=3)])
def test_an_oversized_folder_is_refused(package: Path, limits: Limits) -> None:
    with pytest.raises(PackageError, match="limit"):
        check(package, limits)


def test_a_folder_without_manifest_or_weights_is_no_package(tmp_path: Path, source: Callable[..., Path]) -> None:
    with pytest.raises(NotFoundError, match=r"manifest\.json"):
        read_package(source())
    (tmp_path / "out" / "adapter.safetensors").unlink()
    with pytest.raises(PackageError, match="no weights"):
        packed(tmp_path / "out", tmp_path / "package")


# --- manifest ---------------------------------------------------------------------------------------------------------


def manifest(package: Path) -> dict[str, Any]:
    return json.loads((package / "manifest.json").read_bytes())


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"schema": "adaptergit.manifest/2"}, "schema"), ({"extra": 1}, "extra"), ({"name": "A"}, "name"),
        ({"name": "sst2\n"}, "name"), ({"version": "1.0-1"}, "version"), ({"version": "01.0"}, "version"),
        ({"version": "1!1"}, "version"), ({"created": "today"}, "created"), ({"repository": "acme"}, "repository"),
        ({"repository": "github.com/../x"}, "repository"), ({"repository": "GitHub.com/a/b"}, "repository"), ({"previous": "x"}, "previous"),
        ({"files": []}, "files"), ({"base_model": {"id": "x"}}, "base_model"), ({"license": ""}, "license"),
        ({"files": [{"path": "../a", "size": 1, "sha256": "0" * 64}]}, "files[0].path"),
        ({"files": [{"path": "a", "size": -1, "sha256": "0" * 64}]}, "files[0].size"),
        ({"files": [{"path": "a", "size": 1, "sha256": "F" * 64}]}, "files[0].sha256"),
        ({"files": [{"path": "b", "size": 1, "sha256": "0" * 64}, {"path": "a", "size": 1, "sha256": "0" * 64}]}, "files"),
        ({"files": [{"path": "A", "size": 1, "sha256": "0" * 64}, {"path": "a", "size": 1, "sha256": "0" * 64}]}, "files"),
        ({"files": [{"path": "manifest.json", "size": 1, "sha256": "0" * 64}]}, "files"),
        ({"files": [{"path": "nul.txt", "size": 1, "sha256": "0" * 64}]}, "files"),
    ],
)  # fmt: skip
def test_a_manifest_with_a_wrong_field_is_refused(package: Path, change: dict[str, Any], field: str) -> None:
    data = canonical.dumps(manifest(package) | change)
    with pytest.raises(PackageError) as caught:
        Manifest.from_bytes(data)
    assert field in caught.value.what


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{", b"[]", b"null", b"\xff", b'{"a":1,"a":2}', b'{"a":1.5}', b'{"a":NaN}', b'{"a":1e999}', b"[" * 100_000,
        b'{"a":' + b"9" * 10_000 + b"}", b" " * 70_000,
    ],
)  # fmt: skip
def test_what_is_no_manifest_is_refused(text: bytes) -> None:
    with pytest.raises(PackageError):
        Manifest.from_bytes(text)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_are_no_manifest(data: bytes) -> None:
    with pytest.raises(PackageError):
        Manifest.from_bytes(data)


def test_what_is_written_is_canonical_and_read_back(package: Path) -> None:
    data = (package / "manifest.json").read_bytes()
    read = Manifest.from_bytes(data)
    assert read.to_bytes() == data
    assert data == json.dumps(json.loads(data), sort_keys=True, separators=(",", ":")).encode() + b"\n"


@pytest.mark.parametrize("field", ["name", "version", "license"])
def test_card_and_manifest_must_agree(package: Path, field: str) -> None:
    """A signed manifest of one adapter around the card of another is a lie about one of them."""
    values = {"name": "other", "version": "9.0.0", "license": "MIT"}
    (package / "manifest.json").write_bytes(canonical.dumps(manifest(package) | {field: values[field]}))
    with pytest.raises(PackageError, match=field):
        check(package)


def test_errors_survive_pickling() -> None:
    import pickle as pickles

    error = PackageError("what", where="where", hint="hint")
    again = pickles.loads(pickles.dumps(error))
    assert isinstance(again, AdaptergitError)
    assert str(again) == str(error)
