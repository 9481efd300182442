"""The SSH wire encoding (RFC 4251 §5): length-prefixed strings and nothing left over."""

from __future__ import annotations

import struct

from adaptergit.errors import TrustError


class Reader:
    """Reads SSH wire fields from bytes; every read is bounds-checked."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._at = 0
        self._what = what

    def take(self, count: int) -> bytes:
        """Return the next ``count`` bytes."""
        if count > len(self._data) - self._at:
            raise TrustError(f"the {self._what} is cut short")
        self._at += count
        return self._data[self._at - count : self._at]

    def uint32(self) -> int:
        """Return a big-endian 32-bit integer."""
        return int(struct.unpack(">I", self.take(4))[0])

    def string(self) -> bytes:
        """Return a length-prefixed string."""
        return self.take(self.uint32())

    def text(self) -> str:
        """Return a length-prefixed ASCII string."""
        try:
            return self.string().decode("ascii")
        except UnicodeDecodeError as error:
            raise TrustError(f"the {self._what} holds a name that is not ASCII") from error

    def mpint(self) -> int:
        """Return a non-negative integer in its only minimal encoding."""
        raw = self.string()
        if (raw and raw[0] & 0x80) or (len(raw) > 1 and raw[0] == 0 and not raw[1] & 0x80) or raw == b"\0":
            raise TrustError(f"the {self._what} holds a number that is not minimally encoded")
        return int.from_bytes(raw, "big")

    def end(self) -> None:
        """Refuse anything left over."""
        if self._at != len(self._data):
            raise TrustError(f"the {self._what} has {len(self._data) - self._at} bytes too many")


def string(data: bytes) -> bytes:
    """Encode a length-prefixed string."""
    return struct.pack(">I", len(data)) + data
