"""SSH signatures: what ssh-keygen makes is accepted, what we accept ssh-keygen accepts, everything else is refused."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import Hub
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptergit.errors import NotFoundError, TrustError, UsageError
from adaptergit.pins import pin_key
from adaptergit.publish import publish
from adaptergit.resolve import fetch
from adaptergit.trust import (
    PublicKey,
    SigningKey,
    generate_key,
    parse_public_key,
    parse_signature,
    sign,
    verify_signature,
)
from adaptergit.trust.wire import string

Source = Callable[..., Path]
NAMESPACE = "manifest.v1@adaptergit"
MESSAGE = b'{"schema":"adaptergit.manifest/1"}\n'
KINDS = [("ed25519", None), ("ecdsa", 256), ("ecdsa", 384), ("ecdsa", 521), ("rsa", 3072)]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SigningKey]:
    folder = tmp_path_factory.mktemp("keys")
    made = {}
    for kind, bits in KINDS:
        name = f"{kind}{bits or ''}"
        size = ["-b", str(bits)] if bits else []
        argv = ["ssh-keygen", "-q", "-t", kind, *size, "-N", "", "-C", "", "-f", str(folder / name)]
        subprocess.run(argv, check=True)
        made[name] = SigningKey.open(folder / name)
    return made


def check(armored: bytes, message: bytes = MESSAGE, namespace: str = NAMESPACE) -> None:
    verify_signature(parse_signature(armored), message, namespace)


def openssh_accepts(folder: Path, key_line: str, armored: bytes, message: bytes = MESSAGE) -> bool:
    (folder / "allowed").write_text(f"acme {key_line}\n")
    (folder / "sig").write_bytes(armored)
    argv = [
        "ssh-keygen",
        "-Y",
        "verify",
        "-f",
        str(folder / "allowed"),
        "-I",
        "acme",
        "-n",
        NAMESPACE,
        "-s",
        str(folder / "sig"),
    ]
    return subprocess.run(argv, input=message, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("name", [f"{kind}{bits or ''}" for kind, bits in KINDS])
def test_what_ssh_keygen_signs_is_accepted_by_both(name: str, keys: dict[str, SigningKey], tmp_path: Path) -> None:
    armored = sign(MESSAGE, keys[name])
    check(armored)
    assert parse_signature(armored).key == keys[name].public
    assert openssh_accepts(tmp_path, keys[name].public.line, armored)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_both_hashes_of_ssh_keygen_are_accepted(algorithm: str, keys: dict[str, SigningKey], tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(MESSAGE)
    key = keys["ed25519"]
    argv = [
        "ssh-keygen",
        "-q",
        "-Y",
        "sign",
        "-O",
        f"hashalg={algorithm}",
        "-f",
        str(key.path),
        "-n",
        NAMESPACE,
        str(tmp_path / "m"),
    ]
    subprocess.run(argv, check=True, capture_output=True)
    check((tmp_path / "m.sig").read_bytes())


def test_fingerprints_are_those_of_ssh_keygen(keys: dict[str, SigningKey]) -> None:
    for key in keys.values():
        shown = subprocess.run(
            ["ssh-keygen", "-l", "-f", str(key.path)], capture_output=True, text=True, check=True
        ).stdout
        assert key.public.fingerprint == shown.split()[1]


# --- signatures made by hand: FIDO keys, which need no device to be verified, and broken ones -------------------------


def armor(blob: bytes) -> bytes:
    text = base64.b64encode(blob).decode()
    lines = "\n".join(text[i : i + 70] for i in range(0, len(text), 70))
    return f"-----BEGIN SSH SIGNATURE-----\n{lines}\n-----END SSH SIGNATURE-----\n".encode()


def blob(key: bytes, signature: bytes, *, namespace: bytes = NAMESPACE.encode(), version: int = 1, magic: bytes = b"SSHSIG",
         reserved: bytes = b"", algorithm: bytes = b"sha512", tail: bytes = b"") -> bytes:  # fmt: skip
    parts = [string(key), string(namespace), string(reserved), string(algorithm), string(signature)]
    return magic + struct.pack(">I", version) + b"".join(parts) + tail


def signed_data(message: bytes = MESSAGE, namespace: bytes = NAMESPACE.encode(), algorithm: str = "sha512") -> bytes:
    digest = hashlib.new(algorithm, message).digest()
    return b"SSHSIG" + string(namespace) + string(b"") + string(algorithm.encode()) + string(digest)


PRIVATE = ed25519.Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
RAW = PRIVATE.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
PLAIN_KEY = string(b"ssh-ed25519") + string(RAW)


def plain(**changes: bytes | int) -> bytes:
    signature = string(b"ssh-ed25519") + string(PRIVATE.sign(signed_data()))
    return armor(blob(PLAIN_KEY, signature, **changes))  # type: ignore[arg-type]


def fido(flags: int = 0x01, application: bytes = b"ssh:") -> tuple[bytes, bytes]:
    key = string(b"sk-ssh-ed25519@openssh.com") + string(RAW) + string(application)
    counter = bytes([flags]) + struct.pack(">I", 7)
    inner = hashlib.sha256(application).digest() + counter + hashlib.sha256(signed_data()).digest()
    return key, armor(blob(key, string(b"sk-ssh-ed25519@openssh.com") + string(PRIVATE.sign(inner)) + counter))


def mpint(value: int) -> bytes:
    return string(value.to_bytes(value.bit_length() // 8 + 1, "big"))


def fido_ecdsa() -> tuple[bytes, bytes]:
    private = ec.derive_private_key(12345, ec.SECP256R1())
    point = private.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    kind = b"sk-ecdsa-sha2-nistp256@openssh.com"
    key = string(kind) + string(b"nistp256") + string(point) + string(b"ssh:")
    counter = b"\x05" + struct.pack(">I", 9)
    inner = hashlib.sha256(b"ssh:").digest() + counter + hashlib.sha256(signed_data()).digest()
    r, s = decode_dss_signature(private.sign(inner, ec.ECDSA(hashes.SHA256())))
    return key, armor(blob(key, string(kind) + string(mpint(r) + mpint(s)) + counter))


@pytest.mark.parametrize("make", [fido, fido_ecdsa])
def test_signatures_of_security_keys_are_accepted_by_both(
    make: Callable[[], tuple[bytes, bytes]], tmp_path: Path
) -> None:
    key, armored = make()
    check(armored)
    kind = key[4 : 4 + key[3]].decode()
    line = f"{kind} {base64.b64encode(key).decode()}"
    assert parse_public_key(line).type == kind
    assert openssh_accepts(tmp_path, line, armored)


def test_a_security_key_nobody_touched_is_refused() -> None:
    with pytest.raises(TrustError, match="touch"):
        check(fido(flags=0)[1])


def test_a_security_keys_signature_is_no_plain_one() -> None:
    """The key bytes are the same; the type string must decide."""
    key = string(b"sk-ssh-ed25519@openssh.com") + string(RAW) + string(b"ssh:")
    with pytest.raises(TrustError, match="does not belong"):
        check(armor(blob(key, string(b"ssh-ed25519") + string(PRIVATE.sign(signed_data())))))


@pytest.mark.parametrize(
    "point",
    [
        (1).to_bytes(32, "little"), (0).to_bytes(32, "little"), (2**255 - 20).to_bytes(32, "little"),
        (2**255 - 18).to_bytes(32, "little"), (2**255 - 1).to_bytes(32, "little"), (1 + 2**255).to_bytes(32, "little"),
        bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
        bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", [b"ssh-ed25519", b"sk-ssh-ed25519@openssh.com"])
def test_a_key_for_which_anybody_can_sign_is_no_key(kind: bytes, point: bytes) -> None:
    blob_ = string(kind) + string(point) + (string(b"ssh:") if kind.startswith(b"sk") else b"")
    with pytest.raises(TrustError, match="small order"):
        PublicKey(blob_).check()


def test_the_hand_made_signature_is_good_before_it_is_broken() -> None:
    check(plain())


@pytest.mark.parametrize(
    ("armored", "why"),
    [
        (b"", "armored"),
        (b"hello", "armored"),
        (plain()[:-30], "armored"),
        (plain() + plain(), "armored"),
        (b"junk\n" + plain(), "armored"),
        (plain().replace(b"BEGIN SSH", b"BEGIN PGP"), "armored"),
        (plain(magic=b"SSHSIX"), "magic"),
        (plain(version=2), "version 2"),
        (plain(reserved=b"x"), "reserved"),
        (plain(algorithm=b"md5"), "md5"),
        (plain(algorithm=b"sha1"), "sha1"),
        (plain(algorithm=b"sha256"), "does not fit"),
        (plain(tail=b"x"), "too many"),
        (plain(namespace=b"git"), "another kind of document"),
        (plain(namespace=b"file"), "another kind of document"),
        (plain(namespace=b""), "another kind of document"),
        (plain(namespace=b"manifest.v2@adaptergit"), "another kind of document"),
        (plain(namespace="é".encode()), "ASCII"),
        (armor(blob(PLAIN_KEY, b"")), "cut short"),
        (armor(blob(PLAIN_KEY, string(b"ssh-ed25519") + string(b"\0" * 64))), "does not fit"),
        (armor(blob(PLAIN_KEY, string(b"ssh-ed25519") + string(PRIVATE.sign(signed_data())) + b"x")), "too many"),
        (armor(blob(PLAIN_KEY, string(b"ssh-ed25519") + string(PRIVATE.sign(MESSAGE)))), "does not fit"),
        (armor(blob(PLAIN_KEY + b"x", string(b"ssh-ed25519") + string(PRIVATE.sign(signed_data())))), "too many"),
        (armor(blob(string(b"ssh-dss") + string(b"x"), b"")), "not accepted"),
        (armor(blob(string(b"ssh-ed25519") + string(b"short"), b"")), "malformed"),
        (armor(blob(string(b"ssh-ed25519-cert-v01@openssh.com") + string(b"x"), b"")), "not accepted"),
        (armor(b"SSHSIG"), "cut short"),
        (armor(b"SSHSIG" + b"\0\0\0\x01" + b"\xff\xff\xff\xff"), "cut short"),
    ],
)
def test_a_broken_signature_is_refused(armored: bytes, why: str) -> None:
    with pytest.raises(TrustError, match=why):
        check(armored)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_any_changed_byte_of_a_signature_is_refused(at: int, bits: int) -> None:
    signature = string(b"ssh-ed25519") + string(PRIVATE.sign(signed_data()))
    data = bytearray(blob(PLAIN_KEY, signature))
    data[at % len(data)] ^= bits
    with pytest.raises(TrustError):
        check(armor(bytes(data)))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_are_no_signature(data: bytes) -> None:
    for candidate in (data, armor(data), armor(b"SSHSIG\0\0\0\x01" + data)):
        with pytest.raises(TrustError):
            check(candidate)


def test_another_message_is_refused(key: SigningKey) -> None:
    with pytest.raises(TrustError, match="does not fit"):
        check(sign(MESSAGE, key), MESSAGE + b" ")


def test_rsa_with_sha1_and_short_rsa_are_refused(tmp_path: Path, keys: dict[str, SigningKey]) -> None:
    rsa = keys["rsa3072"]
    good = parse_signature(sign(MESSAGE, rsa))
    old = good.raw.replace(string(b"rsa-sha2-512"), string(b"ssh-rsa"))
    assert old != good.raw
    with pytest.raises(TrustError, match="does not belong"):
        check(armor(blob(rsa.public.blob, old)))
    subprocess.run(["ssh-keygen", "-q", "-t", "rsa", "-b", "2048", "-N", "", "-f", str(tmp_path / "short")], check=True)
    with pytest.raises(TrustError, match="2048 bits"):
        SigningKey.open(tmp_path / "short")


def test_what_cannot_sign_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setenv("SSH_ASKPASS_REQUIRE", "never")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", str(tmp_path / "k")], check=True)
    shutil.copyfile(tmp_path / "k.pub", tmp_path / "only.pub")
    for name, said in (
        ("only.pub", r"ssh-add the private key"),
        ("k", r"the passphrase was not typed, or another: .* ssh-add \S+/k once"),
    ):
        with pytest.raises(TrustError) as caught:
            sign(MESSAGE, SigningKey.open(tmp_path / name))
        assert re.search(said, str(caught.value)), str(caught.value)


@contextmanager
def agent(folder: Path, *options: str) -> Iterator[str]:
    """An ssh-agent of our own; gives its socket."""
    if shutil.which("ssh-agent") is None:
        pytest.skip("this OpenSSH has no ssh-agent")
    socket = folder / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(socket), *options], stdout=subprocess.DEVNULL)
    try:
        for _ in range(100):
            if socket.exists():
                break
            process.poll()
            time.sleep(0.05)
        yield str(socket)
    finally:
        process.terminate()
        process.wait()


def test_the_agent_signs_for_a_public_key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = generate_key(tmp_path / "k")
    with agent(tmp_path) as socket:
        monkeypatch.setenv("SSH_AUTH_SOCK", socket)
        subprocess.run(["ssh-add", "-q", str(tmp_path / "k")], check=True, capture_output=True)
        (tmp_path / "k").unlink()
        check(sign(MESSAGE, SigningKey.open(tmp_path / "k.pub")))
    assert key.public == SigningKey.open(tmp_path / "k.pub").public


def test_keys_are_never_overwritten(tmp_path: Path) -> None:
    key = generate_key(tmp_path / "deep" / "k")
    before = key.path.read_bytes()
    with pytest.raises(UsageError, match="never overwritten"):
        generate_key(tmp_path / "deep" / "k")
    assert key.path.read_bytes() == before
    assert key.path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "content", ["", "hello", "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n", "ssh-ed25519 AAAA", "ssh-ed25519 !!"]
)
def test_a_file_that_is_no_key_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "k.pub").write_text(content)
    with pytest.raises(TrustError):
        SigningKey.open(tmp_path / "k.pub")
    (tmp_path / "x").write_text(content)
    with pytest.raises(TrustError):
        SigningKey.open(tmp_path / "x")
    with pytest.raises(NotFoundError, match="keygen"):
        SigningKey.open(tmp_path / "nothing")


# --- FIDO keys, made and used by OpenSSH with the authenticator in software that its own tests have --------------------

AUTHENTICATOR = Path(os.environ.get("ADAPTERGIT_SK_PROVIDER", "/usr/lib/openssh/regress/misc/sk-dummy/sk-dummy.so"))
security_keys = pytest.mark.skipif(not AUTHENTICATOR.is_file(), reason="no sk-dummy.so (Debian: openssh-tests)")


def security_key(folder: Path, kind: str, *options: str) -> SigningKey:
    argv = ["ssh-keygen", "-q", "-t", kind, *options, "-N", "", "-C", "", "-f", str(folder / kind)]
    subprocess.run(argv, check=True, env={**os.environ, "SSH_SK_PROVIDER": str(AUTHENTICATOR)})
    return SigningKey.open(folder / kind)


@security_keys
@pytest.mark.parametrize("kind", ["ed25519-sk", "ecdsa-sk"])
def test_a_security_key_publishes_and_is_trusted(
    kind: str, hub: Hub, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = security_key(tmp_path, kind)
    monkeypatch.setenv("SSH_SK_PROVIDER", str(AUTHENTICATOR))
    publish(source(), clone=hub.clone, key=key.path)
    with pytest.raises(TrustError, match="nobody you know"):
        fetch(f"{hub.url}@sst2")
    pin_key("127.0.0.1/acme/adapters", key.public.line)
    found = fetch(f"{hub.url}@sst2")
    assert found.verdict.signers == (key.public.fingerprint,)
    manifest, armored = ((found.path / name).read_bytes() for name in ("manifest.json", "manifest.json.sig"))
    assert openssh_accepts(tmp_path, key.public.line, armored, manifest)
    again = sign(manifest, key)  # counted by the authenticator: never the same twice
    check(again, manifest)
    with pytest.raises(TrustError):
        check(again, manifest + b" ")


@security_keys
@pytest.mark.parametrize("kind", ["ed25519-sk", "ecdsa-sk"])
def test_a_security_key_that_nobody_has_to_touch_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = security_key(tmp_path, kind, "-O", "no-touch-required")
    monkeypatch.setenv("SSH_SK_PROVIDER", str(AUTHENTICATOR))
    with pytest.raises(TrustError, match="without anybody touching it"):
        sign(MESSAGE, key)


@security_keys
def test_a_security_key_signs_through_the_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = security_key(tmp_path, "ed25519-sk")
    with agent(tmp_path, "-P", str(AUTHENTICATOR)) as socket:
        monkeypatch.setenv("SSH_AUTH_SOCK", socket)
        monkeypatch.setenv("SSH_ASKPASS", "/bin/true")  # who shows that a touch is waited for
        subprocess.run(["ssh-add", "-q", "-S", str(AUTHENTICATOR), str(key.path)], check=True)
        key.path.unlink()
        check(sign(MESSAGE, SigningKey.open(key.path.with_name("ed25519-sk.pub"))))
