"""Whatever comes from outside, arbitrary or nearly right: it is read, or refused with an error of our own."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from attacks_table import HAND_LINE, PRINCIPAL, by_hand
from conftest import card_data, tiny_model
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import adaptergit
from adaptergit.bundle import import_bundle
from adaptergit.errors import AdaptergitError, PackageError
from adaptergit.index import read_index
from adaptergit.index.documents import (
    RECOVERY_NAMESPACE,
    Recovery,
    Root,
    Shard,
    Snapshot,
    catalog_bytes,
    check_recovery,
    parse_catalog,
    parse_root,
    parse_snapshot,
)
from adaptergit.index.entry import Entry
from adaptergit.index.repository import Proof
from adaptergit.index.shards import parse_shard
from adaptergit.index.sources import SourceFile, SourceKey
from adaptergit.package import BaseModel, Card, File, Manifest
from adaptergit.reference import Reference, Source
from adaptergit.splice import adapters
from adaptergit.splice.tensorfile import read_tensors
from adaptergit.store.lockfile import read_lock
from adaptergit.store.mirror import parse_listing
from adaptergit.trust import (
    AllowedSigner,
    Rotation,
    SignedRotation,
    follow,
    parse_allowed_signers,
    parse_public_key,
    parse_revocations,
    parse_signature,
)
from adaptergit.trust.oms import sign_bundle, verify_bundle
from adaptergit.web.refs import parse_refs

MANIFEST = Manifest(
    repository=PRINCIPAL, name="sst2", version="1.2.0", created="2026-11-23T09:00:00Z", license="MIT", method="seq_bn",
    base_model=BaseModel("acme/tiny", None, "fp1:2x32:" + "0" * 32 + ":"), files=(File("card.yaml", 1, "0" * 64),), previous=None,
).to_bytes()  # fmt: skip
LOCK = {
    "schema": "adaptergit.lock/1",
    "adapters": [
        {
            "reference": f"{PRINCIPAL}@sst2",
            "id": f"{PRINCIPAL}@sst2",
            "version": "1.0.0",
            "manifest_sha256": "1" * 64,
            "tree": "1" * 40,
            "urls": [f"https://{PRINCIPAL}.git"],
            "signers": ["SHA256:" + "a" * 43],
            "base_model": {"id": "x", "fingerprint": "fp1"},
            "files": [{"path": "card.yaml", "size": 1, "sha256": "0" * 64}],
        }
    ],
}
LISTING = {
    "schema": "adaptergit.mirror/1",
    "releases": [{"version": "1.0.0", "manifest_sha256": "0" * 64, "tree": "1" * 40, "files": ["card.yaml"]}],
    "yanked": {"1.0.0": "poisoned"},
}
INDEX = {
    "schema": "adaptergit.index/1",
    "entries": [
        {
            "id": f"{PRINCIPAL}@sst2",
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
        }
    ],
}
REVOCATIONS = b'{"key": "SHA256:%s", "since": "2026-01-01T00:00:00Z", "severity": "warn", "reason": "x"}\n' % (
    b"a" * 43
)
SIGNERS = f'{PRINCIPAL} namespaces="manifest.v1@adaptergit",valid-after="20260101Z" {HAND_LINE} somebody\n'

# What parsers stumble over: signs of the formats, ends of numbers, odd alphabets, halves of characters.
SPICE = st.sampled_from(
    [b"", b"\0", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\n", b"\r", b"\t", b" ", b'"', b"'", b"\\", b"\\ud800", b"{", b"}", b"[", b"]", b":", b",",
     b"&a ", b"*a", b"!!python/object ", b"---\n", b"<<: ", b"-1", b"1e999", b"NaN", b"Infinity", b"null", b"true", b"9" * 30, b"9" * 5000,
     b"../", b"%00", b"::", b"@", b"#", b"=", b"--", b"~", b"/", b"\xe2\x80\xa8", b"\xe2\x80\xae", b"\xc2\xa0", b"\x1b[2J"],
)  # fmt: skip


def mutated(valid: bytes) -> st.SearchStrategy[bytes]:
    """The valid text with a few pieces taken out, doubled, or replaced by something spicy."""

    def apply(changes: list[tuple[int, int, bytes, bool]]) -> bytes:
        data = valid
        for at, length, spice, twice in changes:
            start = at % (len(data) + 1)
            data = data[:start] + spice + data[start if twice else start + length :]
        return data

    change = st.tuples(st.integers(0, 10_000), st.integers(0, 8), SPICE | st.binary(max_size=4), st.booleans())
    return st.lists(change, min_size=1, max_size=4).map(apply)


def anything(*valid: bytes) -> st.SearchStrategy[bytes]:
    return st.binary(max_size=300) | st.one_of(*map(mutated, valid))


def quick(examples: int = 150) -> Any:
    suppressed = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    return settings(max_examples=examples, deadline=None, suppress_health_check=suppressed)


def text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


REFERENCES = [
    b"acme/adapters@sst2>=1.2,<2", b"https://host.example:8443/acme/adapters.git@sst2==1.0.0", b"git@host.example:acme/adapters.git@sst2",
    b"ssh://git@host.example:22/a/b@sst2#sha256:" + b"0" * 64, b"file:///srv/repo@sst2", b"./repo@sst2", b"~/repo@sst2",
]  # fmt: skip


@quick(400)
@given(anything(*REFERENCES))
def test_a_reference_is_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(AdaptergitError):
        found = Reference.parse(text(data))
        assert Reference.parse(str(found)) == found
        assert not found.source.url.startswith("-")
    with contextlib.suppress(AdaptergitError):
        assert "::" not in Source.parse(text(data)).url


@quick(400)
@given(anything(MANIFEST))
def test_a_manifest_is_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(AdaptergitError):
        read = Manifest.from_bytes(data)
        assert Manifest.from_bytes(read.to_bytes()) == read


@quick(300)
@given(anything(by_hand(MANIFEST)))
def test_a_signature_is_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(AdaptergitError):
        assert parse_signature(data).key.fingerprint.startswith("SHA256:")


@quick(300)
@given(anything(SIGNERS.encode()))
def test_allowed_signers_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(AdaptergitError):
        for one in parse_allowed_signers(text(data), source="x"):
            one.names(PRINCIPAL)
    with contextlib.suppress(AdaptergitError):
        parse_public_key(text(data))


@quick(300)
@given(anything(REVOCATIONS, b'{"manifest_sha256": "%s"}' % (b"0" * 64)))
def test_revocations_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(AdaptergitError):
        for one in parse_revocations(data, source="x"):
            one.covers("SHA256:" + "a" * 43, PRINCIPAL, None)
            str(one)


REFS = b"004b%s refs/tags/adapters/sst2/1.0.0\n" % (b"1" * 40) + b"0000"


@quick(300)
@given(anything(REFS))
def test_a_list_of_refs_is_read_or_refused(data: bytes) -> None:
    assert parse_refs(REFS, where="x") == {"refs/tags/adapters/sst2/1.0.0": "1" * 40}
    with contextlib.suppress(AdaptergitError):
        for name, oid in parse_refs(data, where="x").items():
            assert name
            assert int(oid, 16) >= 0


@quick(120)
@given(anything(Card(card_data()).to_yaml()))
def test_a_card_is_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(AdaptergitError):
        card = Card.from_yaml(data)
        assert Card(card.data).name == card.name


@quick(200)
@given(data=anything(json.dumps(LOCK).encode()))
def test_a_lock_is_read_or_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "lock").write_bytes(data)
    with contextlib.suppress(AdaptergitError):
        read_lock(tmp_path / "lock")


@quick(200)
@given(data=anything(json.dumps(INDEX).encode()))
def test_an_index_is_read_or_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "index").write_bytes(data)
    with contextlib.suppress(AdaptergitError):
        read_index(tmp_path / "index")


@quick(200)
@given(anything(json.dumps(LISTING).encode()))
def test_a_mirror_s_listing_is_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(AdaptergitError):
        parse_listing(data, "x")


# --- what indexes and publishers sign -----------------------------------------------------------------------------------

HAND, TIME = parse_public_key(HAND_LINE), datetime(2026, 11, 1, tzinfo=UTC)
ROOT = Root("community", 1, TIME, 1, (HAND,), (HAND,), 7, b"").to_bytes()
SNAPSHOT = Snapshot("community", 1, 7, TIME, TIME, "0" * 64, 10, "1" * 64, 20).to_bytes()
SOURCE = SourceFile(PRINCIPAL, f"https://{PRINCIPAL}.git", (SourceKey(HAND, "a"),), "a@b.example", threshold=1)
ROTATED = Rotation(PRINCIPAL, (HAND,), (HAND.fingerprint,), TIME).to_bytes()
RECOVERED = Recovery("community", PRINCIPAL, (HAND,), TIME, "lost").to_bytes()
SHARD = b"\n".join(
    json.dumps(line).encode()
    for line in ({"source": SOURCE.to_dict()}, {"rotation": ROTATED.decode(), "signatures": {}}, INDEX["entries"][0])
)
CATALOG = catalog_bytes({PRINCIPAL: Shard("2" * 64, 5, 1)})


def read_catalog(data: bytes) -> None:
    parse_catalog(data, replace(parse_snapshot(SNAPSHOT), catalog=hashlib.sha256(data).hexdigest()))


def read_recovery(data: bytes) -> None:
    check_recovery(data, by_hand(data, namespace=RECOVERY_NAMESPACE), parse_root(ROOT))


@pytest.mark.parametrize(
    ("valid", "read"),
    [
        (ROOT, parse_root),
        (SNAPSHOT, parse_snapshot),
        (CATALOG, read_catalog),
        (SOURCE.to_yaml(), lambda data: SourceFile.from_yaml(data, where="x")),
        (SHARD, lambda data: list(parse_shard("x", data, PRINCIPAL).entries("sst2"))),
        (ROTATED, Rotation.from_bytes),
        (RECOVERED, read_recovery),
    ],
    ids=["root", "snapshot", "catalog", "source", "shard", "rotation", "recovery"],
)
@quick(150)
@given(data=st.data())
def test_a_signed_document_is_read_or_refused(data: st.DataObject, valid: bytes, read: Callable[[bytes], Any]) -> None:
    read(valid)
    with contextlib.suppress(AdaptergitError):
        read(data.draw(anything(valid)))


def test_half_of_a_character_written_out_is_none() -> None:
    line = json.dumps({"source": SOURCE.to_dict() | {"contact": "HALF"}}).encode().replace(b"HALF", b"\xed\xa0\x80")
    with pytest.raises(AdaptergitError):
        parse_shard("x", line, PRINCIPAL)
    entry = Entry.from_dict({**INDEX["entries"][0], "description": "HALF"})  # type: ignore[dict-item]
    with pytest.raises(AdaptergitError):
        Entry.from_line(entry.to_line().replace(b"HALF", b"\xed\xa0\x80"), where="x")


@quick(100)
@given(st.text(st.characters(codec="utf-8"), max_size=30) | st.sampled_from(["D:\\udacity\\x", "\\\\ud83d", "😀"]))
def test_whatever_a_publisher_writes_comes_through_an_index(text_: str) -> None:
    entry = Entry.from_dict({**INDEX["entries"][0], "description": text_})  # type: ignore[dict-item]
    assert Entry.from_line(entry.to_line(), where="x") == entry
    proof = Proof("recovery", json.dumps({"reason": text_}, ensure_ascii=False).encode())
    shard = b"\n".join((json.dumps({"source": SOURCE.to_dict()}).encode(), proof.to_line()))
    assert parse_shard("x", shard, PRINCIPAL).proofs == (proof,)


@quick(150)
@given(data=st.data())
def test_a_rotation_of_a_strangers_making_is_passed_over(data: st.DataObject) -> None:
    found = SignedRotation(data.draw(anything(ROTATED)), {"x": data.draw(anything(by_hand(ROTATED)))})
    known = [AllowedSigner((PRINCIPAL,), HAND)]
    assert not follow([found], PRINCIPAL, known, (), TIME + timedelta(days=1))


@quick(150)
@given(data=st.data())
def test_a_model_signature_is_read_or_refused(data: st.DataObject, tmp_path: Path) -> None:
    folder, private, public = tmp_path / "package", tmp_path / "ec.pem", tmp_path / "ec.pub"
    if not folder.is_dir():
        folder.mkdir()
        (folder / "a").write_bytes(b"a")
        key = ec.generate_private_key(ec.SECP256R1())
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        public.write_bytes(
            key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        )
        (tmp_path / "good").write_bytes(sign_bundle(folder, "x", private))
    good = (tmp_path / "good").read_bytes()
    (folder / "model.sig").write_bytes(good)
    assert verify_bundle(folder, public) == ("a",)
    (folder / "model.sig").write_bytes(data.draw(anything(good)))
    with contextlib.suppress(AdaptergitError):
        verify_bundle(folder, public)


@quick(100)
@given(data=st.data())
def test_a_bundle_is_taken_in_or_refused(data: st.DataObject, tmp_path: Path, home: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in (("bundle.json", b'{"schema": "adaptergit.bundle/1"}'), ("releases/a.json", b"{}")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    (tmp_path / "x.tar").write_bytes(data.draw(anything(packed.getvalue())))
    with contextlib.suppress(AdaptergitError):
        import_bundle(tmp_path / "x.tar", trust_keys=True)


# --- weights, through the front door -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, bytes]:
    folder = tmp_path_factory.mktemp("saved")
    model = tiny_model("bert")
    adapters(model).add("sst2", "seq_bn")
    adapters(model).save("sst2", folder / "adapter", name="sst2", license="MIT")
    data = (folder / "adapter" / "adapter.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    return folder / "adapter", data[8 : 8 + size], data[8 + size :]


@pytest.fixture(scope="module")
def made() -> list[Any]:
    return [tiny_model("bert")]


DTYPES = ["F64", "F32", "F16", "BF16", "I32", "BOOL", "U8", "F8_E4M3", "C64", "F99"]


def changed(data: st.DataObject, header: bytes, content: bytes) -> bytes:
    """A safetensors file that somebody changed."""
    how = data.draw(st.sampled_from(["header", "json", "length", "bytes"]))
    if how == "header":
        header = data.draw(mutated(header))
    elif how == "json":
        found = json.loads(header)
        name = data.draw(st.sampled_from(sorted(n for n in found if n != "__metadata__")))
        change = st.fixed_dictionaries(
            {},
            optional={
                "dtype": st.sampled_from(DTYPES),
                "shape": st.lists(st.integers(-1, 2**64), max_size=4),
                "data_offsets": st.lists(st.integers(-1, 2**64), max_size=3),
            },
        )
        found[name] |= data.draw(change)
        header = json.dumps(found).encode()
    elif how == "bytes":
        content = (
            data.draw(st.binary(max_size=200))
            if data.draw(st.booleans())
            else content[: data.draw(st.integers(0, 500))]
        )
    size = data.draw(st.integers(0, 2**64 - 1)) if how == "length" else len(header)
    return size.to_bytes(8, "little") + header + content


@pytest.mark.slow
@quick(400)
@given(data=st.data())
def test_weights_are_what_safetensors_reads(
    data: st.DataObject, saved: tuple[Path, bytes, bytes], tmp_path: Path
) -> None:
    """Ours shares the memory of the file; it may refuse more, and reads nothing else."""
    raw = changed(data, *saved[1:])
    path = tmp_path / "x.safetensors"
    path.unlink(missing_ok=True)
    path.write_bytes(raw)
    if data.draw(st.booleans()):
        path.chmod(0o444)  # it is mapped then
    theirs, ours, why = None, None, ""
    with contextlib.suppress(safetensors.SafetensorError, KeyError, TypeError, ValueError, RuntimeError, OverflowError):
        theirs = safetensors.torch.load(raw)
    try:
        ours = read_tensors(path)
    except PackageError as error:
        why = str(error)
    assert ours is not None or theirs is None or re.search("appears twice|has dtype|limit is|surrogate", why), why
    if ours is None:
        return
    assert theirs is not None
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert (tensor.dtype, tensor.shape) == (theirs[name].dtype, theirs[name].shape)
        assert torch.equal(tensor.reshape(-1).view(torch.uint8), theirs[name].reshape(-1).view(torch.uint8))


@quick(60)
@given(data=st.data())
def test_weights_are_read_or_refused_and_the_model_untouched(
    data: st.DataObject, saved: tuple[Path, bytes, bytes], made: list[Any], tmp_path: Path
) -> None:
    folder, header, content = saved
    target = tmp_path / "folder"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target)
    (target / "adapter.safetensors").write_bytes(changed(data, header, content))
    try:
        adaptergit.load(target, made[0])
    except AdaptergitError:
        assert not hasattr(made[0], "adaptergit")
    else:
        made[0] = tiny_model("bert")
