"""What the tools of others write: read so that no two readers can take it for two different things."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from adaptergit.errors import DAMAGED_WEIGHTS, PackageError
from adaptergit.package.canonical import TwiceError, unique

MAX_HEADER_BYTES = 16 * 2**20
"""Of a safetensors file. A hundred thousand tensors take less: a larger one is made to exhaust a reader."""


def config(data: bytes, *, where: str) -> dict[str, Any]:
    """Parse a JSON object strictly.

    Raises:
        PackageError: Not JSON, not an object, a key that appears twice, or a number that is not finite.
    """
    try:
        raw = json.loads(data, object_pairs_hook=unique, parse_float=_finite, parse_constant=_refuse)
    except TwiceError as error:
        raise PackageError(str(error), where=where) from error
    except (ValueError, RecursionError) as error:
        raise PackageError(f"not JSON: {error}", where=where) from error
    if not isinstance(raw, dict):
        raise PackageError("expected a JSON object", where=where)
    return raw


def check_header(data: bytes, *, where: str) -> None:
    """Refuse a safetensors file whose header is too large, or names a tensor twice: readers differ in which they take.

    Args:
        data: The file, or as much of it as there is to judge its header by.
        where: What people call it.

    Raises:
        PackageError: It does.
    """
    size = check_header_size(data[:8], where=where)
    try:
        json.loads(data[8 : 8 + size], object_pairs_hook=unique)
    except TwiceError as error:
        raise PackageError(f"in the header, {error}", where=where) from error
    except (ValueError, RecursionError) as error:
        raise PackageError(f"not a valid safetensors file: {error}", where=where, hint=DAMAGED_WEIGHTS) from error


def check_header_size(start: bytes, *, where: str) -> int:
    """Return how large the header of a safetensors file is, told by the first eight bytes.

    Raises:
        PackageError: Larger than one may be.
    """
    size = int.from_bytes(start[:8], "little")
    if size > MAX_HEADER_BYTES:
        raise PackageError(
            f"not a valid safetensors file: a header of {size} bytes, the limit is {MAX_HEADER_BYTES}",
            where=where,
            hint=DAMAGED_WEIGHTS,
        )
    return size


def check_header_of(path: Path) -> None:
    """See :func:`check_header_size`; a file that cannot be read is judged by whoever opens it next."""
    try:
        with path.open("rb") as stream:
            start = stream.read(8)
    except OSError:
        return
    check_header_size(start, where=str(path))


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        _refuse(text)
    return number


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text[:40]} is not a finite number")
