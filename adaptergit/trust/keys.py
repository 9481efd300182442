"""OpenSSH public keys: parsing, fingerprints, and verifying one raw signature.

Accepted: ed25519, ECDSA on P-256, P-384 and P-521, RSA of 3072 to 16384 bits with SHA-2, and the FIDO kinds
``sk-ssh-ed25519`` and ``sk-ecdsa-sha2-nistp256``. Source: OpenSSH ``PROTOCOL.u2f``; RFC 4253, 5656, 8332, 8709.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from adaptergit.errors import TrustError
from adaptergit.trust.wire import Reader

_CURVES: dict[str, tuple[type[ec.EllipticCurve], hashes.HashAlgorithm]] = {
    "nistp256": (ec.SECP256R1, hashes.SHA256()),
    "nistp384": (ec.SECP384R1, hashes.SHA384()),
    "nistp521": (ec.SECP521R1, hashes.SHA512()),
}
_RSA_HASHES: dict[str, hashes.HashAlgorithm] = {"rsa-sha2-256": hashes.SHA256(), "rsa-sha2-512": hashes.SHA512()}
_USER_PRESENT = 0x01
_FIELD = 2**255 - 19
# The y coordinates of points of small order: whoever has no key at all can sign for them (Chalkias et al. 2020).
_SMALL_ORDER = {
    0, 1, _FIELD - 1,
    0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826,
    0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7,
}  # fmt: skip
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")

KEY_TYPES = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "ssh-rsa",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
)


@dataclass(frozen=True)
class PublicKey:
    """A public key as its SSH wire bytes. Equal bytes, equal key."""

    blob: bytes
    """As in the second field of a ``.pub`` file, decoded."""

    @property
    def type(self) -> str:
        """The key type, one of :data:`KEY_TYPES`."""
        return Reader(self.blob, "key").text()

    @property
    def fingerprint(self) -> str:
        """``SHA256:`` and unpadded base64, as ``ssh-keygen -l`` prints it."""
        return "SHA256:" + base64.b64encode(hashlib.sha256(self.blob).digest()).decode().rstrip("=")

    @property
    def line(self) -> str:
        """``type base64``, as in a ``.pub`` file without the comment."""
        return f"{self.type} {base64.b64encode(self.blob).decode()}"

    def check(self) -> None:
        """Parse the whole key.

        Raises:
            TrustError: The type is not accepted, or the key is malformed or too small.
        """
        _load(self.blob)

    def verify(self, signature: bytes, message: bytes) -> None:
        """Verify an SSH wire signature over ``message``.

        Raises:
            TrustError: It is not a valid signature of this key.
        """
        key, application = _load(self.blob)
        reader = Reader(signature, "signature")
        algorithm = reader.text()
        expected = tuple(_RSA_HASHES) if self.type == "ssh-rsa" else (self.type,)
        if algorithm not in expected:
            raise TrustError(f"the signature algorithm {algorithm!r} does not belong to a {self.type} key")
        raw = reader.string()
        if application is not None:
            flags, counter = reader.take(1), reader.take(4)
            if not flags[0] & _USER_PRESENT:
                raise TrustError("the security key signed without anybody touching it")
            message = hashlib.sha256(application).digest() + flags + counter + hashlib.sha256(message).digest()
        reader.end()
        try:
            if isinstance(key, ed25519.Ed25519PublicKey):
                key.verify(raw, message)
            elif isinstance(key, rsa.RSAPublicKey):
                key.verify(raw, message, padding.PKCS1v15(), _RSA_HASHES[algorithm])
            else:
                inner = Reader(raw, "signature")
                r, s = inner.mpint(), inner.mpint()
                inner.end()
                key.verify(encode_dss_signature(r, s), message, ec.ECDSA(_CURVES[f"nistp{key.curve.key_size}"][1]))
        except InvalidSignature as error:
            raise TrustError(f"the signature of key {self.fingerprint} does not fit the signed bytes") from error


def parse_public_key(text: str) -> PublicKey:
    """Parse ``type base64 [comment]``.

    Raises:
        TrustError: Not a public key of an accepted type.
    """
    parts = text.split()
    if "PRIVATE KEY" in text:  # of which nothing is printed
        raise TrustError("this is a private key", hint="give the .pub file beside it; show this one to nobody")
    if len(parts) < 2 or parts[0] not in KEY_TYPES:
        raise TrustError(
            f"{text[:40]!r} is not a public key of an accepted type",
            hint=f"expected one line of a .pub file: {', '.join(KEY_TYPES)}",
        )
    if not _BASE64.fullmatch(parts[1]):
        raise TrustError("the key is not base64", hint="copy the whole line of the .pub file")
    try:
        blob = base64.b64decode(parts[1], validate=True)
    except binascii.Error as error:
        raise TrustError(f"the key is not base64: {error}", hint="copy the whole line of the .pub file") from error
    key = PublicKey(blob)
    key.check()
    if key.type != parts[0]:
        raise TrustError(f"the line says {parts[0]}, the key itself {key.type}")
    return key


_Loaded = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey


def _load(blob: bytes) -> tuple[_Loaded, bytes | None]:
    """Return the key and, for FIDO kinds, the application; the type string decides, never the key material."""
    reader = Reader(blob, "key")
    kind = reader.text()
    if kind not in KEY_TYPES:
        raise TrustError(f"keys of type {kind[:60]!r} are not accepted", hint=f"accepted: {', '.join(KEY_TYPES)}")
    key: _Loaded
    try:
        if kind in ("ssh-ed25519", "sk-ssh-ed25519@openssh.com"):
            point = reader.string()
            y = int.from_bytes(point, "little") & (2**255 - 1)
            if y >= _FIELD or y in _SMALL_ORDER:
                raise TrustError("the key is a point of small order, or not written as such points are")
            key = ed25519.Ed25519PublicKey.from_public_bytes(point)
        elif kind == "ssh-rsa":
            exponent, modulus = reader.mpint(), reader.mpint()
            if not 3072 <= modulus.bit_length() <= 16384:
                raise TrustError(
                    f"an RSA key of {modulus.bit_length()} bits is not accepted",
                    hint="use ed25519, or RSA of 3072 bits or more",
                )
            if exponent < 3 or exponent.bit_length() > 33:
                raise TrustError("the RSA key has an unusual exponent")
            key = rsa.RSAPublicNumbers(exponent, modulus).public_key()
        else:
            curve = reader.text()
            if curve not in _CURVES or curve not in kind:
                raise TrustError(f"the curve {curve!r} does not belong to a key of type {kind}")
            point = reader.string()
            if point[:1] != b"\x04":
                raise TrustError("the ECDSA key is not an uncompressed point")
            key = ec.EllipticCurvePublicKey.from_encoded_point(_CURVES[curve][0](), point)
        application = reader.string() if kind.startswith("sk-") else None
    except ValueError as error:
        raise TrustError(f"the key is malformed: {error}") from error
    reader.end()
    return key, application
