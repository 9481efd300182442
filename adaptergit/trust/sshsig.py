"""SSHSIG: detached signatures by SSH keys, parsed and verified strictly and in-process.

Format: OpenSSH ``PROTOCOL.sshsig``. A signature is bound to a *namespace*, so that one made for one kind of document
is worthless for another.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass

from adaptergit.errors import TrustError
from adaptergit.trust.keys import PublicKey
from adaptergit.trust.wire import Reader, string

MANIFEST_NAMESPACE = "manifest.v1@adaptergit"

_MAGIC = b"SSHSIG"
_HASHES = ("sha256", "sha512")
_ARMOR = re.compile(
    rb"-----BEGIN SSH SIGNATURE-----\r?\n((?:[A-Za-z0-9+/=]{1,76}\r?\n)+)-----END SSH SIGNATURE-----(?:\r?\n)?"
)


@dataclass(frozen=True)
class Signature:
    """A parsed SSHSIG; nothing about it is verified yet."""

    key: PublicKey
    """Whose it says it is."""
    namespace: str
    """What it is for: a signature of another namespace does not count."""
    hash_algorithm: str
    """``sha512`` or ``sha256``."""
    raw: bytes
    """The SSH wire signature."""


def parse_signature(armored: bytes) -> Signature:
    """Parse an armored SSHSIG.

    Raises:
        TrustError: Anything but exactly one well-formed signature.
    """
    match = _ARMOR.fullmatch(armored)
    if match is None:
        raise TrustError(
            "not an armored SSH signature", hint="make one with 'adaptergit publish' or ssh-keygen -Y sign"
        )
    try:
        blob = base64.b64decode(re.sub(rb"\s", b"", match[1]), validate=True)
    except binascii.Error as error:
        raise TrustError(f"the signature's armor is not base64: {error}") from error
    reader = Reader(blob, "signature")
    if reader.take(len(_MAGIC)) != _MAGIC:
        raise TrustError("not an SSH signature: the magic bytes are missing")
    if (version := reader.uint32()) != 1:
        raise TrustError(f"SSH signature version {version} is not supported")
    key = PublicKey(reader.string())
    namespace = reader.text()
    if reader.string():
        raise TrustError("the signature's reserved field is not empty")
    hash_algorithm = reader.text()
    if hash_algorithm not in _HASHES:
        raise TrustError(f"the hash {hash_algorithm!r} is not accepted", hint=f"use one of {', '.join(_HASHES)}")
    raw = reader.string()
    reader.end()
    key.check()
    return Signature(key, namespace, hash_algorithm, raw)


def verify_signature(signature: Signature, message: bytes, namespace: str) -> None:
    """Verify that ``signature.key`` signed ``message`` for ``namespace``. Says nothing about whose key it is.

    Raises:
        TrustError: It did not.
    """
    if signature.namespace != namespace:
        raise TrustError(
            f"the signature was made for {signature.namespace!r}, another kind of document than {namespace!r}"
        )
    digest = hashlib.new(signature.hash_algorithm, message).digest()
    signed = _MAGIC + b"".join(
        string(part) for part in (namespace.encode(), b"", signature.hash_algorithm.encode(), digest)
    )
    signature.key.verify(signature.raw, signed)
