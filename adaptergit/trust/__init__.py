"""Who signed it, and do we believe them.

``evaluate.py`` is the core: bytes in, verdict or refusal out, no input or output of its own. ``sshsig.py`` verifies
one signature in-process; ``signing.py`` makes one with ``ssh-keygen``; ``allowed_signers.py`` says whose keys count,
``rotation.py`` who comes after them, and ``revocation.py`` whose no longer do.
"""

from adaptergit.trust.allowed_signers import AllowedSigner, format_signer, parse_allowed_signers
from adaptergit.trust.evaluate import Past, Policy, Verdict, evaluate
from adaptergit.trust.keys import PublicKey, parse_public_key
from adaptergit.trust.revocation import Revocation, parse_revocations
from adaptergit.trust.rotation import ROTATION, ROTATION_NAMESPACE, Change, Rotation, SignedRotation, follow
from adaptergit.trust.signing import SigningKey, generate_key, sign
from adaptergit.trust.sshsig import MANIFEST_NAMESPACE, Signature, parse_signature, verify_signature

__all__ = [
    "MANIFEST_NAMESPACE",
    "ROTATION",
    "ROTATION_NAMESPACE",
    "AllowedSigner",
    "Change",
    "Past",
    "Policy",
    "PublicKey",
    "Revocation",
    "Rotation",
    "Signature",
    "SignedRotation",
    "SigningKey",
    "Verdict",
    "evaluate",
    "follow",
    "format_signer",
    "generate_key",
    "parse_allowed_signers",
    "parse_public_key",
    "parse_revocations",
    "parse_signature",
    "sign",
    "verify_signature",
]
