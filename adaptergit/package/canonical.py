"""JSON that is signed: written in one way (RFC 8785), read strictly."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, NoReturn

import rfc8785

from adaptergit.errors import PackageError

MAX_DEPTH = 64
"""Of objects and arrays in each other."""
_SURROGATE = re.compile(rb"(?<!\\)(?:\\\\)*\\u[dD][89a-fA-F]")


def dumps(value: Any) -> bytes:
    """Serialise to RFC 8785 canonical JSON with one final newline."""
    return bytes(rfc8785.dumps(value)) + b"\n"


def loads(data: bytes, *, where: str, limit: int) -> Any:
    """Parse JSON that somebody else wrote.

    Raises:
        PackageError: Over ``limit`` bytes, not UTF-8, not JSON, a duplicate key, a float or a non-number.
    """
    if len(data) > limit:
        raise PackageError(f"{len(data)} bytes, the limit is {limit}", where=where)

    def refuse(text: str) -> NoReturn:
        raise PackageError(f"the number {text} is not allowed: signed documents hold integers only", where=where)

    refuse_surrogates(data, where)
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_float=refuse, parse_constant=refuse)
        if _deeper(value, MAX_DEPTH):
            raise RecursionError
        return value
    except UnicodeDecodeError as error:
        raise PackageError(f"not UTF-8 at byte {error.start}", where=where) from error
    except TwiceError as error:
        raise PackageError(str(error), where=where) from error
    except json.JSONDecodeError as error:
        raise PackageError(f"not JSON: {error.msg}", where=f"{where}:{error.lineno}") from error
    except (RecursionError, ValueError) as error:
        raise PackageError(
            "not JSON that a manifest may hold: nested too deeply or a number too long", where=where
        ) from error


def _deeper(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit + 1):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return False
    return True


class TwiceError(ValueError):
    """A key appears twice in one object."""


def unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object of pairs; for ``json.loads(…, object_pairs_hook=unique)``.

    Raises:
        TwiceError: A key appears twice.
    """
    result = dict(items)
    if len(result) != len(items):
        seen: set[str] = set()
        twice = next(key for key, _ in items if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise TwiceError(f"the key {twice[:100]!r} appears twice")
    return result


def refuse_surrogates(data: bytes, where: str) -> None:
    """Refuse escapes of UTF-16 surrogates: half a pair is no text, and whole pairs are better written out.

    Raises:
        PackageError: There is one.
    """
    if _SURROGATE.search(data):
        raise PackageError("an escape of a UTF-16 surrogate (\\ud8…)", where=where, hint="write the character itself")


def refuse_half_characters(line: bytes, value: Any, where: str) -> None:
    """Refuse what was parsed of a line if it holds half of a character, which no file can hold.

    Raises:
        PackageError: It does.
    """
    if _SURROGATE.search(line):  # there are few
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise PackageError("half of a character (\\ud8… alone)", where=where) from error


def sha256(data: bytes) -> str:
    """Return the sha256 of ``data`` as 64 lower-case hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
