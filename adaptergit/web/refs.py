"""Asking a git server over HTTP for a few of its refs: one request, and nothing else moves.

``git ls-remote`` can only ask for all tags, of which a repository may have very many. Sources: gitprotocol-v2(5),
``ls-refs``; gitprotocol-common(5), pkt-line.
"""

from __future__ import annotations

from collections.abc import Iterable

from adaptergit.errors import TransportError
from adaptergit.web.download import Download

_MAX_BYTES = 16 * 2**20
_FLUSH, _DELIMITER = b"0000", b"0001"


def ask_refs(url: str, prefixes: Iterable[str], download: Download) -> dict[str, str]:
    """Return oids by name of the refs whose names begin with one of the prefixes; a server may add others.

    Raises:
        NotFoundError, TransportError: No answer, or one that is not understood: of a private repository, or a server
            that speaks an older protocol.
    """
    wanted = (_packet(f"ref-prefix {prefix}\n") for prefix in prefixes)
    question = b"".join((_packet("command=ls-refs\n"), _DELIMITER, *wanted, _FLUSH))
    headers = {"Git-Protocol": "version=2", "Content-Type": "application/x-git-upload-pack-request"}
    return parse_refs(download.post(f"{url}/git-upload-pack", question, _MAX_BYTES, headers), where=url)


def parse_refs(data: bytes, *, where: str) -> dict[str, str]:
    """Read the answer: a line for every ref, and a mark at the end.

    Raises:
        TransportError: It is something else.
    """
    found: dict[str, str] = {}
    at = 0
    while (mark := data[at : at + 4]) != _FLUSH:
        size = int(mark, 16) if len(mark) == 4 and _is_hex(mark) else 0
        oid, _, rest = data[at + 4 : at + size].rstrip(b"\n").partition(b" ")
        name = rest.partition(b" ")[0]
        if size <= 4 or at + size > len(data) or len(oid) not in (40, 64) or not _is_hex(oid) or not name:
            raise TransportError(
                "the server's answer is no list of refs", where=where, hint="is it the address of a git repository?"
            )
        found[name.decode("utf-8", "replace")] = oid.decode("ascii")
        at += size
    return found


def _packet(text: str) -> bytes:
    return b"%04x%s" % (len(text) + 4, text.encode())


def _is_hex(text: bytes) -> bool:
    return not text.strip(b"0123456789abcdef")
