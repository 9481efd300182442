"""How large a pack will be that git is receiving, read off what has come of it.

No server says it, and git itself counts objects, of which the weights are one. But each object of a pack says in front
how long it is (https://git-scm.com/docs/gitformat-pack): when the weights begin to come, nearly everything is known.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Generator
from pathlib import Path

_HEADER = 12
_DELTA = 6
"""Against an earlier object of the pack, which is what git asks servers for."""
_LARGE = 2**18
"""Bytes that are worth a word."""
_PIECE = 2**14
_AT_ONCE = 0.1
"""Seconds of reading before others have their turn; git is rarely ahead by more."""


class Incoming:
    """A pack that grows, read as far as it is there."""

    def __init__(self) -> None:
        self.total: int | None = None
        """Bytes that there will be, if they are hard to compress, as weights are; None as long as nothing tells.

        Known when the last object begins, or a large one: should another large one follow, it grows.
        """
        self._ahead, self._read, self._taken = b"", 0, 0
        self._reading = self._objects()
        next(self._reading)

    def follow(self, path: Path) -> None:
        """Read what has come since it was called last."""
        end = time.monotonic() + _AT_ONCE
        with path.open("rb") as stream:
            stream.seek(self._read)
            while time.monotonic() < end and (piece := stream.read(_PIECE)):
                self._read += len(piece)
                try:
                    self._reading.send(piece)
                except (StopIteration, zlib.error):  # all is known; or it is no pack, which git will say
                    return

    def _objects(self) -> Generator[None, bytes, None]:
        header = yield from self._take(_HEADER)
        for left in range(int.from_bytes(header[8:]), 0, -1):
            byte = yield from self._byte()
            kind, size, shift = byte >> 4 & 7, byte & 15, 4
            while byte & 0x80:
                byte = yield from self._byte()
                size, shift = size | (byte & 0x7F) << shift, shift + 7
            if kind == _DELTA:
                while (yield from self._byte()) & 0x80:
                    pass
            if left == 1 or size >= _LARGE:
                self.total = self._taken + size
            inflater = zlib.decompressobj()
            while not inflater.eof:
                piece = yield from self._take(1, most=_PIECE)
                inflater.decompress(piece)
                self._taken -= len(inflater.unused_data)
                self._ahead = inflater.unused_data + self._ahead

    def _byte(self) -> Generator[None, bytes, int]:
        return (yield from self._take(1))[0]

    def _take(self, least: int, most: int | None = None) -> Generator[None, bytes, bytes]:
        while len(self._ahead) < least:
            self._ahead += yield
        taken, self._ahead = self._ahead[: most or least], self._ahead[most or least :]
        self._taken += len(taken)
        return taken
