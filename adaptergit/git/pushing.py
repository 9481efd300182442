"""Pushing several refs: all of them or none where the server can, else in an order that leaves nothing wrong."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from adaptergit.errors import TransportError, without_secrets
from adaptergit.git.runner import Git
from adaptergit.progress import Progress, Watcher, watcher

_PROTOCOLS = ("https", "http", "ssh", "file")
# Weights are like no other weights: looking for what they share with others takes as long as all the rest of a push.
_SETTINGS = ("core.bigFileThreshold=1m",)
_NO_ATOMIC = "does not support --atomic"
_MAX_SAID = 1 << 16
_WRITTEN = re.compile(rb"Writing objects: [^\r\n]*?, ([0-9.]+) (bytes|KiB|MiB|GiB)")
_UNITS = {b"bytes": 1, b"KiB": 2**10, b"MiB": 2**20, b"GiB": 2**30}
_ALL = b"Writing objects: 100%"
_LINE = 4096
_TIMEOUT = 3600.0
"""Seconds: a slow line is seen to move, and can be interrupted."""
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


class _Sent:
    """Reads how many bytes git has sent, and tells it."""

    def __init__(self, to: str, size: int | None, report: Watcher | None) -> None:
        self._to, self._size, self._report = without_secrets(to), size, report
        self._kept, self._told = b"", 0

    def heard(self, block: bytes) -> None:
        """Take what git says as it comes."""
        self._kept = (self._kept + block)[-_LINE:]

    def tell(self) -> None:
        """Tell what was said last."""
        found = _WRITTEN.findall(self._kept)
        if self._report is not None and found:
            number, unit = found[-1]
            sent = int(float(number) * _UNITS[unit])
            if sent != self._told:
                self._told = sent
                # Compressed, it is less than was thought: what was sent is all there was.
                self._report(Progress(self._to, sent, sent if _ALL in self._kept else self._size))


def push(
    git: Git,
    to: str,
    refspecs: Sequence[str],
    *,
    protocols: Sequence[str] = _PROTOCOLS,
    options: Sequence[str] = (),
    settings: Sequence[str] = (),
    size: int | None = None,
) -> Pushed:
    """Push refs.

    Args:
        git: The repository that holds their objects.
        to: Name of a remote, or URL.
        refspecs: A server that takes no push as a whole is given one after the other, in this order, until it refuses.
        protocols: What may be used.
        options: More options of ``git push``.
        settings: More settings, ``name=value``.
        size: About how many bytes there are to be sent, for those who watch.

    Raises:
        TransportError: The server cannot be reached, or took nothing.
    """

    report = watcher()

    def run(*arguments: str) -> str:
        said, sent = bytearray(), _Sent(to, size, report)

        def heard(block: bytes) -> None:
            said[:] = (said + block)[-_MAX_SAID:]  # what the server has to say comes last
            sent.heard(block)

        git.raw(
            "push", "--quiet", *(["--progress"] if report else []), "--no-verify", "--signed=no", "--no-follow-tags",
            *options, *arguments, protocols=protocols, settings=(*_SETTINGS, *settings), timeout=_TIMEOUT,
            heard=heard, meanwhile=sent.tell if report else None,
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
