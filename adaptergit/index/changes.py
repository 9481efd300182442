"""A change of a source that is listed already: its publisher signs it, for one index, from one file to the next.

What is signed is canonical JSON that nobody stores: whoever checks it makes it of the two files, so that a signature is
good for exactly this change. It lies beside the source, ``sources/<host>/<org>/<repo>.yaml.sig``, one armored SSHSIG
after the other::

    {"schema": "adaptergit.source-change/1", "index": "community", "repository": "github.com/acme/adapters",
     "before": "<sha256 of the file>", "after": "<sha256 of the file>"}
"""

from __future__ import annotations

from collections.abc import Iterable

from adaptergit.errors import TrustError
from adaptergit.index.documents import signed_by, split_signatures
from adaptergit.package import canonical
from adaptergit.trust import PublicKey

CHANGE_NAMESPACE = "source.v1@adaptergit"


def change_statement(index: str, repository: str, before: bytes, after: bytes) -> bytes:
    """Return the bytes that are signed.

    Args:
        index: Name of the index.
        repository: The principal.
        before: The file as the index has it.
        after: The file as it is proposed.
    """
    return canonical.dumps(
        {
            "schema": "adaptergit.source-change/1",
            "index": index,
            "repository": repository,
            "before": canonical.sha256(before),
            "after": canonical.sha256(after),
        }
    )


def change_signers(statement: bytes, signatures: bytes, keys: Iterable[PublicKey]) -> frozenset[PublicKey]:
    """Return which of the keys signed a change; of a file that is none of signatures, nobody."""
    try:
        return frozenset(signed_by(statement, split_signatures(signatures), CHANGE_NAMESPACE, list(keys)))
    except TrustError:
        return frozenset()
