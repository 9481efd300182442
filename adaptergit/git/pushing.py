"""Pushing several refs: all of them or none where the server can, else in an order that leaves nothing wrong."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from adaptergit.errors import TransportError
from adaptergit.git.runner import Git

_PROTOCOLS = ("https", "http", "ssh", "file")
# Weights are like no other weights: looking for what they share with others takes as long as all the rest of a push.
_SETTINGS = ("core.bigFileThreshold=1m",)
_NO_ATOMIC = "does not support --atomic"
_MAX_SAID = 1 << 16
_ADDRESS = re.compile(r"https?://[^\s\"'<>]+")


@dataclass(frozen=True)
class Pushed:
    """What came of a push."""

    count: int
    """How many refs, of those that were to be pushed, the server took, from the first on."""
    said: str = ""
    """What the server told whoever pushed."""
    refused: TransportError | None = None
    """Why it did not take the next."""

    def address(self, host: str) -> str | None:
        """Return the first address on a host that the server named: forges say where a pull request is opened."""
        lines = [line.removeprefix("remote:") for line in self.said.splitlines() if line.startswith("remote:")]
        found = (match for line in lines for match in _ADDRESS.findall(line))
        return next(
            (url for url in found if url.isprintable() and re.fullmatch(rf"https?://{re.escape(host)}(:\d+)?/.+", url)),
            None,
        )


def push(
    git: Git,
    to: str,
    refspecs: Sequence[str],
    *,
    protocols: Sequence[str] = _PROTOCOLS,
    options: Sequence[str] = (),
    settings: Sequence[str] = (),
) -> Pushed:
    """Push refs.

    Args:
        git: The repository that holds their objects.
        to: Name of a remote, or URL.
        refspecs: A server that takes no push as a whole is given one after the other, in this order, until it refuses.
        protocols: What may be used.
        options: More options of ``git push``.
        settings: More settings, ``name=value``.

    Raises:
        TransportError: The server cannot be reached, or took nothing.
    """

    def run(*arguments: str) -> str:
        said = bytearray()
        git.raw(
            "push", "--quiet", "--no-verify", "--signed=no", "--no-follow-tags", *options, *arguments,
            protocols=protocols, settings=(*_SETTINGS, *settings), timeout=600.0,
            heard=lambda block: said.extend(block[: _MAX_SAID - len(said)]),
        )  # fmt: skip
        return said.decode("utf-8", "replace")

    try:
        return Pushed(len(refspecs), run(*(["--atomic"] if len(refspecs) > 1 else []), "--", to, *refspecs))
    except TransportError as error:
        if _NO_ATOMIC not in error.what:
            raise
    said = ""
    for count, one in enumerate(refspecs):
        try:
            said += run("--", to, one)
        except TransportError as error:
            if not count:
                raise
            return Pushed(count, said, error)
    return Pushed(len(refspecs), said)
