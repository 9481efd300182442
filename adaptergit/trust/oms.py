"""OpenSSF model signing: the bundle ``model.sig`` that other tools verify, beside our own signature.

A DSSE envelope in a Sigstore bundle (v0.3), signed with an elliptic-curve key in a PEM file (the ``key`` method). Its
statement lists the sha256 of every file of the folder but the bundle itself. It binds neither name nor version nor
repository, so it never replaces the signature of the manifest; it lets a scanner that knows only this format see that
the files are as their publisher left them.

Sources: OpenSSF Model Signing specification v1.0; DSSE v1.0.2; Sigstore protobuf specs, bundle v0.3.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from adaptergit.errors import TrustError, UsageError
from adaptergit.package import canonical
from adaptergit.package.folder import MODEL_SIGNATURE

_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"
_MAX_BYTES = 2**20
_MAKE = "make one with: openssl ecparam -name prime256v1 -genkey -noout -out model-signing.pem"
_HASHES: dict[str, hashes.HashAlgorithm] = {
    "secp256r1": hashes.SHA256(),
    "secp384r1": hashes.SHA384(),
    "secp521r1": hashes.SHA512(),
}


def sign_bundle(folder: Path, name: str, key: Path) -> bytes:
    """Return the bundle of a folder's files, ``model.sig`` excepted.

    Args:
        folder: Flat.
        name: What the statement calls it; nothing relies on it.
        key: PEM file of a private key on P-256, P-384 or P-521, without passphrase.

    Raises:
        UsageError: No such key, or of another kind.
    """
    try:
        private = serialization.load_pem_private_key(key.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UsageError(
            f"not a private key without passphrase: {error}",
            where=str(key),
            hint=_MAKE,
        ) from error
    if not isinstance(private, ec.EllipticCurvePrivateKey) or private.curve.name not in _HASHES:
        raise UsageError("model signing takes elliptic-curve keys on P-256, P-384 or P-521", where=str(key), hint=_MAKE)
    files = _digests(folder)
    payload = json.dumps(_statement(name, files), sort_keys=True, separators=(",", ":")).encode()
    signature = private.sign(_pre_authentication(payload), ec.ECDSA(_HASHES[private.curve.name]))
    bundle = {
        "mediaType": _MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": _hint(private.public_key())}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": _PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
        },
    }
    return json.dumps(bundle, sort_keys=True).encode() + b"\n"


def verify_bundle(folder: Path, key: Path) -> tuple[str, ...]:
    """Verify ``model.sig`` and every file of a flat folder against it; return the files' names.

    What holds afterwards: whoever has the key signed exactly these files. Under which name, nobody said.

    Raises:
        UsageError: The key cannot be used.
        TrustError: No bundle, a signature that does not fit, or a file that is missing, changed or not listed.
    """
    where = str(folder / MODEL_SIGNATURE)
    try:
        public = serialization.load_pem_public_key(key.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(f"not a public key: {error}", where=str(key), hint="a PEM file, BEGIN PUBLIC KEY") from error
    if not isinstance(public, ec.EllipticCurvePublicKey) or public.curve.name not in _HASHES:
        raise UsageError("model signing takes elliptic-curve keys on P-256, P-384 or P-521", where=str(key))
    try:
        with (folder / MODEL_SIGNATURE).open("rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise TrustError(f"there is no {MODEL_SIGNATURE}", where=str(folder)) from error
    raw = canonical.loads(data, where=where, limit=_MAX_BYTES)
    try:
        envelope = raw["dsseEnvelope"]
        (signed,) = envelope["signatures"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        signature = base64.b64decode(signed["sig"], validate=True)
        right_kind = envelope["payloadType"] == _PAYLOAD_TYPE
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise TrustError("not a bundle of one DSSE envelope with one signature", where=where) from error
    try:
        public.verify(signature, _pre_authentication(payload), ec.ECDSA(_HASHES[public.curve.name]))
    except InvalidSignature as error:
        raise TrustError("the signature does not fit the bundle, or is of another key", where=where) from error
    statement = canonical.loads(payload, where=where, limit=_MAX_BYTES)
    listed = _listed(statement) if right_kind else None
    if listed is None:
        raise TrustError("the bundle holds something else than a model signature v1.0", where=where)
    if not _covers_all(statement, listed):
        raise TrustError("its subject is not these files, or it leaves some out of its word", where=where)
    present = _digests(folder)
    for name in sorted(listed.keys() | present.keys()):
        if listed.get(name) != present.get(name):
            what = "is not listed" if name not in listed else "is missing" if name not in present else "was changed"
            raise TrustError(f"{name} {what}", where=where)
    return tuple(sorted(listed))


def _statement(name: str, files: Mapping[str, str]) -> dict[str, Any]:
    root = hashlib.sha256(b"".join(bytes.fromhex(files[path]) for path in sorted(files))).hexdigest()
    return {
        "_type": _STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": root}}],
        "predicateType": _PREDICATE,
        "predicate": {
            "resources": [{"name": path, "digest": files[path], "algorithm": "sha256"} for path in sorted(files)],
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [],
            },
        },
    }


def _listed(statement: Any) -> dict[str, str] | None:
    try:
        resources = statement["predicate"]["resources"]
        right = statement["_type"] == _STATEMENT and statement["predicateType"] == _PREDICATE
        right = right and all(one["algorithm"] == "sha256" for one in resources)
        found = {str(one["name"]): str(one["digest"]) for one in resources}
    except (KeyError, TypeError):
        return None
    return found if right and len(found) == len(resources) else None


def _covers_all(statement: Any, listed: Mapping[str, str]) -> bool:
    """Tell whether the subject is the digest of the files, and they were all that there was, each read whole."""
    try:
        (subject,) = statement["subject"]
        how = statement["predicate"]["serialization"]
        root = hashlib.sha256(b"".join(bytes.fromhex(listed[path]) for path in sorted(listed))).hexdigest()
        ignored = {str(path).rpartition("/")[2] for path in how.get("ignore_paths") or ()}
        right = subject["digest"] == {"sha256": root} and how["method"] == "files" and how["hash_type"] == "sha256"
    except (KeyError, TypeError, ValueError, AttributeError):
        return False
    return right and not ignored & listed.keys()


def _digests(folder: Path) -> dict[str, str]:
    found = {}
    for path in folder.iterdir():
        if path.name == MODEL_SIGNATURE:
            continue
        if path.is_symlink() or not path.is_file():
            raise TrustError("a link or a folder, where a model signature knows files", where=str(path))
        with path.open("rb") as stream:
            found[path.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def _pre_authentication(payload: bytes) -> bytes:
    kind = _PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def _hint(public: ec.EllipticCurvePublicKey) -> str:
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(pem).hexdigest()
