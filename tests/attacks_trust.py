"""Attacks on signatures, keys and what somebody trusts."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any

from attacks_table import (
    BAD_RELEASE,
    HAND_LINE,
    NAMESPACE,
    PARSERS,
    PRINCIPAL,
    REPLAY,
    SIGNATURE,
    STOLEN,
    SWAPPED,
    TAKEOVER,
    WEAK_SIGNATURE,
    Scene,
    Strike,
    attack,
    attacks,
    by_hand,
)
from test_sshsig import PLAIN_KEY, PRIVATE, RAW, armor, blob, mpint, signed_data

from adaptergit.errors import NotFoundError, PackageError, TrustError
from adaptergit.package import canonical
from adaptergit.pins import revoke
from adaptergit.reference import Reference
from adaptergit.resolve import fetch
from adaptergit.settings import Settings
from adaptergit.trust import sign
from adaptergit.trust.wire import string

SIG = "manifest.json.sig"


# --- signature files ---------------------------------------------------------------------------------------------------


def signed_with(scene: Scene, make: Any) -> Strike:
    """A package whose signature file is what ``make`` makes of the manifest; the key is trusted."""
    folder = scene.package()
    scene.trust(f"{PRINCIPAL} {HAND_LINE}", f"{PRINCIPAL} {scene.key.public.line}")
    (folder / SIG).write_bytes(make((folder / "manifest.json").read_bytes()))
    return lambda: scene.check(folder)


def raw(algorithm: bytes, signature: bytes) -> bytes:
    return string(algorithm) + string(signature)


def good(message: bytes) -> bytes:
    return PRIVATE.sign(signed_data(message))


@attacks(
    SIGNATURE,
    TrustError,
    {
        "empty-signature": (r"not an armored SSH signature", lambda m: b""),
        "signature-that-is-text": (r"not an armored SSH signature", lambda m: b"signed, honestly\n"),
        "signature-without-its-end": (r"not an armored SSH signature", lambda m: by_hand(m)[:-30]),
        "two-signatures-in-one-file": (r"not an armored SSH signature", lambda m: by_hand(m) * 2),
        "text-before-the-armor": (r"not an armored SSH signature", lambda m: b"Hello\n" + by_hand(m)),
        "text-after-the-armor": (r"not an armored SSH signature", lambda m: by_hand(m) + b"Hello\n"),
        "blank-line-after-the-armor": (r"not an armored SSH signature", lambda m: by_hand(m) + b"\n"),
        "pgp-armor": (r"not an armored SSH signature", lambda m: by_hand(m).replace(b"SSH", b"PGP")),
        "armor-with-a-header": (
            r"not an armored SSH signature",
            lambda m: by_hand(m).replace(b"-----\n", b"-----\nComment: x\n", 1),
        ),
        "armor-that-is-no-base64": (
            r"armor is not base64",
            lambda m: b"-----BEGIN SSH SIGNATURE-----\nAAA=AAAA\n-----END SSH SIGNATURE-----\n",
        ),
        "other-magic": (r"the magic bytes are missing", lambda m: by_hand(m, magic=b"SSHSIX")),
        "signature-of-version-2": (r"version 2 is not supported", lambda m: by_hand(m, version=2)),
        "reserved-field-in-use": (r"reserved field is not empty", lambda m: by_hand(m, reserved=b"x")),
        "bytes-after-the-signature": (r"bytes too many", lambda m: by_hand(m, tail=b"x")),
        "signature-cut-short": (r"cut short", lambda m: armor(b"SSHSIG\0\0\0\x01\0\0\0\x33ssh")),
        "length-of-four-gigabytes": (r"cut short", lambda m: armor(b"SSHSIG\0\0\0\x01\xff\xff\xff\xff")),
        "signature-of-zeros": (
            r"does not fit the signed bytes",
            lambda m: armor(blob(PLAIN_KEY, raw(b"ssh-ed25519", b"\0" * 64))),
        ),
        "signature-of-other-bytes": (r"does not fit the signed bytes", lambda m: by_hand(m + b" ")),
        "signature-of-the-bare-message": (
            r"does not fit the signed bytes",
            lambda m: armor(blob(PLAIN_KEY, raw(b"ssh-ed25519", PRIVATE.sign(m)))),
        ),
        "hash-that-was-swapped": (
            r"does not fit the signed bytes",
            lambda m: armor(blob(PLAIN_KEY, raw(b"ssh-ed25519", good(m)), algorithm=b"sha256")),
        ),
        "signature-with-bytes-after-it": (
            r"bytes too many",
            lambda m: armor(blob(PLAIN_KEY, raw(b"ssh-ed25519", good(m)) + b"x")),
        ),
        "key-with-bytes-after-it": (
            r"bytes too many",
            lambda m: armor(blob(PLAIN_KEY + b"x", raw(b"ssh-ed25519", good(m)))),
        ),
        "key-that-is-no-point": (
            r"the key is malformed",
            lambda m: armor(blob(string(b"ssh-ed25519") + string(b"short"), raw(b"ssh-ed25519", good(m)))),
        ),
        "certificate-instead-of-a-key": (
            r"'ssh-ed25519-cert-v01@openssh\.com' are not accepted",
            lambda m: armor(blob(string(b"ssh-ed25519-cert-v01@openssh.com") + string(RAW), raw(b"ssh-ed25519", good(m)))),
        ),
        "curve-of-another-size": (
            r"does not belong to a key of type ecdsa-sha2-nistp256",
            lambda m: armor(blob(string(b"ecdsa-sha2-nistp256") + string(b"nistp521") + string(b"\x04x"), b"")),
        ),
        "compressed-point": (
            r"not an uncompressed point",
            lambda m: armor(blob(string(b"ecdsa-sha2-nistp256") + string(b"nistp256") + string(b"\x02" * 33), b"")),
        ),
        "algorithm-of-another-key-type": (
            r"'rsa-sha2-512' does not belong to a ssh-ed25519 key",
            lambda m: armor(blob(PLAIN_KEY, raw(b"rsa-sha2-512", good(m)))),
        ),
    },
)  # fmt: skip
def broken_signature(scene: Scene, make: Any) -> Strike:
    return signed_with(scene, make)


@attacks(
    REPLAY,
    TrustError,
    {
        f"signature-for-{name}": (r"another kind of document", namespace)
        for name, namespace in {
            "a-file": "file",
            "a-git-commit": "git",
            "a-snapshot": "snapshot.v1@adaptergit",
            "a-later-manifest": "manifest.v2@adaptergit",
            "nothing": "",
            "a-namespace-with-a-nul": f"{NAMESPACE}\0",
        }.items()
    },
)
def other_namespace(scene: Scene, namespace: str) -> Strike:
    return signed_with(scene, lambda m: by_hand(m, namespace=namespace))


@attack("git-commit-s-signature-by-ssh-keygen", REPLAY, TrustError, r"made for 'git', another kind of document")
def by_ssh_keygen_for_git(scene: Scene) -> Strike:
    def make(message: bytes) -> bytes:
        (scene.tmp / "m").write_bytes(message)
        argv = ["ssh-keygen", "-q", "-Y", "sign", "-f", str(scene.key.path), "-n", "git", str(scene.tmp / "m")]
        subprocess.run(argv, check=True, capture_output=True)
        return (scene.tmp / "m.sig").read_bytes()

    return signed_with(scene, make)


@attacks(
    WEAK_SIGNATURE,
    TrustError,
    {f"signature-over-{name}": (rf"the hash '{name}' is not accepted", name) for name in ("md5", "sha1", "sha224")},
)
def weak_hash(scene: Scene, algorithm: str) -> Strike:
    return signed_with(scene, lambda m: by_hand(m, algorithm=algorithm))


def rsa_key(scene: Scene, bits: int) -> Path:
    """Made once per run: 3072 bits take a while."""
    path = scene.attic / f"rsa{bits}"
    if not path.exists():
        subprocess.run(["ssh-keygen", "-q", "-t", "rsa", "-b", str(bits), "-N", "", "-f", str(path)], check=True)
    return path


@attack("short-rsa-key", WEAK_SIGNATURE, TrustError, r"an RSA key of 2048 bits is not accepted")
def short_rsa(scene: Scene) -> Strike:
    def make(message: bytes) -> bytes:
        (scene.tmp / "m").write_bytes(message)
        argv = [
            "ssh-keygen",
            "-q",
            "-Y",
            "sign",
            "-n",
            NAMESPACE,
            "-f",
            str(rsa_key(scene, 2048)),
            str(scene.tmp / "m"),
        ]
        subprocess.run(argv, check=True, capture_output=True)
        return (scene.tmp / "m.sig").read_bytes()

    return signed_with(scene, make)


@attack("short-rsa-key-among-the-trusted", WEAK_SIGNATURE, TrustError, r"an RSA key of 2048 bits is not accepted")
def short_rsa_trusted(scene: Scene) -> Strike:
    folder = scene.package()
    scene.trust(f"{PRINCIPAL} {rsa_key(scene, 2048).with_suffix('.pub').read_text().strip()}")
    return lambda: scene.check(folder)


@attack("rsa-signature-with-sha-1", WEAK_SIGNATURE, TrustError, r"'ssh-rsa' does not belong to a ssh-rsa key")
def rsa_sha1(scene: Scene) -> Strike:
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import padding, rsa

    private = serialization.load_ssh_private_key(rsa_key(scene, 3072).read_bytes(), None)
    assert isinstance(private, rsa.RSAPrivateKey)
    numbers = private.public_key().public_numbers()
    key = string(b"ssh-rsa") + string(mpint(numbers.e)[4:]) + string(mpint(numbers.n)[4:])
    return signed_with(
        scene,
        lambda m: armor(blob(key, raw(b"ssh-rsa", private.sign(signed_data(m), padding.PKCS1v15(), hashes.SHA1())))),
    )


@attacks(
    WEAK_SIGNATURE,
    TrustError,
    {
        "security-key-nobody-touched": (r"without anybody touching it", (0x00, b"sk-ssh-ed25519@openssh.com")),
        "security-key-with-other-flags": (r"without anybody touching it", (0x04, b"sk-ssh-ed25519@openssh.com")),
        "security-key-signing-as-a-plain-one": (r"does not belong to a sk-ssh-ed25519", (0x01, b"ssh-ed25519")),
    },
)
def security_key(scene: Scene, how: tuple[int, bytes]) -> Strike:
    flags, algorithm = how
    key = string(b"sk-ssh-ed25519@openssh.com") + string(RAW) + string(b"ssh:")

    def make(message: bytes) -> bytes:
        counter = bytes([flags]) + struct.pack(">I", 7)
        inner = hashlib.sha256(b"ssh:").digest() + counter + hashlib.sha256(signed_data(message)).digest()
        return armor(blob(key, raw(algorithm, PRIVATE.sign(inner)) + counter))

    return signed_with(scene, make)


# --- who may sign ------------------------------------------------------------------------------------------------------


@attack("unsigned-package", SIGNATURE, TrustError, r"@sst2 is not signed")
def unsigned(scene: Scene) -> Strike:
    folder = scene.package()
    (folder / SIG).unlink()
    return lambda: scene.check(folder)


@attack("unsigned-package-on-first-use", SIGNATURE, TrustError, r"@sst2 is not signed")
def unsigned_tofu(scene: Scene) -> Strike:
    folder = scene.package()
    (folder / SIG).unlink()
    return lambda: scene.check(folder, policy="tofu")


@attack("unsigned-folder-under-enforce", SIGNATURE, TrustError, r"is not signed")
def unsigned_folder(scene: Scene) -> Strike:
    import adaptergit

    source = scene.weights()
    folder = scene.packed(source, scene.tmp / "signed")
    scene.trust()
    (folder / SIG).unlink()
    model = scene.model()
    return lambda: adaptergit.load(folder, model, policy="enforce")


@attack("folder-without-a-manifest-under-enforce", SIGNATURE, NotFoundError, r"there is no manifest\.json")
def bare_folder(scene: Scene) -> Strike:
    import adaptergit

    folder, model = scene.weights(), scene.model()
    return lambda: adaptergit.load(folder, model, policy="enforce")


@attack("signature-of-another-key", SIGNATURE, TrustError, r"but only SHA256:.* may sign for host\.example")
def another_key(scene: Scene) -> Strike:
    folder = scene.package()
    (folder / SIG).write_bytes(sign((folder / "manifest.json").read_bytes(), scene.other))
    return lambda: scene.check(folder)


@attack("unknown-publisher", SIGNATURE, TrustError, r"which nobody you know vouches for as host\.example")
def unknown(scene: Scene) -> Strike:
    folder = scene.package()
    scene.trust(f"other.example/acme/adapters {scene.key.public.line}")
    return lambda: scene.check(folder)


@attack("new-key-after-first-use", TAKEOVER, TrustError, r"but only SHA256:.* may sign for host\.example")
def key_change(scene: Scene) -> Strike:
    """Under tofu: the first key is pinned, the next release is signed by whoever took the account over."""
    import warnings

    folder = scene.package()
    scene.trust("# nobody yet")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert scene.check(folder, policy="tofu").pin is not None
    (folder / SIG).write_bytes(sign((folder / "manifest.json").read_bytes(), scene.other))
    return lambda: scene.check(folder, policy="tofu")


@attack("first-use-of-a-local-path", TAKEOVER, TrustError, r"a local path names nobody")
def first_use_of_a_path(scene: Scene) -> Strike:
    folder = scene.package()
    scene.trust("# nobody yet")
    return lambda: scene.check(folder, policy="tofu", reference=None, version=None)


@attack("settings-for-a-claimed-name", TAKEOVER, TrustError, r"which nobody you know vouches for")
def claimed_name(scene: Scene) -> Strike:
    """What a folder says of its repository does not choose a weaker rule."""
    folder = scene.package()
    scene.trust("# nobody yet")
    lax = Settings(policy=(("host.example/*", "unsigned", 1),))
    return lambda: scene.check(folder, reference=None, version=None, settings=lax)


DAY = timedelta(days=1)


@attacks(
    STOLEN,
    TrustError,
    {
        "expired-key": (r"the key was valid only before 2020-01-01", 'valid-before="20200101Z"'),
        "key-that-is-not-yet-valid": (r"the key is valid only after 2099-01-01", 'valid-after="20990101Z"'),
        "key-for-git-only": (r"the key is allowed for git only", 'namespaces="git"'),
        "key-for-everything-but-manifests": (
            r"the key is allowed for \*,!manifest\.v1@adaptergit only|allowed for \*, !manifest",
            'namespaces="*,!manifest.v1@adaptergit"',
        ),
        "certificate-authority": (r"certificate authorities are not supported", "cert-authority"),
        "option-nobody-knows": (r"unknown or empty option 'verify-required'", "verify-required"),
        "option-twice": (r"the option namespaces appears twice", 'namespaces="git",namespaces="*"'),
        "window-that-is-no-time": (r"'soon' is not a time", 'valid-before="soon"'),
    },
)
def restricted_key(scene: Scene, option: str) -> Strike:
    folder = scene.package()
    scene.trust(f"{PRINCIPAL} {option} {scene.key.public.line}")
    return lambda: scene.check(folder)


@attacks(
    TAKEOVER,
    TrustError,
    {
        "excluded-by-a-negated-pattern": (r"nobody you know", f"*,!{PRINCIPAL}"),
        "negated-pattern-alone": (r"nobody you know", "!other.example/*"),
        "pattern-in-other-case": (r"nobody you know", PRINCIPAL.upper()),
        "prefix-of-the-name": (r"nobody you know", "host.example/acme/adapter"),
        "name-with-git-behind-it": (r"nobody you know", f"{PRINCIPAL}.git"),
        "brackets-are-no-pattern": (r"nobody you know", "host.example/[a]cme/adapters"),
        "empty-principal-among-others": (r"an empty or overlong principal", f"x,,{PRINCIPAL}"),
        "principal-longer-than-openssh-reads": (r"an empty or overlong principal", "*" * 1100),
        "open-quote": (r"quote around the principals is not closed", f'"{PRINCIPAL}'),
        "odd-space-between-principal-and-key": (r"a control character or an odd space", f"{PRINCIPAL}\u00a0x"),
        "escape-sequence-in-the-pins": (r"a control character or an odd space", f"{PRINCIPAL}\x1b[2J"),
        "nul-in-the-pins": (r"a control character or an odd space", f"{PRINCIPAL}\0"),
        "vertical-tab-in-the-pins": (r"a control character or an odd space", f"x\x0b{PRINCIPAL}"),
        "byte-order-mark-in-the-pins": (r"a control character or an odd space", f"\ufeff{PRINCIPAL}"),
        "line-separator-in-the-pins": (r"a control character or an odd space", f"# a\u2028{PRINCIPAL}"[2:]),
    },
)
def principal_pattern(scene: Scene, principal: str) -> Strike:
    folder = scene.package()
    scene.trust(f"{principal} {scene.key.public.line}")
    return lambda: scene.check(folder)


@attack("comment-that-only-looks-ended", TAKEOVER, TrustError, r"nobody you know")
def comment_goes_on(scene: Scene) -> Strike:
    """OpenSSH reads one comment here; so must we, or two tools disagree on whom a user trusts."""
    folder = scene.package()
    scene.trust(f"# x\u2028* {scene.key.public.line}", f"# y\x85* {scene.key.public.line}")
    return lambda: scene.check(folder)


@attacks(
    PARSERS,
    TrustError,
    {
        "pins-that-are-no-utf-8": (r"not UTF-8 at byte 0", b"\xff\xfe*\0"),
        "pins-with-a-private-key": (r"unknown or empty option 'OPENSSH'", b"-----BEGIN OPENSSH PRIVATE KEY-----\n"),
        "pins-with-a-line-of-junk": (r"known_publishers:1: ", b"{}\n"),
    },
)
def damaged_pins(scene: Scene, data: bytes) -> Strike:
    folder = scene.package()
    (scene.home / "config" / "known_publishers").write_bytes(data)
    return lambda: scene.check(folder)


# --- what was asked for ------------------------------------------------------------------------------------------------


@attacks(
    REPLAY,
    TrustError,
    {
        "replay-under-another-name": (r"asked for the adapter 'other'", f"{PRINCIPAL}@other==1.0.0"),
        "replay-under-another-version": (r"asked for version ==2\.0\.0", f"{PRINCIPAL}@sst2==2.0.0"),
        "replay-in-another-repository": (r"asked for host\.example/evil/adapters, but", "host.example/evil/adapters@sst2"),
        "replay-on-another-host": (r"asked for evil\.example/acme/adapters, but", "evil.example/acme/adapters@sst2"),
        "replay-with-other-case": (r"asked for host\.example/Acme/adapters, but", "host.example/Acme/adapters@sst2"),
        "another-digest-than-the-pinned-one": (r"you pinned 0{64}", f"{PRINCIPAL}@sst2#sha256:{'0' * 64}"),
    },
)  # fmt: skip
def replay(scene: Scene, text: str) -> Strike:
    folder = scene.package()
    scene.trust(f"* {scene.key.public.line}")
    return lambda: scene.check(folder, reference=Reference.parse(text))


@attack("old-release-behind-a-newer-tag", REPLAY, TrustError, r"tagged 3\.0\.0, but its manifest is of 1\.0\.0")
def old_behind_tag(scene: Scene) -> Strike:
    folder = scene.package()
    return lambda: scene.check(folder, reference=Reference.parse(f"{PRINCIPAL}@sst2"), version="3.0.0")


@attack("digest-policy-without-a-digest", SIGNATURE, TrustError, r"'digest' needs a pinned digest")
def no_digest(scene: Scene) -> Strike:
    folder = scene.package()
    return lambda: scene.check(folder, policy="digest")


@attack("pinned-digest-of-an-unknown-publisher", SIGNATURE, TrustError, r"nobody you know")
def pinned_but_unknown(scene: Scene) -> Strike:
    """A digest in a reference, which came with the attack, does not weaken the policy."""
    folder = scene.package()
    scene.trust("# nobody")
    digest = canonical.sha256((folder / "manifest.json").read_bytes())
    return lambda: scene.check(folder, reference=Reference.parse(f"{PRINCIPAL}@sst2#sha256:{digest}"))


# --- several keys, revoked keys ----------------------------------------------------------------------------------------

TWO = Settings(policy=((PRINCIPAL, "enforce", 2),))


def cosigned(scene: Scene, second: bytes, name: str = "manifest.json.0123abcd.sig") -> Path:
    folder = scene.package()
    (folder / name).write_bytes(second)
    return folder


@attack("one-key-where-two-must-sign", STOLEN, TrustError, r"but 2 different keys must sign")
def one_of_two(scene: Scene) -> Strike:
    folder = scene.package()
    return lambda: scene.check(folder, settings=TWO)


@attack("the-same-key-twice", STOLEN, TrustError, r"but 2 different keys must sign")
def same_twice(scene: Scene) -> Strike:
    folder = scene.package()
    shutil.copy(folder / SIG, folder / "manifest.json.0123abcd.sig")
    return lambda: scene.check(folder, settings=TWO)


@attack("second-signature-by-a-stranger", STOLEN, TrustError, r"but 2 different keys must sign")
def stranger_second(scene: Scene) -> Strike:
    folder = scene.package()
    second = sign((folder / "manifest.json").read_bytes(), scene.other)
    (folder / "manifest.json.0123abcd.sig").write_bytes(second)
    return lambda: scene.check(folder, settings=TWO)


@attack("two-signatures-on-first-use", STOLEN, TrustError, r"nobody you know")
def two_on_first_use(scene: Scene) -> Strike:
    folder = scene.package()
    scene.trust("# nobody")
    second = sign((folder / "manifest.json").read_bytes(), scene.other)
    (folder / "manifest.json.0123abcd.sig").write_bytes(second)
    lax = Settings(policy=((PRINCIPAL, "tofu", 2),))
    return lambda: scene.check(folder, settings=lax)


@attack("broken-signature-of-a-co-signer", SIGNATURE, TrustError, r"manifest\.json\.0123abcd\.sig: not an armored")
def broken_cosigner(scene: Scene) -> Strike:
    folder = cosigned(scene, b"-----BEGIN SSH")
    return lambda: scene.check(folder)


@attack("co-signature-of-another-release", REPLAY, TrustError, r"manifest\.json\.0123abcd\.sig: .*does not fit")
def cosigner_of_another(scene: Scene) -> Strike:
    folder = cosigned(scene, sign(b"another manifest", scene.other))
    return lambda: scene.check(folder)


@attack("seventeen-signatures", SIGNATURE, TrustError, r"18 signatures, the limit is 16")
def too_many(scene: Scene) -> Strike:
    folder = scene.package()
    for number in range(17):
        shutil.copy(folder / SIG, folder / f"manifest.json.{number:08x}.sig")
    return lambda: scene.check(folder)


@attack("signature-file-of-a-megabyte", SIGNATURE, PackageError, r"manifest\.json\.sig: more than 16384 bytes")
def huge_signature(scene: Scene) -> Strike:
    folder = scene.package()
    (folder / SIG).write_bytes(by_hand(b"x") + b"A" * (1 << 20))
    return lambda: scene.check(folder)


@attacks(
    SIGNATURE,
    PackageError,
    {
        f"signature-called-{name}": (r"does not list this file|differ only in case", name)
        for name in ("manifest.json.0123ABCD.sig", "manifest.json.0123.sig", "manifest.json.sig.sig", "card.yaml.sig")
    },
)
def signature_by_another_name(scene: Scene, name: str) -> Strike:
    folder = cosigned(scene, b"anything at all", name)
    return lambda: scene.check(folder)


@attack("revoked-key", STOLEN, TrustError, r"which is revoked: stolen laptop")
def revoked_key(scene: Scene) -> Strike:
    folder = scene.package()
    revoke(scene.key.public.fingerprint, reason="stolen laptop")
    return lambda: scene.check(folder)


@attack("revoked-key-on-first-use", STOLEN, TrustError, r"which is revoked: stolen laptop")
def revoked_key_tofu(scene: Scene) -> Strike:
    folder = scene.package()
    scene.trust("# nobody")
    revoke(scene.key.public.fingerprint, reason="stolen laptop")
    return lambda: scene.check(folder, policy="tofu")


@attack("revoked-key-with-a-backdated-manifest", STOLEN, TrustError, r"revoked since")
def backdated(scene: Scene) -> Strike:
    """The manifest's own date is the thief's word."""
    from datetime import UTC, datetime

    folder = scene.package()
    manifest = json.loads((folder / "manifest.json").read_bytes()) | {"created": "2001-01-01T00:00:00Z"}
    scene.resign(folder, canonical.dumps(manifest))
    revoke(scene.key.public.fingerprint, since=datetime(2020, 1, 1, tzinfo=UTC))
    return lambda: scene.check(folder)


@attack("one-of-two-keys-revoked", STOLEN, TrustError, r"but 2 different keys must sign")
def one_revoked(scene: Scene) -> Strike:
    folder = scene.package()
    scene.trust(f"{PRINCIPAL} {scene.key.public.line}", f"{PRINCIPAL} {scene.other.public.line}")
    second = sign((folder / "manifest.json").read_bytes(), scene.other)
    (folder / "manifest.json.0123abcd.sig").write_bytes(second)
    revoke(scene.other.public.fingerprint)
    return lambda: scene.check(folder, settings=TWO)


@attacks(
    BAD_RELEASE,
    TrustError,
    {
        f"revoked-release-under-{level}": (r"this release is revoked: poisoned", level)
        for level in ("enforce", "tofu", "unsigned", "digest")
    },
)
def revoked_release(scene: Scene, level: str) -> Strike:
    folder = scene.package()
    revoke(f"sha256:{canonical.sha256((folder / 'manifest.json').read_bytes())}", reason="poisoned")
    return lambda: scene.check(folder, policy=level)


FINGERPRINT = "SHA256:" + "a" * 43


@attacks(
    BAD_RELEASE,
    TrustError,
    {
        "revocation-of-nothing": (r"names either a key or a manifest_sha256", "{}"),
        "revocation-of-both": (
            r"names either a key or a manifest_sha256",
            json.dumps({"key": FINGERPRINT, "manifest_sha256": "0" * 64}),
        ),
        "revocation-that-is-a-list": (r"a revocation has", "[]"),
        "revocation-with-an-unknown-field": (r"a revocation has", json.dumps({"key": FINGERPRINT, "keys": "x"})),
        "revocation-with-an-odd-severity": (
            r"severity is one of refuse, warn",
            json.dumps({"key": FINGERPRINT, "severity": "perhaps"}),
        ),
        "revocation-with-an-odd-time": (
            r"since: 'yesterday' is no time",
            json.dumps({"key": FINGERPRINT, "since": "yesterday"}),
        ),
        "revocation-of-an-md5-fingerprint": (r"not a key's fingerprint", json.dumps({"key": "MD5:" + "a:" * 16})),
        "revocation-of-an-upper-case-digest": (r"not a key's fingerprint", json.dumps({"manifest_sha256": "A" * 64})),
        "revocation-of-an-empty-key": (r"revocation names|not a key's fingerprint", json.dumps({"key": ""})),
        "revocation-of-an-empty-digest": (
            r"revocation names|not a key's fingerprint",
            json.dumps({"manifest_sha256": ""}),
        ),
    },
)
def damaged_revocation(scene: Scene, line: str) -> Strike:
    folder = scene.package()
    (scene.home / "config" / "revoked.jsonl").write_text(f"\n{line}\n")
    return lambda: scene.check(folder)


@attacks(
    PARSERS,
    TrustError,
    {
        "revocation-with-a-key-twice": (
            r"revoked\.jsonl:1.*the key 'key' appears twice",
            f'{{"key": "{FINGERPRINT}", "key": "{FINGERPRINT}"}}',
        ),
        "revocation-that-is-half-a-line": (r"revoked\.jsonl:1.*not JSON", '{"key": "SHA256:'),
    },
)
def damaged_revocation_json(scene: Scene, line: str) -> Strike:
    folder = scene.package()
    (scene.home / "config" / "revoked.jsonl").write_text(f"{line}\n")
    return lambda: scene.check(folder)


# --- locks -------------------------------------------------------------------------------------------------------------


def locked(scene: Scene) -> tuple[Any, Path, dict[str, Any]]:
    from adaptergit.lock import lock
    from adaptergit.settings import cache_dir

    hub, file = scene.hub(), scene.tmp / "adaptergit.lock"
    lock([f"{hub.url}@sst2==1.0.0"], path=file)
    shutil.rmtree(cache_dir())
    return hub, file, json.loads(file.read_text())


@attack("locked-release-that-was-swapped", SWAPPED, TrustError, r"the tree beside it holds")
def swapped(scene: Scene) -> Strike:
    """By the publisher, signed and all."""
    from attacks_table import content_of, put_commit, put_object, put_tree, retag

    hub, file, _ = locked(scene)
    manifest = content_of(hub.bare, "manifest.json").replace(b"Z", b"Z", 1)
    raw_manifest = json.loads(manifest) | {"created": "2026-12-24T00:00:00Z"}
    data = canonical.dumps(raw_manifest)
    from attacks_table import entries_of

    listed = entries_of(hub.bare) | {
        b"manifest.json": ("100644", put_object(hub.bare, data)),
        b"manifest.json.sig": ("100644", put_object(hub.bare, sign(data, scene.key))),
    }
    tree = put_tree(hub.bare, [(name, mode, oid) for name, (mode, oid) in listed.items()])
    retag(hub.bare, put_commit(hub.bare, tree))
    shutil.rmtree(hub.bare / "refs" / "heads")
    (hub.bare / "refs" / "heads").mkdir()
    # The tree that was locked is gone from the server, so the tag must be asked.
    raw = json.loads(file.read_text())
    raw["adapters"][0]["tree"] = tree
    file.write_text(json.dumps(raw))
    return lambda: fetch(f"{hub.url}@sst2==1.0.0", lock=file)


@attack("lock-with-another-digest", SWAPPED, TrustError, r"says 0{64}, and the tree beside it holds")
def lock_other_digest(scene: Scene) -> Strike:
    hub, file, raw = locked(scene)
    raw["adapters"][0]["manifest_sha256"] = "0" * 64
    file.write_text(json.dumps(raw))
    return lambda: fetch(f"{hub.url}@sst2==1.0.0", lock=file)


@attack("lock-with-another-version", SWAPPED, NotFoundError, r"is locked to 1\.1\.0, which does not fit")
def lock_other_version(scene: Scene) -> Strike:
    hub, file, raw = locked(scene)
    raw["adapters"][0]["version"] = "1.1.0"
    file.write_text(json.dumps(raw))
    return lambda: fetch(f"{hub.url}@sst2==1.0.0", lock=file)


@attack(
    "lock-with-the-version-of-another-digest",
    SWAPPED,
    TrustError,
    r"the lock file says sst2 1\.1\.0, .* of sst2 1\.0\.0",
)
def lock_version_of_another(scene: Scene) -> Strike:
    hub, file, raw = locked(scene)
    raw["adapters"][0]["version"] = "1.1.0"
    file.write_text(json.dumps(raw))
    return lambda: fetch(f"{hub.url}@sst2", lock=file)


@attack("lock-that-trusts-nobody-s-key", SWAPPED, TrustError, r"nobody you know")
def lock_is_no_permission(scene: Scene) -> Strike:
    hub, file, _ = locked(scene)
    scene.trust("# nobody")
    return lambda: fetch(f"{hub.url}@sst2==1.0.0", lock=file)


@attack("lock-with-swapped-references", SWAPPED, PackageError, r"is not what .* asks for")
def lock_swapped_references(scene: Scene) -> Strike:
    from adaptergit.lock import check_lock

    _, file, raw = locked(scene)
    entry = raw["adapters"][0]
    other = entry | {"id": entry["id"].replace("sst2", "mnli"), "reference": entry["reference"]}
    entry = entry | {"reference": entry["reference"].replace("sst2", "mnli")}
    file.write_text(json.dumps(raw | {"adapters": [entry, other]}))
    return lambda: check_lock(path=file)


@attacks(
    PARSERS,
    PackageError,
    {
        "lock-of-another-schema": (r"schema: 'adaptergit\.lock/1' was expected", {"schema": "adaptergit.lock/2"}),
        "lock-with-an-unknown-key": (r"'more' was unexpected", {"more": 1}),
        "lock-with-an-option-as-a-tree": (r"adapters\[0\]\.tree", {"tree": "--upload-pack=x"}),
        "lock-without-addresses": (r"adapters\[0\]\.urls", {"urls": []}),
        "lock-with-a-signer-that-is-none": (r"adapters\[0\]\.signers", {"signers": ["me"]}),
        "lock-with-a-negative-size": (
            r"adapters\[0\]\.files\[0\]\.size",
            {"files": [{"path": "x", "size": -1, "sha256": "0" * 64}]},
        ),
        "lock-with-a-digest-in-upper-case": (r"adapters\[0\]\.manifest_sha256", {"manifest_sha256": "A" * 64}),
        "lock-with-an-odd-version": (r"'1\.0\.0-x' is not", {"version": "1.0.0-x"}),
    },
)
def damaged_lock(scene: Scene, change: dict[str, Any]) -> Strike:
    _, file, raw = locked_on_paper(scene)
    if set(change) <= {"schema", "more"}:
        raw |= change
    else:
        raw["adapters"][0] |= change
    file.write_text(json.dumps(raw))
    return lambda: fetch(f"{PRINCIPAL}@sst2", lock=file)


def locked_on_paper(scene: Scene) -> tuple[None, Path, dict[str, Any]]:
    """A lock file that no server was asked for."""
    entry = {
        "reference": f"{PRINCIPAL}@sst2",
        "id": f"{PRINCIPAL}@sst2",
        "version": "1.0.0",
        "manifest_sha256": "1" * 64,
        "tree": "1" * 40,
        "urls": [f"https://{PRINCIPAL}.git"],
        "signers": [],
        "base_model": {"id": "x", "fingerprint": "fp1"},
        "files": [],
    }
    return None, scene.tmp / "adaptergit.lock", {"schema": "adaptergit.lock/1", "adapters": [entry]}


@attacks(
    PARSERS,
    PackageError,
    {
        "lock-with-a-key-twice": (
            r"the key 'version' appears twice",
            lambda text: text.replace('"version":', '"version": "0.1", "version":'),
        ),
        "lock-with-an-adapter-twice": (
            r"an adapter is locked twice",
            lambda text: json.dumps(json.loads(text) | {"adapters": json.loads(text)["adapters"] * 2}),
        ),
        "lock-with-a-float": (r"the number 1\.5 is not allowed", lambda text: text.replace("[]", "1.5")),
        "lock-nested-ten-thousand-deep": (r"nested too deeply", lambda text: "[" * 100_000),
        "lock-cut-in-the-middle": (r"not JSON", lambda text: text[: len(text) // 2]),
        "lock-with-a-byte-order-mark": (r"not JSON: Unexpected UTF-8 BOM", lambda text: "\ufeff" + text),
    },
)
def damaged_lock_text(scene: Scene, change: Any) -> Strike:
    _, file, raw = locked_on_paper(scene)
    file.write_text(change(json.dumps(raw)))
    return lambda: fetch(f"{PRINCIPAL}@sst2", lock=file)
